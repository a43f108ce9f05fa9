"""Training: what it computes, that it can be broken off and taken up at any step, and what it refuses."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodinit import OptionError, init_
from goodinit.paper.checkpoint import Checkpoint, CheckpointError
from goodinit.paper.config import Training
from goodinit.paper.networks import NETWORKS, make_network
from goodinit.paper.optimize import Solver
from goodinit.paper.outcome import Observer, Outcome, Progress
from goodinit.paper.pixels import Augmentation, Batches, Preprocessing, in_order, seed_of
from goodinit.paper.train import train
from goodinit.paper.trainer import _tracked
from image_sets import image_set

CPU = torch.device("cpu")
MNIST = image_set((1, 28, 28))
CIFAR = image_set((3, 32, 32), train=128, test=64)
SMALL = Training(
    data="made", network="fitnet-mnist", activation="relu", pixels="scaled", lr=0.02, iterations=12, evaluations=3, batch=32,
    milestones=(8,), init_batch=64,
)  # fmt: skip
# Dropout, batch normalization, augmentation and a preprocessing that is fitted; RMSProp instead of momentum.
LARGE = dataclasses.replace(
    SMALL, network="fitnet4", norm="after", pixels="gcn", pad=4, mirror=True, optimizer="rmsprop", lr=1e-3, iterations=6,
    evaluations=2, milestones=(3,),
)  # fmt: skip


SIZES = {1: (28, 28), 3: (32, 32)}
LEARNING = dataclasses.replace(SMALL, optimizer="rmsprop", lr=0.002, iterations=120, milestones=(100,))


class Stopped(Exception):
    """A training that a test breaks off."""


class StopAt(Observer):
    def __init__(self, iteration):
        self.iteration = iteration

    def advances(self, progress, loss):
        if progress.iteration == self.iteration:
            raise Stopped


class Record(Observer):
    def __init__(self):
        self.told = []

    def begins(self, run, images, progress, report):
        self.told.append(("begins", progress.iteration, None if report is None else {r.status for r in report}))

    def advances(self, progress, loss):
        self.told.append(("advances", progress.iteration, loss))

    def evaluates(self, evaluation):
        self.told.append(("evaluates", evaluation.iteration, evaluation.accuracy))

    def ends(self, outcome):
        self.told.append(("ends", outcome.status, None))


def by_hand(run, images):
    """The same training, written out."""
    with torch.random.fork_rng():
        model = make_network(run.network, activation=run.activation).to(memory_format=torch.channels_last)
        preprocessing = Preprocessing.fitted(run.pixels, images.train, CPU)
        rest = (images.train, preprocessing, Augmentation())
        first, _ = Batches(*rest, size=run.init_batch, seed=seed_of(run.seed, "init batch"), device=CPU)[0]
        init_(model, run.init, first, generator=torch.Generator().manual_seed(seed_of(run.seed, "init")))
        torch.manual_seed(seed_of(run.seed, "dropout"))
        batches = Batches(*rest, size=run.batch, seed=seed_of(run.seed, "batches"), device=CPU)
        solver, losses = Solver(run, model), []
        for i in range(run.iterations):
            x, y = batches[i]
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            solver.step(i)
            losses.append(loss.item())
        model.eval()
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in in_order(images.test, preprocessing, size=50, device=CPU))
    return losses, right / len(images.test)


def test_what_is_trained():
    record = Record()
    outcome = train(SMALL, MNIST, device=CPU, observers=[record])
    losses, accuracy = by_hand(SMALL, MNIST)
    assert [loss for kind, _, loss in record.told if kind == "advances"] == pytest.approx(losses, rel=1e-4)
    assert [e.iteration for e in outcome.evaluations] == [4, 8, 12]
    means = [sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert [e.loss for e in outcome.evaluations] == pytest.approx(means, rel=1e-4)
    assert outcome.final_accuracy == pytest.approx(accuracy, abs=0.021)
    assert record.told[0] == ("begins", 0, {"scaled"})
    assert [kind for kind, *_ in record.told].count("evaluates") == 3
    assert record.told[-1][0] == "ends"


def test_it_learns():
    outcome = train(LEARNING, MNIST, device=CPU)
    assert outcome.status == "done"
    assert outcome.final_accuracy > 0.9
    assert outcome.best_accuracy >= outcome.final_accuracy
    assert outcome.images_per_second > 0


# What the paper measures itself against, each on its smallest case; hints and distillation are in test_paper_objectives.py.
SYSTEMS: dict[str, dict[str, object]] = {
    "highway-mlp": {"network": "highway-mlp", "depth": 10, "init": "he", "pixels": "standardized"},
    "batch normalization before": {"init": "glorot", "norm": "before"},
    "batch normalization after": {"init": "glorot", "norm": "after"},
    "random walk": {"network": "mlp", "depth": 20, "init": "random-walk", "pixels": "standardized", "lr": 0.0005},
    "krahenbuhl": {"init": "krahenbuhl"},
    "delta-orthogonal": {"init": "delta-orthogonal", "activation": "tanh"},
    "skipinit": {"network": "skipinit1", "init": "he", "pixels": "gcn", "iterations": 30},
}
OF_IMAGENET: dict[str, object] = {"pixels": "standardized", "optimizer": "sgd", "lr": 0.01, "batch": 16}
SLOW_SYSTEMS: dict[str, dict[str, object]] = {
    "highway-mnist": {"network": "highway-mnist", "init": "he"},
    "gradinit": {"init": "gradinit"},
    "fixup": {"network": "fixup1", "init": "he", "pixels": "gcn"},
    "caffenet": {"network": "caffenet", "pixels": "standardized", "optimizer": "sgd", "lr": 0.01, "batch": 16, "iterations": 25},
    "googlenet": {
        "network": "googlenet",
        "pixels": "standardized",
        "optimizer": "sgd",
        "lr": 0.01,
        "batch": 16,
        "iterations": 40,
    },
}


@pytest.mark.parametrize("name", [*SYSTEMS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_SYSTEMS)])
def test_every_system_learns(name):
    common: dict[str, object] = {"milestones": (), "iterations": 80, "evaluations": 1}
    run = dataclasses.replace(LEARNING, **{**common, **{**SYSTEMS, **SLOW_SYSTEMS}[name]})
    channels = NETWORKS[run.network].channels
    images = image_set((3, 44, 44), classes=4) if name in ("caffenet", "googlenet") else image_set((channels, *SIZES[channels]))
    outcome = train(run, images, device=CPU)
    assert outcome.guessing < 0.4
    assert outcome.final_accuracy > 0.9


@pytest.mark.parametrize("run", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow), dataclasses.replace(SMALL, updates=True)])
def test_a_training_that_was_broken_off_ends_as_if_it_had_not(tmp_path, run):
    images = CIFAR if run.network == "fitnet4" else MNIST
    whole = train(run, images, device=CPU)
    assert whole.weights_sha256 == train(run, images, device=CPU).weights_sha256
    other = train(dataclasses.replace(run, seed=1), images, device=CPU)
    assert other.weights_sha256 != whole.weights_sha256
    path = tmp_path / "run.pt"
    for stop in (1, 4, 5):  # the fourth iteration is a test's
        with pytest.raises(Stopped):
            train(run, images, device=CPU, checkpoint=Checkpoint(path, run, seconds=0), observers=[StopAt(stop)])
        torch.randn(stop)  # something else happens between
    record = Record()
    parts = train(run, images, device=CPU, checkpoint=Checkpoint(path, run, seconds=0), observers=[record])
    assert record.told[0] == ("begins", 4, None)
    assert parts.weights_sha256 == whole.weights_sha256
    assert parts.evaluations == whole.evaluations
    assert parts.progress.updates == whole.progress.updates
    assert parts.progress.interruptions == 3


def test_a_checkpoint_a_minute():
    saved = []

    class Counting(Checkpoint):
        def save(self, state):
            saved.append(state["progress"]["iteration"])
            super().save(state)

    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        train(SMALL, MNIST, device=CPU, checkpoint=Counting(Path(folder) / "a.pt", SMALL))
    assert saved == [0]  # the initialization; a minute has not passed


def test_random_numbers_of_the_caller_are_his():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train(dataclasses.replace(LARGE, network="fitnet1", iterations=2, milestones=(1,)), CIFAR, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("lr", [1e18, 1e30])
def test_divergence_is_noticed_where_it_happens(lr):
    record = Record()
    outcome = train(dataclasses.replace(SMALL, lr=lr), MNIST, device=CPU, observers=[record])
    at = outcome.progress.diverged_at
    assert at is not None
    assert 2 <= at <= 4
    assert outcome.status == "n/c"
    assert outcome.final_accuracy is None
    assert outcome.progress.iteration == at
    assert not torch.isfinite(torch.tensor(record.told[-2][2]))


def test_no_better_than_guessing_did_not_converge():
    def outcome(accuracy):
        return Outcome(Progress(iteration=5, evaluations=[[5, accuracy, 1.0]]), 10, guessing=0.11, weights_sha256="")

    assert [outcome(a).status for a in (0.1, 0.11, 0.1101)] == ["n/c", "n/c", "done"]
    frozen = train(dataclasses.replace(SMALL, lr=1e-9), MNIST, device=CPU)
    assert frozen.guessing == pytest.approx(0.1 + 3 * (0.09 / 100) ** 0.5)  # ten classes, a hundred images
    assert frozen.status == "n/c"


def test_relative_updates():
    run = dataclasses.replace(SMALL, optimizer="sgd", momentum=0.0, weight_decay=0.0, milestones=(), updates=True)
    outcome = train(run, MNIST, device=CPU)
    assert list(outcome.progress.updates) == [
        name for name, p in make_network("fitnet-mnist", activation="relu").named_parameters() if p.dim() > 1
    ]
    points = outcome.progress.updates["classifier.weight"]
    assert [int(i) for i, _ in points] == sorted(i + 1 for i in _tracked(12))
    assert all(0 < size < 1 for _, size in points)
    doubled = train(dataclasses.replace(run, lr=0.04), MNIST, device=CPU).progress.updates["classifier.weight"]
    assert doubled[0][1] == pytest.approx(2 * points[0][1], rel=1e-4)  # the first step's gradient is the same


def test_tracked_iterations_are_spread():
    tracked = sorted(_tracked(90_000))
    assert tracked[:3] == [0, 1, 2]
    assert tracked[-1] == 89_999
    assert 20 < len(tracked) <= 40


def first_weights(run, images=MNIST):
    """What a run begins with: one step at a rate of almost nothing."""
    outcome = train(
        dataclasses.replace(run, lr=1e-30, weight_decay=0.0, iterations=1, evaluations=1, milestones=()), images, device=CPU
    )
    return outcome.weights


def test_the_gain_of_the_initialization_arrives():
    plain = first_weights(dataclasses.replace(SMALL, init="orthonormal"))
    tripled = first_weights(dataclasses.replace(SMALL, init="orthonormal", init_gain=3.0))
    assert torch.allclose(tripled["classifier.weight"], 3 * plain["classifier.weight"], atol=1e-6)


def test_highways_and_fixup_begin_as_prescribed():
    gated = dataclasses.replace(SMALL, network="highway-mlp", depth=5, init="he", gate_bias=-3.0)
    assert torch.allclose(first_weights(gated)["layer2.gate.bias"], torch.tensor(-3.0))
    fixed = dataclasses.replace(LARGE, network="fixup1", norm="none", init="he", activation="relu", optimizer="sgd")
    weights = first_weights(fixed, CIFAR)
    assert weights["conv1_2.second.weight"].abs().max() < 1e-20
    assert weights["classifier.weight"].abs().max() < 1e-20


def test_random_walk_has_the_factor_of_its_non_linearity():
    def spread(activation):
        run = dataclasses.replace(SMALL, network="mlp", depth=4, init="random-walk", activation=activation)
        return first_weights(run)["layer2.linear.weight"].std().item() * 71**0.5

    assert spread("relu") == pytest.approx(2**0.5 * 1.0176, rel=0.03)
    assert spread("tanh") == pytest.approx(1.007, rel=0.03)


def test_tests_see_the_middle_of_larger_images():
    """A network trained on crops is tested on crops."""
    images = image_set((3, 44, 44), train=32, test=8, classes=4)
    seen = []
    run = dataclasses.replace(
        SMALL, network="caffenet", pixels="scaled", crop=40, iterations=1, evaluations=1, batch=8, init_batch=8
    )

    class Look(Observer):
        def begins(self, run, images, progress, report):
            handle = nn.modules.module.register_module_forward_pre_hook(
                lambda m, x: seen.append((m.training, tuple(x[0].shape))) if isinstance(m, nn.Sequential) else None
            )
            self.handle = handle

        def ends(self, outcome):
            self.handle.remove()

    train(dataclasses.replace(run, milestones=()), images, device=CPU, observers=[Look()])
    assert {shape[2:] for training, shape in seen if not training and shape[1] == 3} == {(40, 40)}


def test_bfloat16_and_compiled_networks_train():
    plain = train(SMALL, MNIST, device=CPU)
    reduced = train(dataclasses.replace(SMALL, precision="bfloat16"), MNIST, device=CPU)
    assert reduced.weights_sha256 != plain.weights_sha256
    assert reduced.evaluations[-1].loss == pytest.approx(plain.evaluations[-1].loss, rel=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_a_compiled_network_trains():
    outcome = train(LEARNING, MNIST, device=CPU, compiled=True)
    assert outcome.final_accuracy > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"network": "fitnet1"},
            "fitnet1 takes images of shape (3, 32, 32) (channels, height, width); made has such of shape (1, 28",
        ),
        ({"classes": 9}, "made has 10 classes, more than the classes=9 of the network"),
        ({"batch": 500}, "a batch of 500 images is more than the 400 training images"),
        ({"train_images": 20}, "a batch of 32 images is more than the 20 training images"),
    ],
)
def test_sets_that_do_not_fit(change, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        train(dataclasses.replace(SMALL, **change), MNIST, device=CPU)


def test_more_classes_than_the_data_has():
    assert train(dataclasses.replace(SMALL, classes=12, iterations=1), MNIST, device=CPU).evaluations


def test_a_checkpoint_of_another_run(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(Stopped):
        train(SMALL, MNIST, device=CPU, checkpoint=Checkpoint(path, SMALL), observers=[StopAt(2)])
    other = dataclasses.replace(SMALL, lr=0.5, seed=3)
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        train(other, MNIST, device=CPU, checkpoint=Checkpoint(path, other))
    assert str(caught.value) == (
        f"the checkpoint {str(path)!r} is of a run with other settings: lr was 0.02, is 0.5; seed was 0, is 3; "
        "delete it to begin anew"
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "why"), [(b"", r"cannot be read \(.*\)"), (b"nonsense", "is none"), (None, "cannot be read")]
)
def test_a_broken_checkpoint(tmp_path, content, why):
    path = tmp_path / "run.pt"
    with pytest.raises(Stopped):
        train(SMALL, MNIST, device=CPU, checkpoint=Checkpoint(path, SMALL), observers=[StopAt(2)])
    path.write_bytes(path.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(CheckpointError, match=rf"the checkpoint '.*run.pt' {why}.*; delete it to begin anew"):
        train(SMALL, MNIST, device=CPU, checkpoint=Checkpoint(path, SMALL))


def test_what_a_killed_process_left_of_a_checkpoint_is_deleted(tmp_path):
    unfinished = tmp_path / ".run.pt-x1y2"
    unfinished.write_bytes(b"half of it")
    assert Checkpoint(tmp_path / "run.pt", SMALL).load() is None
    assert not unfinished.exists()


def test_checkpoints_hold_no_code(tmp_path):
    """Somebody else's file is read without running anything in it."""
    import pickle

    path = tmp_path / "run.pt"
    path.write_bytes(pickle.dumps(nn.Linear(1, 1)))
    with pytest.raises(CheckpointError, match=r"is none of goodinit's|cannot be read"):
        Checkpoint(path, SMALL).load()


def test_a_run_may_stop_early():
    """The first iterations of a longer schedule."""
    long = train(dataclasses.replace(SMALL, iterations=20, stop=8, evaluations=2), MNIST, device=CPU)
    assert [e.iteration for e in long.evaluations] == [4, 8]
    assert long.progress.iteration == 8
    same = train(dataclasses.replace(SMALL, iterations=8, evaluations=2), MNIST, device=CPU)
    assert long.weights_sha256 == same.weights_sha256  # no milestone before


@pytest.mark.parametrize(("network", "pixels"), [("caffenet", 40), ("googlenet", 36)])
def test_imagenet_networks_train_on_crops(network, pixels):
    images = image_set((3, 44, 44), train=32, test=8, classes=4)
    run = dataclasses.replace(
        SMALL, network=network, pixels="standardized", crop=pixels, mirror=True, iterations=2, evaluations=1, batch=8,
        init_batch=8, milestones=(), schedule="poly",
    )  # fmt: skip
    outcome = train(run, images, device=CPU)
    assert outcome.evaluations[0].loss > 0
    with pytest.raises(OptionError, match="a crop of 45 pixels is larger than the images of made, 44x44 and 0 around"):
        train(dataclasses.replace(run, crop=45), images, device=CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    outcome = train(LEARNING, MNIST, device=torch.device("cuda"))
    assert outcome.final_accuracy > 0.9
    diverged = train(dataclasses.replace(SMALL, lr=1e30), MNIST, device=torch.device("cuda"))
    assert diverged.progress.diverged_at <= 4
