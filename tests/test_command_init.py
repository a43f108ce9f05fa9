"""`goodinit init` as its user meets it: what it writes and prints, and its exit codes."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model, save_file

import goodinit
from goodinit import Report
from goodinit.command import initialization
from user_project import call, printed_json, refused

NOISE = ("--data", "noise:3x9x9")
SOURCE = Path(goodinit.__file__).parent.parent


def stds(net, x):
    return [layer.std for layer in goodinit.measure(net, x)]


def test_weights_in_the_file_have_the_outputs_that_the_report_says(project):
    x = torch.randn(40, 3, 9, 9)
    save_file({"x": x}, "batch.safetensors")
    result = call("init", "net:Net", "--data", "batch.safetensors", "--out", "w.safetensors", "--report", "r.json")
    assert result.exit_code == 0, result.output
    Net = importlib.import_module("net").Net
    net = Net()
    load_model(net, "w.safetensors")
    assert stds(net, x) == pytest.approx([1] * 4, abs=1e-3)
    report = Report.from_json(Path("r.json").read_text())
    size = Path("w.safetensors").stat().st_size
    assert result.stdout.splitlines() == [
        *str(report).splitlines(),
        "net:Net on batch.safetensors; seed 0",
        f"Saved w.safetensors ({size:,} bytes); load it with safetensors.torch.load_model(model, 'w.safetensors')",
        "Saved r.json",
    ]
    assert result.stderr == ""


def test_options_reach_the_initialization(project):
    found = printed_json(
        "init", "net:make_model", *NOISE, "--arg", "width=5", "--arg", "depth=1", "--skip", "body.0", "--target-std", "head=3",
        "--target-std", "*=2", "--pre-init", "none", "--batches", "3", "--batch-size", "16", "--dtype", "float64", "--seed", "4",
    )  # fmt: skip
    records = {record["name"]: record for record in found["report"]["records"]}
    assert [(r["status"], r["target"]) for r in records.values()] == [("skipped", 2), ("scaled", 2), ("scaled", 3)]
    assert records["head.weight"]["shape"] == [4, 5]
    assert found["report"]["batches"] == 3
    assert found["report"]["batch"] == "(16, 3, 9, 9) float64"
    assert found["seed"] == 4
    assert found["data"].startswith("48 samples of noise of unit variance, 3x9x9; no real data, float32 made float64 as the ")


def test_the_target_chosen_by_what_signal_and_gradient_show(project):
    found = printed_json("init", "net:Net", *NOISE, "--target-std", "auto")
    assert found["report"]["choice"] is not None
    assert 1 < found["report"]["forward_passes"] <= 11


@pytest.mark.parametrize(
    ("labels", "head"),
    [(None, 0.1), (torch.arange(40) % 4, 1.0), (torch.rand(40), 0.1)],
    ids=["no labels", "classes", "numbers"],
)
@pytest.mark.parametrize("name", ["x", "images"])
def test_chosen_targets_let_classes_be_told_apart(project, labels, head, name):
    save_file({name: torch.randn(40, 3, 9, 9), **({} if labels is None else {"labels": labels})}, "batch.safetensors")
    found = printed_json("init", "net:Net", "--data", "batch.safetensors", "--target-std", "auto")
    assert found["report"]["records"][-1]["std_after"] == pytest.approx(head, rel=1e-3)
    refused(2, "init", "net:Net", "--data", "batch.safetensors", "--target-std", "auto", "--batches", "2")


def test_centring_and_other_variances(project):
    x = torch.randn(64, 3, 9, 9)
    save_file({"x": x}, "batch.safetensors")
    save = ("--data", "batch.safetensors", "--out", "w.safetensors")
    assert call("init", "net:Net", *save, "--center", "--target-mean", "1").exit_code == 0
    net = importlib.import_module("net").Net()
    load_model(net, "w.safetensors")
    first, *_, last = goodinit.measure(net, x)
    assert (first.mean, last.mean) == pytest.approx((1, 0), abs=1e-3)
    assert call("init", "net:Net", *save, "--variance", "samples").exit_code == 0
    load_model(net, "w.safetensors")
    assert [layer.sample_std for layer in goodinit.measure(net, x)] == pytest.approx([1] * 4, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variance", "sample"], "--variance must be all, samples or channels; got 'sample' (did you mean 'samples'?)"),
        (["--target-mean", "1"], "--target-mean is what --center brings the channels' means to: give both"),
        (["--pre-init", "orthogonal"], "got 'orthogonal' (did you mean 'orthonormal'?)"),
    ],
)
def test_ways_to_initialize_that_cannot_be_meant(project, options, message):
    assert message in refused(2, "init", "net:Net", *NOISE, *options)


def weights(*options, seed=0):
    assert call("init", "net:Net", *NOISE, "--out", "w.safetensors", "--seed", seed, *options).exit_code == 0
    return load_file("w.safetensors")


def test_weights_are_orthonormal_gaussian_or_the_model_s_own_up_to_their_scale(project):
    gram = {}
    for pre_init in ("orthonormal", "structured", "gaussian"):
        w = weights("--pre-init", pre_init)["head.weight"]
        gram[pre_init] = (w @ w.T / w.square().sum(1).mean() - torch.eye(4)).abs().max().item()
    assert gram["orthonormal"] < 1e-5
    assert gram["structured"] < 1e-5
    assert gram["gaussian"] > 0.05
    torch.manual_seed(0)
    Net = importlib.import_module("net").Net
    own, kept = Net().head.weight, weights("--pre-init", "none")["head.weight"]
    assert (kept / own).std() < 1e-6


def test_what_is_not_initialized_follows_from_the_seed_too(project):
    one, again, other = (weights("--skip", "head", seed=seed)["head.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def run(folder, *arguments, code="", **options):
    """The command in a process of its own, after ``code``."""
    program = (
        f"import sys; {code}\nsys.argv = ['goodinit', *{list(map(str, arguments))!r}]\nfrom goodinit.__main__ import main; main()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, text=True, env=environment,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip


def test_the_same_command_writes_the_same_bytes(project):
    arguments = ("init", "net:tied", "--data", "tokens:5", "--out", "w.safetensors", "--seed", "3")
    digests = []
    for process in (None, run(project, *arguments)):
        result = call(*arguments) if process is None else process.communicate(timeout=120)
        assert result.exit_code == 0 if process is None else process.returncode == 0, result
        digests.append(hashlib.sha256(Path("w.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_tied_weights_are_saved_once_and_loaded_as_tied(project):
    assert call("init", "net:tied", "--data", "tokens:5", "--out", "w.safetensors").exit_code == 0
    assert "3.weight" not in load_file("w.safetensors")
    net = importlib.import_module("net").tied()
    load_model(net, "w.safetensors")
    assert torch.equal(net[3].weight, net[0].weight)


def test_it_begins_with_weights_that_are_given(project):
    first = weights(seed=1)
    again = printed_json(
        "init", "net:Net", *NOISE, "--weights", "w.safetensors", "--pre-init", "none", "--skip", "*", "--out", "v.safetensors"
    )
    assert {r["status"] for r in again["report"]["records"]} == {"skipped"}
    assert all(torch.equal(t, first[name]) for name, t in load_file("v.safetensors").items())


@pytest.mark.parametrize("more", [(), ("--skip", "head"), ("--pre-init", "none")])
def test_weights_that_are_given_and_all_drawn_anew_are_told_of(project, more):
    weights(seed=1)
    result = call("init", "net:Net", *NOISE, "--weights", "w.safetensors", *more)
    assert result.exit_code == 0
    warning = "goodinit: warning: all matrices of 'w.safetensors' are drawn anew: --pre-init none keeps and scales them"
    assert (warning in result.stderr) == (not more)


def test_nothing_but_json_on_standard_output(project):
    result = call("init", "net:noisy", *NOISE, "--json", "--out", "w.safetensors", "--report", "r.json")
    found = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert result.stderr == "made a net\n"
    assert {**found, "report": None} == {
        "goodinit": goodinit.__version__, "model": "net:noisy", "seed": 0, "ok": True, "out": "w.safetensors",
        "data": "64 samples of noise of unit variance, 3x9x9; no real data", "reports": ["r.json"], "report": None,
    }  # fmt: skip
    assert found["report"] == json.loads(Path("r.json").read_text())


def test_without_a_file_it_says_that_nothing_was_saved(project):
    result = call("init", "net:Net", *NOISE)
    assert result.exit_code == 0
    assert "The weights were not saved: --out FILE.safetensors does that." in result.stdout
    assert "64 samples of noise of unit variance, 3x9x9; no real data; seed 0" in result.stdout


def test_pages_show_the_signal_before_and_after(project):
    pytest.importorskip("jinja2")
    result = call("init", "net:Net", *NOISE, "--report", "r.html", "--report", "r.png")
    assert result.exit_code == 0, result.output
    assert "net:Net" in Path("r.html").read_text()
    assert Path("r.png").stat().st_size > 1000


def test_a_weight_that_cannot_be_scaled_is_a_warning_or_a_failure(project):
    np.savez("zeros.npz", x=np.zeros((8, 3, 9, 9), np.float32))
    for options, code in (((), 0), (("--check",), 1)):
        result = call("init", "net:Net", "--data", "zeros.npz", *options)
        assert result.exit_code == code
        assert result.stderr.startswith("goodinit: warning: lsuv_: 'body.0.weight' is no-signal")
        assert result.stderr.count("\n") == 1
    assert call("init", "net:Net", *NOISE, "--check").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nett:Net", *NOISE], 2, r"there is no module 'nett' .*\(did you mean 'net'\?\)"),
        (["net:Nett", *NOISE], 2, r"net has no 'Nett' \(did you mean 'Net'"),
        (["broken:x", *NOISE], 1, r"importing broken raised ValueError: .*\nat broken.py:3"),
        (["net:make_model", *NOISE], 2, "net:make_model needs width and depth: add --arg width=… --arg depth=…"),
        (["net:with_optimizer", *NOISE], 1, "net:with_optimizer returned a tuple of Net, dict; it should return a torch.nn"),
        (["net:Net", *NOISE, "--arg", "width"], 2, "--arg: expected name=value"),
        (["net:Net", *NOISE, "--skip", "hed"], 2, r"skip: the pattern 'hed' matches no parameter .* \(did you mean 'head'"),
        (["net:Net", *NOISE, "--target-std", "hed=2"], 2, r"target_std: the pattern 'hed' matches no .* \(did you mean 'head'"),
        (["net:Net", *NOISE, "--target-std", "0"], 2, "target_std must be a positive number .* got 0.0"),
        (["net:Net", *NOISE, "--pre-init", "normal"], 2, "must be orthonormal, structured, gaussian or none; got 'normal'"),
        (["net:Net", *NOISE, "--dtype", "half"], 2, "--dtype must be float32, float64, float16 or bfloat16; got 'half'"),
        (["net:Net", *NOISE, "--device", "gpu"], 2, "--device gpu: torch calls a GPU cuda; try --device cuda"),
        (["net:Net", *NOISE, "--batches", "0"], 2, "--batches must be 1 or more; got 0"),
        (["net:Net", *NOISE, "--weights", "none.safetensors"], 2, "--weights: there is no file 'none.safetensors'"),
        (["net:Net", *NOISE, "--out", "none/w.safetensors"], 2, "weights cannot be saved as 'none/w.safetensors': No such file"),
        (["net:Net", *NOISE, "--out", "w.pt"], 2, "its name should end in .safetensors"),
        (["net:Net", *NOISE, "--report", "r.doc"], 2, "a report cannot be saved as 'r.doc': its name should end in .html"),
        (["net:Net", *NOISE, "--out", "w.safetensors", "--report", "w.safetensors"], 2, "'w.safetensors' is given twice"),
        (["net:Net", "--data", "batch.npz", "--report", "batch.npz"], 2, "'batch.npz' is given twice"),
        (["net:Net", "--data", "none.npz"], 2, "there is no file or folder 'none.npz'"),
        (["net:Net", "--data", "batch.pt"], 2, "'batch.pt' is not read: torch.save makes pickles"),
        (["net:Net", "--data", "nan.npz"], 1, r"nan.npz: 2 of the 1944 values of 'x', shape \(8, 3, 9, 9\), are NaN or infinity"),
        (["net:Net", "--data", "objects.npz"], 1, "'objects.npz' holds pickled objects"),
        (["net:Net", "--data", "several.npz"], 1, r"holds a \(2, 3\) float64, b \(2,\) float64; the forward of Net takes x"),
        (["net:Net"], 2, "Missing option '--data'"),
        (["net:Net", *NOISE, "--ouput", "w"], 2, "No such option: --ouput"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_an_exit_code(project, arguments, code, message):
    x = np.zeros((8, 3, 9, 9))
    np.savez("batch.npz", x=x)
    x[0, 0, 0, :2] = np.nan
    np.savez("nan.npz", x=x)
    np.savez("objects.npz", x=np.array([{}]))
    np.savez("several.npz", a=np.zeros((2, 3)), b=np.zeros(2))
    torch.save(x, "batch.pt")
    before = {path.name for path in project.iterdir()}
    said = refused(code, "init", *arguments)
    assert re.search(message, said), said
    assert {path.name for path in project.iterdir()} - before <= {"__pycache__"}


def test_data_that_the_model_rejects_says_both_shapes_and_where(project):
    said = refused(1, "init", "net:Net", "--data", "noise:1x9x9", "--out", "w.safetensors")
    assert said.startswith("goodinit: the forward of Net raised RuntimeError: Given groups=1, weight of size [8, 3, 3, 3]")
    assert "raised in conv2d with the weight 'body.0.weight' of shape (8, 3, 3, 3) on input of shape (64, 1, 9, 9)" in said
    assert "the model was given (64, 1, 9, 9) float32" in said
    assert re.search(r"\nat net.py:\d+, in forward: return self.head", said)
    assert said.endswith("\nthe data: 64 samples of noise of unit variance, 1x9x9; no real data\n")
    assert not Path("w.safetensors").exists()


def test_the_place_of_an_error_is_shown_whole_where_it_is_asked_for(project):
    result = call("init", "net:Net", "--data", "noise:1x9x9", "--traceback")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "RuntimeError: Given groups=1" in result.stderr


def test_paths_are_checked_before_the_model_is_made(project, monkeypatch):
    monkeypatch.setattr(initialization.Setup, "prepare", lambda *_: pytest.fail("the model was made first"))
    for options in (["--out", "none/w.safetensors"], ["--report", "none/r.json"], ["--report", "none/r.png"]):
        assert refused(2, "init", "net:Net", *NOISE, *options)


def test_bugs_have_a_traceback(project, monkeypatch):
    monkeypatch.setattr(initialization, "lsuv_", lambda *_, **__: 1 / 0)
    assert isinstance(call("init", "net:Net", *NOISE).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("package", "option", "file", "extra"),
    [("matplotlib", "--report", "r.png", "plot"), ("safetensors", "--out", "w.safetensors", "cli")],
)
def test_what_is_not_installed(project, monkeypatch, package, option, file, extra):
    monkeypatch.setitem(sys.modules, package, None)
    said = refused(1, "init", "net:Net", *NOISE, option, file)
    assert said == f"goodinit: {package} is not installed; it comes with the extra '{extra}': pip install 'goodinit[{extra}]'\n"


def test_a_full_disk_leaves_nothing_half_written(project):
    """A process whose files may not grow beyond a size: what a full disk does to a write, done by the kernel."""
    Path("w.safetensors").write_bytes(b"old")
    full = "import resource; sys.dont_write_bytecode = True; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))"
    before = sorted(project.rglob("*"))
    process = run(
        project, "init", "net:Net", *NOISE, "--arg", "width=32", "--out", "w.safetensors", "--report", "r.json", code=full
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert re.fullmatch(rf"goodinit: cannot save w.safetensors in '{project}': File too large; [\d,]+ bytes\n", err)
    assert Path("w.safetensors").read_bytes() == b"old"
    assert sorted(project.rglob("*")) == before


def test_ctrl_c_ends_it_without_a_trace(project):
    (project / "slow.py").write_text("import time\ndef make():\n    print('begun', flush=True)\n    time.sleep(100)\n")
    process = run(project, "init", "slow:make", *NOISE, "--out", "w.safetensors")
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "goodinit: interrupted\n")
    assert not Path("w.safetensors").exists()


def test_progress_is_shown_on_a_terminal_only(project):
    """Standard error is a terminal, standard output is not: what is shown there is neither lost nor mixed in."""
    reader, terminal = pty.openpty()
    process = run(project, "init", "net:Net", *NOISE, "--batches", "4", "--batch-size", "8", "--json", stderr=terminal)
    os.close(terminal)
    out, shown = process.communicate(timeout=120)[0], b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:  # the other end is closed
            break
        shown += part
    os.close(reader)
    assert process.returncode == 0
    assert json.loads(out)["ok"]
    assert b"goodinit: making net:Net" in shown
    off = call("init", "net:Net", *NOISE, "--batches", "4", "--batch-size", "8", "--json")
    assert off.stderr == ""


def test_a_lazy_model_is_saved_and_read_again(project):
    Path("lazy.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(2))\n"
    )
    result = call("init", "lazy:make", "--data", "noise:5", "--out", "w.safetensors")
    assert result.exit_code == 0, result.output
    load = (
        "load it with safetensors.torch.load_model(model, 'w.safetensors'), once a forward has given the lazy layers their form"
    )
    assert load in result.stdout
    model = importlib.import_module("lazy").make()
    model(torch.randn(1, 5))
    load_model(model, "w.safetensors")
    result = call(
        "init", "lazy:make", "--weights", "w.safetensors", "--data", "noise:5", "--pre-init", "none", "--out", "v.safetensors"
    )
    assert result.exit_code == 0, result.output
    again = load_file("v.safetensors")
    assert torch.allclose(again["0.weight"], model[0].weight, rtol=1e-4)  # which had been scaled on the same data
