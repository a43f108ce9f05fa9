"""Weights drawn while other processes answer."""

import pytest
import torch
from torch import nn

from goodinit import ahead
from goodinit.ahead import Ahead
from goodinit.interception.computed import Sources
from goodinit.interception.intercept import module_operations
from goodinit.interception.operation import Layout


@pytest.fixture
def drawn():
    """The places that were drawn."""
    return []


@pytest.fixture
def layers(drawn):
    """Three layers of 4 x 4 numbers, of which the second is a convolution, and what draws ahead for them."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4))

    def draw(layout, weight, place):
        drawn.append(place)
        weight.fill_(len(drawn))

    operations = list(module_operations(model, Sources(model)))
    return [(op.layout, op.weight.tensor.detach(), op.weight.place) for op in operations], Ahead(operations, draw)


def test_the_next_weight_is_drawn_and_taken_once(layers, drawn):
    (first, second, third), ahead_ = layers
    assert not ahead_.take(*first)
    ahead_.draw()
    ahead_.draw()  # there is one
    assert drawn == [second[2]]
    before = second[1].clone()
    assert not torch.equal(before, torch.ones_like(before))
    assert ahead_.take(*second)
    assert torch.equal(second[1], torch.ones_like(before))
    ahead_.draw()
    assert ahead_.take(*third)
    assert torch.equal(third[1], torch.full_like(third[1], 2))
    ahead_.draw()  # there is none
    assert drawn == [second[2], third[2]]


def test_what_was_not_expected_is_left_alone(layers, drawn):
    (first, second, third), ahead_ = layers
    ahead_.draw()
    before = third[1].clone()
    assert not ahead_.take(*third)  # the last layer runs first
    assert torch.equal(third[1], before)
    _, weight, place = first
    assert not ahead_.take(Layout((1,), (0,)), weight, place)  # used as its transpose
    assert drawn == [first[2]]
    assert not ahead_.take(*second)


def test_large_weights_are_not_drawn_ahead(layers, drawn, monkeypatch):
    monkeypatch.setattr(ahead, "_LARGEST", 15)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    ahead_ = Ahead(module_operations(model, Sources(model)), lambda _, weight, place: drawn.append((place, tuple(weight.shape))))
    ahead_.draw()
    assert drawn == [(2, (3, 4))]
