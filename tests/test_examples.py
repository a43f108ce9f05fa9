"""Each example, as its first lines say: with LSUV the network learns, without it it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchvision_ops import environment_of_users

EXAMPLES = Path(__file__).parents[1] / "examples"
INTEGRATIONS = {"lightning", "transformers", "accelerate", "tensorboard"}


def run(folder, *words):
    """What it prints, in an empty folder."""
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment_of_users(), cwd=folder, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def accuracies(printed):
    """In percent."""
    return [float(x) for x in re.findall(r"accuracy ([\d.]+)%", printed)]


def test_each_integration_has_its_example():
    assert {path.stem.partition("_")[0] for path in EXAMPLES.glob("*.py")} == INTEGRATIONS
    page = (EXAMPLES.parent / "docs" / "integrations.md").read_text()
    assert set(re.findall(r"python examples/(\w+)\.py\n", page)) == {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning_digits", "accelerate_digits"])
def test_digits(name, tmp_path):
    pytest.importorskip(name.partition("_")[0])
    (learnt,) = accuracies(run(tmp_path, EXAMPLES / f"{name}.py"))
    (guessed,) = accuracies(run(tmp_path, EXAMPLES / f"{name}.py", "--without"))
    assert learnt > 80
    assert guessed < 25


@pytest.mark.slow
def test_digits_by_two_processes(tmp_path):
    pytest.importorskip("accelerate")
    options = "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"  # asked for with a warning else
    printed = run(tmp_path, "-m", "accelerate.commands.launch", *options.split(), EXAMPLES / "accelerate_digits.py")
    (learnt,) = accuracies(printed)
    assert learnt > 80
    assert printed.count("20 weights (20 scaled)") == 1


def nats(printed):
    return float(re.search(r"([\d.]+) nats a letter", printed)[1])


@pytest.mark.slow
def test_letters(tmp_path):
    pytest.importorskip("transformers")
    learnt = nats(run(tmp_path, EXAMPLES / "transformers_genesis.py"))
    guessed = nats(run(tmp_path, EXAMPLES / "transformers_genesis.py", "--without"))
    assert learnt < 2.6
    assert guessed > 2.9  # by the letters' frequencies alone it is 3.1


@pytest.mark.slow
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    guessed, learnt = accuracies(run(tmp_path, EXAMPLES / "tensorboard_digits.py"))
    assert learnt > 80
    assert guessed < 25
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {name: EventAccumulator(str(tmp_path / "runs" / name)).Reload() for name in ("default", "lsuv")}
    for events in found.values():
        assert [event.step for event in events.Scalars("signal/grad_norm/0.weight")] == [0, 50, 100, 150, 200]
        assert {"signal/output/0.weight", "signal/weight/0.weight"} <= set(events.Tags()["histograms"])
    assert "lsuv/table/text_summary" in found["lsuv"].Tags()["tensors"]
    assert found["lsuv"].Scalars("signal/std/38.weight")[0].value == pytest.approx(1, abs=1e-3)
    assert found["default"].Scalars("signal/sample_std/38.weight")[0].value < 0.01
