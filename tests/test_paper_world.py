"""Several processes that train one network, with torchrun: as one process with the same batches, and what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("datasets")

from image_sets import write_set

# Trains in every process, once for each change of the settings, and keeps the weights and the evaluations that the first has.
SCRIPT = """
import os, sys
from pathlib import Path
import torch
from goodinit import GoodinitError
from goodinit.paper.checkpoint import Checkpoint
from goodinit.paper.config import Training
from goodinit.paper.data import load
from goodinit.paper.outcome import Observer
from goodinit.paper.train import train
from goodinit.paper.world import processes
torch.set_num_threads(1)
if "NO_DROPOUT" in os.environ:
    torch.nn.Dropout.forward = lambda self, x: x
out, data = Path(sys.argv[1]), Path(sys.argv[2])
changes = eval(sys.argv[3])
settings = dict(data="mnist", network="mlp", depth=4, activation="tanh", pixels="standardized", batch=32, iterations=20,
                evaluations=4, init_batch=32, test_images=45)
class Wait(Observer):
    def advances(self, progress, loss):
        if "WAIT" in os.environ and progress.iteration == 7:
            (out.parent / "waiting").write_text(str(os.getpid()))
            import time; time.sleep(100)
results = []
with processes("cpu") as world:
    for i, change in enumerate(changes):
        change = dict(change)
        folder = Path(change.pop("folder", data))
        run = Training(**{**settings, **change})
        try:
            outcome = train(run, load("mnist", folder), device=torch.device("cpu"), observers=[Wait()],
                            checkpoint=Checkpoint(out.with_suffix(f".{i}"), run, seconds=0))
        except GoodinitError as error:
            print(f"refused by {world.rank}: {type(error).__name__}: {error}\\n", end="", flush=True)
        else:
            results.append((dict(outcome.weights), [(e.iteration, e.accuracy, e.loss) for e in outcome.evaluations]))
    if world.first:
        torch.save(results, out)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_set(folder / "data", count=200, size=(28, 28), channels=1, image="image")
    write_set(folder / "other", count=201, size=(28, 28), channels=1, image="image")
    (folder / "script.py").write_text(SCRIPT)
    return folder


def environment(place, **more):
    own = {"GOODINIT_CACHE": str(place / "cache"), "HF_DATASETS_CACHE": str(place / "arrow"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **more}


def torchrun(processes, *words):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *map(str, words)]


def start(place, out, processes, changes, **more):
    command = torchrun(processes, place / "script.py", out, place / "data", changes)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(place, **more),
    )


def finished(process):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def same(ours, theirs, rtol=1e-5, atol=1e-6):
    (weights, evaluations), (others, other_evaluations) = ours, theirs
    for name, value in weights.items():
        assert torch.allclose(value, others[name], rtol=rtol, atol=atol), name
    for (i, accuracy, loss), (j, other_accuracy, other_loss) in zip(evaluations, other_evaluations, strict=True):
        assert (i, accuracy) == (j, other_accuracy)
        assert loss == pytest.approx(other_loss, rel=1e-4)


def trained(place, folder, changes, processes, refused=""):
    """By one process, and by several: pairs of what they end with, and what the several said."""
    # Dropout differs between processes, and is not what is asked here.
    several = start(place, folder / "several", processes, f"[{refused} *{changes!r}]", NO_DROPOUT="1")
    finished(start(place, folder / "one", 1, repr(changes), NO_DROPOUT="1"))
    output = finished(several)
    return list(zip(*(torch.load(folder / name) for name in ("one", "several")), strict=True)), output


NORMALIZED = {"norm": "before", "iterations": 8, "evaluations": 2}


@pytest.fixture(scope="module")
def by_two(place, tmp_path_factory):
    """Before two processes train what one trains, too, they are refused three times."""
    refused = f"""
        dict(folder=[data, {str(place / "other")!r}][int(os.environ["RANK"])]),
        dict(lr=0.1 * (1 + int(os.environ["RANK"]))),
        dict(batch=33),
    """
    return trained(place, tmp_path_factory.mktemp("by_two"), [{}, NORMALIZED], 2, refused)


def test_two_processes_train_as_one(by_two):
    same(*by_two[0][0])


def test_batch_normalization_sees_the_images_of_all_processes(by_two):
    """As in one process: in training, in LSUV, in the running statistics that the tests of the network use."""
    same_with_statistics(by_two[0][1], 1e-4)


@pytest.mark.slow
def test_four_processes_and_convolutions(place, tmp_path):
    convolutions = {"norm": "after", "network": "fitnet-mnist", "depth": 0, "iterations": 2, "evaluations": 2}
    (plain, normalized, fitnet), _ = trained(place, tmp_path, [{}, NORMALIZED, convolutions], 4)
    same(*plain)
    same_with_statistics(normalized, 1e-4)
    # Where max poolings choose between values that are nearly equal rounding errors grow from step to step.
    same_with_statistics(fitnet, 1e-3)


def same_with_statistics(pair, tolerance):
    ours, theirs = pair
    same(ours, theirs, rtol=tolerance, atol=tolerance)
    means = [value for name, value in theirs[0].items() if name.endswith("running_mean")]
    assert means
    assert all(mean.any() for mean in means)


@pytest.mark.slow
def test_several_processes_that_were_killed_go_on(place, tmp_path):
    """Dropout too: every process has random numbers of its own."""
    change = "[dict(network='fitnet-mnist', depth=0)]"
    whole = start(place, tmp_path / "whole", 2, change)
    process = start(place, tmp_path / "killed", 2, change, WAIT="1")
    waiting = tmp_path / "waiting"
    while not (waiting.exists() and waiting.read_text()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)  # torchrun, and then the first process; the second one ends when it misses that
    os.kill(int(waiting.read_text()), signal.SIGKILL)
    process.communicate(timeout=60)
    finished(whole)
    alone = start(place, tmp_path / "killed", 1, change)
    output, _ = alone.communicate(timeout=200)
    assert "the checkpoint is of 2 processes, this training has 1; go on with as many, or delete the checkpoint" in output
    finished(start(place, tmp_path / "killed", 2, change))
    ((weights, evaluations),), ((others, other_evaluations),) = torch.load(tmp_path / "whole"), torch.load(tmp_path / "killed")
    assert evaluations == other_evaluations
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


def test_what_processes_cannot_train_together(by_two):
    """All of them say so, and can go on with something else."""
    _, output = by_two
    for rank in range(2):
        said = [line for line in output.splitlines() if line.startswith(f"refused by {rank}: ")]
        images, settings, batch = (line.partition(": ")[2] for line in said)
        assert images.startswith("DataError: the processes do not have the same images: process 0: ")
        assert images.endswith("; give all of them the same files")
        assert settings.startswith("DataError: the processes do not have the same settings: process 0: ")
        assert batch == "OptionError: a batch of 33 images cannot be divided among 2 processes; try a multiple of 2"


@pytest.mark.slow
def test_ray_is_not_for_processes_that_train_together(place, tmp_path):
    """Each of them would do all runs."""
    words = ["reproduce", "table3", "--launcher", "ray", "--data-dir", place / "data", "--results", tmp_path / "r"]
    command = torchrun(2, "-m", "goodinit", *words)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(place), timeout=200)
    assert done.returncode
    assert "goodinit: --launcher ray is for one process, whose workers do the runs; these were started by torchrun" in done.stderr


@pytest.mark.parametrize("launches", [["2 done"], pytest.param(["2 done", "2 finished before"], marks=pytest.mark.slow)])
def test_the_command_line_under_torchrun(place, tmp_path, launches):
    """One row, told of by the first process alone."""
    (tmp_path / "own.toml").write_text(
        'title = "t"\n[set]\ndata = "mnist"\nnetwork = "mlp"\ndepth = 3\nactivation = "relu"\npixels = "scaled"\nbatch = 20\n'
        'evaluations = 1\ninit_batch = 10\n[[rows]]\nname = "a"\nset = { init = "lsuv" }\n[[rows]]\nname = "b"\n'
        'set = { init = "he" }\n[budgets.short]\nnote = "n"\nset = { iterations = 4 }\n'
    )
    words = ["reproduce", tmp_path / "own.toml", "--data-dir", place / "data", "--results", tmp_path / "r", "--threads", "1"]
    command = torchrun(2, "-m", "goodinit", *words)
    for expected in launches:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(place), timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("2 runs") == 1
        assert done.stdout.count("rows in ") == 1
        assert ("n/c" in done.stdout) or (expected in done.stdout)
    rows = (tmp_path / "r" / "runs.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert all('"processes": 2' in row for row in rows)
