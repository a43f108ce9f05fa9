"""What an initialization did with each weight: records, as a table and as JSON."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goodinit.measurement.signals import Signal

from goodinit.choice import Choice
from goodinit.errors import did_you_mean

# Status -> what it means. The order is that of the summary line.
STATUSES: dict[str, str] = {
    "scaled": "its output has the target std",
    "drawn": "filled by a scheme that does not scale",
    "shared": "scaled at its first use, used again later",
    "tied": "also read by an embedding: left as it is, unless target_std= names it",
    "frozen": "requires_grad=False: left as it is",
    "skipped": "matches skip=: left as it is",
    "scale-invariant": "no factor changes its output (weight standardization, spectral norm): left as it is",
    "recurrent": "orthonormal gate by gate, not scaled: its output is not linear in it",
    "unused": "not used in the forward: orthonormal, not scaled",
    "unsupported": "used inside vmap, or by an operator that goodinit does not know: left as it is",
    "bias-dominated": "the bias alone has more variance than the target: not scaled",
    "no-signal": "its output is constant, zero or too small for its dtype: not scaled",
}
_FAILED = frozenset({"no-signal", "bias-dominated"})
_SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """One weight."""

    name: str
    """Name of the parameter, with indices where a part of it is a weight of its own."""
    operator: str
    """The operator that used it first; for an unused weight, its module's class."""
    shape: tuple[int, ...]
    status: str
    """A key of `STATUSES`."""
    target: float
    """The std that its output should have."""
    std_before: float | None
    """Std of the output with the weight as drawn (or as it was, with ``pre_init=None``), everything upstream being initialized.
    None if it was not measured: unused, recurrent, unsupported, drawn."""
    std_after: float | None
    """Std of the output at the weight's first use with the weight as it is left, by the measurement of the pass:
    |factor| * std_before where there is no bias. Of several batches the std over all of them. None if it was not measured."""
    factor: float
    """What the drawn weight was multiplied by."""
    uses: tuple[float, ...] = ()
    """Std of the output at every use, in order; more than one for a shared weight."""
    spread: float | None = None
    """Of several batches: standard deviation of the std from batch to batch, as a share of the std over all of them."""
    note: str = ""
    """What could not be done as it was asked for."""

    @property
    def ok(self) -> bool:
        """Whether it did not fail: it is neither ``no-signal`` nor ``bias-dominated``."""
        return self.status not in _FAILED


@dataclass(frozen=True)
class Report:
    """What `lsuv_` did. ``str(report)`` is a table; `show` prints it, in colour on a terminal with rich installed."""

    records: tuple[Record, ...]
    """In the order in which the operators ran; unused weights last."""
    forward_passes: int
    seconds: float
    """Wall-clock time of the whole call."""
    sampling_seconds: float
    """The part of it spent in drawing orthonormal matrices. On a GPU, where work is queued, the time to queue it."""
    batch: str = ""
    """What the model was given."""
    batches: int = 1
    """Over how many batches the stds were pooled."""
    sweeps: int = 0
    """How often all of them were measured."""
    choice: Choice | None = None
    """Of ``target_std="auto"``: what was chosen, and why."""
    drawn: bool = True
    """Whether weights were drawn before they were scaled: not with ``pre_init=None``."""

    @property
    def ok(self) -> bool:
        """Whether no weight failed: none is ``no-signal`` or ``bias-dominated``. `Record.status` tells of the others."""
        return all(record.ok for record in self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, name: str | int) -> Record:
        """The record of a weight by its name, or by its place in the order of the first uses.

        Raises:
            KeyError: there is none of this name.
            IndexError: there are not so many.
        """
        if isinstance(name, int):
            return self.records[name]
        for record in self.records:
            if record.name == name:
                return record
        raise KeyError(no_such_weight(name, (record.name for record in self.records)))

    def to_json(self) -> str:
        """JSON of all fields; `from_json` reads it back. NaN and infinity do not occur."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not a report, or one of another version's.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.pop("schema", None) != _SCHEMA:
            raise ValueError(f"not a goodinit report of schema {_SCHEMA}: {text[:80]!r}")
        unknown = set(raw) ^ {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"not a goodinit report: fields missing or unknown: {sorted(unknown)}")
        try:
            records = tuple(Record(**{**r, "shape": tuple(r["shape"]), "uses": tuple(r["uses"])}) for r in raw.pop("records"))
            chosen = raw.pop("choice")
            return cls(records=records, choice=None if chosen is None else Choice.of(chosen), **raw)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a goodinit report: fields of a record missing or unknown: {error}") from error

    def __str__(self) -> str:
        parts = [table(*self._table(), right=_RIGHT), self.summary()]
        return "\n".join([*parts, *([] if self.choice is None else [str(self.choice)])])

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        return self._head(), [_cells(record) for record in self.records]

    def _head(self) -> tuple[str, ...]:
        return ("weight", "operator", "shape", "std as drawn" if self.drawn else "std before", "std after", "factor", "status")

    def summary(self) -> str:
        """One line: how many weights of which status, passes and time."""
        counts = Counter(r.status for r in self.records)
        by_status = ", ".join(f"{counts[s]} {s}" for s in STATUSES if counts[s])
        passes = f"{self.forward_passes} forward pass{'' if self.forward_passes == 1 else 'es'}"
        times = f"{self.seconds:.2f} s, {self.sampling_seconds:.2f} s of it drawing matrices"
        line = f"{len(self)} weight{'' if len(self) == 1 else 's'} ({by_status}); {passes}, {times}"
        spreads = [record.spread for record in self.records if record.spread is not None]
        if not spreads:
            return line
        swept = f"{self.batches} batches pooled in {self.sweeps} sweep{'' if self.sweeps == 1 else 's'}"
        return f"{line}; {swept}, stds of single batches {max(spreads):.1%} apart at most"

    def show(self) -> None:
        """Print the table: with rich where standard output is a terminal and rich is installed, plain otherwise."""
        printed(self)

    def save_html(
        self,
        path: str | Path,
        *,
        before: Signal | None = None,
        after: Signal | None = None,
        title: str = "",
        source: str = "",
        lr: float | None = None,
    ) -> Path:
        """Write a page: one file for a browser, which needs no network. Verdict, curves by depth, modules, table.

        Args:
            path: of the file, whose name ends in ``.html``.
            before: what `goodinit.measure` found before the initialization.
            after: what it found after it.
            title: of the page.
            source: of the model and the data, a line under the title: ``"net.py:Net on images/; seed 0"``.
            lr: learning rate for the relative updates; by default that for which ``after`` or ``before`` was measured, or 0.01.

        Returns:
            The path.

        Raises:
            OptionError: the path is a folder, does not end in .html, or cannot be written to; lr is not positive.
            SaveError: the disk is full; what was there before is as it was.
            MissingExtraError: Jinja2 is not installed.
        """
        from goodinit.page.html import save_page  # noqa: PLC0415 - who prints a report does not need it
        from goodinit.page.sources import Sources  # noqa: PLC0415

        return save_page(path, Sources(self, before, after, lr=lr), title=title, source=source)

    def __rich__(self) -> Any:
        """The table for rich's console."""
        from rich.console import Group  # noqa: PLC0415 - an extra; only rich calls this

        styles = [None if r.status in ("scaled", "shared", "drawn") else "dim" if r.ok else "bold red" for r in self.records]
        below = [self.summary(), *([] if self.choice is None else [str(self.choice)])]
        return Group(rich_table(self._head(), map(_cells, self.records), right=_RIGHT, styles=styles), *below)


_RIGHT = frozenset({3, 4, 5})


def _cells(record: Record) -> tuple[str, ...]:
    shape = "x".join(map(str, record.shape))
    return (
        record.name,
        record.operator,
        shape,
        number(record.std_before),
        number(record.std_after),
        number(record.factor),
        status_of(record),
    )


def status_of(record: Record) -> str:
    """Of a weight that is used several times with its uses; and what could not be done."""
    status = record.status if len(record.uses) < 2 else f"{record.status} ({len(record.uses)} uses, std {_span(record.uses)})"
    return f"{status}; {record.note}" if record.note else status


def _span(values: Iterable[float]) -> str:
    low, high = min(values := list(values)), max(values)
    return f"{number(low)} to {number(high)}"


def no_such_weight(name: object, known: Iterable[str]) -> str:
    """What a KeyError says."""
    return f"no weight is called {name!r}{did_you_mean(str(name), known)}"


def number(value: float | None) -> str:
    """Three decimals, or scientific where that would hide the value; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e4 or math.isnan(value) else f"{value:.1e}"


def percent(value: float | None) -> str:
    """A share in percent, three digits, or scientific where that would hide the value; a dash for None."""
    if value is None or not math.isfinite(value):
        return number(value)
    percents = 100 * value
    if percents == 0:
        return "0 %"
    digits = f"{percents:.1e}" if abs(percents) < 1e-2 or abs(percents) >= 1e4 else f"{percents:#.3g}".rstrip(".")
    return f"{digits} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Container[int] = ()) -> str:
    """Cells in columns that line up, those with a number in ``right`` to the right."""
    lines = [head, *rows]
    widths = [max(len(row[i]) for row in lines) for i in range(len(head))]
    text = [_line(row, widths, right) for row in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def rich_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Container[int] = (), styles: Iterable[str | None]
) -> Any:
    """The same for rich's console, each row in its style."""
    from rich import box  # noqa: PLC0415 - an extra
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415 - so that brackets in names are no markup

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))  # fits 80 columns
    for i, column in enumerate(head):
        made.add_column(Text(column), justify="right" if i in right else "left", no_wrap=i != 0, overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        made.add_row(*map(Text, row), style=style)
    return made


def _fits(text: str, width: int) -> bool:
    """Whether a plain table can be shown in so many columns, if its long names are broken."""
    head = text.partition("\n")[0]
    names = re.match(r"\S+ *", head)
    broken = max(0, (names.end() if names else 0) - _LEAST_NAME)
    return len(head) - broken <= width


_LEAST_NAME = 20  # columns that a name is left with


def printed(shown: object) -> None:
    """Print it: with rich where standard output is a terminal and rich is installed, plain otherwise."""
    if sys.stdout.isatty():
        try:
            import rich  # noqa: PLC0415 - an extra
        except ModuleNotFoundError:
            pass
        else:
            if _fits(str(shown), rich.get_console().width):  # or rich would cut off numbers
                rich.print(shown)
                return
    print(shown)  # noqa: T201 - its purpose


def _line(row: Sequence[str], widths: Sequence[int], right: Container[int]) -> str:
    cells = (cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
    return "  ".join(cells).rstrip()
