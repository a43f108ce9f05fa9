"""Words of a command line, and the values that they stand for."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from goodinit.command.arguments import chosen, device, keywords, seed_everything, targets
from goodinit.errors import OptionError


def test_keywords():
    given = ["a=1", "b=[1, 2]", "c=None", "d=relu", "e='5'", "f=x=y", "g=", "h=-0.5", "i=(1", "j=print(1)"]
    assert keywords(given) == {
        "a": 1, "b": [1, 2], "c": None, "d": "relu", "e": "5", "f": "x=y", "g": "", "h": -0.5, "i": "(1", "j": "print(1)",
    }  # fmt: skip
    assert keywords([]) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["width"], "--arg: expected name=value, such as --arg width=64; got 'width'"),
        (["=3"], "got '=3'"),
        (["a-b=3"], "got 'a-b=3'"),
        (["a=1", "a=2"], "--arg: 'a' is given twice, as 1 and as '2'"),
        (["bias=false"], "--arg: false would be a text, and so be true; write False, or \"'false'\""),
        (["bias=null"], "--arg: null would be a text, and so be true; write None, or"),
    ],
)
def test_no_keywords(given, message):
    with pytest.raises(OptionError, match=message):
        keywords(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], 1.0), (["2"], 2.0), (["head=0.1", "*.0=2"], {"head": 0.1, "*.0": 2.0}), (["a=b=3"], {"a=b": 3.0}), (["auto"], "auto")],
)
def test_targets(given, expected):
    assert targets(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["one"], "--target-std: expected a number, pattern=number such as 'head=0.1', or auto; got 'one'"),
        (["auto", "head=1"], "'auto' is for all weights, so it cannot stand beside others$"),
        (["head="], "expected a number, .*; got ''"),
        (["0.5", "head=1"], r"'0.5' is for all weights, so it cannot stand beside others; .* name '\*=0.5' last"),
    ],
)
def test_no_targets(given, message):
    with pytest.raises(OptionError, match=message):
        targets(given)


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(OptionError, match=r"--dtype must be a, bc or d; got 'bd' \(did you mean 'd', 'bc'\?\)"):
        chosen("--dtype", "bd", ("a", "bc", "d"))


def test_devices():
    assert device("cpu") == torch.device("cpu")
    assert device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:77", "meta", "mtia"])
def test_devices_that_are_not_there(name):
    with pytest.raises(OptionError, match=f"--device {name}: .*; try --device cpu"):
        device(name)


def test_a_gpu_is_called_cuda():
    with pytest.raises(OptionError, match=r"--device gpu: torch calls a GPU cuda; try --device cuda, or auto"):
        device("gpu")


def test_a_seed_begins_every_stream_anew():
    drawn = []
    for _ in range(2):
        seed_everything(7)
        drawn.append((random.random(), torch.rand(1).item(), np.random.rand()))
    assert drawn[0] == drawn[1]
    with pytest.raises(OptionError, match="--seed must be from 0 to 4294967295; got -1"):
        seed_everything(-1)
