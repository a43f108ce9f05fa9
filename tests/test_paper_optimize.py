"""Losses, solvers and schedules, against Caffe's own formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodinit.paper.config import Training
from goodinit.paper.optimize import LOSSES, Solver, hinge, learning_rate

BASE = {"data": "cifar10", "network": "fitnet1"}


def test_hinge_is_caffe_s():
    """loss = sum_{i,k} max(0, 1 - delta(l_i = k) score_ik) / n with delta(right) = 1, delta(wrong) = -1."""
    scores = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    expected = sum(
        max(0.0, 1 - (1 if k == labels[i] else -1) * scores[i, k].item()) for i in range(6) for k in range(4)
    )  # fmt: skip
    loss = hinge(scores, labels)
    assert loss.item() == pytest.approx(expected / 6)
    loss.backward()
    assert set((scores.grad * 6).unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_softmax_is_cross_entropy():
    assert LOSSES["softmax"] is F.cross_entropy
    assert LOSSES["hinge"] is hinge


def test_learning_rate_falls_at_milestones():
    run = Training(**BASE, lr=0.5, gamma=0.1, milestones=(3, 5, 5), iterations=8)
    assert [learning_rate(run, i) for i in range(7)] == pytest.approx([0.5] * 3 + [0.05] * 2 + [0.0005] * 2)


class Caffe:
    """SGDSolver and RMSPropSolver of Caffe for one parameter."""

    def __init__(self, run, weight, decay):
        self.run, self.weight, self.decay, self.history = run, weight.detach().clone(), decay, torch.zeros_like(weight)

    def step(self, gradient, rate):
        gradient = gradient + self.decay * self.weight
        if self.run.optimizer == "sgd":
            self.history = self.run.momentum * self.history + rate * gradient
            self.weight = self.weight - self.history
        else:
            self.history = self.run.rms_decay * self.history + (1 - self.run.rms_decay) * gradient**2
            self.weight = self.weight - rate * gradient / (self.history.sqrt() + 1e-8)


@pytest.mark.parametrize("bias_decay", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_solvers_are_caffe_s(optimizer, bias_decay):
    run = Training(
        **BASE, optimizer=optimizer, lr=0.1, rms_decay=0.8, weight_decay=0.05, gamma=0.3, milestones=(3, 6), bias_decay=bias_decay
    )
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).double()
    decays = {"0.weight": True, "0.bias": bias_decay, "1.weight": False, "1.bias": False, "3.weight": True, "3.bias": True}
    references = {name: Caffe(run, p, 0.05 if decays[name] else 0.0) for name, p in model.named_parameters()}
    solver = Solver(run, model)
    for iteration in range(9):
        model(torch.randn(4, 2, 4, 4, dtype=torch.float64)).tanh().sum().backward()
        for name, p in model.named_parameters():
            references[name].step(p.grad, 0.1 * 0.3 ** ((iteration >= 3) + (iteration >= 6)))
        solver.step(iteration)
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
        for name, p in model.named_parameters():
            assert torch.allclose(p.detach(), references[name].weight, rtol=1e-9), (name, iteration)


def test_plain_momentum_of_torch_would_differ_where_the_rate_falls():
    """The test above can tell: Caffe's velocity keeps the size it had."""
    weight, v_caffe, v_torch, other = 1.0, 0.0, 0.0, 1.0
    for rate in (0.1, 0.1, 0.01):
        v_caffe = 0.9 * v_caffe + rate
        weight -= v_caffe
        v_torch = 0.9 * v_torch + 1
        other -= rate * v_torch
    assert not math.isclose(weight, other, rel_tol=1e-3)


def test_polynomial_decay():
    run = Training(**BASE, lr=0.4, schedule="poly", power=0.5, iterations=100)
    assert [learning_rate(run, i) for i in (0, 75, 99)] == pytest.approx([0.4, 0.2, 0.04])


def test_biases_may_have_a_rate_and_a_decay_of_their_own():
    """As Caffe's ImageNet networks have them: twice the rate, no decay."""
    run = Training(**BASE, lr=0.1, momentum=0.0, weight_decay=0.5, bias_lr=2.0, linear_bias_decay=False)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    solver = Solver(run, model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    solver.step(0)
    expected = {"0.weight": 0.1, "0.bias": 0.2, "1.weight": 0.1, "1.bias": 0.1, "3.weight": 0.1, "3.bias": 0.2}
    for name, p in model.named_parameters():
        decay = 0.05 * before[name] if name in ("0.weight", "3.weight") else 0.0
        assert torch.allclose(p.detach(), before[name] - expected[name] - decay, atol=1e-6), name


@pytest.mark.parametrize(("clip", "scale"), [(0.0, 1.0), (10.0, 0.5), (30.0, 1.0)])
def test_gradients_are_clipped_by_the_norm_of_all_of_them_and_before_weight_decay(clip, scale):
    run = Training(**BASE, lr=1.0, momentum=0.0, weight_decay=0.1, clip_gradients=clip)
    model = nn.Linear(3, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 0.0)
    solver = Solver(run, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 10.0)  # of norm 20
    solver.step(0)
    assert torch.allclose(model.weight, torch.full((1, 3), 2.0 - 10.0 * scale - 0.2))
    assert torch.allclose(model.bias, torch.tensor([-10.0 * scale]))
