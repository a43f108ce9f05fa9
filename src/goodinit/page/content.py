"""What a page says, as plain values: a verdict, the table's columns, what is drawn, the tree of modules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from goodinit.page.columns import Column, Side, Value, columns_of_quantities, columns_of_weights
from goodinit.page.quantities import PANELS, QUANTITIES, Panel, Quantity, written
from goodinit.page.tree import Branch, module_tree
from goodinit.page.verdict import (
    HEALTHS,
    Verdict,
    health_of_record,
    healths_of_signal,
    verdict_of_report,
    verdict_of_signal,
    worst,
)
from goodinit.report import Record, Report
from goodinit.signals import Signal


@dataclass(frozen=True)
class Content:
    """All that a page shows."""

    title: str
    verdicts: tuple[tuple[str, Verdict], ...]
    """By what was judged; the first is the page's own."""
    facts: tuple[tuple[str, str], ...]
    sides: tuple[str, ...]
    columns: tuple[Column, ...]
    bins: int
    """Of the histograms; 0 without."""
    curves: tuple[tuple[str, ...], ...]
    """Of every layer the outline of each side's histogram, as an SVG path."""
    tree: tuple[Branch, ...]
    healths: tuple[str, ...]
    """Of every layer."""
    health: str
    """Of all of it."""
    data: Mapping[str, Any]
    """What the page's script works with: JSON without NaN and infinity."""


def content_of(
    report: Report | None, before: Signal | None, after: Signal | None, *, labels: tuple[str, str], title: str, lr: float
) -> Content:
    """Put together what is known of a model before and after something, from a report, or signals, or both.

    Args:
        report: of an initialization.
        before: measured before it.
        after: measured after it; of a page of one signal that signal.
        labels: what to call the two.
        title: of the page; made from what there is if empty.
        lr: for the relative update.
    """
    sides = _sides(report, before, after, labels)
    names = _names(report, before, after)
    healths = _healths(names, report, after if after is not None or report is not None else before)
    bins, curves = _curves(names, sides)
    columns = (
        *columns_of_weights(names, healths, report, [s for s in (after, before) if s is not None]),
        *columns_of_quantities(names, sides, lr),
    )
    judged = [("", verdict_of_report(report))] if report is not None else []
    judged += [(label, verdict_of_signal(s)) for label, s in ((labels[1], after), (labels[0], before)) if s is not None]
    main = worst(v.health for label, v in judged if label != labels[0] or len(judged) == 1)
    return Content(
        title=title or _title(report, before, after),
        verdicts=tuple(judged),
        facts=_facts(report, before, after, lr),
        sides=tuple(side.label for side in sides),
        columns=columns,
        bins=bins,
        curves=curves,
        tree=tuple(module_tree(names, healths)),
        healths=tuple(healths),
        health=main,
        data=_data(columns, sides, report),
    )


def _sides(report: Report | None, before: Signal | None, after: Signal | None, labels: tuple[str, str]) -> list[Side]:
    """Signals; where there is none the stds of the report, unless it has none either."""
    records: Sequence[Record] = () if report is None else report.records
    found = []
    for signal, label, stds in (
        (before, labels[0] if before is not None else "as drawn", {r.name: r.std_before for r in records}),
        (after, labels[1], {r.name: r.std_after for r in records}),
    ):
        layers = {layer.name: layer for layer in signal} if signal is not None else {}
        if layers or any(std is not None for std in stds.values()):
            found.append(Side(label, layers, {} if signal is not None else stds))
    return found


def _names(*sources: Report | Signal | None) -> list[str]:
    """Of all weights, in the order in which they ran."""
    return list(dict.fromkeys(one.name for source in sources if source is not None for one in source))


def _healths(names: Sequence[str], report: Report | None, signal: Signal | None) -> list[str]:
    by_record = {} if report is None else {record.name: health_of_record(record) for record in report}
    by_layer = {} if signal is None else healths_of_signal(signal)
    return [worst(by[name] for by in (by_record, by_layer) if name in by) for name in names]


def _title(report: Report | None, before: Signal | None, after: Signal | None) -> str:
    if report is not None:
        return "Initialization report"
    return "Signal report" if before is None or after is None else "Two signals compared"


def _facts(report: Report | None, before: Signal | None, after: Signal | None, lr: float) -> tuple[tuple[str, str], ...]:
    """Where the figures come from."""
    signal = after if after is not None else before
    facts: list[tuple[str, str]] = []
    if report is not None:
        seconds = f"{report.seconds:.2f} s, {report.sampling_seconds:.2f} s of it drawing matrices"
        facts += [("weights", str(len(report))), ("forward passes", str(report.forward_passes)), ("time", seconds)]
        if report.sweeps:
            facts.append(("batches", f"{report.batches} pooled in {report.sweeps} sweep{'' if report.sweeps == 1 else 's'}"))
    elif signal is not None:
        facts += [("layers", str(len(signal))), ("time", f"{signal.seconds:.2f} s")]
    losses = [written(s.loss) for s in (before, after) if s is not None and s.loss is not None]
    if losses:
        facts += [("loss", " → ".join(losses)), ("relative updates at", f"learning rate {lr:g}")]
    batch = (report.batch if report is not None else "") or (signal.batch if signal is not None else "")
    return (*facts, *([("data", batch)] if batch else []))


def _curves(names: Sequence[str], sides: Sequence[Side]) -> tuple[int, tuple[tuple[str, ...], ...]]:
    """How many bins the histograms have, and their outlines; no bins where there are no histograms."""
    histograms = [[side.layers[name].histogram if name in side.layers else None for side in sides] for name in names]
    bins = max((len(counts) for row in histograms for counts in row if counts), default=0)
    return bins, tuple(tuple(_outline(counts) for counts in row) for row in histograms)


def _outline(counts: Sequence[int] | None) -> str:
    """An SVG path, one bin wide and 20 high at most; nothing for no histogram.

    >>> _outline([1, 4, 4])
    'M0 15h1v-15h2'
    """
    if not counts or not any(counts):
        return ""
    heights = [round(20 - 20 * count / max(counts)) for count in counts]
    steps = [f"h{len(list(same))}" if not rise else f"v{rise}h{len(list(same))}" for rise, same in _runs(heights)]
    return f"M0 {heights[0]}{''.join(steps)}"


def _runs(heights: Sequence[int]) -> Iterator[tuple[int, Iterator[int]]]:
    """Stretches of one height, each with how far it lies under the one before it."""
    before = heights[0]
    for height, same in groupby(heights):
        yield height - before, same
        before = height


def _data(columns: Sequence[Column], sides: Sequence[Side], report: Report | None) -> dict[str, Any]:
    targets = {record.target for record in report or ()}
    by_key = {column.key: column for column in columns}
    return {
        "columns": {column.key: [_plain(value) for value in column.values] for column in columns},
        "numbers": [column.key for column in columns if column.is_number],
        "sides": [side.label for side in sides],
        "healths": HEALTHS,
        "quantities": [q for q in (_of_sides(quantity, by_key, len(sides)) for quantity in QUANTITIES) if any(q["keys"])],
        "panels": [p for p in (_drawn(panel, by_key, len(sides)) for panel in PANELS) if p["series"]],
        "target": targets.pop() if len(targets) == 1 else 1.0,
    }


def _of_sides(quantity: Quantity, by_key: Mapping[str, Column], sides: int) -> dict[str, Any]:
    keys = [f"{quantity.key}:{i}" for i in range(sides)]
    return {"title": quantity.title, "meaning": quantity.meaning, "keys": [key if key in by_key else None for key in keys]}


def _drawn(panel: Panel, by_key: Mapping[str, Column], sides: int) -> dict[str, Any]:
    known = {quantity.key: quantity for quantity in QUANTITIES}
    series = [
        {"key": f"{key}:{i}", "title": known[key].title, "side": i, "dashed": key != panel.keys[0]}
        for key in panel.keys
        for i in range(sides)
        if f"{key}:{i}" in by_key
    ]
    first = known[panel.keys[0]]
    drawing = {"log": panel.is_log, "band": panel.band, "share": first.is_share, "isOutput": first.key == "std"}
    return {"title": panel.title, "series": series, **drawing}


def _plain(value: Value) -> Value:
    """Six digits are more than a pixel; what JSON has no number for goes as text."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)
