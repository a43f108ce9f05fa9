"""Whose weight it is, and what its part is called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodinit.interception.weights import Weights, matches, region_label


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 4, 8))
        self.inner = nn.Linear(4, 6)


@pytest.mark.parametrize(
    ("view", "label"),
    [
        (lambda w: w, ""),
        (lambda w: w.transpose(0, 2), ""),
        (lambda w: w.view(24, 8).t(), ""),
        (lambda w: w[3], "[3]"),
        (lambda w: w[3].t(), "[3]"),
        (lambda w: w[2:4], "[2:4]"),
        (lambda w: w[:, 1], "[:, 1]"),
        (lambda w: w[1:3, :, 2:], "[1:3, :, 2:8]"),
        (lambda w: w[0], "[0]"),
        (lambda w: w[5, 3, 7:], "[5, 3, 7]"),
    ],
)
def test_names_of_parts(view, label):
    holder = Holder()
    weight = Weights(holder).find(view(holder.w.detach()))
    assert weight.name == f"w{label}"
    assert weight.parameter is holder.w
    assert region_label(holder.w, view(holder.w)) == label


def test_odd_parts_have_some_name():
    holder = Holder()
    name = Weights(holder).find(holder.w[:, :, ::2]).name
    assert name.startswith("w[")


def test_what_is_not_a_weight():
    holder = Holder()
    weights = Weights(holder)
    for other in (torch.randn(4), holder.w.detach().clone(), holder.w + 1, nn.Parameter(torch.randn(3)), None, 3, "w"):
        assert weights.find(other) is None


def test_a_parameter_made_later_is_found():
    holder = Holder()
    weights = Weights(holder)
    holder.late = nn.Parameter(torch.randn(3, 3))
    assert weights.find(holder.late).name == "late"
    assert weights.find(holder.late[1]).name == "late[1]"


def test_parameters_that_share_a_storage():
    flat = torch.randn(20)
    model = nn.Module()
    model.a, model.b = nn.Parameter(flat[:12].view(3, 4)), nn.Parameter(flat[12:].view(2, 4))
    weights = Weights(model)
    assert weights.find(model.b.detach().t()).name == "b"
    assert weights.find(model.a.detach()[1]).name == "a[1]"


@pytest.mark.parametrize(
    ("pattern", "yes"),
    [
        ("layers.0.weight", True),
        ("layers.0", True),
        ("layers", True),
        ("layers*", True),
        ("*.weight", True),
        ("*.0", True),
        ("layers.0.weight[[]2]", True),
        ("layers.1", False),
        ("layer", False),
        ("weight", False),
        ("0", False),
    ],
)
def test_patterns(pattern, yes):
    assert matches("layers.0.weight[2]", pattern) == yes


def test_an_expanded_weight_lies_where_the_weight_does():
    holder = Holder()
    weights = Weights(holder)
    assert weights.find(holder.w.expand(3, 6, 4, 8)).key == weights.find(holder.w).key


def test_memory_that_a_parameter_left_is_not_its_own():
    """FSDP2 frees the memory of whole parameters, and other tensors get it."""
    holder = Holder()
    left = holder.w.data
    weights = Weights(holder)
    holder.w.data = torch.randn(6, 4, 8)
    assert weights.find(left) is None
    assert weights.find(left[2]) is None
    assert weights.find(holder.w).name == "w"
