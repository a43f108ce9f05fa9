"""`goodinit inspect` as its user meets it: what it prints and writes, and its exit codes."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import goodinit
from goodinit import Signal
from user_project import call, printed_json, refused

NOISE = ("--data", "noise:3x9x9")
FAR = ("--data", "far.npz")
UNJUDGED = "Gradients were not judged: --loss does that.\n"


def without_seconds(signal):
    return {**json.loads(signal.to_json()), "seconds": None}


def test_it_prints_what_measure_finds(project):
    x = torch.randn(40, 3, 9, 9)
    save_file({"x": x}, "batch.safetensors")
    result = call("inspect", "net:Net", "--data", "batch.safetensors", "--report", "s.json", "--seed", "5")
    assert result.exit_code == 0, result.output
    torch.manual_seed(5)
    Net = importlib.import_module("net").Net
    measured, saved = goodinit.measure(Net(), {"x": x}), Signal.from_json(Path("s.json").read_text())
    assert without_seconds(saved) == without_seconds(measured)
    assert result.stdout == f"{saved}\nnet:Net on batch.safetensors; seed 5\n{UNJUDGED}Saved s.json\n"
    assert result.stderr == ""


def test_gradients_with_a_loss(project):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3, 9, 9)).astype(np.float32), rng.integers(0, 4, 20)
    np.savez("batch.npz", x=x, y=y)
    found = printed_json("inspect", "net:Net", "--data", "batch.npz", "--loss", "cross-entropy")["signal"]
    torch.manual_seed(0)
    Net = importlib.import_module("net").Net
    net = Net()
    assert found["loss"] == pytest.approx(F.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y)).item(), rel=1e-5)
    assert all(layer["weight_grad_norm"] > 0 for layer in found["layers"])
    other = printed_json("inspect", "net:Net", "--data", "batch.npz", "--loss", "net:log_cosh")["signal"]
    assert other["loss"] not in (None, found["loss"])
    own = printed_json("inspect", "net:Net", *NOISE, "--loss", "net:energy")["signal"]
    assert own["loss"] > 0


def test_json(project):
    result = call("inspect", "net:noisy", *NOISE, "--json")
    found = json.loads(result.stdout)
    assert (result.stdout.count("\n"), result.stderr) == (1, "made a net\n")
    signal = Signal.from_json(json.dumps(found.pop("signal")))
    assert found == {
        "goodinit": goodinit.__version__, "model": "net:noisy", "seed": 0, "reports": [],
        "data": "64 samples of noise of unit variance, 3x9x9; no real data",
        "healthy": signal.healthy, "verdict": signal.verdict,
        "findings": [vars(finding) for finding in signal.findings],
    }  # fmt: skip


def test_an_unhealthy_model_fails_a_check(project):
    np.savez("batch.npz", x=np.random.default_rng(0).standard_normal((64, 5)))
    result = call("inspect", "net:dead", "--data", "batch.npz", "--check")
    assert result.exit_code == 1, result.output
    assert "0.weight" in result.stdout
    assert call("inspect", "net:dead", "--data", "batch.npz").exit_code == 0


def test_a_model_after_init_passes_a_check(project):
    assert call("init", "net:Net", *NOISE, "--out", "w.safetensors").exit_code == 0
    result = call("inspect", "net:Net", *NOISE, "--weights", "w.safetensors", "--check")
    assert result.exit_code == 0, result.output
    stds = [
        layer["std"] for layer in printed_json("inspect", "net:Net", *NOISE, "--weights", "w.safetensors")["signal"]["layers"]
    ]
    assert stds == pytest.approx([1] * 4, abs=1e-3)


def test_pages_and_pictures(project):
    pytest.importorskip("jinja2")
    result = call("inspect", "net:Net", *NOISE, "--report", "s.html", "--report", "s.svg")
    assert result.exit_code == 0, result.output
    assert "net:Net" in Path("s.html").read_text()
    assert Path("s.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nett:Net", *NOISE], 2, r"there is no module 'nett' .*\(did you mean 'net'\?\)"),
        (["net:make_model", *NOISE], 2, "net:make_model needs width and depth: add --arg width=… --arg depth=…"),
        (["net:Net", "--data", "nan.npz"], 1, r"nan.npz: 1 of the 486 values of 'x', shape \(2, 3, 9, 9\), are NaN or infinity"),
        (["net:Net", *NOISE, "--loss", "cross-entropie"], 2, r"--loss must be .* \(did you mean 'cross-entropy'\?\)"),
        (["net:Net", *NOISE, "--loss", "cross-entropy"], 1, "--loss cross-entropy needs labels, and the data holds none"),
        (["net:Net", *NOISE, "--loss", "output"], 2, "the loss must be one number"),
        (["net:Net", *FAR, "--loss", "cross-entropy"], 1, "the loss cross-entropy, .* to 77, raised IndexError: Target 77"),
        (["net:Net", *NOISE, "--report", "none/s.html"], 2, "a report cannot be saved as 'none/s.html'"),
        (["net:Net", "--data", "batch.pkl"], 2, "'batch.pkl' is not read: it is a pickle"),
        (["net:Net", "--data", "noise:1x9x9"], 1, r"'body.0.weight' of shape \(8, 3, 3, 3\) on input of shape \(64, 1, 9, 9\)"),
        (["net:Net", "--data", "pixels.npz"], 1, "uint8 are pixels as they lie in a file; a model takes them as floats"),
        (["net:Net", "--data", "pixels.npz", "--image-size", "8"], 2, "the samples of pixels.npz have a size"),
        (["net:Net", *NOISE, "--image-size", "8"], 2, "--image-size is for images in a folder or of the hub"),
        (["net:Net", *NOISE, "--lr", "0.1"], 2, "--lr judges the updates that follow from gradients, so it needs --loss"),
        (["net:Net", *NOISE, "--loss", "net:energy", "--lr", "0"], 2, "lr must be a positive number; got 0.0"),
        (["net:Net", *NOISE, "--skip", "head"], 2, "No such option: --skip"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_an_exit_code(project, arguments, code, message):
    x = np.zeros((2, 3, 9, 9))
    np.savez("far.npz", x=x, y=np.array([0, 77]))
    x[0, 0, 0, 0] = np.inf
    np.savez("nan.npz", x=x)
    np.savez("pixels.npz", x=np.ones((2, 3, 9, 9), np.uint8))
    Path("batch.pkl").touch()
    said = refused(code, "inspect", *arguments)
    assert re.search(message, said), said


def test_a_full_disk_leaves_nothing_half_written(project):
    """A process whose files may not grow beyond a size: what a full disk does to a write, done by the kernel."""
    Path("s.html").write_bytes(b"old")
    before = sorted(project.rglob("*"))
    code = (
        "import resource, sys; sys.dont_write_bytecode = True; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "from goodinit.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", "net:Net", *NOISE, "--report", "s.html"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"goodinit: cannot save s.html in '{project}': File too large; [\d,]+ bytes\n", done.stderr)
    assert Path("s.html").read_bytes() == b"old"
    assert sorted(project.rglob("*")) == before


def test_the_command_as_it_is_installed(project):
    """A process, a model of transformers, and nothing on standard output but JSON."""
    pytest.importorskip("transformers")
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": 1,
        "n_embd": 8,
        "n_head": 1,
        "vocab_size": 20,
    }
    Path("gpt").mkdir()
    Path("gpt/config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "goodinit", "inspect", "transformers:gpt", "--data", "tokens:6", "--batch-size", "4", "--json"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["signal"]["batch"] == "(4, 6) int64"
    assert "transformer.h.0.attn.c_attn.weight" in [layer["name"] for layer in found["signal"]["layers"]]
