"""What a page is made from: a report, signals measured before and after, or any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from goodinit.measurement.signals import Layer, Signal, rate_of
from goodinit.report import Record, Report


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


@dataclass(frozen=True)
class Sources:
    """Of one page."""

    report: Report | None = None
    """Of an initialization."""
    before: Signal | None = None
    """Measured before it."""
    after: Signal | None = None
    """Measured after it; of a page of one signal that signal."""
    labels: tuple[str, str] = ("before", "after")
    """What to call the two."""
    lr: float | None = None
    """For the relative updates; that for which a signal was judged by default."""

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Those that there are, in the order of time."""
        return tuple(signal for signal in (self.before, self.after) if signal is not None)

    @property
    def rate(self) -> float:
        """The learning rate for the relative updates."""
        return rate_of(self.lr, self.signals)

    @property
    def records(self) -> Sequence[Record]:
        """Of the report; none without."""
        return () if self.report is None else self.report.records

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """By name, as measured last."""
        return {layer.name: layer for signal in self.signals for layer in signal}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all weights, in the order in which they ran."""
        found: dict[str, None] = dict.fromkeys(record.name for record in self.records)
        return tuple(found | dict.fromkeys(layer.name for signal in reversed(self.signals) for layer in signal))

    @cached_property
    def sides(self) -> tuple[Side, ...]:
        """Signals; where there is none the stds of the report, unless it has none either."""
        drawn = self.before is None and (self.report is None or self.report.drawn)
        first = "as drawn" if drawn else self.labels[0]
        both = (
            _side(first, self.before, {record.name: record.std_before for record in self.records}),
            _side(self.labels[1], self.after, {record.name: record.std_after for record in self.records}),
        )
        return tuple(side for side in both if side.layers or any(std is not None for std in side.stds.values()))


def _side(label: str, signal: Signal | None, stds: Mapping[str, float | None]) -> Side:
    return Side(label, {}, stds) if signal is None else Side(label, {layer.name: layer for layer in signal}, {})
