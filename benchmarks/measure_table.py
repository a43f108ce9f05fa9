"""From the rows of bench_measure.py to Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rows import Row
from table import grouped, header, table

_TIME, _MEMORY = 1.3, 1.1
# Layers so small that they are no measure of it.
_TINY = frozenset({"mlp-100"})
_PAIRS = (("forward", "measure"), ("forward and backward", "measure, loss"))


def markdown(rows: Sequence[Row]) -> str:
    """All that a run found."""
    parts = [_header(rows)]
    for section, render in (("time", _times), ("memory", _memory)):
        if own := [row for row in rows if row["section"] == section]:
            parts.append(render(own))
    if not rows[0]["quick"]:
        parts.append("### Targets, where layers do real work\n\n" + table(("target", "found", ""), _targets(rows)))
    wrong = [f"- {row['name']} {row['contestant']}: {check}" for row in rows for check in row["failed_checks"]]
    parts.append("### Wrong results\n\n" + ("\n".join(wrong) or "None: every std was that of the output."))
    return "\n\n".join(parts)


def _header(rows: Sequence[Row]) -> str:
    """Of the first run, and by what the others differ from it."""
    first, *others = [[row for row in rows if row["run"] == run] for run in dict.fromkeys(row["run"] for row in rows)]
    lines = [header("bench_measure", first)]
    for own in others:
        loads, commit = [row["load"] for row in own], own[0]["commit"] + (" with changes" if own[0]["dirty"] else "")
        lines.append(
            f"- run {own[0]['run']}: `{own[0]['command']}`, commit {commit}; load {min(loads)} to {max(loads)}, this run included"
        )
    return "\n".join(lines)


def _times(rows: Sequence[Row]) -> str:
    lines = []
    for name, by in grouped(rows):
        cells = [f"{by[plain]['median_seconds']:.3g}" for plain, _ in _PAIRS]
        found = [f"{by[own]['ratio']:.2f} ({min(by[own]['ratios']):.2f} to {max(by[own]['ratios']):.2f})" for _, own in _PAIRS]
        each = f"{1000 * by['forward']['median_seconds'] / by['measure']['weights']:.3g}"
        lines.append((name, str(by["measure"]["weights"]), each, cells[0], found[0], cells[1], found[1], str(by["measure"]["n"])))
    head = (
        *("net", "weights", "forward, ms a weight", "forward, s", "measure, times that"),
        *("forward and backward, s", "measure with a loss, times that", "n"),
    )
    device, threads = rows[0]["device"], rows[0]["threads"]
    title = f"### Time, on {device}, {threads} thread{'' if threads == 1 else 's'}"
    return f"{title}\n\nIn brackets the least and the most of the rounds.\n\n{table(head, lines)}"


def _memory(rows: Sequence[Row]) -> str:
    lines = []
    for name, by in grouped(rows):
        sizes = [f"{statistics.median(by[contestant]['peaks_bytes']) / 2**20:.0f}" for pair in _PAIRS for contestant in pair]
        found = [f"{by[own]['ratio']:.2f} ({by[own]['ratio_above_baseline']:.2f})" for _, own in _PAIRS]
        lines.append((name, sizes[0], sizes[1], found[0], sizes[2], sizes[3], found[1], str(by["measure"]["n"])))
    head = ("net", "forward", "measure", "times that", "forward and backward", "measure with a loss", "times that", "n")
    return "### Peak memory, MiB\n\nIn brackets: of what comes on top of the model, its batch and the libraries.\n\n" + table(
        head, lines
    )


def _targets(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    lines = []
    for section, what, limit in (("time", "time", _TIME), ("memory", "memory", _MEMORY)):
        for plain, own in _PAIRS:
            found = {
                r["name"]: r["ratio"]
                for r in rows
                if r["section"] == section and r["contestant"] == own and r["name"] not in _TINY
            }
            if found:
                worst = max(found, key=lambda name: found[name])
                met = "met" if found[worst] <= limit else "NOT MET"
                lines.append(
                    (f"{own}: at most {limit} times the {what} of {plain}", f"at most {found[worst]:.2f} ({worst})", met)
                )
    return lines
