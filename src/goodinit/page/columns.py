"""The columns of a page's table: every layer in one row, what it is and what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from goodinit.measurement.signals import Layer
from goodinit.page.quantities import QUANTITIES, Quantity, written
from goodinit.page.sources import Sources
from goodinit.report import Record, status_of

Value = float | int | str | None
DISTRIBUTION = "distribution"
"""Key of the column whose cells are pictures."""
# What decides to the left; a column with a key that is not here comes last.
_ORDER = (
    *("order", "name", "health", "std", "factor", "grad_norm", "relative_update", "dead", "saturated"),
    *(DISTRIBUTION, "status", "operator", "shape", "activation"),
)
# Shown of both sides of a comparison at first; of other quantities the later side says enough.
_COMPARED = ("std", "grad_norm")


@dataclass(frozen=True)
class Column:
    """One column of the table; its key is unique."""

    key: str
    title: str
    meaning: str
    values: Sequence[Value]
    """To sort by and to draw."""
    cells: Sequence[str]
    """What is read."""
    shown: bool = True
    side: str = ""
    """Of a comparison: whose values they are; a second line of the title."""

    @property
    def is_number(self) -> bool:
        """Whether its cells line up to the right."""
        return any(isinstance(value, (int, float)) for value in self.values)


def columns_of(sources: Sources, healths: Sequence[str]) -> tuple[Column, ...]:
    """All columns that have something in them."""
    columns = [*_of_weights(sources, healths), *_of_records(sources), *_of_quantities(sources)]
    places = {key: place for place, key in enumerate(_ORDER)}
    filled = (column for column in columns if any(value is not None for value in column.values))
    return tuple(sorted(filled, key=lambda column: places.get(column.key.partition(":")[0], len(places))))


def _of_weights(sources: Sources, healths: Sequence[str]) -> list[Column]:
    """What a weight is."""
    names, numbers = sources.names, range(1, len(sources.names) + 1)
    layers = [sources.layers.get(name) for name in names]
    known: dict[str, Record | Layer] = {**sources.layers, **{record.name: record for record in sources.records}}
    shapes = [known[name].shape for name in names]
    pictured = [DISTRIBUTION if layer is not None and layer.histogram else None for layer in layers]
    activations = _each(layers, "activation")
    drawn = "Histogram of the output, from mean - 4 std to mean + 4 std"
    return [
        Column("order", "#", "Order in which the operators ran", numbers, [str(n) for n in numbers]),
        Column("name", "layer", "Name of the weight", names, names),
        Column("health", "health", "How the layer fares", healths, healths),
        _texts("operator", "operator", "What the weight is used by", [known[name].operator for name in names]),
        Column("shape", "shape", "Of the weight; by its number of elements", [*map(math.prod, shapes)], [*map(_times, shapes)]),
        _texts("activation", "activation", "The non-linearity that the output goes into", activations, shown=False),
        Column(DISTRIBUTION, DISTRIBUTION, drawn, pictured, [""] * len(names)),
    ]


def _of_records(sources: Sources) -> list[Column]:
    """What an initialization did."""
    by_name = {record.name: record for record in sources.records}
    records = [by_name.get(name) for name in sources.names]
    apart = "How far the std differs from batch to batch, as a share of it"
    statuses = [None if record is None else status_of(record) for record in records]
    return [
        _texts("status", "status", "What lsuv_ or init_ did with the weight", statuses),
        _numbers("factor", "factor", "What the drawn weight was multiplied by", _each(records, "factor")),
        _numbers("target", "target", "The std that was asked for", _each(records, "target"), shown=False),
        _numbers("spread", "batch spread", apart, _each(records, "spread"), is_share=True),
    ]


def _of_quantities(sources: Sources) -> list[Column]:
    """What was measured, each quantity of all sides side by side."""
    last = len(sources.sides) - 1
    return [
        _of_quantity(sources, quantity, i, shown=quantity.shown and (i == last or quantity.key in _COMPARED))
        for quantity in QUANTITIES
        for i in range(last + 1)
    ]


def _of_quantity(sources: Sources, quantity: Quantity, number: int, *, shown: bool) -> Column:
    side = sources.sides[number]
    values = [side.value(name, quantity.key, sources.rate) for name in sources.names]
    label = side.label if len(sources.sides) > 1 else ""
    key, is_share = f"{quantity.key}:{number}", quantity.is_share
    return _numbers(key, quantity.title, quantity.meaning, values, is_share=is_share, shown=shown, side=label)


def _each(things: Sequence[Any], field: str) -> list[Any]:
    return [None if thing is None else getattr(thing, field) for thing in things]


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _texts(key: str, title: str, meaning: str, values: Sequence[str | None], *, shown: bool = True) -> Column:
    return Column(key, title, meaning, values, [value or "-" for value in values], shown)


def _numbers(
    key: str,
    title: str,
    meaning: str,
    values: Sequence[float | None],
    *,
    is_share: bool = False,
    shown: bool = True,
    side: str = "",
) -> Column:
    return Column(key, title, meaning, values, [written(value, is_share=is_share) for value in values], shown, side)
