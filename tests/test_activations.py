"""Where non-linearities are flat, and which tensor is whose output."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit.measurement.activations import NON_LINEARITIES, Trail, shape_of


def flat(function, *args, **kwargs):
    return shape_of(function, args, kwargs)


@pytest.mark.parametrize(
    ("function", "args", "dead", "saturated"),
    [
        (F.relu, (), (0, math.inf), (0, math.inf)),
        (torch.relu_, (), (0, math.inf), (0, math.inf)),
        (torch.tanh, (), (-4.15, 4.15), (-2.18, 2.18)),
        (torch.sigmoid, (), (-8.3, 8.3), (-4.36, 4.36)),
        (F.leaky_relu, (0.01,), (-math.inf, math.inf), (0, math.inf)),
        (F.leaky_relu, (0.2,), (-math.inf, math.inf), (-math.inf, math.inf)),
        (F.relu6, (), (0, 6), (0, 6)),
        (F.hardtanh, (-2.0, 3.0), (-2, 3), (-2, 3)),
        (F.gelu, (), (-3.8, math.inf), (-2.4, math.inf)),
        (F.softplus, (), (-6.9, math.inf), (-2.95, math.inf)),
        (torch.sin, (), (-math.inf, math.inf), (-math.inf, math.inf)),
        (F.threshold, (1.0, 0.0), (1, math.inf), (1, math.inf)),
    ],
)
def test_flat_parts(function, args, dead, saturated):
    shape = flat(function, *args)
    assert tuple(shape.dead) == pytest.approx(dead, abs=0.15)
    assert tuple(shape.saturated) == pytest.approx(saturated, abs=0.15)


def test_options_count():
    assert flat(F.relu, inplace=True) == flat(F.relu)
    assert tuple(flat(torch.clamp, min=0).dead) == pytest.approx(tuple(flat(F.relu).dead), abs=1e-9)
    assert flat(F.gelu, approximate="tanh").dead.low == pytest.approx(flat(F.gelu).dead.low, abs=0.6)


def test_a_weight_among_the_arguments_says_nothing():
    assert flat(F.prelu, torch.tensor([0.1])).dead == (-math.inf, math.inf)


def test_saturation_is_on_both_sides_of_zero():
    assert flat(torch.tanh).saturated.around_zero
    assert not flat(F.relu6).saturated.around_zero
    assert not flat(F.relu).saturated.at_both_ends


def test_functions_and_methods_in_place_and_not():
    assert {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, Tensor.tanh_, F.silu, torch.clamp} <= NON_LINEARITIES
    assert F.linear not in NON_LINEARITIES


def handed_on(function, *args, **kwargs):
    """What the result of a call is, if its first argument is "z"."""
    trail: Trail[str] = Trail()
    trail.begin(args[0], "z")
    return trail.find(trail.follow(function, args, kwargs, lambda: function(*args, **kwargs)))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (F.layer_norm, ((4,),)),
        (Tensor.view, (-1,)),
        (Tensor.transpose, (0, 1)),
        (Tensor.float, ()),
        (F.dropout, (0.0,)),
        (F.relu, ()),
        (torch.add, (nn.Parameter(torch.ones(4)),)),
        (Tensor.__iadd__, (nn.Parameter(torch.ones(4)),)),
    ],
)
def test_what_keeps_units_apart_is_followed(function, args):
    assert handed_on(function, torch.randn(3, 4), *args) == "z"


MIXING = [(torch.add, (torch.ones(3, 4),)), (torch.mul, (2,)), (torch.softmax, (1,)), (torch.sum, ())]


@pytest.mark.parametrize(("function", "args"), MIXING)
def test_what_mixes_outputs_is_not_followed(function, args):
    assert handed_on(function, torch.randn(3, 4), *args) is None


def test_an_output_that_was_overwritten_is_no_more_the_output():
    trail: Trail[str] = Trail()
    z = torch.randn(3)
    trail.begin(z, "z")
    assert trail.find(z) == "z"
    z += torch.ones(3)
    assert trail.find(z) is None
    assert trail.find(z.clone()) is None
    assert trail.find("no tensor") is None


def test_nothing_is_kept_alive():
    import weakref

    trail: Trail[str] = Trail()
    z = torch.randn(3)
    trail.begin(z, "z")
    alive = weakref.ref(z)
    del z
    assert alive() is None
