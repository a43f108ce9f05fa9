"""An exception, an interrupt or a NaN at an operator on a weight, in every model of the zoo: the model is as it was before."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from goodinit import GoodinitWarning, NonFiniteError, lsuv_
from goodinit.interception.operation import Operation
from goodinit.lsuv import Scaling
from nets import assert_same, snapshot
from test_guard import fail, rng, stop
from zoo import Entry, all_entries

# Unlike each other in what a failure must put back; the others are marked slow.
FAST = frozenset(
    {
        *("functional", "unrolled", "tied", "weight_norm_old", "pruned", "checkpointed", "attention", "lstm", "convolutions"),
        *("autocast", "buffering", "sliced", "routed_experts", "data_dependent", "GPT2LMHeadModel", "MixtralForCausalLM"),
        *("timm-resnet10t", "torchvision-mobilenet_v3_small"),
    }
)
STRIKES: dict[str, Callable[[Tensor], Tensor]] = {
    "exception": fail,
    "interrupt": stop,
    "nan": lambda out: out.detach().fill_(torch.nan),
}


class Strikes:
    """Stands in for `Scaling`'s call, and does something to the output of the k-th operator on a weight."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.calls, self.kind, self.seen = 0, 0, "", False
        scale = Scaling.__call__

        def call(scaling: Scaling, operation: Operation) -> Tensor:
            self.calls += 1
            out = scale(scaling, replace(operation, linear_part=lambda: self._watched(operation.linear_part())))
            if self.calls == self.at:
                STRIKES[self.kind](out)
            return out

        monkeypatch.setattr(Scaling, "__call__", call)

    def _watched(self, z: Tensor) -> Tensor:
        """Note whether the NaN has reached an operator."""
        self.seen |= 0 < self.at < self.calls and bool(z.isnan().any())
        return z

    def set(self, at: int, kind: str) -> None:
        self.at, self.calls, self.kind, self.seen = at, 0, kind, False


def unsettle(model: nn.Module) -> None:
    """Gradients, and flags that differ from the model's."""
    with torch.random.fork_rng(devices=[]):
        for i, module in enumerate(m for m in model.modules() if not m._modules):
            if isinstance(module, nn.Dropout) or i % 3 == 2:
                module.training = False
        for p in list(model.parameters())[::2]:
            if not is_lazy(p) and p.requires_grad:
                p.grad = torch.randn_like(p)


def first_snapshot(model: nn.Module) -> dict[str, object]:
    """Of a model whose forward never ran: without what a first forward makes, whoever calls it.

    These are hooks that some models install then, and attributes in which some keep what they computed.
    """
    return {k: v for k, v in snapshot(model).items() if k not in ("hooks", "attributes")}


def attempt(entry: Entry, model: nn.Module, forward: Callable[[nn.Module, Any], Any]) -> BaseException | None:
    """What `lsuv_` raises, if anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GoodinitWarning)
        try:
            lsuv_(model, entry.data(), forward=forward)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever a model raises
            return error
    return None


def problems(entry: Entry, strikes: Strikes) -> list[str]:
    """Everything that a failure leaves behind, for all places and kinds, on one model."""
    torch.manual_seed(3)
    model = entry.build()
    unsettle(model)
    found = []
    before, random_before = first_snapshot(model), rng()
    strikes.set(0, "")
    error = attempt(entry, model, lambda m, d: fail(entry.run(m, d)))
    total = strikes.calls
    found += differences("exception after the last operator", before, first_snapshot(model), random_before)
    if "of the model's own" not in str(error):
        found.append(f"exception after the last operator: {error!r}")
    places = {1, (total + 1) // 2, total} if total else set()
    for at in sorted(places):
        for kind in STRIKES:
            where = f"{kind} at operator {at} of {total}"
            full, random_before = snapshot(model), rng()
            strikes.set(at, kind)
            error = attempt(entry, model, entry.run)
            if error is not None:
                found += differences(where, full, snapshot(model), random_before)
            if not expected(kind, error, strikes):
                found.append(f"{where}: {'the NaN was seen, ' if strikes.seen else ''}raised {error!r}")
    return found


def expected(kind: str, error: BaseException | None, strikes: Strikes) -> bool:
    """What struck should be raised. For a NaN: `NonFiniteError` if a later operator saw it, else nothing or the model's own."""
    if kind == "nan":
        return isinstance(error, NonFiniteError) if strikes.seen else not isinstance(error, NonFiniteError)
    return isinstance(error, KeyboardInterrupt) if kind == "interrupt" else "of the model's own" in str(error)


def differences(where: str, before: object, after: object, random_before: object) -> list[str]:
    """The first that `assert_same` finds, random numbers included."""
    try:
        assert_same([before, random_before], [after, rng()])
    except AssertionError as error:
        return [f"{where}: {str(error).splitlines()[0]}"]
    return []


def _parameters() -> list[Any]:
    parameters = []
    for e in all_entries():
        marks = [] if e.name in FAST else [pytest.mark.slow]
        parameters.append(pytest.param(e, id=e.name, marks=marks))
    return parameters


# As in test_zoo.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("entry", _parameters())
def test_a_failure_at_any_operator_on_a_weight_changes_nothing(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [package for package in entry.needs if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    assert problems(entry, Strikes(monkeypatch)) == []


def test_every_name_is_a_model() -> None:
    assert {e.name for e in all_entries()} >= FAST
