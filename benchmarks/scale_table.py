"""From raw rows to the figures of docs/scale.md: structured matrices, the meta device, several processes.

python benchmarks/scale_table.py
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from bench_ranks import TARGET as RANKS_TARGET
from rows import Row, last_run

_RESULTS = Path(__file__).resolve().parent / "results"
_OUT = _RESULTS / "scale.md"


def main() -> int:
    _OUT.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """All tables that there are rows for."""
    parts = ["Generated from the rows in `benchmarks/results/` by `python benchmarks/scale_table.py`; do not edit."]
    structured, meta, ranks = (_rows(name) for name in ("bench_structured", "bench_meta", "bench_ranks"))
    if speed := [row for row in structured if row["section"] == "speed"]:
        parts.append(_speed(speed))
    if training := [row for row in structured if row["section"] == "training"]:
        parts.append(_training(training))
    if meta:
        parts.append(_meta(meta))
    if ranks:
        parts.append(_ranks(ranks))
    return "\n\n".join(parts) + "\n"


def _rows(name: str) -> list[Row]:
    """Of the last run of each section."""
    path = _RESULTS / f"{name}.jsonl"
    if not path.exists():
        return []
    return last_run(path, by=["section"])


def _speed(rows: Sequence[Row]) -> str:
    shapes = list(dict.fromkeys(row["name"] for row in rows))
    by = {(row["name"], row["contestant"]): row for row in rows}
    lines = [
        (
            shape,
            *(f"{by[shape, kind]['median_seconds']:.3g}" for kind in ("torch", "haar", "structured")),
            *(f"{by[shape, kind]['speedup']:.1f}" for kind in ("haar", "structured")),
            *(f"{by[shape, kind]['gram_error']:.1e}" for kind in ("haar", "structured")),
            str(by[shape, "structured"]["n"]),
        )
        for shape in shapes
    ]
    header = (
        *("matrix", "torch's orthogonal_, s", "Haar, s", "structured, s", "Haar, times as fast", "structured, times as fast"),
        *("Gram error, Haar", "structured", "n"),
    )
    return _titled("### Structured matrices: speed", rows, header, lines)


def _training(rows: Sequence[Row]) -> str:
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        haar, structured = (
            next(r for r in rows if (r["name"], r["contestant"]) == (name, k)) for k in ("orthonormal", "structured")
        )
        lines.append(
            (
                name,
                str(haar["steps"]),
                *(f"{100 * r['mean']:.2f} ± {100 * statistics.stdev(r['accuracies']):.2f}" for r in (haar, structured)),
                f"{100 * structured['difference']:+.2f} ± {100 * structured['standard_error']:.2f}",
                str(len(haar["accuracies"])),
            )
        )
    header = ("data", "steps", "Haar, accuracy %", "structured, accuracy %", "difference ± standard error", "seeds")
    return _titled("### Structured matrices: training", rows, header, lines)


def _meta(rows: Sequence[Row]) -> str:
    lines = [
        (
            row["name"],
            row["dtype"],
            row["contestant"],
            f"{row['model_gib']:.2f}",
            f"{row['peak_gib']:.2f}",
            f"{row['peak_before_gib']:.2f}",
            f"{row['median_seconds']:.0f}",
            f"{row['sampling_seconds']:.0f}",
            f"{row['std_min']:.3f} to {row['std_max']:.3f}",
        )
        for row in rows
    ]
    header = (
        *("decoder", "dtype", "pre_init", "model, GiB", "peak of the process, GiB", "of it before, GiB", "seconds"),
        *("of them drawing", "stds measured afterwards"),
    )
    return _titled("### From the meta device", rows, header, lines)


def _ranks(rows: Sequence[Row]) -> str:
    forms = list(dict.fromkeys(row["contestant"] for row in rows))
    alone, apart, *together = forms
    by = {(row["name"], row["contestant"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = {form: by[name, form] for form in forms}
        lines.append(
            (
                name,
                str(own[alone]["weights"]),
                *(f"{own[form]['median_seconds']:.3g}" for form in (alone, apart)),
                *(
                    f"{own[form]['median_seconds']:.3g} ({own[form]['ratio']:.2f}; {own[form]['ratio_to_apart']:.2f})"
                    for form in together
                ),
                str(own[alone]["n"]),
            )
        )
    header = ("net", "weights", *(f"{form}, s" for form in forms), "n")
    explained = (
        "Every process has one thread and a batch of its own. In brackets the ratio to 1 rank, and that to 2 apart: two "
        "processes at once, each by itself: they share the machine and do not talk. Medians of n rounds."
    )
    missed = {row["name"]: row["ratio"] for row in rows if row["contestant"] == "2 ranks" and row["ratio"] > RANKS_TARGET}
    found = ", ".join(f"{name} {ratio:.2f}" for name, ratio in missed.items())
    verdict = f"Target: 2 ranks at most {RANKS_TARGET} times 1 rank; {f'missed by {found}' if missed else 'met by all'}."
    return f"{_titled('### Several processes', rows, header, lines)}\n\n{explained} {verdict}"


def _titled(title: str, rows: Sequence[Row], header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    row, loads = rows[0], [r["load"] for r in rows]
    machine = row["machine"]
    where = (
        f"`{row['command']}`, seed {row['seed']}, commit {row['commit'][:10]}{' with changes' if row['dirty'] else ''}; "
        f"torch {row['versions']['torch']}; {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB; load {min(loads)} to {max(loads)}."
    )
    table = ["| " + " | ".join(cells) + " |" for cells in (header, ["--:"] * len(header), *lines)]
    return f"{title}\n\n{where}\n\n" + "\n".join(table)


if __name__ == "__main__":
    sys.exit(main())
