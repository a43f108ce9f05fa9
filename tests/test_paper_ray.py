"""Runs on a real Ray cluster of this machine: the rows of the local launcher, workers that die, addresses that do not answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("datasets")

from typer.testing import CliRunner

from goodinit import OptionError
from goodinit.cli import app
from goodinit.paper import launch_ray
from goodinit.paper.launch_ray import on_ray
from image_sets import write_set

EXPERIMENT = """
title = "a small one"
recipe = "mnist"
set = { activation = "relu", train_images = 200, test_images = 50, init_batch = 32, evaluations = 2 }
[[rows]]
name = "a"
set = { init = "lsuv" }
[[rows]]
name = "b"
set = { init = "he" }
[budgets.short]
note = "few steps"
set = { iterations = ITERATIONS }
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    write_set(folder / "data" / "mnist", count=250, size=(28, 28), channels=1, image="image")
    return folder


def arguments(place, iterations, results, *more):
    path = place / f"own-{iterations}.toml"
    path.write_text(EXPERIMENT.replace("ITERATIONS", str(iterations)))
    threads = [] if "ray" in more else ["--threads", "1"]
    words = ["reproduce", path, "--data-dir", place / "data", "--results", results, *threads, "--save-every", "0", *more]
    return list(map(str, words))


def own_caches(place):
    return {"GOODINIT_CACHE": str(place / "cache"), "HF_DATASETS_CACHE": str(place / "arrow")}


def start(place, iterations, results, *more):
    command = [sys.executable, "-m", "goodinit", *arguments(place, iterations, results, *more)]
    # A cluster of this machine is made for the purpose, whatever others there may be.
    own = {**os.environ, **own_caches(place), "RAY_worker_niceness": "0", "RAY_ADDRESS": "127.0.0.1:1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own, cwd=place)


def output_of(process):
    output, _ = process.communicate(timeout=300)
    return output


def rows(results):
    path = results / "runs.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["row"]: row for row in found}


def workers(place):
    """Process ids of Ray workers that are at a run of this test's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, own = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::_finish") and str(place).encode() in own:
            found.append(int(folder.name))
    return found


def test_the_same_rows_as_the_local_launcher(place, tmp_path, monkeypatch):
    on_cluster = start(place, 12, tmp_path / "ray", "--launcher", "ray")
    for name, value in own_caches(place).items():
        monkeypatch.setenv(name, value)
    local = CliRunner().invoke(app, arguments(place, 12, tmp_path / "local"))
    assert local.exit_code == 0, local.output
    output = output_of(on_cluster)
    assert on_cluster.returncode == 0, output
    assert "[1/2] " in output
    assert "iteration 12 of 12: loss" in output
    ours, theirs = rows(tmp_path / "ray"), rows(tmp_path / "local")
    assert ours.keys() == theirs.keys() == {"a", "b"}
    for name, row in ours.items():
        assert row["weights_sha256"] == theirs[name]["weights_sha256"]
        assert row["evaluations"] == theirs[name]["evaluations"]
        assert row["run"] == theirs[name]["run"]
        assert row["launcher"] == "ray"
        assert row["command"] == theirs[name]["command"]


def kill_a_worker(place, process, results, times):
    """Each time as soon as a worker has a checkpoint that is newer than the last kill."""
    killed: set[int] = set()
    while len(killed) < times:
        assert process.poll() is None, output_of(process)
        fresh = set(workers(place)) - killed
        checkpoints = list((results / ".checkpoints").glob("*.pt"))
        if fresh and checkpoints:
            time.sleep(0.5)
            for pid in fresh:
                os.kill(pid, signal.SIGKILL)
            killed |= fresh
        time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_goes_on(place, tmp_path):
    whole = start(place, 150, tmp_path / "whole", "--only", "a")
    process = start(place, 150, tmp_path / "ray", "--only", "a", "--launcher", "ray")
    kill_a_worker(place, process, tmp_path / "ray", 1)
    output = output_of(process)
    assert process.returncode == 0, output
    assert "goes on from iteration" in output
    output_of(whole)
    row = rows(tmp_path / "ray")["a"]
    assert row["interruptions"] == 1
    assert row["weights_sha256"] == rows(tmp_path / "whole")["a"]["weights_sha256"]


@pytest.mark.slow
def test_a_worker_that_dies_twice(place, tmp_path):
    first = start(place, 400, tmp_path / "ray", "--only", "b")
    while not rows(tmp_path / "ray"):
        time.sleep(0.2)
    output_of(first)
    before = (tmp_path / "ray" / "runs.jsonl").read_bytes()
    process = start(place, 400, tmp_path / "ray", "--launcher", "ray")
    kill_a_worker(place, process, tmp_path / "ray", 2)
    output = output_of(process)
    assert process.returncode == 1, output
    assert "goodinit: the workers of a, seed 0 (WorkerCrashedError) died twice" in output
    assert "rows of finished runs are kept, and the same command goes on from their checkpoints" in output
    assert "Traceback" not in output
    assert (tmp_path / "ray" / "runs.jsonl").read_bytes() == before
    again = start(place, 400, tmp_path / "ray")
    assert "goes on from iteration" in output_of(again)


@pytest.mark.slow
def test_errors_of_a_run_are_those_of_the_local_launcher(place, tmp_path):
    process = start(place, 5, tmp_path / "ray", "--launcher", "ray", "--data-dir", str(tmp_path))
    output = output_of(process)
    assert process.returncode == 1
    assert f"goodinit: no MNIST in the data folder '{tmp_path}'" in output
    assert "Traceback" not in output


def test_an_address_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(launch_ray, "_ANSWER_SECONDS", 0.5)
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9"):
        with pytest.raises(OptionError, match=rf"the Ray address '{address}' does not answer \(.*\); is the cluster up"):
            on_ray(address)(None, None, None, None, [])
    with pytest.raises(OptionError, match="a Ray address is host:port, ray://host:port or auto; got 'somewhere'"):
        on_ray("somewhere")(None, None, None, None, [])


@pytest.mark.parametrize(("address", "place"), [("auto", "'auto'"), (None, "'this machine'")])
def test_no_cluster(monkeypatch, address, place):
    """Whatever Ray says for a cluster that is not there, or cannot be started."""
    import ray

    def fail(*_given, **_named):
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(OptionError, match=rf"no Ray cluster at {place}: Could not find any running Ray instance"):
        on_ray(address)(None, None, None, None, [])


def test_processes_that_train_together(place, tmp_path, monkeypatch):
    """Each of them would do all runs."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's word to the processes that it starts
    done = CliRunner().invoke(app, arguments(place, 5, tmp_path / "r", "--launcher", "ray"))
    assert done.exit_code == 2
    assert "goodinit: --launcher ray is for one process, whose workers do the runs; these were started by torchrun" in done.output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--launcher", "rey"], "goodinit: launcher must be local or ray; got 'rey' (did you mean 'ray'?)"),
        (
            ["--ray-address", "a:1"],
            "goodinit: --ray-address, --cpus and --gpus are for --launcher ray; this process has --threads and --device",
        ),
        (["--cpus", "2"], "goodinit: --ray-address, --cpus and --gpus are for --launcher ray"),
        (["--launcher", "ray", "--tensorboard", "tb"], "goodinit: --tensorboard is for the launcher local"),
        (["--launcher", "ray", "--threads", "2"], "goodinit: --threads is for the launcher local; on Ray --cpus says how many"),
        (["--launcher", "ray", "--device", "cuda", "--gpus", "0"], "goodinit: --device cuda needs --gpus, of which 0 were"),
        (["--launcher", "ray", "--cpus", "0"], "goodinit: a run needs 1 CPU or more and 0 GPUs or more; got 0 and 0"),
    ],
)
def test_options(place, tmp_path, more, message):
    done = CliRunner().invoke(app, arguments(place, 5, tmp_path / "r", *more))
    assert (done.exit_code, message in done.output) == (2, True), done.output
