"""`goodinit reproduce` with real processes: interrupted, shared, on a full disk; its rows, and what it refuses."""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("datasets")

from goodinit.cli import app
from goodinit.paper.catalogue import names
from goodinit.paper.config import Training, run_of
from goodinit.paper.experiment import experiments, read
from goodinit.paper.results import Results
from image_sets import write_set

EXPERIMENT = """
title = "a small one"
recipe = "mnist"
set = { activation = "relu", train_images = 200, test_images = 50, init_batch = 32, evaluations = 3 }
columns = { init = ["lsuv", "he"] }
[[rows]]
name = "softmax"
[[rows]]
name = "hinge"
set = { loss = "hinge" }
[budgets.short]
note = "a few steps"
set = { iterations = ITERATIONS }
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, caches of its own, and an experiment."""
    folder = tmp_path_factory.mktemp("runs")
    write_set(folder / "data" / "mnist", count=250, size=(28, 28), channels=1, image="image")
    return folder


def experiment(place, iterations):
    path = place / f"own-{iterations}.toml"
    path.write_text(EXPERIMENT.replace("ITERATIONS", str(iterations)))
    return str(path)


def environment(place):
    return {
        **os.environ, "GOODINIT_CACHE": str(place / "cache"), "HF_DATASETS_CACHE": str(place / "arrow"),
        "NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb",
    }  # fmt: skip


def arguments(place, what, results, *more):
    return ["reproduce", what, "--data-dir", str(place / "data"), "--results", str(results), "--threads", "1", *more]


def call(place, monkeypatch, what, results, *more):
    """In this process."""
    for key, value in environment(place).items():
        monkeypatch.setenv(key, value)
    return CliRunner().invoke(app, arguments(place, what, results, *more))


def start(place, what, results, *more, before=""):
    """In a process of its own that keeps a checkpoint of every iteration."""
    words = ["goodinit", *arguments(place, what, results, "--save-every", "0", *more)]
    code = f"{before}\nimport sys\nsys.argv = {words!r}\nfrom goodinit.__main__ import main\nmain()\n"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(place)
    )


@pytest.fixture(scope="module")
def killed(place):
    """Results of an experiment of 20 iterations: one run is finished, and the process was killed after the 13th of the next."""
    what, results = experiment(place, 20), place / "killed"
    process = start(place, what, results, "--only", "softmax/he,hinge/he")
    for line in process.stdout:
        if "[2/2]" in line:
            break
    for line in process.stdout:
        if "iteration 13" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(rows(results)) == 1
    return what, results


@pytest.fixture
def broken_off(killed, tmp_path):
    """The experiment, and results of a test's own."""
    what, results = killed
    return what, Path(shutil.copytree(results, tmp_path / "r"))


def rows(results):
    path = results / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def by_run(results):
    return {json.dumps(row["run"], sort_keys=True): row for row in rows(results)}


def test_a_table_and_its_rows(place, monkeypatch, tmp_path):
    done = call(place, monkeypatch, experiment(place, 5), tmp_path / "r", "--seeds", "2")
    assert done.exit_code == 0, done.output
    found = rows(tmp_path / "r")
    assert [(row["seed"], row["row"], row["column"]) for row in found] == [
        (seed, row, column) for seed in (0, 1) for row in ("softmax", "hinge") for column in ("lsuv", "he")
    ]
    row = found[0]
    assert row["experiment"] == "own-5"
    assert row["budget"] == "short"
    assert row["command"] == "goodinit reproduce own-5.toml --budget short --seeds 2"
    assert row["device"] == "cpu"
    assert row["machine"]["threads"] == 1
    assert row["versions"]["torch"] == importlib.metadata.version("torch")
    assert [iteration for iteration, _, _ in row["evaluations"]] == [2, 3, 5]
    assert row["final_accuracy"] == row["evaluations"][-1][1]
    assert row["data"]["train"]["encodings"] == {"PNG": 250}
    assert row["data"]["from"] == "folder"
    assert row["images_per_second"] > 0
    settings = dict(row["run"])
    assert isinstance(run_of(settings.pop("kind"), settings, "row"), Training)
    assert len({row["weights_sha256"] for row in found}) == 8
    assert "[1/8] softmax/lsuv, seed 0: mnist-fitnet-mnist-relu-lsuv-5-seed0" in done.output
    assert not re.search(r"(?<![\d,])32 images", done.output)
    assert re.search(r"iteration 5 of 5: loss \d+\.\d+, test accuracy \d+\.\d+%, 0:00 left", done.output)
    assert "rows in " in done.output
    assert not list((tmp_path / "r" / ".checkpoints").glob("*.pt"))


def test_finished_runs_are_not_done_again(place, monkeypatch, tmp_path):
    what = experiment(place, 3)
    call(place, monkeypatch, what, tmp_path / "r", "--only", "softmax")
    before = (tmp_path / "r" / "runs.jsonl").read_text()
    done = call(place, monkeypatch, what, tmp_path / "r", "--only", "softmax/he,hinge/he")
    assert "2 runs, 1 of them finished before; device cpu" in done.output
    assert [(row["row"], row["column"]) for row in rows(tmp_path / "r")] == [
        ("softmax", "lsuv"),
        ("softmax", "he"),
        ("hinge", "he"),
    ]
    assert (tmp_path / "r" / "runs.jsonl").read_text().startswith(before)
    left = tmp_path / "r" / ".checkpoints" / f"{read(Path(what)).selected('short')[0].run}"
    left = Path(f"{left}-{read(Path(what)).selected('short')[0].run.key}.pt")
    left.write_text("of a process that was killed between the row and this")
    assert "4 runs" in call(place, monkeypatch, what, tmp_path / "r").output
    assert not left.exists()
    again = call(place, monkeypatch, what, tmp_path / "r", "--only", "softmax/he,hinge/he")
    assert "2 finished before; rows in" in again.output


def test_another_precision_is_another_run(place, monkeypatch, tmp_path):
    what = experiment(place, 3)
    for more in ([], ["--precision", "bfloat16"], ["--precision", "float32"]):
        call(place, monkeypatch, what, tmp_path / "r", "--only", "softmax/he", *more)
    assert [row["run"]["precision"] for row in rows(tmp_path / "r")] == ["float32", "bfloat16"]


def test_killed_at_any_moment_it_ends_with_the_same_weights(place, monkeypatch, tmp_path):
    """kill -9, twice, at moments that differ from run to run of this test."""
    what, only = experiment(place, 20), ["--only", "softmax/lsuv,hinge/he"]
    whole = call(place, monkeypatch, what, tmp_path / "whole", *only)
    assert whole.exit_code == 0, whole.output
    expected = by_run(tmp_path / "whole")
    kills, taken_up = 0, 0
    while kills < 2:
        process = start(place, what, tmp_path / "killed", *only)
        for line in process.stdout:
            taken_up += "goes on from iteration" in line
            if "training and" in line or "goes on from" in line or "iteration" in line:
                time.sleep(random.uniform(0, 0.3))
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    last = start(place, what, tmp_path / "killed", *only)
    output, _ = last.communicate(timeout=200)
    assert last.returncode == 0, output
    assert taken_up + ("goes on from iteration" in output)
    found = by_run(tmp_path / "killed")
    assert found.keys() == expected.keys()
    for key, row in found.items():
        assert row["weights_sha256"] == expected[key]["weights_sha256"]
        assert row["evaluations"] == expected[key]["evaluations"]
    assert sum(row["interruptions"] for row in found.values()) >= 1


@pytest.mark.slow
def test_several_processes_share_the_runs_of_a_table(place, tmp_path):
    processes = [start(place, experiment(place, 30), tmp_path / "r", "--seeds", "2") for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(rows(tmp_path / "r")) == len(by_run(tmp_path / "r")) == 8
    shares = [output.count("loss") > 0 for output in outputs]
    assert shares == [True, True]  # both had something to do


def test_a_full_disk_keeps_rows_and_the_last_checkpoint(place, monkeypatch, broken_off):
    """No file may be larger than a checkpoint is: the kernel refuses it as it would on a full disk."""
    what, results = broken_off
    (checkpoint,) = (results / ".checkpoints").glob("*.pt")
    before, finished = checkpoint.read_bytes(), (results / "runs.jsonl").read_bytes()
    limit = len(before) - 10_000
    full = start(
        place, what, results, "--only", "hinge/he",
        before=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))",
    )  # fmt: skip
    output, _ = full.communicate(timeout=200)
    assert full.returncode == 1
    assert f"goodinit: cannot save {checkpoint.name} in '" in output
    assert "Traceback" not in output
    assert checkpoint.read_bytes() == before
    assert (results / "runs.jsonl").read_bytes() == finished
    done = call(place, monkeypatch, what, results, "--only", "hinge/he")
    assert "goes on from iteration" in done.output


def test_a_checkpoint_from_another_configuration(place, monkeypatch, broken_off):
    _, results = broken_off
    (checkpoint,) = (results / ".checkpoints").glob("*.pt")
    other = run_of("training", {k: v for k, v in json.loads(run_plain(checkpoint)).items() if k != "kind"} | {"lr": 0.5}, "test")
    checkpoint.rename(Results(results).checkpoint(other))
    text = EXPERIMENT.replace("ITERATIONS", "20").replace('"hinge" }', '"hinge", lr = 0.5 }')
    (place / "own-21.toml").write_text(text)
    done = call(place, monkeypatch, str(place / "own-21.toml"), results, "--only", "hinge/he")
    assert done.exit_code == 1
    assert "is of a run with other settings: lr was 0.002, is 0.5; delete it to begin anew" in done.output


def run_plain(checkpoint):
    return json.dumps(torch.load(checkpoint, weights_only=True)["run"])


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--budget", "shrt"], 2, "goodinit: --budget must be one of smoke, short, full; got 'shrt' (did you mean 'short'?)"),
        (["--only", "softmaxx"], 2, "goodinit: --only: own-3 has no row or row/column 'softmaxx' (did you mean 'softmax'"),
        (["--seeds", "0"], 2, "goodinit: seeds must be 1 or more; got 0"),
        (["--precision", "float16"], 2, "goodinit: precision must be one of float32, bfloat16; got 'float16'"),
        (["--device", "tpu"], 2, "goodinit: device must be cpu, cuda or auto; got 'tpu'"),
        (["--data-dir", "nowhere"], 2, "goodinit: --data-dir: there is no folder 'nowhere'"),
        (["--data-dir", "."], 1, "goodinit: no MNIST in the data folder '.'"),
        (["--threads", "-1"], 2, "goodinit: threads must be 1 or more; got -1"),
        (["--only", ""], 2, "goodinit: --only names rows, or row/column; got nothing. Leave it out for all of them"),
        (["--save-every", "nan"], 2, "goodinit: --save-every must be a number of seconds, 0 or more; got nan"),
        (["--save-every", "-4"], 2, "goodinit: --save-every must be a number of seconds, 0 or more; got -4"),
        (["--bugdet", "short"], 2, "No such option: --bugdet"),
    ],
)
def test_errors_are_one_message(place, monkeypatch, tmp_path, more, code, message):
    monkeypatch.chdir(tmp_path)
    done = call(place, monkeypatch, experiment(place, 3), tmp_path / "r", *more)
    assert done.exit_code == code
    assert message in done.output
    assert "Traceback" not in done.output
    assert not rows(tmp_path / "r")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(place, monkeypatch, tmp_path):
    done = call(place, monkeypatch, "table3", tmp_path / "r", "--device", "cuda")
    assert done.exit_code == 2
    assert (
        "goodinit: there is no GPU that this PyTorch can use (torch.cuda.is_available() is False); try --device cpu"
        in done.output
    )


def test_unknown_experiments(place, monkeypatch, tmp_path):
    done = call(place, monkeypatch, "tabel3", tmp_path / "r")
    assert done.exit_code == 2
    assert "goodinit: there is no experiment 'tabel3' (did you mean 'table3'" in done.output
    assert all(f" {name}" in done.output for name in names())
    assert "(did you mean 'list'" in call(place, monkeypatch, "lst", tmp_path / "r").output


def test_tensorboard(place, monkeypatch, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = call(
        place, monkeypatch, experiment(place, 4), tmp_path / "r", "--only", "softmax/he", "--tensorboard", str(tmp_path / "tb")
    )
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "tb").iterdir()
    assert folder.name.startswith("mnist-fitnet-mnist-relu-he-4-seed0-")
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("test/accuracy")] == [1, 3, 4]
    assert events.Scalars("test/accuracy")[-1].value == pytest.approx(rows(tmp_path / "r")[0]["final_accuracy"])


@pytest.mark.slow
def test_experiments_of_every_kind_at_smoke(monkeypatch, tmp_path, place):
    """On made-up images: that all of it works together."""
    write_set(place / "data" / "cifar10", count=1100)
    write_set(place / "data" / "cifar100", count=1100, label="fine_label", classes=100)
    some = {"table2": "cifar100*", "table4": "lsuv/*", "figure1": "10/relu", "timings": "fitnet4,iteration-relu"}
    for name, only in some.items():
        done = call(place, monkeypatch, name, tmp_path / "r", "--budget", "smoke", "--only", only)
        assert done.exit_code == 0, done.output
    found = rows(tmp_path / "r")
    assert Counter(row["experiment"] for row in found) == {"table2": 4, "table4": 5, "figure1": 1, "timings": 2}
    assert all(len(row["updates"]) == 10 for row in found if row["experiment"] == "figure1")
    contenders = [list(row["seconds"]) for row in found if row["experiment"] == "timings"]
    assert contenders == [["orthonormal", "lsuv"], ["no BN", "BN before", "BN after"]]


@pytest.mark.slow
def test_every_experiment_at_smoke_on_real_data(monkeypatch, tmp_path, place):
    folder = Path(os.environ.get("GOODINIT_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no data sets: name a folder that holds them with GOODINIT_DATA_DIR")
    monkeypatch.delenv("GOODINIT_CACHE", raising=False)
    words = ["reproduce", "all", "--budget", "smoke", "--data-dir", str(folder), "--results", str(tmp_path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    runs = {cell.run for experiment_ in experiments() for cell in experiment_.selected("smoke")}
    teachers = {run.teacher_run for run in runs if isinstance(run, Training) and run.teacher}
    assert {result.run for result in Results(tmp_path).read()} == runs | teachers
    assert len(rows(tmp_path)) == len(runs | teachers) > 100
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert f"{sum(len(e.selected('smoke')) for e in experiments())} finished before; rows in" in again.output


def test_all_experiments_one_after_the_other(place, monkeypatch, tmp_path):
    own = [read(Path(experiment(place, iterations))) for iterations in (2, 3)]
    monkeypatch.setattr("goodinit.paper.experiment.experiments", lambda: own)
    done = call(place, monkeypatch, "all", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert [row["experiment"] for row in rows(tmp_path / "r")] == ["own-2"] * 4 + ["own-3"] * 4
    assert {row["command"] for row in rows(tmp_path / "r")} == {
        f"goodinit reproduce own-{iterations}.toml --budget short --seeds 1" for iterations in (2, 3)
    }
    assert "8 finished before; rows in" in call(place, monkeypatch, "all", tmp_path / "r").output
    before = (tmp_path / "r" / "runs.jsonl").read_bytes()
    for more, message in (
        (["--only", "softmax"], "goodinit: --only is for one experiment, whose rows it names; got all"),
        (["--budget", "shrt"], "goodinit: own-2: --budget must be one of smoke, short, full; got 'shrt'"),
    ):
        refused = call(place, monkeypatch, "all", tmp_path / "r", *more)
        assert (refused.exit_code, message in refused.output) == (2, True), refused.output
    assert (tmp_path / "r" / "runs.jsonl").read_bytes() == before


def test_of_all_experiments_those_without_data_are_left_out(place, monkeypatch, tmp_path):
    text = Path(experiment(place, 2)).read_text()
    (place / "lost.toml").write_text(text.replace('recipe = "mnist"', 'recipe = "cifar"'))
    own = [read(place / "lost.toml"), read(Path(experiment(place, 2)))]
    monkeypatch.setattr("goodinit.paper.experiment.experiments", lambda: own)
    done = call(place, monkeypatch, "all", tmp_path / "r")
    assert done.exit_code == 1
    assert "goodinit: lost is left out: no CIFAR-10 in the data folder" in done.output
    assert "1 experiments without data" in done.output
    assert {row["experiment"] for row in rows(tmp_path / "r")} == {"own-2"}


def test_other_data_are_another_run(place, monkeypatch, broken_off):
    """A checkpoint goes on with the images that it was begun with."""
    what, results = broken_off
    write_set(place / "others" / "mnist", count=260, size=(28, 28), channels=1, image="image")
    done = call(place, monkeypatch, what, results, "--only", "hinge/he", "--data-dir", str(place / "others"))
    assert done.exit_code == 1
    assert "goodinit: the checkpoint is of a run on other images of mnist (SHA-256 " in done.output
    assert len(rows(results)) == 1
    for more in ((), ("--seeds", "2")):  # nothing is left to do, or another seed
        done = call(place, monkeypatch, what, results, "--only", "softmax/he", "--data-dir", str(place / "others"), *more)
        assert done.exit_code == 1
        assert "or another seed of it, on other images of mnist (SHA-256 of those to train and to test with: " in done.output
    assert len(rows(results)) == 1
    again = call(place, monkeypatch, what, results, "--only", "hinge/he")
    assert "goes on from iteration" in again.output
    assert "origins" not in rows(results)[1]


def test_what_took_part_in_a_run_is_in_its_row(place, monkeypatch, broken_off):
    what, results = broken_off
    threads = torch.get_num_threads()
    done = call(place, monkeypatch, what, results, "--only", "hinge/he", "--threads", "2")
    torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    first, second = rows(results)[1]["origins"]
    assert first.endswith("cpu, 1 threads")
    assert second.endswith("cpu, 2 threads")


def test_an_interruption_says_how_to_go_on(place, tmp_path):
    process = start(place, experiment(place, 500), tmp_path / "r", "--only", "hinge/he")
    for line in process.stdout:
        if "training and" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goodinit: interrupted; the same command goes on from the last checkpoint" in output
    assert "Traceback" not in output


HINTS = """
title = "hints"
recipe = "mnist"
set = { train_images = 200, test_images = 50, evaluations = 1, init = "glorot", teacher = "teacher-mnist" }
[[rows]]
name = "hints"
set = { method = "hints", hint_iterations = 3 }
[[rows]]
name = "distillation"
set = { method = "distillation" }
[budgets.short]
note = "a few steps"
set = { iterations = 4 }
"""


def test_the_teacher_is_trained_once_and_has_a_row(place, monkeypatch, tmp_path):
    (place / "hints.toml").write_text(HINTS)
    done = call(place, monkeypatch, str(place / "hints.toml"), tmp_path / "r", "--seeds", "2")
    assert done.exit_code == 0, done.output
    assert done.output.count("first its teacher: mnist-teacher-mnist-maxout-glorot-4-seed0") == 1
    assert Counter(row["row"] for row in rows(tmp_path / "r")) == {"teacher": 1, "hints": 2, "distillation": 2}
    (weights,) = (tmp_path / "r" / "weights").iterdir()
    (tmp_path / "r" / "runs.jsonl").write_text("")
    weights.write_bytes(weights.read_bytes()[:-100])
    broken = call(place, monkeypatch, str(place / "hints.toml"), tmp_path / "r")
    assert broken.exit_code == 1
    assert f"goodinit: the teacher's weights '{weights}' cannot be read (" in broken.output
    assert "; delete them to train it anew" in broken.output
    weights.unlink()
    again = call(place, monkeypatch, str(place / "hints.toml"), tmp_path / "r", "--only", "hints")
    assert again.exit_code == 0, again.output
    (place / "wild.toml").write_text(HINTS.replace("evaluations = 1,", "evaluations = 1, lr = 1e30,"))


def test_where_a_teacher_diverged_the_other_runs_are_done(place, monkeypatch, tmp_path):
    plain = '[[rows]]\nname = "plain"\nset = { lr = 0.001, teacher = "" }\n[budgets.short]'
    text = HINTS.replace("evaluations = 1,", "evaluations = 1, lr = 1e30,").replace("[budgets.short]", plain)
    (place / "wild.toml").write_text(text)
    for _ in range(2):  # the second time it is known, and not trained again
        done = call(place, monkeypatch, str(place / "wild.toml"), tmp_path / "r")
        assert done.exit_code == 1
        assert "nobody can learn from it: mnist-fitnet-mnist-maxout-hints-glorot-4-seed0 is left out" in " ".join(
            done.output.split()
        )
        assert "2 without a teacher" in done.output
        assert Counter(row["row"] for row in rows(tmp_path / "r")) == {"teacher": 1, "plain": 1}
        assert rows(tmp_path / "r")[0]["diverged_at"] == 2
    assert "first its teacher" not in done.output


def test_a_checkpoint_of_another_version(place, monkeypatch, tmp_path):
    monkeypatch.setattr("goodinit.paper.checkpoint.Checkpoint.load", lambda _: {"model": {}})
    done = call(place, monkeypatch, experiment(place, 3), tmp_path / "r", "--only", "softmax")
    assert done.exit_code == 1
    assert "goodinit: the checkpoint is of another version of goodinit ('data'); delete it to begin anew" in done.output


def test_results_that_cannot_be_kept(place, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    done = call(place, monkeypatch, experiment(place, 3), tmp_path / "file" / "r")
    assert (done.exit_code, "goodinit: cannot make the folder" in done.output) == (1, True), done.output


def test_the_name_of_a_folder_makes_no_path(tmp_path):
    """Nothing is written outside of the folder of the results, wherever the images are."""
    run = run_of("training", {"data": str(tmp_path / "a set"), "network": "fitnet1"}, "")
    results = Results(tmp_path / "r")
    assert results.checkpoint(run).parent == tmp_path / "r" / ".checkpoints"
    assert results.weights(run).parent == tmp_path / "r" / "weights"
    assert results.checkpoint(run_of("training", {"data": "../x", "network": "fitnet1"}, "")).name.startswith("x-fitnet1-maxout")
