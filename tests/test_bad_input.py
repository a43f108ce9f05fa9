"""Errors say what was asked, what was seen and what to try, and leave the model as it was (data: see test_batches)."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from goodinit import DataError, GoodinitWarning, ModelError, NonFiniteError, OptionError, lsuv_
from goodinit.errors import MissingExtraError, annotate, require
from nets import Functional, Normalized, assert_same, build, mlp, snapshot


def refused(error, message, model, data, **options):
    before = snapshot(model)
    with pytest.raises(error, match=message) as caught:
        lsuv_(model, data, **options)
    assert_same(before, snapshot(model))
    return caught.value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_std": 0}, "target_std must be a positive number .* got 0"),
        ({"target_std": -1.0}, "got -1.0"),
        ({"target_std": float("nan")}, "got nan"),
        ({"target_std": float("inf")}, "got inf"),
        ({"target_std": True}, "got True"),
        ({"target_std": {"0*": 0.0}}, "got 0.0"),
        ({"target_std": "1"}, "got '1'"),
        ({"target_std": {"heads": 1.0}}, "target_std: the pattern 'heads' matches no parameter and no module of Net"),
        ({"skip": "hed"}, r"skip: the pattern 'hed' matches no .* \(did you mean 'head', .*\?\).*shell-style"),
        ({"skip": ["body.0", "body.9*"]}, r"pattern 'body.9\*' matches no"),
        ({"skip": [0]}, "skip: patterns are strings such as 'head\\*'; got 0"),
        ({"generator": 0}, r"generator must be a torch.Generator: generator=torch.Generator\(\).manual_seed\(0\); got 0"),
        ({"mode": "training"}, "mode must be 'train' or 'eval'; got 'training'"),
        ({"pre_init": "gaussian"}, "pre_init must be 'orthonormal', 'structured', None or a function .* got 'gaussian'"),
        ({"skip": 5}, r"skip must be a pattern such as 'head\*', or several: \['head\*', 'embed'\]; got 5"),
        ({"skip": None}, "skip must be a pattern .* got None"),
        ({"batches": 1.5}, "batches must be an integer, 1 or more; got 1.5"),
        ({"forward": 5}, "forward must be a function of the model and the batch, .* got 5"),
        ({"distributed": "no"}, "distributed must be True or False; got 'no'"),
        ({"checkpoint": ""}, "checkpoint must be the path of a folder; got ''"),
        ({"checkpoint": 5}, "checkpoint must be the path of a folder; got 5"),
        ({"reset": 5}, "reset must be a function that is given a module; got 5"),
        ({"device": 3.5}, "device must be a device such as 'cpu' or 'cuda:0'; got 3.5"),
        ({"pre_init": "orthogonal"}, r"got 'orthogonal' \(did you mean 'orthonormal'\?\)"),
    ],
)
def test_options(options, message):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp(4, 5, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.body(x))

    refused(OptionError, message, Net(), torch.randn(8, 4), **options)


class Elementwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return torch.layer_norm(x * self.gain, (4,), self.gain)


def test_models():
    x = torch.randn(8, 4)
    refused(
        ModelError, "no linear operator was reached: the forward of Elementwise .* given \\(8, 4\\) float32", Elementwise(), x
    )
    refused(ModelError, "no linear operator was reached", nn.Linear(4, 4), x, forward=lambda m, d: d)
    refused(ModelError, "ReLU has no parameters", nn.ReLU(), x)
    with pytest.raises(ModelError, match=r"2 parameters are on the meta device .* 'weight' the first; .*to_empty"):
        lsuv_(nn.Linear(4, 4, device="meta"), x)
    with pytest.raises(ModelError, match=r"must be a torch.nn.Module; got function"):
        lsuv_(lambda x: x, x)
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):  # torch.jit is deprecated, and still what people have
            warnings.simplefilter("ignore", kind)
        scripted = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))
    refused(ModelError, "1 is TorchScript, .* before torch.jit.script", scripted, x)


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    with pytest.raises(ModelError, match=r"'weight' was made inside torch.inference_mode\(\), so it can neither be initialized"):
        lsuv_(model, torch.randn(8, 4))


def test_an_array_is_told_how_to_become_a_tensor():
    array = torch.randn(8, 4).numpy()
    refused(
        DataError,
        r"cannot take a batch from numpy.ndarray of length 8; pass a tensor: torch.from_numpy\(data\)",
        mlp(4, 5),
        array,
    )


def test_what_the_model_rejects_says_how_far_it_got():
    model, data = build("mlp")
    model[4] = nn.Linear(7, 20)
    error = refused(RuntimeError, "mat1 and mat2 shapes cannot be multiplied", model, data)
    assert "raised in linear with the weight '4.weight' of shape (20, 7) on input of shape (64, 20)" in note(error)
    assert "the model was given (64, 6) float32. All weights are as before." in note(error)

    class Asserting(Functional):
        def forward(self, x):
            super().forward(x)
            raise ValueError("not me")

    error = refused(ValueError, "not me", Asserting(), data)
    assert "raised after 3 operators on weights, outside of any" in note(error)


def note(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", [str(error)]))


def test_annotation_where_exceptions_have_no_notes(monkeypatch):
    monkeypatch.setattr("goodinit.errors.sys.version_info", (3, 10))
    error = ValueError("first", 2)
    annotate(error, "second")
    assert error.args == ("first\nsecond", 2)


class Logarithm(nn.Module):
    def __init__(self, *, asserts=False):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.asserts = asserts

    def forward(self, x):
        y = self.third(self.second(self.first(x).log()))
        if self.asserts:
            assert y.isfinite().all()
        return y


@pytest.mark.parametrize("asserts", [False, True])
def test_nan_names_operator_and_module(asserts):
    model = Logarithm(asserts=asserts)
    message = r"output of linear with the weight 'second.weight' \(module 'second', shape \(5, 5\)\), the first operator"
    error = refused(NonFiniteError, message, model, torch.randn(16, 4))
    assert isinstance(error.__cause__, AssertionError) == asserts


def test_nan_at_a_later_use_of_a_shared_weight():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x) / 0 * 0)

    refused(NonFiniteError, "output of linear with the weight 'fc.weight'", Twice(), torch.randn(16, 4))


def test_overflow_in_float16():
    model = mlp(4, 8, 2).half()
    nn.init.ones_(model[0].weight)
    refused(NonFiniteError, "float16: try bfloat16", model, torch.full((8, 4), 60000.0, dtype=torch.float16), pre_init=None)


def test_constant_input():
    model = Normalized()
    with pytest.warns(GoodinitWarning, match=r"'net.0.weight' is no-signal.*'net.4.weight' is no-signal"):
        report = lsuv_(model, torch.zeros(4, 3, 4, 4))
    assert {r.status for r in report} == {"no-signal"}
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("x", [torch.ones(8, 4), torch.randn(1, 4)], ids=["equal", "single"])
def test_one_sample(x):
    with pytest.warns(GoodinitWarning, match=r"is one sample, or the same one several times \(\(., 4\) float32\)"):
        lsuv_(mlp(4, 8, 2), x)


def test_one_sample_of_many_places_is_enough():
    lsuv_(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
    lsuv_(nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8)), torch.arange(9)[None])


def test_a_warning_made_an_error_is_a_failure_like_any_other():
    model = mlp(4, 5)
    refused(GoodinitWarning, "no-signal", model, torch.zeros(8, 4))  # pytest is run with warnings as errors


def test_many_failed_weights_are_summed_up():
    with pytest.warns(GoodinitWarning, match="and 4 more, see the report"):
        lsuv_(mlp(*[3] * 10, activation=nn.ReLU), torch.zeros(8, 3))


def test_a_missing_extra_says_how_to_install_it():
    with pytest.raises(MissingExtraError, match=r"no_such_package is not installed.*pip install 'goodinit\[plot\]'"):
        require("no_such_package", extra="plot")
    assert require("json", extra="plot").dumps(1) == "1"
