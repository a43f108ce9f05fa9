"""The loss by name: what it is given, and what is said where it cannot be had."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from goodinit.command.objective import objective
from goodinit.console import CodeError
from goodinit.errors import DataError, OptionError

SCORES, CLASSES = torch.randn(6, 4), torch.arange(6) % 4


@pytest.mark.parametrize("output", [SCORES, SimpleNamespace(logits=SCORES)])
def test_losses_of_torch(output):
    assert objective("cross-entropy", CLASSES)(output) == F.cross_entropy(SCORES, CLASSES)
    assert objective("mse", torch.zeros(24, dtype=torch.int64))(output) == F.mse_loss(SCORES, torch.zeros(6, 4))


def test_the_loss_that_a_model_returns():
    assert objective("output", None) == "output"


def test_losses_of_the_caller_s(project):
    assert objective("net:log_cosh", CLASSES)(SCORES) == (SCORES.sum(1) - CLASSES).cosh().log().mean()
    for labels in (CLASSES, None):
        assert objective("net:energy", labels)(SCORES) == SCORES.square().mean()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "cross-entropie",
            OptionError,
            r"--loss must be output, cross-entropy, mse or MODULE:NAME; got '.*' \(did you mean 'cross-",
        ),
        ("net:log_cos", OptionError, r"net has no 'log_cos' \(did you mean 'log_cosh'"),
        (
            "cross-entropy",
            DataError,
            "--loss cross-entropy needs labels, and the data holds none: a tensor of what the model should",
        ),
        ("net:log_cosh", DataError, "--loss net:log_cosh needs labels"),
    ],
)
def test_losses_that_cannot_be_had(project, name, error, message):
    with pytest.raises(error, match=message):
        objective(name, None)


def test_a_loss_that_raises():
    given = r"given scores \(6, 4\) float32 and labels \(6,\) int64 from 9 to 9"
    with pytest.raises(CodeError, match=rf"the loss cross-entropy, {given}, raised IndexError: Target 9 is out of bounds"):
        objective("cross-entropy", torch.full((6,), 9))(SCORES)
