"""The signal through a model as it was measured: one record a layer, a verdict on them, as table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from goodinit.errors import UnhealthyError
from goodinit.report import number, printed, table

_SCHEMA = 1


@dataclass(frozen=True)
class Layer:
    """The output of one weight's operator, bias included, at the weight's first use."""

    name: str
    """Name of the parameter, as in a `goodinit.Report`."""
    operator: str
    """``"linear"``, ``"conv2d"``, ``"matmul"``, …"""
    shape: tuple[int, ...]
    """Of the weight, as the operator saw it."""
    mean: float
    """Over all elements of the output: samples, channels, positions; of a complex output its absolute value."""
    std: float
    """Over all elements. What LSUV brings to 1. NaN or infinity if there is NaN or infinity among them."""
    sample_std: float
    """Between samples, the first axis: the root of the variance over samples, averaged over all else. Where it is much smaller
    than ``std``, the output is nearly the same whatever the input is; what varies in it are biases. 0 for a batch of one."""
    channel_spread: float | None = None
    """Std of the channels' means, as a share of ``std``: 1 says that an element's channel decides what it is."""
    effective_rank: float | None = None
    """exp(entropy of the eigenvalues of the output's covariance, as shares of their sum), as a share of the most that its shape
    allows."""
    activation: str | None = None
    """The elementwise non-linearity that the output goes into, directly or through a normalization; None if none was seen."""
    dead: float | None = None
    """Share of units whose activation is constant, with gradient zero, for all samples and positions."""
    saturated: float | None = None
    """Share of activations in the flat part of a non-linearity that has one at both ends (tanh, sigmoid)."""
    grad_std: float | None = None
    """Root mean square of dL/d output over all elements; with a loss."""
    weight_norm: float = math.nan
    """Frobenius norm."""
    weight_grad_norm: float | None = None
    """Frobenius norm of dL/d weight; with a loss."""
    histogram: tuple[int, ...] | None = None
    """Of some elements of the output: counts in bins of equal width from mean - 4 std to mean + 4 std."""
    output_shape: tuple[int, ...] = ()
    """Of the output."""

    @property
    def grad_norm(self) -> float | None:
        """Of the gradient at the output, over all of its elements: what stays the same where a layer keeps the signal.

        The std of single elements changes with their number, as where pixels are pooled.
        """
        return None if self.grad_std is None else self.grad_std * math.sqrt(math.prod(self.output_shape))

    @property
    def finite(self) -> bool:
        """Whether the output holds neither NaN nor infinity."""
        return math.isfinite(self.std)

    def relative_update(self, lr: float = 0.01) -> float | None:
        """By what share of itself the first step of SGD without momentum moves the weight: lr * |dL/dW| / |W|.

        The quantity of the paper's Figure 1: from 0.001 to 0.01 networks converge; above that they diverge, below they hardly
        move. None without a loss.
        """
        return None if self.weight_grad_norm is None else _ratio(lr * self.weight_grad_norm, self.weight_norm)


@dataclass(frozen=True)
class Finding:
    """One thing that a person can act on."""

    kind: str
    """``"vanishing"``, ``"exploding"``, …"""
    layer: str
    """Name of the weight at which it begins."""
    text: str
    """What was seen."""
    advice: str
    """What to do about it; whether LSUV mends it."""

    def __str__(self) -> str:
        return f"{self.text} {self.advice}"


@dataclass(frozen=True)
class Signal:
    """What `goodinit.measure` found. ``str(signal)`` is a table and a verdict; `show` prints it, in colour where rich can."""

    layers: tuple[Layer, ...]
    """In the order in which the operators ran."""
    loss: float | None = None
    """Its value on the batch; None if no loss was given."""
    batch: str = ""
    """What the model was given."""
    seconds: float = 0.0
    """Wall-clock time of the whole call."""

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All that is wrong, the gravest first; empty for a healthy model."""
        return ()

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def verdict(self) -> str:
        """One sentence, then each finding on lines of its own."""
        count = f"{len(self)} layer{'' if len(self) == 1 else 's'}"
        if self.healthy:
            return f"Healthy: no fault found in {count}."
        lines = [f"{len(self.findings)} fault{'' if len(self.findings) == 1 else 's'} in {count}:"]
        return "\n".join([*lines, *(f"- {finding}" for finding in self.findings)])

    def assert_healthy(self, *, allow: Iterable[str] = ()) -> None:
        """Raise unless nothing is wrong: for a test-suite.

        Args:
            allow: kinds of findings that are no failure.

        Raises:
            UnhealthyError: an AssertionError that says what was found.
        """
        allowed = {allow} if isinstance(allow, str) else set(allow)
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
        raise KeyError(name)

    def compare(self, other: Signal, *, labels: tuple[str, str] = ("before", "after")) -> Comparison:
        """This signal beside another one, of the same model later, or of another run."""
        return Comparison(self, other, labels)

    def to_json(self) -> str:
        """JSON of all fields; `from_json` reads it back. NaN and infinity become strings, for JSON does not know them."""
        return json.dumps({"schema": _SCHEMA, **_finite(asdict(self))}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Signal:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is not a signal, or one of another version's.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.pop("schema", None) != _SCHEMA or set(raw) != {f.name for f in fields(cls)}:
            raise ValueError(f"not a goodinit signal of schema {_SCHEMA}: {text[:80]!r}")
        return cls(tuple(_layer(layer) for layer in raw.pop("layers")), **{k: _number_of(v, k) for k, v in raw.items()})

    def __str__(self) -> str:
        return "\n".join([table(*self._table(), right=_RIGHT), self.verdict])

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        return _COLUMNS, [_cells(layer) for layer in self.layers]

    def show(self) -> None:
        """Print the table: with rich where standard output is a terminal and rich is installed, plain otherwise."""
        printed(self)

    def save_html(self, path: str | Path, *, title: str = "", lr: float = 0.01) -> Path:
        """Write a page: one file for a browser, which needs no network. Verdict, curves by depth, modules, table.

        Args:
            path: of the file, whose name ends in ``.html``.
            title: of the page.
            lr: learning rate for the relative updates.

        Returns:
            The path.

        Raises:
            OptionError: the path is a folder, does not end in .html, or cannot be written to; lr is not positive.
            SaveError: the disk is full; what was there before is as it was.
            MissingExtraError: Jinja2 is not installed.
        """
        from goodinit.page.html import save_page  # noqa: PLC0415 - who prints a signal does not need it

        return save_page(path, after=self, title=title, lr=lr)


@dataclass(frozen=True)
class Comparison:
    """Two signals side by side. ``str`` is a table by name."""

    before: Signal
    after: Signal
    labels: tuple[str, str] = ("before", "after")

    def save_html(self, path: str | Path, *, title: str = "", lr: float = 0.01) -> Path:
        """Write a page of both, as `Signal.save_html` of one."""
        from goodinit.page.html import save_page  # noqa: PLC0415 - who prints a comparison does not need it

        return save_page(path, before=self.before, after=self.after, labels=self.labels, title=title, lr=lr)

    def __str__(self) -> str:
        names = dict.fromkeys([layer.name for layer in (*self.before, *self.after)])
        sides = [{layer.name: layer for layer in signal} for signal in (self.before, self.after)]
        rows = [(name, *(number(side[name].std) if name in side else "-" for side in sides)) for name in names]
        return table(("weight", *(f"std {label}" for label in self.labels)), rows, right=frozenset({1, 2}))


_COLUMNS = ("weight", "operator", "shape", "mean", "std", "sample std")
_RIGHT = frozenset({3, 4, 5})


def _cells(layer: Layer) -> tuple[str, ...]:
    shape = "x".join(map(str, layer.shape))
    return layer.name, layer.operator, shape, number(layer.mean), number(layer.std), number(layer.sample_std)


def _layer(raw: dict[str, Any]) -> Layer:
    values = {key: _number_of(value, key) for key, value in raw.items()}
    return Layer(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _number_of(value: Any, field: str) -> Any:
    text = field in ("name", "operator", "activation", "batch")
    return value if text or not isinstance(value, str) else float(value)


def _finite(value: Any) -> Any:
    """Numbers that JSON does not know as strings: ``"nan"``, ``"inf"``, ``"-inf"``."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _ratio(numerator: float, denominator: float) -> float:
    """Of two numbers, infinity for a denominator of zero."""
    return numerator / denominator if denominator else math.inf if numerator else 0.0
