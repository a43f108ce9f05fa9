"""The signal through a model as it was measured: one record a layer, a verdict on them, as table and as JSON."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from goodinit.canvas import Theme
from goodinit.errors import OptionError, UnhealthyError, did_you_mean
from goodinit.files import for_json, write_whole
from goodinit.measurement.comparison import Comparison
from goodinit.measurement.layer import KINDS, Finding, Input, Layer
from goodinit.measurement.units import share
from goodinit.measurement.verdict import findings_of, unjudged, unusual, verdict_on
from goodinit.report import no_such_weight, number, percent, printed, rich_table, table

__all__ = ["Comparison", "Finding", "Layer", "Signal"]

_SCHEMA = 4


@dataclass(frozen=True)
class Signal:
    """What `goodinit.measure` found. ``str(signal)`` is a table and a verdict; `show` prints it, in colour where rich can."""

    layers: tuple[Layer, ...]
    """In the order in which the operators ran."""
    loss: float | None = None
    """Its value on the batch; None if no loss was given."""
    batch: str = ""
    """What the model was given."""
    lr: float | None = None
    """The learning rate that relative updates are judged for; None: they are not judged."""
    seconds: float = 0.0
    """Wall-clock time of the whole call."""
    unmeasured: tuple[tuple[str, str], ...] = ()
    """The model's other weights, each with the reason, a key of `goodinit.report.STATUSES`: ``"recurrent"`` or ``"unsupported"``
    where an operator is not linear in it, ``"unused"`` where the forward does not come to it."""
    cross_entropy: tuple[float, int, str] | None = None
    """Where the loss takes one: its mean over the batch, of how many classes, and of which layer's output (empty if that is not
    known); of several the largest beside that of guessing."""
    inputs: tuple[Input, ...] = ()
    """What the model was given: each argument of real numbers with its mean and std."""

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All that is wrong, the gravest first; empty for a healthy model. How it is judged: `goodinit.measurement.verdict`."""
        return findings_of(self.layers, loss=self.loss, lr=self.lr, cross_entropy=self.cross_entropy)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def verdict(self) -> str:
        """One sentence, then each finding on a line of its own, and what could not be judged."""
        return "\n".join([verdict_on(self.findings, len(self)), *self.notes])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the verdict does not cover: odd inputs, weights that were not measured, what one sample does not show."""
        return (*unusual(self.inputs, faults=bool(self.findings)), *unjudged(self.layers, self.unmeasured))

    def assert_healthy(self, *, allow: Iterable[str] = ()) -> None:
        """Raise unless nothing is wrong: for a test-suite.

        Args:
            allow: kinds of findings that are no failure, keys of `goodinit.measurement.layer.KINDS`.

        Raises:
            UnhealthyError: an AssertionError that says what was found.
            OptionError: there is no such kind.
        """
        allowed = {allow} if isinstance(allow, str) else set(allow)
        for kind in allowed:
            if kind not in KINDS:
                raise OptionError(
                    f"allow: kinds of findings are {', '.join(KINDS)}; got {kind!r}{did_you_mean(str(kind), KINDS)}"
                )
        if any(finding.kind not in allowed for finding in self.findings):
            raise UnhealthyError(self.verdict)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str | int) -> Layer:
        """The layer of a weight by its name, or by its place in call order."""
        if isinstance(name, int):
            return self.layers[name]
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(no_such_weight(name, (layer.name for layer in self.layers)))

    def save_picture(self, path: str | os.PathLike[str], before: Signal | None = None, *, theme: Theme = None) -> None:
        """Draw stds and histograms, with a loss gradients and relative updates too, and save the picture (extra ``plot``).

        Args:
            path: ends in .png, .pdf, .svg or another format of matplotlib's.
            before: a signal from before, drawn beside this one.
            theme: ``"light"`` or ``"dark"``; None for matplotlib's own style.

        Raises:
            OptionError: a path that no picture can be saved at.
            SaveError: the disk is full; what was there before is as it was.
            MissingExtraError: matplotlib is not installed.
        """
        from goodinit.plots import check_picture_path, plot_signal  # noqa: PLC0415 - it needs this module

        path = Path(path)
        check_picture_path(path)
        figure, _ = plot_signal(self, theme=theme) if before is None else plot_signal(before, self, theme=theme)
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix.lower().lstrip("."), dpi=150)
        write_whole(path, content.getvalue())

    def compare(self, other: Signal, *, labels: tuple[str, str] = ("before", "after")) -> Comparison:
        """This signal beside another one, of the same model later, or of another run."""
        if not isinstance(other, Signal):
            raise OptionError(f"a signal is compared with another one, of goodinit.measure; got {type(other).__name__}")
        return Comparison(self, other, labels)

    def to_json(self) -> str:
        """JSON of all fields; `from_json` reads it back. NaN and infinity become strings, for JSON does not know them."""
        return json.dumps({"schema": _SCHEMA, **for_json(asdict(self))}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Signal:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not a signal, or one of another version's.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.pop("schema", None) != _SCHEMA or set(raw) != {f.name for f in fields(cls)}:
            raise ValueError(f"not a goodinit signal of schema {_SCHEMA}: {text[:80]!r}")
        layers, unmeasured, inputs, entropy = (raw.pop(key) for key in ("layers", "unmeasured", "inputs", "cross_entropy"))
        try:
            return cls(
                tuple(map(_layer, layers)),
                unmeasured=tuple((str(name), str(status)) for name, status in unmeasured),
                inputs=tuple(
                    Input(str(name), float(mean), float(std), None if between is None else float(between))
                    for name, mean, std, between in inputs
                ),
                cross_entropy=None if entropy is None else (float(entropy[0]), int(entropy[1]), str(entropy[2])),
                **{k: _number_of(v, k) for k, v in raw.items()},
            )
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError(f"not a whole goodinit signal ({error}): {text[:80]!r}") from error

    def __str__(self) -> str:
        head, rows = self._table()
        return "\n".join([table(head, rows, right=_RIGHT), self._legend(), self.verdict])

    def _legend(self) -> str:
        """What the columns are, a line; docs/diagnosing.md says more."""
        if self.loss is None:
            return f"({_LEGEND})"
        rate = 0.01 if self.lr is None else self.lr
        return f"({_LEGEND}; {_LEGEND_OF_GRADIENTS} at learning rate {rate:g})"

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and cells; with a loss those of the gradient too."""
        count = len(_COLUMNS) - (2 if self.loss is None else 0)
        return _COLUMNS[:count], [_cells(layer, self.lr)[:count] for layer in self.layers]

    def show(self) -> None:
        """Print the table: with rich where standard output is a terminal and rich is installed, plain otherwise."""
        printed(self)

    def save_html(self, path: str | Path, *, title: str = "", source: str = "", lr: float | None = None) -> Path:
        """Write a page: one file for a browser, which needs no network. Verdict, curves by depth, modules, table.

        Args:
            path: of the file, whose name ends in ``.html``.
            title: of the page.
            source: of the model and the data, a line under the title: ``"net.py:Net on images/; seed 0"``.
            lr: learning rate for the relative updates; by default that of the measurement, or 0.01.

        Returns:
            The path.

        Raises:
            OptionError: the path is a folder, does not end in .html, or cannot be written to; lr is not positive.
            SaveError: the disk is full; what was there before is as it was.
            MissingExtraError: Jinja2 is not installed.
        """
        from goodinit.page.html import save_page  # noqa: PLC0415 - who prints a signal does not need it
        from goodinit.page.sources import Sources  # noqa: PLC0415

        return save_page(path, Sources(after=self, lr=lr), title=title, source=source)

    def __rich__(self) -> Any:
        """The table for rich's console; layers at which a fault begins are red."""
        from rich.console import Group  # noqa: PLC0415 - an extra; only rich calls this
        from rich.text import Text  # noqa: PLC0415

        head, rows = self._table()
        bad = {finding.layer for finding in self.findings}
        styles = ["bold red" if layer.name in bad else None for layer in self.layers]
        return Group(rich_table(head, rows, right=_RIGHT, styles=styles), Text(self._legend(), "dim"), Text(self.verdict))


_COLUMNS = ("weight", "operator", "std", "of samples", "rank", "then", "gradient", "update")
_RIGHT = frozenset({2, 3, 4, 6, 7})
_LEGEND = "of samples: std between samples; rank: effective rank, of 1; then: the non-linearity that follows"
_LEGEND_OF_GRADIENTS = "gradient: norm of the loss's at the output; update: of the weight by a first step of SGD, of its norm,"


def _cells(layer: Layer, lr: float | None) -> tuple[str, ...]:
    return (
        layer.name,
        layer.operator,
        number(layer.std),
        number(layer.sample_std),
        "-" if layer.effective_rank is None else f"{layer.effective_rank:.2f}",
        _then(layer),
        number(layer.grad_norm),
        percent(layer.relative_update() if lr is None else layer.relative_update(lr)),
    )


def _then(layer: Layer) -> str:
    """The non-linearity that follows, and how much of the output it stops."""
    flat = [f"{share(part)} {what}" for part, what in ((layer.dead, "dead"), (layer.saturated, "flat")) if part]
    return ", ".join([layer.activation or "-", *flat])


def rate_of(lr: float | None, signals: Iterable[Signal]) -> float:
    """The learning rate that relative updates are shown for: the given one, or that of the last signal that has one, or 0.01."""
    given = [lr, *(signal.lr for signal in reversed([*signals]))]
    return next((rate for rate in given if rate is not None), 0.01)


def _layer(raw: dict[str, Any]) -> Layer:
    values: dict[str, Any] = {key: _number_of(value, key) for key, value in raw.items()}
    values.update({key: tuple(value) for key, value in values.items() if isinstance(value, list)})
    return Layer(**values)


def _number_of(value: Any, field: str) -> Any:
    text = field in ("name", "operator", "activation", "batch")
    return value if text or not isinstance(value, str) else float(value)
