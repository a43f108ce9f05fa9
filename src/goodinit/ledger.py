"""The measurements of a pass, on the device until its end, and then the records made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from goodinit.errors import NonFiniteError
from goodinit.interception.weights import Key, Weight
from goodinit.processes.turns import Position
from goodinit.report import Record

Number = Tensor | float
"""A 0-d tensor, or its value."""


@dataclass(frozen=True)
class Outcome:
    """What scaling one weight came to, as 0-d tensors: a pass asks none for its value, so it waits for no device."""

    std_before: Tensor | None = None
    """None for a weight whose output is not measured."""
    factor: Tensor | None = None
    """None for a weight that was not to be scaled."""
    alive: Tensor | None = None
    """Bool: the output is neither constant nor zero."""
    scaled: Tensor | None = None
    """Bool: a factor brings the output, with its bias, to the target."""
    seen: Tensor | None = None
    """Bool: there was an output in some process; None where there was in this one."""
    own: Tensor | None = None
    """Where the output of several processes was pooled: M2 of this one's."""
    dead: Tensor | None = None
    """Of an output scaled channel by channel: how many channels are constant."""
    note: str = ""
    """What could not be done as it was asked for."""

    @classmethod
    def of_numbers(cls, numbers: list[float]) -> Outcome:
        """Of a call that was interrupted, from `Ledger.scaled`."""
        std, factor, alive, scaled = (torch.tensor(number, dtype=torch.float64, device="cpu") for number in numbers)
        return cls(std, factor, alive != 0, scaled != 0)


@dataclass
class _Entry:
    weight: Weight
    operator: str
    target: float
    status: str
    outcome: Outcome
    later_uses: list[Tensor] = field(default_factory=list)
    zero_uses: int = 0
    """How many uses before the one that scaled it had an output of zeros."""

    def tensors(self) -> list[Tensor]:
        o = self.outcome
        return [t for t in (o.std_before, o.factor, o.alive, o.scaled, o.seen, o.dead) if t is not None] + self.later_uses

    def is_finite_here(self) -> bool:
        """Whether what this process gave to a pool was finite."""
        own = self.outcome.own
        return own is not None and abs(fetched([own])[0]) < float("inf")


class Ledger:
    """One entry for every weight reached, in the order in which they were."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def enter(self, weight: Weight, operator: str, target: float, status: str, outcome: Outcome) -> None:
        """The first use of a weight."""
        self._entries[weight.key] = _Entry(weight, operator, target, status, outcome)

    def use_again(self, weight: Weight, operator: str, target: float, std: Tensor) -> None:
        """A later use. A part of a weight whose elements were used in another form gets an entry of its own."""
        entry = self._entries.get(weight.key)
        if entry is None:
            self.enter(weight, operator, target, "shared", Outcome(std))
            return
        entry.later_uses.append(std)
        if entry.status == "scaled":
            entry.status = "shared"

    def scale_late(self, weight: Weight, outcome: Outcome) -> None:
        """A later use, at which a weight is scaled whose output was zero up to then."""
        entry = self._entries[weight.key]
        entry.zero_uses, entry.later_uses = 1 + len(entry.later_uses), []
        entry.status, entry.outcome = "shared", outcome

    def targets(self) -> dict[Key, float]:
        """Of the weights that were to be scaled and could be; waits for the device."""
        entries = [entry for entry in self._entries.values() if entry.outcome.scaled is not None]
        scaled = fetched([entry.outcome.scaled for entry in entries if entry.outcome.scaled is not None])
        return {entry.weight.key: entry.target for entry, did in zip(entries, scaled, strict=True) if did}

    def factors(self) -> dict[Key, float]:
        """What weights were multiplied by; waits for the device."""
        given = {key: entry.outcome.factor for key, entry in self._entries.items() if entry.outcome.factor is not None}
        return dict(zip(given, fetched(list(given.values())), strict=True))

    def scaled(self) -> dict[str, list[float]]:
        """Of the weights that were to be scaled, by their places: std before, factor, whether alive, whether scaled."""
        found = {}
        for entry in self._entries.values():
            o = entry.outcome
            numbers = [t for t in (o.std_before, o.factor, o.alive, o.scaled) if t is not None]
            if len(numbers) == 4:
                found[str(entry.weight.place)] = numbers
        values = iter(fetched([number for numbers in found.values() for number in numbers]))
        return {place: [next(values) for _ in numbers] for place, numbers in found.items()}

    def position(self, key: Key) -> Position:
        """Of a weight in the model."""
        return self._entries[key].weight.position

    def refuse_non_finite(self, stds: Mapping[Key, float]) -> None:
        """Refuse NaN and infinity among the stds that some later outputs had.

        Raises:
            NonFiniteError: there is some.
        """
        for key, entry in self._entries.items():
            if not abs(stds.get(key, 0.0)) < float("inf"):
                raise NonFiniteError(_non_finite(entry))

    def keys(self) -> list[Key]:
        """In the order of `records`."""
        return list(self._entries)

    def records(self) -> tuple[Record, ...]:
        """All entries as numbers: the one moment at which the device is waited for.

        Raises:
            NonFiniteError: an operator's output held NaN or infinity.
        """
        entries = list(self._entries.values())
        numbers = iter(fetched([t for entry in entries for t in entry.tensors()]))
        rows = [(entry, [next(numbers) for _ in entry.tensors()]) for entry in entries]
        for entry, values in rows:
            if not all(abs(value) < float("inf") for value in values):
                error = NonFiniteError(_non_finite(entry))
                error.elsewhere = entry.is_finite_here() and not abs(values[0]) < float("inf")
                raise error
        return tuple(_record(entry, values) for entry, values in rows)


def held(tensor: Tensor) -> Number:
    """A 0-d tensor as it is kept until the end of a pass: on a CPU its value, which costs no waiting there.

    Small tensors that outlive an output lie where the one before it was, and the next one no longer fits there: with glibc's
    malloc a process would grow by an output a layer.
    """
    return tensor.item() if tensor.device.type == "cpu" else tensor


def fetched(numbers: Sequence[Number]) -> list[float]:
    """Values of 0-d tensors with one transfer for each device and dtype; what is a value already stays."""
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    values = [0.0] * len(numbers)
    for i, number in enumerate(numbers):
        if isinstance(number, Tensor):
            alike.setdefault((number.device, number.dtype), []).append(i)
        else:
            values[i] = number
    for places in alike.values():
        for i, value in zip(places, torch.stack([cast("Tensor", numbers[i]) for i in places]).tolist(), strict=True):
            values[i] = float(value)
    return values


def _record(entry: _Entry, values: list[float]) -> Record:
    shape = tuple(entry.weight.tensor.shape)
    if entry.outcome.std_before is None:
        return Record(entry.weight.name, entry.operator, shape, entry.status, entry.target, None, None, 1.0, tuple(values))
    before, factor, after, status = values[0], 1.0, values[0], entry.status
    later, note = values[1:], entry.outcome.note
    if entry.outcome.factor is not None:
        factor, alive, scaled, *later = later
        if entry.outcome.seen is not None:
            seen, *later = later
            if not seen:
                return Record(entry.weight.name, entry.operator, shape, "unused", entry.target, None, None, 1.0)
        if entry.outcome.dead is not None:
            dead, *later = later
            note = "; ".join(filter(None, (f"{dead:.0f} constant channels not scaled" if dead and scaled else "", note)))
        after = entry.target if scaled else before
        status = status if scaled else "bias-dominated" if alive else "no-signal"
    uses = (*[0.0] * entry.zero_uses, after, *later)
    return Record(entry.weight.name, entry.operator, shape, status, entry.target, before, after, factor, uses, note=note)


def _non_finite(entry: _Entry) -> str:
    w = entry.weight
    return (
        f"NaN or infinity in the output of {entry.operator} with the weight {w.name!r} (module {w.module or 'the root'!r}, "
        f"shape {tuple(w.tensor.shape)}), the first operator on a weight where it shows. It arose there, or since the "
        "operator on a weight before it: look for a division by zero, log or sqrt of a negative number, or an overflow "
        "(float16: try bfloat16 or float32)"
    )
