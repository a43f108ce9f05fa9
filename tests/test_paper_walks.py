"""Walks of the error's norm, against gradients taken by hand, and random walk initialization's claim."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodinit import init_
from goodinit.paper.config import Walk
from goodinit.paper.networks import make_network
from goodinit.paper.pixels import Augmentation, Batches, Preprocessing, seed_of
from goodinit.paper.walks import log_norms, walks
from image_sets import image_set

CPU = torch.device("cpu")
MNIST = image_set((1, 28, 28))


def test_norms_are_those_of_the_error_at_every_layer():
    run = Walk(data="made", depth=6, activation="tanh", init="glorot", batch=16)
    x, y = torch.randn(16, 1, 28, 28), torch.randint(10, (16,))
    found = log_norms(run, 10, x, y, draw=3)
    net = make_network("mlp", activation="tanh", depth=6)
    init_(net, "glorot", generator=torch.Generator().manual_seed(seed_of(0, "draw", 3)))
    hidden, outputs = x.flatten(1), []
    for layer in [m for m in net.modules() if isinstance(m, nn.Linear)]:
        z = layer(hidden)
        outputs.append(z)
        hidden = z.tanh()
    errors = torch.autograd.grad(F.cross_entropy(outputs[-1], y), outputs[:-1])
    assert found == pytest.approx([math.log(e.norm().item()) for e in reversed(errors)], rel=1e-5)


def test_gates_are_no_layers():
    run = Walk(data="made", network="highway-mlp", depth=6, activation="relu", init="he", batch=16)
    assert len(log_norms(run, 10, torch.randn(16, 1, 28, 28), torch.randint(10, (16,)), 0)) == 5


def test_what_is_kept():
    run = Walk(data="made", depth=32, activation="relu", init="he", batch=16, draws=3)
    found = walks(run, MNIST, CPU)
    assert [len(path) for path in found["paths"]] == [4] * 3  # of 31 layers
    assert all(path[0] == 0 for path in found["paths"])
    assert len(found["step_mean"]) == len(found["step_std"]) == 3
    assert found == walks(run, MNIST, CPU)
    x, labels = batch_of(run, 0)
    path = torch.tensor(log_norms(run, 10, x, labels, 0), dtype=torch.float64)
    assert found["step_mean"][0] == pytest.approx(path.diff().mean().item(), abs=1e-4)
    assert found["step_std"][0] == pytest.approx(path.diff().std().item(), abs=1e-4)


def batch_of(run, draw):
    preprocessing = Preprocessing.fitted(run.pixels, MNIST.train, CPU)
    seed = seed_of(run.seed, "batches")
    return Batches(MNIST.train, preprocessing, Augmentation(), size=run.batch, seed=seed, device=CPU)[draw]


@pytest.mark.parametrize(("activation", "init"), [("relu", "random-walk"), ("tanh", "random-walk")])
def test_random_walk_initialization_is_a_fair_walk(activation, init):
    """The mean step is small beside that of a scale that is wrong by a tenth."""
    run = Walk(data="made", depth=60, activation=activation, init=init, batch=32, draws=6)
    drift = abs(statistics.mean(walks(run, MNIST, CPU)["step_mean"]))
    assert drift < 0.02 if activation == "relu" else drift < 0.05


def test_others_are_not():
    run = Walk(data="made", depth=60, activation="relu", init="glorot", batch=32, draws=2)
    assert statistics.mean(walks(run, MNIST, CPU)["step_mean"]) == pytest.approx(-math.log(2) / 2, abs=0.03)


def test_errors_that_vanish_are_none():
    run = Walk(data="made", depth=300, activation="relu", init="orthonormal", batch=8, draws=1)
    found = walks(run, MNIST, CPU)
    assert None in found["paths"][0]
    assert found["step_mean"] == [None]
