"""From the words of a command line to the values that they stand for."""

from __future__ import annotations

import ast
import random
import sys
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from goodinit.errors import OptionError, did_you_mean
from goodinit.options import PreInit, Targets

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
PRE_INITS: dict[str, PreInit] = {
    "orthonormal": "orthonormal",
    "structured": "structured",
    "gaussian": nn.init.normal_,
    "none": None,
}


def keywords(given: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from ``name=value``; a value that is no Python literal is a string.

    Raises:
        OptionError: no ``name=``, or a name twice.

    >>> keywords(["depth=3", "sizes=(64, 10)", "act=relu"])
    {'depth': 3, 'sizes': (64, 10), 'act': 'relu'}
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise OptionError(f"--arg: expected name=value, such as --arg width=64; got {text!r}")
        if name in found:
            raise OptionError(f"--arg: {name!r} is given twice, as {found[name]!r} and as {value!r}")
        found[name] = _literal(value)
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval is documented to raise
        if (meant := _CONSTANTS.get(text.lower())) is not None:
            raise OptionError(f"--arg: {text} would be a text, and so be true; write {meant}, or \"'{text}'\"") from None
        return text


# As other languages write them.
_CONSTANTS = {"true": "True", "false": "False", "none": "None", "null": "None"}


def targets(given: Iterable[str]) -> Targets | Literal["auto"]:
    """Target stds: one number or ``auto`` for all weights, or ``pattern=number``, of which the first that matches counts.

    Raises:
        OptionError: no number; one for all beside patterns.

    >>> targets(["0.5"]), targets(["head=0.1", "*.proj=0.5"])
    (0.5, {'head': 0.1, '*.proj': 0.5})
    """
    pairs = [text.rpartition("=")[::2] for text in given]
    plain = [number for pattern, number in pairs if not pattern]
    if not pairs:
        return 1.0
    if plain and len(pairs) > 1:
        raise OptionError(
            f"--target-std: {plain[0]!r} is for all weights, so it cannot stand beside others"
            + ("" if plain[0] == "auto" else f"; for all that no other pattern matches, name '*={plain[0]}' last")
        )
    if plain:
        return "auto" if plain[0] == "auto" else _number(plain[0])
    return {pattern: _number(number) for pattern, number in pairs}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"--target-std: expected a number, pattern=number such as 'head=0.1', or auto; got {text!r}") from None


def chosen(option: str, name: str, known: Iterable[str]) -> str:
    """One of the known names.

    Raises:
        OptionError: another one.
    """
    known = list(known)
    if name not in known:
        raise OptionError(f"{option} must be {', '.join(known[:-1])} or {known[-1]}; got {name!r}{did_you_mean(name, known)}")
    return name


def device(name: str) -> torch.device:
    """A device that there is: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …; ``"auto"`` is a GPU where there is one.

    Raises:
        OptionError: no such device here, or no device at all.
    """
    if name == "gpu":
        raise OptionError("--device gpu: torch calls a GPU cuda; try --device cuda, or auto, which is a GPU where there is one")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch was built without it; an unknown name
        reason = str(error).partition("\n")[0]
        raise OptionError(f"--device {name}: {reason}; try --device cpu") from error
    if found.type == "meta":
        raise OptionError("--device meta: tensors there hold no numbers; try --device cpu")
    return found


def seed_everything(seed: int) -> None:
    """Begin all streams of random numbers that a model's maker may draw from.

    Raises:
        OptionError: a seed that one of them does not take.
    """
    if not 0 <= seed < 2**32:
        raise OptionError(f"--seed must be from 0 to {2**32 - 1}; got {seed}")
    random.seed(seed)
    torch.manual_seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
