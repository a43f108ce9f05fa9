"""What a page says, as plain values: a verdict, the table's columns, what is drawn, the tree of modules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from goodinit.measurement.signals import Signal
from goodinit.page.columns import DISTRIBUTION, Column, Value, columns_of
from goodinit.page.health import HEALTHS, health_of_record, healths_of_signal, worst
from goodinit.page.quantities import PANELS, QUANTITIES, Panel, Quantity, written
from goodinit.page.sources import Sources
from goodinit.page.tree import Branch, module_tree
from goodinit.page.verdict import Verdict, verdict_of_report, verdict_of_signal
from goodinit.report import Report


@dataclass(frozen=True)
class Content:
    """All that a page shows."""

    title: str
    headline: str
    verdicts: tuple[tuple[str, Verdict], ...]
    """By what was judged; the first is the page's own."""
    before: str
    """Which of them is of what is past."""
    facts: tuple[tuple[str, str], ...]
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


def content_of(sources: Sources, title: str = "") -> Content:
    """Put together what is known of a model before and after something, from a report, or signals, or both.

    Args:
        sources: what is known.
        title: of the page; made from what there is if empty.
    """
    healths = _healths(sources)
    verdicts = _verdicts(sources)
    columns = columns_of(sources, healths)
    bins, curves = _curves(sources)
    return Content(
        title=title or _title(sources),
        headline=_headline(verdicts, sources),
        verdicts=tuple(verdicts),
        before=sources.labels[0],
        facts=_facts(sources),
        columns=columns,
        bins=bins,
        curves=curves,
        tree=tuple(module_tree(sources.names, healths)),
        healths=healths,
        health=worst(verdict.health for label, verdict in verdicts if label != sources.labels[0] or len(verdicts) == 1),
        data=_data(columns, sources),
    )


def _verdicts(sources: Sources) -> list[tuple[str, Verdict]]:
    """The page's own first, of two signals that of the later one; then in the order of time."""
    both = zip(sources.labels, (sources.before, sources.after), strict=True)
    measured = [(label, verdict_of_signal(signal)) for label, signal in both if signal is not None]
    if sources.report is None:
        return measured[::-1]
    return [("", verdict_of_report(sources.report)), *measured]


def _headline(verdicts: Sequence[tuple[str, Verdict]], sources: Sources) -> str:
    """The first verdict; an initialization that did all it could may leave faults that no initialization mends."""
    label, verdict = verdicts[0]
    if sources.report is None:
        return f"{label}: {verdict.sentence}" if len(verdicts) > 1 else verdict.sentence
    left = 0 if sources.after is None else len(sources.after.findings)
    if not left or not sources.report.ok:
        return verdict.sentence
    return f"{verdict.sentence.removesuffix('.')}, yet {left} fault{' remains' if left == 1 else 's remain'}."


def _healths(sources: Sources) -> tuple[str, ...]:
    """Of every layer as it is in the end."""
    judged: list[Mapping[str, str]] = [{record.name: health_of_record(record) for record in sources.records}]
    if sources.after is not None:
        judged.append(healths_of_signal(sources.after))
    elif sources.before is not None and sources.report is None:
        judged.append(healths_of_signal(sources.before))
    return tuple(worst(by_name[name] for by_name in judged if name in by_name) for name in sources.names)


def _title(sources: Sources) -> str:
    if sources.report is not None:
        return "Initialization report"
    return "Signal report" if len(sources.signals) < 2 else "Two signals compared"


def _facts(sources: Sources) -> tuple[tuple[str, str], ...]:
    """Where the figures come from."""
    facts = _facts_of_report(sources.report) if sources.report is not None else _facts_of_signal(sources.signals[-1])
    losses = [written(signal.loss) for signal in sources.signals if signal.loss is not None]
    if losses:
        facts += [("loss", " → ".join(losses)), ("relative updates at", f"learning rate {sources.rate:g}")]
    batches = [one.batch for one in (sources.report, *sources.signals) if one is not None and one.batch]
    return (*facts, *(("data", batch) for batch in batches[:1]))


def _facts_of_report(report: Report) -> list[tuple[str, str]]:
    seconds = f"{report.seconds:.2f} s, {report.sampling_seconds:.2f} s of it drawing matrices"
    facts = [("weights", str(len(report))), ("forward passes", str(report.forward_passes)), ("time", seconds)]
    if report.sweeps:
        facts.append(("batches", f"{report.batches} pooled in {report.sweeps} sweep{'' if report.sweeps == 1 else 's'}"))
    return facts


def _facts_of_signal(signal: Signal) -> list[tuple[str, str]]:
    return [("layers", str(len(signal))), ("time", f"{signal.seconds:.2f} s")]


def _curves(sources: Sources) -> tuple[int, tuple[tuple[str, ...], ...]]:
    """How many bins the histograms have, and their outlines; no bins where there are no histograms."""
    layers = [[side.layers.get(name) for side in sources.sides] for name in sources.names]
    histograms = [[None if layer is None else layer.histogram for layer in row] for row in layers]
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


def _data(columns: Sequence[Column], sources: Sources) -> dict[str, Any]:
    targets = Counter(record.target for record in sources.records).most_common(1)
    by_key = {column.key: column for column in columns if column.key != DISTRIBUTION}
    quantities = (_of_sides(quantity, by_key, len(sources.sides)) for quantity in QUANTITIES)
    panels = (_drawn(panel, by_key, len(sources.sides)) for panel in PANELS)
    return {
        "columns": {key: [_plain(value) for value in column.values] for key, column in by_key.items()},
        "numbers": [key for key, column in by_key.items() if column.is_number],
        "sides": [side.label for side in sources.sides],
        "healths": HEALTHS,
        "quantities": [quantity for quantity in quantities if any(quantity["keys"])],
        "panels": [panel for panel in panels if _has_a_curve(panel, by_key)],
        "target": targets[0][0] if targets else 1.0,
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


def _has_a_curve(panel: Mapping[str, Any], by_key: Mapping[str, Column]) -> bool:
    """Whether there are two points to draw a line between."""
    return any(sum(value is not None for value in by_key[one["key"]].values) > 1 for one in panel["series"])


def _plain(value: Value) -> Value:
    """Six digits are more than a pixel; what JSON has no number for goes as text."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)
