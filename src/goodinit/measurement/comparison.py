"""Two signals side by side: of one model before and after, or of two runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goodinit.measurement.layer import Layer
from goodinit.report import number, printed, rich_table, table

if TYPE_CHECKING:
    from goodinit.measurement.signals import Signal


@dataclass(frozen=True)
class Comparison:
    """Two signals, their layers matched by name. ``str(comparison)`` is a table and what became of the faults."""

    before: Signal
    after: Signal
    labels: tuple[str, str] = ("before", "after")

    @property
    def layers(self) -> tuple[tuple[str, Layer | None, Layer | None], ...]:
        """Name, and the layer of either side, None where it has none; those of the second signal alone come last."""
        sides = [{layer.name: layer for layer in signal} for signal in (self.before, self.after)]
        return tuple((name, sides[0].get(name), sides[1].get(name)) for name in dict.fromkeys([*sides[0], *sides[1]]))

    @property
    def mended(self) -> tuple[str, ...]:
        """Kinds of faults that the first has and the second has not."""
        return self._kinds(self.before, self.after, shared=False)

    @property
    def left(self) -> tuple[str, ...]:
        """Kinds of faults that both have."""
        return self._kinds(self.before, self.after, shared=True)

    @property
    def new(self) -> tuple[str, ...]:
        """Kinds of faults that only the second has."""
        return self._kinds(self.after, self.before, shared=False)

    @staticmethod
    def _kinds(of: Signal, other: Signal, *, shared: bool) -> tuple[str, ...]:
        known = {finding.kind for finding in other.findings}
        return tuple(dict.fromkeys(finding.kind for finding in of.findings if (finding.kind in known) == shared))

    def summary(self) -> str:
        """One line: which faults went, stayed and came."""
        parts = [(self.mended, f"only {self.labels[0]}"), (self.left, "in both"), (self.new, f"only {self.labels[1]}")]
        told = "; ".join(f"{', '.join(kinds)} {where}" for kinds, where in parts if kinds)
        return f"Faults: {told}." if told else "No faults in either."

    def __str__(self) -> str:
        head, rows = self._table()
        return "\n".join([table(head, rows, right=range(1, len(head))), self.summary()])

    def show(self) -> None:
        """Print the table: with rich where standard output is a terminal and rich is installed, plain otherwise."""
        printed(self)

    def save_html(self, path: str | Path, *, title: str = "", source: str = "", lr: float | None = None) -> Path:
        """Write a page of both, as `goodinit.Signal.save_html` of one."""
        from goodinit.page.html import save_page  # noqa: PLC0415 - who prints a comparison does not need it
        from goodinit.page.sources import Sources  # noqa: PLC0415

        return save_page(path, Sources(None, self.before, self.after, self.labels, lr), title=title, source=source)

    def __rich__(self) -> Any:
        """The table for rich's console."""
        from rich.console import Group  # noqa: PLC0415 - an extra; only rich calls this

        head, rows = self._table()
        head = [cell.replace(" ", "\n") for cell in head]
        return Group(rich_table(head, rows, right=range(1, len(head)), styles=[None] * len(rows)), self.summary())

    def _table(self) -> tuple[list[str], list[list[str]]]:
        numbers: list[tuple[str, Callable[[Layer], float | None]]] = [
            ("std", lambda layer: layer.std),
            ("of samples", lambda layer: layer.sample_std),
        ]
        if self.before.loss is not None or self.after.loss is not None:
            numbers.append(("gradient", lambda layer: layer.grad_norm))
        head = ["weight", *(f"{what} {label}" for what, _ in numbers for label in self.labels)]
        cells = [
            [name, *(number(None if side is None else get(side)) for _, get in numbers for side in sides)]
            for name, *sides in self.layers
        ]
        return head, cells
