"""Hints and distillation: their formulas, what they train, and that they can be broken off between stages too."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodinit import OptionError
from goodinit.paper.blocks import Maxout, Style
from goodinit.paper.checkpoint import Checkpoint
from goodinit.paper.config import Training
from goodinit.paper.networks import make_network
from goodinit.paper.objectives import Classification, Distillation, Hint
from goodinit.paper.optimize import LOSSES, Solver
from goodinit.paper.outcome import Observer
from goodinit.paper.train import train
from image_sets import image_set

CPU = torch.device("cpu")
MNIST = image_set((1, 28, 28))
RUN = Training(
    data="made", network="fitnet-mnist", teacher="teacher-mnist", method="hints", hint_iterations=4, iterations=8, batch=32,
    pixels="scaled", optimizer="rmsprop", lr=0.002, evaluations=2, init="glorot", init_batch=32,
)  # fmt: skip


def done(share):
    return torch.tensor(share)


def teacher():
    torch.manual_seed(1)
    return make_network("teacher-mnist")


def test_classification_adds_auxiliary_losses():
    class Three(nn.Module):
        def forward(self, x):
            return x, 2 * x, 3 * x

    x, y = torch.randn(5, 4), torch.randint(4, (5,))
    total = Classification(Three(), F.cross_entropy, 0.3)(x, y, done(0.0))
    one, two, three = (F.cross_entropy(k * x, y) for k in (1, 2, 3))
    assert total.item() == pytest.approx((one + 0.3 * (two + three)).item())
    assert Classification(nn.Identity(), LOSSES["hinge"], 0.3)(x, y, done(0.0)) == LOSSES["hinge"](x, y)


def test_the_hint_s_formula_and_what_it_trains():
    student, wide = make_network("fitnet-mnist"), teacher()
    x = torch.rand(6, 1, 28, 28)
    hint = Hint(student, wide, Style("maxout"), x[:1])
    v = nn.Sequential(student.conv1_1, student.conv1_2, student.pool1, student.conv2_1, student.conv2_2)(x)
    u = nn.Sequential(wide.conv1_1, wide.pool1, wide.conv2_1)(x)
    assert v.shape == (6, 16, 13, 13)
    assert u.shape == (6, 48, 13, 13)
    expected = 0.5 * (u - hint.regressor(v)).square().sum() / 6
    loss = hint(x, torch.zeros(6), done(0.0))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    trained = {name for name, p in student.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in trained} == {"conv1_1", "conv1_2", "conv2_1", "conv2_2"}
    assert all(p.grad is None for p in wide.parameters())
    assert all(p.grad is not None for p in hint.regressor.parameters())
    assert {id(p) for p in hint.parameters()} == {id(p) for p in (*hint.guided.parameters(), *hint.regressor.parameters())}


@pytest.mark.parametrize(("student", "wide", "guided"), [("fitnet1", "teacher-cifar", 6), ("fitnet4", "teacher-cifar", 11)])
def test_the_guided_layer_is_the_student_s_middle(student, wide, guided):
    torch.manual_seed(0)
    hint = Hint(make_network(student), make_network(wide), Style("maxout"), torch.rand(1, 3, 32, 32))
    assert sum(isinstance(m, Maxout) for m in hint.guided.modules()) == guided


def test_a_larger_map_of_the_student_gets_a_regressor_with_a_kernel():
    student = nn.Sequential(OrderedDict(conv1_1=nn.Conv2d(1, 4, 3), conv2_1=nn.Conv2d(4, 5, 3)))
    wide = nn.Sequential(OrderedDict(conv1_1=nn.Conv2d(1, 4, 3), pool1=nn.MaxPool2d(2), conv2_1=nn.Conv2d(4, 7, 3)))
    x = torch.rand(2, 1, 12, 12)  # 8x8 of the student, 3x3 of the teacher
    hint = Hint(student, wide, Style("relu"), x)
    assert hint.regressor[0].kernel_size == (6, 6)
    assert hint(x, torch.zeros(2), done(0.0)).isfinite()


def test_maps_that_do_not_fit():
    small = nn.Sequential(OrderedDict(conv1_1=nn.Conv2d(1, 4, 3), pool1=nn.MaxPool2d(2), conv2_1=nn.Conv2d(4, 5, 3)))
    large = nn.Sequential(OrderedDict(conv1_1=nn.Conv2d(1, 4, 3), conv2_1=nn.Conv2d(4, 7, 3)))
    with pytest.raises(OptionError) as caught:
        Hint(small, large, Style("relu"), torch.rand(2, 1, 12, 12))
    assert str(caught.value) == (
        "the student's layer 'conv2_1' of shape (5, 3, 3) (channels, height, width) cannot be guided by the teacher's 'conv2_1' "
        "of shape (7, 8, 8): it has to be at least as high and wide"
    )


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_distillation_s_formula(share):
    student, wide = make_network("fitnet-mnist").eval(), teacher().eval()
    x, y = torch.rand(6, 1, 28, 28), torch.randint(10, (6,))
    loss = Distillation(student, wide, RUN).eval()(x, y, done(share))
    scores, theirs = student(x), wide(x)
    soft = -((theirs / 3).softmax(1) * (scores / 3).log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx((F.cross_entropy(scores, y) + (4 - 3 * share) * soft).item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in wide.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_the_teacher_stays_in_eval_mode():
    wide = teacher()
    objective = Distillation(make_network("fitnet-mnist"), wide, RUN)
    objective.train()
    assert not wide.training
    assert "_teacher" not in dict(objective.named_children())


class StopAt(Observer):
    def __init__(self, iteration):
        self.iteration = iteration

    def advances(self, progress, loss):
        if progress.iteration == self.iteration:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["hints", "distillation"])
def test_both_stages_can_be_broken_off(tmp_path, method):
    run = dataclasses.replace(RUN, method=method, hint_iterations=4 if method == "hints" else 0)
    wide = teacher()
    before = copy.deepcopy(wide.state_dict())
    whole = train(run, MNIST, device=CPU, teacher=wide)
    assert [e.iteration for e in whole.evaluations] == ([8, 12] if method == "hints" else [4, 8])
    path = tmp_path / "a.pt"
    for stop in (2, 4, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            train(run, MNIST, device=CPU, teacher=wide, checkpoint=Checkpoint(path, run, seconds=0), observers=[StopAt(stop)])
    parts = train(run, MNIST, device=CPU, teacher=wide, checkpoint=Checkpoint(path, run, seconds=0))
    assert parts.weights_sha256 == whole.weights_sha256
    assert parts.evaluations == whole.evaluations
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())


def test_hints_bring_the_middle_layers_together():
    class Losses(Observer):
        def __init__(self):
            self.losses = []

        def advances(self, progress, loss):
            self.losses.append(loss)

    record = Losses()
    train(dataclasses.replace(RUN, hint_iterations=60, iterations=1), MNIST, device=CPU, teacher=teacher(), observers=[record])
    hints = record.losses[:60]
    assert sum(hints[-5:]) < 0.5 * sum(hints[:5])


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_that_knows():
    plain = dataclasses.replace(RUN, network="teacher-mnist", method="plain", teacher="", hint_iterations=0, iterations=60)
    known = train(plain, MNIST, device=CPU)
    assert known.final_accuracy > 0.95
    wide = teacher()
    wide.load_state_dict(known.weights)
    student = train(dataclasses.replace(RUN, hint_iterations=30, iterations=60), MNIST, device=CPU, teacher=wide)
    assert student.final_accuracy > 0.9


def test_the_stages_do_not_share_their_bookkeeping():
    """Each has its own schedule, solver and share that is done; losses of the hints are not those of the distillation."""
    run = dataclasses.replace(RUN, hint_iterations=6, iterations=4, evaluations=2, milestones=(2,), gamma=0.5)
    seen, rates, losses = [], [], []
    forward = Distillation.forward

    class Record(Observer):
        def advances(self, progress, loss):
            losses.append(loss)

    def record(self, x, labels, done):
        seen.append(done.item())
        return forward(self, x, labels, done)

    step = Solver.step

    def record_rate(self, iteration):
        rates.append(iteration)
        step(self, iteration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distillation, "forward", record)
        patch.setattr(Solver, "step", record_rate)
        outcome = train(run, MNIST, device=CPU, teacher=teacher(), observers=[Record()])
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75])
    assert rates == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert outcome.evaluations[0].loss == pytest.approx(sum(losses[6:8]) / 2)
