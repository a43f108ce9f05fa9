"""docs/trainability.md, from the rows: what helps where, in tables and two figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goodinit.files import write_whole
from goodinit.paper.files import read_lines
from trainability.contestants import CONTESTANTS
from trainability.protocol import GRID, SEEDS, count, grid, pairs, repeats
from trainability.runner import sessions_of
from trainability.summary import (
    TIE,
    AverageRank,
    Standing,
    Summary,
    at_end,
    average_ranks,
    compared_with,
    critical_difference,
    general,
    is_other,
    runs_in,
)
from trainability.tasks import TASKS

_OURS = "lsuv-auto"
_SHOWN = (
    *("default", "glorot", "he", "orthonormal", "lsuv", "lsuv-auto", "lsuv-package"),
    *("anyinit", "anyinit-empirical", "gradinit", "normalized"),
)


def write_pages(rows: Path, docs: Path) -> None:
    """Write the page and its figures."""
    from trainability.pictures import write_figures
    from trainability.theory import write_theory

    found = read_lines(rows)
    summary = Summary(found)
    write_figures(summary, docs / "figures")
    write_whole(docs / "trainability.md", page(summary, read_lines(sessions_of(rows))).encode())
    write_theory(rows.with_name("trainability-theory.jsonl"), docs)


def page(summary: Summary, sessions: Sequence[Mapping[str, Any]]) -> str:
    """All of it."""
    parts = [
        _HEAD,
        _coverage(summary),
        _ranks(summary),
        _against(summary, _OURS, 'What `target_std="auto"` comes to', _AUTO),
        _held_out(summary.held_out),
        _against(summary, "lsuv", "Plain LSUV, as in the paper", _PLAIN),
        _advice(summary),
        _grid(summary, "share", "Which train at all", _SHARE, lambda s: f"{100 * s.share:.0f}"),
        _grid(summary, "error", "Errors after equal steps", _STEPS, _value),
        _PICTURE,
        _grid(summary, "best", "Best errors", _BEST, lambda s: _three(s.best)),
        _grid(summary, "at_time", "Errors after equal time", _TIME, lambda s: _three(s.at_time)),
        _options(summary),
        _costs(summary),
        _protocol(summary, sessions),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_HEAD = """# Does it help?

Small real tasks, most of them networks without normalization layers, trained from every initialization by one protocol. This page
is made from the committed rows, `benchmarks/results/trainability.jsonl`, by `python -m trainability page`;
`make bench-trainability` makes the rows. Why a std of 1 is not all that matters, and what is done about it:
[beyond unit variance](beyond-unit-variance.md)."""

_PICTURE = "![Error on the test by time](figures/trainability-time.png)"
_AUTO = (
    "Against the best of the other contestants that leave the network as it is (so neither other settings of `lsuv_` nor blocks "
    "or layers of another kind). What it tries, in which order, and when it is content was chosen with these tasks in view; what "
    "it measures was not ([beyond unit variance](beyond-unit-variance.md))."
)
_HELD_OUT = (
    "Tasks that were defined, and first run, after its rule was fixed; by the same protocol, with the contestants of the core. "
    "Against the best of the others."
)
_PLAIN = "The same for `lsuv_(model, x)`, target 1 and nothing else."
_SHARE = "Percent of the compared points of the grid (learning rates of both solvers, one seed) whose error came under the "
_SHARE += "task's threshold at some time: how forgiving an initialization is of the choice of a learning rate."
_RANKS = (
    "Of the contestants that leave the network as it is, and that every task has a use for. 1 is best; in brackets what 95 % of "
    "bootstrap samples of the tasks give. Two average ranks differ significantly by Nemenyi's test at 5 %. `lsuv` and "
    "`lsuv-package` do the same but for the package's tolerance of 10 % of a std: what lies between these two is mostly chance."
)
_STEPS = (
    "At the solver and learning rate that end best with the first seed, mean over seeds; bold: the least of the unassisted. "
    "Classifiers: share of errors; regressions: share of the variance left; text: nats a letter."
)
_BEST = "The smallest on the way, at the same solver and learning rate: well under the above where a training turned bad again."
_TIME = (
    "After the time that half of the steps take the network as it is, the initialization's included, at the same solver and "
    "learning rate. Initialization is counted in training steps of its own run, and a step of another network (`normalized`) in "
    "steps of the network as it is, so that the machines of the rows need not be alike."
)


def _coverage(summary: Summary) -> str:
    planned = pairs()
    whole = count(planned)
    have = runs_in(summary.every_row) & {run.key for run in (*grid(planned), *repeats(planned, summary.every_row))}
    seeds = [len(summary.seeds(task)) for task in summary.tasks] or [0]
    line = (
        f"**Coverage: {len(have):,} of the {whole:,} runs of the plan** ({len(have) / whole:.1%}), {len(summary.tasks)} of "
        f"{len(summary.planned)} tasks with two contestants or more, {_from_to(seeds)} of {SEEDS} seeds a task."
    )
    if len(have) == whole:
        return line
    points = [len(summary.points(task)) for task in summary.tasks] or [0]
    return (
        f"{line} What follows compares contestants at the points of the grid that all of them have, {_from_to(points)} of "
        f"{sum(map(len, GRID.values()))} a task, and leaves out the contestants that lack some; the fewer points and seeds, the "
        "less the order of neighbours means. `make bench-trainability` goes on where it was."
    )


def _from_to(numbers: Sequence[int]) -> str:
    return str(min(numbers)) if len(set(numbers)) == 1 else f"{min(numbers)} to {max(numbers)}"


def _ranks(summary: Summary) -> str:
    everywhere, all_of_them = summary.unassisted(), general()
    rankings = [everywhere] if everywhere == all_of_them else [everywhere, all_of_them]
    tables = "\n\n".join(part for names in rankings if (part := _ranking(summary, names)))
    return f"## Average ranks\n\n{_RANKS}\n\n{tables}" if tables else ""


def _ranking(summary: Summary, names: Sequence[str]) -> str:
    ranks = summary.ranks(names)
    if len(names) < 2 or len(ranks) < 2:
        return ""
    steps, time = average_ranks(ranks), {r.contestant: r for r in average_ranks(summary.ranks(names, "at_time"))}
    lines = [
        [f"`{r.contestant}`", CONTESTANTS[r.contestant].about, _interval(r), _interval(time[r.contestant]), str(r.first)]
        for r in steps
    ]
    which = f"all {len(ranks)} tasks" if len(ranks) == len(summary.planned) else f"{len(ranks)} tasks ({', '.join(ranks)})"
    return (
        f"The {len(names)} that have run on {which}; differences are significant above "
        f"{critical_difference(len(names), len(ranks)):.2f}:\n\n"
        + table(["contestant", "", "rank after equal steps", "rank after equal time", "best on"], lines)
    )


def _interval(rank: AverageRank) -> str:
    return f"{rank.mean:.2f} [{rank.low:.2f}, {rank.high:.2f}]"


def _against(summary: Summary, name: str, title: str, what: str) -> str:
    found = compared_with(summary, name)
    if not found:
        return ""
    counts = {verdict: sum(v == verdict for v, *_ in found.values()) for verdict in ("wins", "ties", "loses")}
    lines = []
    for task, (verdict, mine, other) in found.items():
        lines.append([task, verdict, _value(mine), f"{_value(other)} (`{other.contestant}`)"])
    untrained = [
        f"{task} (but {', '.join(f'`{s.contestant}`' for s in standings if s.trains and not CONTESTANTS[s.contestant].variant)})"
        for task, standings in summary.standings.items()
        if any(s.trains and not CONTESTANTS[s.contestant].variant for s in standings)
        and not all(s.trains for s in standings if s.contestant == name)
    ]
    all_train = "It trains every task that any contestant trains that leaves the network as it is."
    fails = f"It does not train {'; '.join(untrained)}." if untrained else all_train
    return (
        f"## {title}\n\n{what} It wins on {counts['wins']}, ties on {counts['ties']}, loses on {counts['loses']} of {len(found)} "
        f"tasks (a tie: errors within {TIE:.0%} of the error before training). {fails}\n\n"
        + table(["task", f"`{name}`", "its error", "best other's error"], lines)
    )


def _held_out(summary: Summary) -> str:
    verdicts = _against(summary, _OURS, 'Tasks that `target_std="auto"` had not seen', _HELD_OUT)
    return f"{verdicts}\n\n{_ranking(summary, summary.unassisted())}" if verdicts else ""


def _advice(summary: Summary) -> str:
    kinds: dict[str, list[str]] = {}
    for task in summary.tasks:
        kinds.setdefault(task.kind, []).append(task.name)
    lines = [[kind, ", ".join(names), _say(summary, names)] for kind, names in kinds.items()]
    if not lines:
        return ""
    return (
        "## What to do, by kind of network\n\n"
        "By the error after equal steps, a mean over the tasks of a kind as a share of that before training; `normalized` is the "
        "same network with normalization layers.\n\n" + table(["kind", "tasks", "what was seen"], lines)
    )


def _say(summary: Summary, names: Sequence[str]) -> str:
    shares: dict[str, list[float]] = {}
    for task in names:
        for s in summary.standings[task]:
            shares.setdefault(s.contestant, []).append(s.error / summary.cells[task, s.contestant].untaught)
    means = {name: statistics.mean(values) for name, values in shares.items() if len(values) == len(names)}
    plain = {name: value for name, value in means.items() if not CONTESTANTS[name].variant}
    best, most = min(plain, key=lambda n: plain[n]), min(means, key=lambda n: means[n])
    others = {name: value for name, value in plain.items() if is_other(name)}
    ours = {name: value for name, value in plain.items() if not is_other(name)}
    text = f"best as it is: `{best}` ({plain[best]:.2f})"
    if ours and others:
        mine, other = min(ours, key=lambda n: ours[n]), min(others, key=lambda n: others[n])
        apart = ours[mine] - others[other]
        if abs(apart) <= TIE:
            text = f"no difference: `{mine}` {ours[mine]:.2f}, `{other}` {others[other]:.2f}"
        elif apart < 0:
            text = f"use `{mine}` ({ours[mine]:.2f}; best other `{other}` {others[other]:.2f})"
        else:
            text = f"use `{other}` ({others[other]:.2f}; best of ours `{mine}` {ours[mine]:.2f})"
    if most not in plain and means[most] < plain[best] - TIE:
        text += f"; better still `{most}` ({means[most]:.2f})"
    return text


def _grid(summary: Summary, value: str, title: str, what: str, show: Any) -> str:
    names = [name for name in _SHOWN if any(s.contestant == name for some in summary.standings.values() for s in some)]
    lines = []
    for task, standings in summary.standings.items():
        by = {s.contestant: s for s in standings}
        plain = [getattr(s, value) for s in standings if s.contestant in names and not CONTESTANTS[s.contestant].variant]
        best = (max if value == "share" else min)(plain, default=math.nan)
        cells = []
        for name in names:
            text = show(by[name]) if name in by else "·"
            bold = name in by and not CONTESTANTS[name].variant and getattr(by[name], value) == best
            cells.append(f"**{text}**" if bold else text)
        lines.append([task, *cells])
    return f"## {title}\n\n{what}\n\n" + table(["task", *(f"`{n}`" for n in names)], lines) if lines else ""


def _options(summary: Summary) -> str:
    names = [c.name for c in CONTESTANTS.values() if c.name.startswith("lsuv") and c.name != "lsuv-package"]
    lines = []
    for task in TASKS.values():
        have = [name for name in names if (task.name, name) in summary.cells]
        if len(have) < 3:
            continue
        if points := summary.points(task, have):
            seeds = summary.seeds(task, have)
            errors = {n: summary.cells[task.name, n].mean(points, seeds, at_end) for n in have}
            least = min(errors.values())
            cells = [("**%s**" if errors[n] == least else "%s") % _three(errors[n]) if n in errors else "·" for n in names]
            lines.append([f"{task.name} ({len(points)})", *cells])
    if not lines:
        return ""
    return (
        "## The options of `lsuv_`\n\nErrors after equal steps, at the points of the grid that all of them have (how many).\n\n"
        + table(["task", *(f"`{n}`" for n in names)], lines)
    )


def _costs(summary: Summary) -> str:
    names = ["lsuv", "lsuv-auto", "lsuv-package", "anyinit-empirical", "gradinit"]
    lines: list[list[str]] = []
    ours: dict[str, list[tuple[float, float, str]]] = {"lsuv": [], _OURS: []}
    for task in TASKS.values():
        cells = []
        for name in names:
            cell = summary.cells.get((task.name, name))
            steps = None if cell is None else cell.init_steps()
            if cell is None or steps is None:
                cells.append("·")
                continue
            share = steps / task.steps
            cells.append(f"{cell.init_seconds():.3f} s, {steps:.1f} steps, {share:.1%}")
            if name in ours:
                ours[name].append((steps, share, task.name))
        if any(cell != "·" for cell in cells):
            lines.append([task.name, *cells])
    if not lines:
        return ""
    text = "".join(_cost(CONTESTANTS[name].about.split(":")[0], found) for name, found in ours.items() if found)
    return (
        "## What it costs\n\nSeconds of initialization, how many training steps they would have bought, and as a share of the "
        f"whole run: medians over the runs.{text}\n\n" + table(["task", *(f"`{n}`" for n in names)], lines)
    )


def _cost(call: str, found: Sequence[tuple[float, float, str]]) -> str:
    steps, share = statistics.median(s for s, *_ in found), statistics.median(s for _, s, _ in found)
    most, worst, where = max(found)
    return (
        f" `{call}` costs as much as {steps:.1f} training steps (median), {most:.0f} at most ({where}): {share:.1%} of these "
        f"short runs (median), {worst:.1%} there. So it is under 1 % of any run of {100 * most:,.0f} steps, and on half of the "
        f"tasks of one of {100 * steps:,.0f}."
    )


def _protocol(summary: Summary, sessions: Sequence[Mapping[str, Any]]) -> str:
    used = {row["session"] for row in summary.rows}
    machines = {
        f"{s['machine']['cpu']}, {s['machine']['cores']} cores, torch {s['versions']['torch']}, one thread"
        for s in sessions
        if s["session"] in used
    }
    loads = [row["load"] for row in summary.rows]
    failed = sum(row["status"] == "init-failed" for row in summary.rows)
    broken = sum(row["status"] == "diverged" for row in summary.rows)
    tasks = table(
        ["task", "what it is", "steps", "batch", "trained if"],
        [[t.name, t.about, str(t.steps), str(t.batch), f"{t.unit} < {t.trained:g}"] for t in TASKS.values()],
    )
    grid = "; ".join(f"{name}: {', '.join(f'{lr:g}' for lr in lrs)}" for name, lrs in GRID.items())
    return (
        "## Protocol\n\n"
        f"Every contestant gets the same batches, steps and grid of learning rates ({grid}; SGD with momentum 0.9; no schedule, "
        "no weight decay but AdamW's own). The grid is run with one seed, and its best point with "
        f"{SEEDS - 1} more: errors are means over the seeds. Nothing is stopped early. A run that fails or diverges is a row "
        f"({failed} initializations failed, {broken} runs diverged) and counts as untrained, with the error before training; so "
        "does whatever ends with a larger error than that. The learning rate is chosen by the error on the test set, for all "
        "contestants alike: this compares how networks train, not how they would generalize. "
        f"Seconds are processor seconds of one thread. Machines: {'; '.join(sorted(machines)) or 'none'}"
        + (f"; load while it ran {min(loads):g} to {max(loads):g}" if loads else "")
        + ". Text: Genesis in the King James Version, public domain, from Debian's bible-kjv-text.\n\n"
        + tasks
        + "\n\n"
        + table(["contestant", "what it does"], [[f"`{c.name}`", c.about] for c in CONTESTANTS.values()])
    )


def _value(standing: Standing) -> str:
    return _three(standing.error)


def _three(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.0e}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)]
    return "\n".join(rows)
