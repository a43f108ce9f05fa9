"""From what is passed as loss to a number, and what is said where there is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodinit import DataError, OptionError
from goodinit.batches import Call
from goodinit.measurement.losses import Objective, loss_in

OUTPUT = torch.randn(6, 3, requires_grad=True)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def objective(loss):
    made = Objective.checked(loss)
    assert made is not None
    return made


def value(loss, *rest, output=OUTPUT):
    return objective(loss).of(output, Call((), {}, rest=rest))


class Weighted(nn.Module):
    def forward(self, output, target, weight):
        return (weight * (output[:, 0] - target) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (F.cross_entropy, 1),
        (nn.CrossEntropyLoss(), 1),
        (lambda output: output.mean(), 0),
        (lambda output, target, scale=2: output.mean(), 1),
        (Weighted(), 2),
        ("output", 0),
    ],
)
def test_how_many_targets_a_loss_takes(loss, targets):
    assert objective(loss).targets == targets


def test_a_builtin_without_a_signature_takes_a_target_if_there_is_one():
    assert value(torch.mean).item() == pytest.approx(OUTPUT.mean().item())
    assert value(torch.dist, OUTPUT.detach() + 1).item() == pytest.approx(18**0.5)


def test_no_loss():
    assert Objective.checked(None) is None


def test_it_is_given_as_many_targets_as_it_takes():
    assert value(F.cross_entropy, LABELS, "more").item() == pytest.approx(F.cross_entropy(OUTPUT, LABELS).item())
    assert value(Weighted(), LABELS, torch.ones(6)).ndim == 0
    assert value(lambda output: output.sum().reshape(1)).shape == ()


@pytest.mark.parametrize(
    "output", [OUTPUT.mean(), {"loss": OUTPUT.mean(), "logits": OUTPUT}, SimpleNamespace(loss=OUTPUT.mean())]
)
def test_a_model_that_returns_its_loss(output):
    assert loss_in(output) is not None
    assert value("output", output=output).item() == pytest.approx(OUTPUT.mean().item())


@pytest.mark.parametrize(
    ("loss", "rest", "error", "message"),
    [
        ("mse", (), OptionError, r'a function of the model\'s output, or .* or "output" .*; got \'mse\''),
        (3, (), OptionError, "got 3"),
        (
            F.cross_entropy,
            (),
            DataError,
            r"output and 1 more, the batch has 0 more than .*measure\(model, \(x, y\), loss=…\)",
        ),
        (
            lambda y: y.square(),
            (),
            OptionError,
            r"one number.* got a tensor of shape \(6, 3\) float32\. .*: take its mean",
        ),
        (lambda y: 1.0, (), OptionError, "must be one number.* got a float"),
        (
            lambda y: y.detach().sum(),
            (),
            OptionError,
            r"no gradient: .*requires_grad=False\), or the output detached",
        ),
    ],
)
def test_what_is_no_loss(loss, rest, error, message):
    with pytest.raises(error, match=message):
        value(loss, *rest)


@pytest.mark.parametrize(
    ("output", "kind"),
    [((OUTPUT,), "a tuple"), ({"logits": OUTPUT}, "a dict"), (SimpleNamespace(loss=None), "a SimpleNamespace")],
)
def test_a_model_that_returns_no_loss(output, kind):
    with pytest.raises(OptionError, match=f'"output" needs a model that returns its loss, .* or as .loss; it returned {kind}'):
        value("output", output=output)


def test_what_the_loss_raises_says_what_it_was_given():
    with pytest.raises(ValueError, match="batch_size") as caught:
        value(F.cross_entropy, LABELS[:4])
    told = "".join(getattr(caught.value, "__notes__", caught.value.args))
    assert "raised by the loss, which was given a tensor of shape (6, 3) float32, a tensor of shape (4,) int64" in told
