"""The columns of a page's table: every layer in one row, what it is and what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from goodinit.page.quantities import QUANTITIES, Quantity, written
from goodinit.report import Record, Report, status_of
from goodinit.signals import Layer, Signal

Value = float | int | str | None


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
    side: int | None = None

    @property
    def is_number(self) -> bool:
        """Whether its cells line up to the right."""
        return any(isinstance(value, (int, float)) for value in self.values)


@dataclass(frozen=True)
class Side:
    """One state of the model, as far as it is known: by name its layers, or of a report's records the std alone."""

    label: str
    layers: Mapping[str, Layer]
    stds: Mapping[str, float | None]

    def value(self, name: str, key: str, lr: float) -> float | None:
        """A quantity of a layer; None where it was not measured."""
        layer = self.layers.get(name)
        if layer is None:
            return self.stds.get(name) if key == "std" else None
        value: float | None = layer.relative_update(lr) if key == "relative_update" else getattr(layer, key)
        return value


def columns_of_weights(
    names: Sequence[str], healths: Sequence[str], report: Report | None, signals: Sequence[Signal]
) -> list[Column]:
    """What a weight is, and what an initialization did with it."""
    records = {record.name: record for record in report or ()}
    known: dict[str, Record | Layer] = {layer.name: layer for signal in reversed(signals) for layer in signal} | records
    layers = {layer.name: layer for signal in reversed(signals) for layer in signal}
    activations = [layers[name].activation if name in layers else None for name in names]
    shapes = [known[name].shape for name in names]
    columns = [
        Column(
            "order", "#", "Order in which the operators ran", range(1, len(names) + 1), [str(i + 1) for i in range(len(names))]
        ),
        Column("name", "layer", "Name of the weight", names, names),
        Column("health", "health", "How the layer fares", healths, healths),
        _texts("operator", "operator", "What the weight is used by", [known[name].operator for name in names]),
        Column("shape", "shape", "Of the weight", [math.prod(s) for s in shapes], ["x".join(map(str, s)) for s in shapes]),
        _texts("activation", "activation", "The non-linearity that the output goes into", activations),
    ]
    return [column for column in [*columns, *_columns_of_records(names, records)] if any(v is not None for v in column.values)]


def _columns_of_records(names: Sequence[str], records: Mapping[str, Record]) -> list[Column]:
    found = [records.get(name) for name in names]
    return [
        _texts("status", "status", "What lsuv_ or init_ did with the weight", [r and status_of(r) for r in found]),
        _numbers("factor", "factor", "What the drawn weight was multiplied by", [None if r is None else r.factor for r in found]),
        _numbers("target", "target", "The std that was asked for", [None if r is None else r.target for r in found], shown=False),
        _numbers(
            "spread",
            "batch spread",
            "How far the std differs from batch to batch, as a share of it",
            [None if r is None else r.spread for r in found],
            is_share=True,
        ),
    ]


def columns_of_quantities(names: Sequence[str], sides: Sequence[Side], lr: float) -> list[Column]:
    """What was measured, each quantity of all sides side by side."""
    columns = []
    for quantity in QUANTITIES:
        for i, side in enumerate(sides):
            values = [side.value(name, quantity.key, lr) for name in names]
            if any(value is not None for value in values):
                title = quantity.title if len(sides) == 1 else f"{quantity.title} {side.label}"
                columns.append(_column_of(quantity, f"{quantity.key}:{i}", title, values, i))
    return columns


def _column_of(quantity: Quantity, key: str, title: str, values: Sequence[float | None], side: int) -> Column:
    return _numbers(key, title, quantity.meaning, values, is_share=quantity.is_share, shown=quantity.shown, side=side)


def _texts(key: str, title: str, meaning: str, values: Sequence[str | None]) -> Column:
    return Column(key, title, meaning, values, [value or "-" for value in values])


def _numbers(
    key: str,
    title: str,
    meaning: str,
    values: Sequence[float | None],
    *,
    is_share: bool = False,
    shown: bool = True,
    side: int | None = None,
) -> Column:
    return Column(key, title, meaning, values, [written(value, is_share=is_share) for value in values], shown, side)
