"""From raw rows to Markdown: one table a section, then the targets, met or not."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rows import Row

Cells = Sequence[str]


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--table FILE``, which `write` answers."""
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="no run: print the table of FILE's last run, write it beside FILE"
    )


def write(text: str, rows: Path) -> int:
    """Print the table of a file of rows, and write it beside the file. An exit status."""
    print(text)
    rows.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return 0


def markdown(rows: Sequence[Row]) -> str:
    """All that a run found."""
    parts = [header("bench_lsuv", rows)] if rows else ["no rows"]
    for section, render in _SECTIONS.items():
        own = [row for row in rows if row["section"] == section]
        if own:
            parts.append(render(own))
    if rows and not rows[0]["quick"]:
        parts.append("### Targets\n\n" + table(("target", "found", ""), _targets(rows)))
    wrong = [f"- {r['section']} {r['name']} {r['contestant']}: {check}" for r in rows for check in r["failed_checks"]]
    parts.append("### Wrong results\n\n" + ("\n".join(wrong) or "None: every result that was checked was right."))
    return "\n\n".join(parts)


def header(title: str, rows: Sequence[Row]) -> str:
    """What run it was, on what machine."""
    row, loads = rows[0], [row["load"] for row in rows]
    machine, versions = row["machine"], ", ".join(f"{k} {v}" for k, v in row["versions"].items())
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    commit = (row["commit"] or "none yet") + (" with changes" if row["dirty"] else "")
    return "\n".join(
        (
            f"## {title}, run {row['run']}\n",
            f"- `{row['command']}`, seed {row['seed']}, commit {commit}",
            f"- {versions}",
            f"- {cpu}, {machine['memory_gib']} GiB, {machine['system']}; load {min(loads)} to {max(loads)}, this run included",
            f"- Times ({row['clock']}) are medians of n; ratios are medians of the ratios within each round.",
            *(["- --quick: small networks, a test of the benchmark. The figures mean nothing."] if row["quick"] else []),
        )
    )


def _speed(rows: Sequence[Row]) -> str:
    lines = []
    for name, by in grouped(rows):
        lsuv, kept = by["lsuv_"], by["lsuv_(pre_init=None)"]
        lines.append(
            (
                name,
                str(lsuv["weights"]),
                _seconds(by["forward"]),
                _seconds(by["sampling"]),
                _seconds(lsuv),
                f"{lsuv['ratio']:.2f}",
                _seconds(kept),
                f"{kept['ratio']:.2f}",
                _span(lsuv["std_min"], lsuv["std_max"], 5),
                f"{float(lsuv['gram_error']):.0e}",
                str(lsuv["n"]),
            )
        )
    head = (
        "net",
        "weights",
        "forward, s",
        "sampling, s",
        "lsuv_, s",
        "ratio",
        "pre_init=None, s",
        "to forward",
        "std",
        "Gram error",
        "n",
    )
    return (
        "### a. lsuv_ against one forward and the sampling of the matrices\n\n"
        "forward: plain, train mode, no_grad. sampling: orthonormal_ on tensors of the same shapes. "
        "ratio: lsuv_ / (forward + sampling).\n\n" + table(head, lines)
    )


def _peers(rows: Sequence[Row]) -> str:
    lines = []
    for name, by in grouped(rows):
        ours = by["goodinit lsuv_"]["median_seconds"]
        for contestant, row in by.items():
            time, factor = _seconds(row), f"{row['median_seconds'] / ours:.1f}" if row["median_seconds"] else "-"
            if row["seconds_at_least"]:
                time, factor = f"> {row['seconds_at_least']:.3g}", f"> {row['seconds_at_least'] / ours:.1f}"
            status = row["status"] + (f": {row['error']}" if row["error"] else "")
            passes = str(row["forward_passes"] or "-")
            own = f"{_span(row['own_mode_std_min'], row['own_mode_std_max'])} ({row['own_mode']})"
            std = _span(row["std_min"], row["std_max"])
            lines.append(
                (name, contestant, time, factor, passes, std, own if row["own_mode"] == "eval" else std, status, str(row["n"]))
            )
    head = ("net", "contestant", "s", "times lsuv_", "passes", "std, train mode", "std, own mode", "status", "n")
    return (
        "### b. Peers\n\n"
        "passes: forward passes begun. std: smallest and largest output std of Linear, convolution and Conv1D modules in a fresh "
        "forward on the same batch, tied heads left out. `lsuv` works in eval mode, where BatchNorm does not normalize yet; "
        "`anyinit` does not aim at output stds but at the activations' mean square. "
        f"A call is stopped after, or not begun if it must exceed, {rows[0]['cap_seconds']:g} s.\n\n" + table(head, lines)
    )


def _matrices(rows: Sequence[Row]) -> str:
    lines = []
    for name, by in grouped(rows):
        ours, theirs = by["orthonormal_"], by["torch.nn.init.orthogonal_"]
        lines.append(
            (
                name,
                _seconds(ours),
                _seconds(theirs),
                f"{ours['speedup']:.2f}",
                f"{float(ours['gram_error']):.1e}",
                f"{float(theirs['gram_error']):.1e}",
                f"{ours['gram_rows_checked']} of {ours['gram_rows']}",
                str(ours["n"]),
            )
        )
    head = ("matrix", "orthonormal_, s", "torch orthogonal_, s", "speedup", "Gram error", "torch's", "rows checked", "n")
    return (
        "### c. Orthonormal matrices, float32\n\n"
        "Gram error: the largest entry of |Q Q^T - I| (of Q^T Q, where tall), computed in float64.\n\n" + table(head, lines)
    )


def _memory(rows: Sequence[Row]) -> str:
    lines = []
    for name, by in grouped(rows):
        forward, lsuv = by["forward"], by["lsuv_"]
        sizes = [row[key] / 2**20 for row in (forward, lsuv) for key in ("baseline_bytes", "peak_bytes")]
        ratios = (f"{lsuv['ratio']:.2f}", f"{lsuv['absolute_ratio']:.2f}")
        lines.append((name, f"{lsuv['weight_bytes'] / 2**20:.0f}", *(f"{size:.0f}" for size in sizes), *ratios, str(lsuv["n"])))
    head = ("net", "weights", "baseline", "forward's peak", "baseline", "lsuv_'s peak", "ratio", "of what is allowed", "n")
    return (
        "### d. Peak memory, MiB\n\n"
        f"Resident memory of a fresh process each ({rows[0]['method']}). baseline: with model and batch built, libraries too. "
        "ratio: (lsuv_'s peak - baseline) / (forward's peak - baseline + weights). "
        "allowed: 1.1 times forward's peak and one copy of the weights, all absolute. "
        "10 to 20 MiB are library code that lsuv_ is the first to use: most of a small net's ratio.\n\n" + table(head, lines)
    )


_SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {"a": _speed, "b": _peers, "c": _matrices, "d": _memory}


def _targets(rows: Sequence[Row]) -> list[Cells]:
    """What is wanted, what was found, and whether that will do; of the sections that were run."""
    by = {(row["section"], row["name"], row["contestant"]): row for row in rows}
    return [*_speed_targets(rows, by), *_peer_targets(by), *_matrix_targets(rows, by), *_memory_targets(rows)]


def _speed_targets(rows: Sequence[Row], by: dict[tuple[str, str, str], Row]) -> list[Cells]:
    ratios = {r["name"]: r["ratio"] for r in rows if r["section"] == "a" and r["contestant"] == "lsuv_"}
    if not ratios:
        return []
    worst = max(ratios, key=lambda name: ratios[name])
    middle = statistics.median(ratios.values())
    limit = f"{middle:.2f}; worst {ratios[worst]:.2f} ({worst})"
    targets: list[Cells] = [
        ("lsuv_ at most 1.15 times (forward + sampling), median over the nets", limit, verdict(middle <= 1.15))
    ]
    times = {d: by["a", f"mlp-{d}", "lsuv_"]["median_seconds"] for d in (10, 100, 1000) if f"mlp-{d}" in ratios}
    if len(times) < 2:
        return targets
    exponent = _slope([math.log(d) for d in times], [math.log(t) for t in times.values()])
    per_layer = ", ".join(f"{1e3 * t / d:.2f} at {d}" for d, t in times.items())
    found = f"time ~ depth^{exponent:.2f}; ms a layer: {per_layer}"
    targets.append(("cost linear in depth, MLPs of 10 to 1000 layers (exponent at most 1.1)", found, verdict(exponent <= 1.1)))
    return targets


def _peer_targets(by: dict[tuple[str, str, str], Row]) -> list[Cells]:
    targets: list[Cells] = []
    for net in ("resnet18-like", "resnet50-like", "inception-like"):
        ours, theirs = by.get(("b", net, "goodinit lsuv_")), by.get(("b", net, "lsuv 0.3.0"))
        if ours is None or theirs is None:
            continue
        seconds = theirs["median_seconds"] or theirs["seconds_at_least"]
        found = f"{seconds / ours['median_seconds']:.1f} times" if seconds else str(theirs["status"])
        met = bool(seconds) and seconds / ours["median_seconds"] >= 10
        targets.append((f"at least 10 times as fast as lsuv 0.3.0: {net}", found, verdict(met)))
    return targets


def _matrix_targets(rows: Sequence[Row], by: dict[tuple[str, str, str], Row]) -> list[Cells]:
    targets: list[Cells] = []
    if row := by.get(("c", "4096x9216", "orthonormal_")):
        met = verdict(row["speedup"] >= 1.4)
        targets.append(
            ("orthonormal_ at least 1.4 times as fast as torch's orthogonal_ at 4096x9216", f"{row['speedup']:.2f} times", met)
        )
    if errors := [float(r["gram_error"]) for r in rows if r["contestant"] == "orthonormal_"]:
        targets.append(("its Gram error below 5e-6 in float32", f"{max(errors):.1e}", verdict(max(errors) < 5e-6)))
    return targets


def _memory_targets(rows: Sequence[Row]) -> list[Cells]:
    own = {r["name"]: r for r in rows if r["section"] == "d" and r["contestant"] == "lsuv_"}
    if not own:
        return []
    worst = max(own, key=lambda name: own[name]["absolute_ratio"])
    share = own[worst]["absolute_ratio"]
    target = "peak memory at most 1.1 times a forward's and one copy of the weights"
    return [(target, f"at most {share:.2f} of that ({worst})", verdict(share <= 1))]


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    return statistics.linear_regression(x, y).slope


def verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


def grouped(rows: Iterable[Row]) -> list[tuple[str, dict[str, Row]]]:
    """Rows by name, and of each name by contestant."""
    grouped: dict[str, dict[str, Row]] = {}
    for row in rows:
        grouped.setdefault(row["name"], {})[row["contestant"]] = row
    return list(grouped.items())


def _seconds(row: Row) -> str:
    return "-" if row["median_seconds"] is None else f"{row['median_seconds']:.3g}"


def _span(low: Any, high: Any, decimals: int = 3) -> str:
    """Numbers, or what rows have in place of numbers that JSON does not know."""
    if low is None:
        return "-"
    return " to ".join(
        f"{float(value):.{decimals}f}" if abs(float(value)) >= 1e-3 else f"{float(value):.0e}" for value in (low, high)
    )


def table(head: Cells, lines: Iterable[Cells]) -> str:
    """A Markdown table whose columns line up, readable as it is."""
    escaped = [head, *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    widths = [max(len(line[i]) for line in escaped) for i in range(len(head))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in escaped]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
