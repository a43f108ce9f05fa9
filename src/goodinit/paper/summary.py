"""The top of the page: what has run and what has not, and our figures beside the published ones, of all tables."""

from __future__ import annotations

from collections.abc import Sequence

from goodinit.paper.catalogue import BUDGETS
from goodinit.paper.tables import Filled, Filling, markdown, times

_COVERAGE = """## What has run

Cells that have a run, and how many seeds they have. Tables in which nothing has run are folded below.
"""
_COMPARISONS = """## Ours beside the published

Every cell that has a run, and a published figure on the same data. Difference: ours minus the published, in percentage points; of
seconds, which another machine took, the ratio. Under a budget other than `full` it is that of a shorter schedule too, and of a
smaller network where the table says so.
"""


def summary(tables: Sequence[Filling]) -> str:
    """Of all tables of the page."""
    compared = [part for part in map(_comparisons, _by_budget(tables).items()) if part]
    return "\n".join([_COVERAGE, _coverage(tables), "", *([_COMPARISONS, *compared] if compared else [])])


def _coverage(tables: Sequence[Filling]) -> str:
    """A row an experiment, a column a budget."""
    budgets = list(dict.fromkeys([*BUDGETS[1:], *(table.budget for table in tables)]))
    experiments = {table.experiment.name: table.experiment for table in tables}
    lines = [["experiment", "what", *budgets]]
    for name, experiment in experiments.items():
        own = [table for table in tables if table.experiment.name == name]
        shown = ("<br>".join(f"{t.runs}{t.reduced}" for t in own if t.budget == budget) for budget in budgets)
        lines.append([name, experiment.title, *shown])
    return markdown(lines)


def _by_budget(tables: Sequence[Filling]) -> dict[str, list[Filling]]:
    """Those of a budget and a precision together; full ones first."""
    found: dict[str, list[Filling]] = {}
    for table in sorted(tables, key=lambda table: table.budget != BUDGETS[-1]):
        found.setdefault(f"{table.budget}{table.reduced}", []).append(table)
    return found


def _comparisons(part: tuple[str, list[Filling]]) -> str:
    """A table of all comparisons of a budget; nothing where there are none."""
    title, tables = part
    lines = [[table.experiment.name, *line] for table in tables for filled in table.cells for line in _compared(table, filled)]
    head = ["table", "cell", "score", "ours", "published", "difference"]
    return f"### Beside the published: {title}\n\n{markdown([head, *lines])}\n" if lines else ""


def _compared(table: Filling, filled: Filled) -> list[list[str]]:
    """What a cell has to be compared: one figure, or the seconds of each contender."""
    cell, name = filled.cell, table.title_of(filled.cell)
    if table.experiment.kind != "timing":
        if not filled.difference:
            return []
        return [[name, f"{cell.score}, %", str(filled), filled.published, filled.difference]]
    published, ours = table.experiment.published[cell.row], times(filled)
    return [
        [f"{name}, {contender}", "seconds", f"{ours[contender]:.3g}", f"{figure}", f"{ours[contender] / float(figure):.3f} times"]
        for contender, figure in published.items()
        if contender in ours
    ]
