"""Experiments as TOML files, one a table or figure of the paper: which runs they consist of, and what was published.

title = "…"                               source = "Table 3"      note = "…"
kind = "training"                         # or "timing", "walk"
recipe = "cifar"                          # of recipes.toml: what the settings begin with
set = { network = "fitnet4" }             # settings of goodinit.paper.config that all runs have
columns = { activation = ["relu", …] }    # a setting and its values, one a column
score = "accuracy"                        # or "error": what is shown, in percent
figure = "curves"                         # or another of figures.py: what is drawn beside the table

[[rows]]
name = "lsuv"                             # and: title, panel (of the figure), its own recipe, columns, score
set = { init = "lsuv" }
published = { relu = 92.11 }              # by column, or one figure; "n/c": did not converge. Not for budgets with other data

[[where]]                                 # exceptions: runs that have these settings get those
if = { init = "he", activation = "maxout" }
set = { lr = 0.001 }

[budgets.short]                           # in place of that of recipes.toml
note = "…"
set = { iterations = 3000 }               # last of all; milestones move in proportion
where = [{ if = {…}, set = {…} }]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from goodinit.errors import OptionError, did_you_mean, is_number
from goodinit.paper.catalogue import BUDGETS, HERE, content, names, path_of
from goodinit.paper.config import KINDS, Run, Training, refuse_unknown, run_of

_KEYS = ("title", "source", "note", "kind", "recipe", "set", "columns", "score", "figure", "rows", "where", "budgets")
_ROW_KEYS = ("name", "title", "panel", "recipe", "set", "columns", "score", "published")
_SCORES = ("accuracy", "error")
_FIGURES = ("", "curves", "updates", "columns", "walks")
_SETTINGS = tuple({name: None for kind in KINDS.values() for name in kind.__dataclass_fields__})
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A place in a table, and the run that fills it."""

    row: str
    column: str
    """Empty where a row is one run."""
    run: Run
    """Of seed 0."""
    score: str
    published: float | str | None

    @property
    def name(self) -> str:
        """As ``--only`` takes it."""
        return f"{self.row}/{self.column}" if self.column else self.row


@dataclass(frozen=True)
class Experiment:
    """One table or figure."""

    name: str
    command: str
    """What ``goodinit reproduce`` calls it: its name, or its file."""
    title: str
    source: str
    note: str
    kind: str
    figure: str
    titles: Mapping[str, str]
    """Of rows that have one."""
    panels: Mapping[str, str]
    """Of rows that have one: which part of the figure they are in."""
    budgets: Mapping[str, str]
    """By name, what is done with it."""
    cells: Mapping[str, tuple[Cell, ...]]
    """By budget, row by row."""
    refused: Mapping[str, str]
    """Budgets that do not go with its settings, and why."""
    published: Mapping[str, Mapping[str, float | str]]
    """By row and column."""

    def selected(self, budget: str, only: Iterable[str] = ()) -> tuple[Cell, ...]:
        """The cells of a budget, or those of them that a pattern means: of rows (``"lsuv"``), or of ``row/column``.

        Raises:
            OptionError: an unknown budget, or a pattern that means none.
        """
        if budget in self.refused:
            raise OptionError(self.refused[budget])
        if budget not in self.cells:
            known = ", ".join(self.cells)
            raise OptionError(f"--budget must be one of {known}; got {budget!r}{did_you_mean(budget, self.cells)}")
        cells, patterns = self.cells[budget], list(only)
        for pattern in patterns:
            if not any(_means(pattern, cell) for cell in cells):
                raise OptionError(f"--only: {self.name} has no row or row/column {pattern!r}{_instead(pattern, cells)}")
        return tuple(cell for cell in cells if not patterns or any(_means(pattern, cell) for pattern in patterns))


def _means(pattern: str, cell: Cell) -> bool:
    return fnmatchcase(cell.name, pattern) or fnmatchcase(cell.row, pattern)


def _instead(pattern: str, cells: Iterable[Cell]) -> str:
    """What may have been meant by a pattern that means no cell, and all that can be named."""
    cells = list(cells)
    rows = list(dict.fromkeys(cell.row for cell in cells))
    columns = list(dict.fromkeys(cell.column for cell in cells if cell.column))
    known = [*rows, *(f"*/{column}" for column in columns), *(cell.name for cell in cells)]
    there = f"; its rows are {', '.join(rows)}"
    if columns:
        there += f"; its columns, named as in '*/{columns[0]}', are {', '.join(columns)}"
    return did_you_mean(pattern, known) + there


def experiments() -> list[Experiment]:
    """All that come with goodinit."""
    return [named(name) for name in names()]


@cache
def named(name: str) -> Experiment:
    """One that comes with goodinit.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in names():
        known = [*names(), "all", "list", "report", "run", *(path.name for path in Path.cwd().glob("*.toml"))]
        raise OptionError(
            f"there is no experiment {name!r}{did_you_mean(name, known)}; there are {', '.join(names())}; all, for all of them; "
            "and files of your own, whose names end in .toml"
        )
    return read(path_of(name))


def read(path: Path) -> Experiment:
    """An experiment from a file.

    Raises:
        OptionError: it cannot be read, has a key that is not known, or settings that cannot be meant.
    """
    file = content(path)
    where = path.name
    if path.stem in names() and path.resolve().parent != (HERE / "experiments").resolve():
        raise OptionError(f"{where}: an experiment of that name comes with goodinit; give the file another name")
    refuse_unknown(file, _KEYS, where)
    if not isinstance(file.get("title"), str) or not file.get("rows"):
        raise OptionError(f"{where}: an experiment needs a title and rows")
    for key in ("source", "note"):
        if not isinstance(file.get(key, ""), str):
            raise OptionError(f"{where}: the {key} must be a text; got {file[key]!r}")
    if not isinstance(file["rows"], list):
        raise OptionError(f"{where}: rows are written [[rows]], one after the other; got {file['rows']!r}")
    _one_of(file.get("kind", "training"), tuple(KINDS), f"{where}: kind")
    _one_of(file.get("figure", ""), _FIGURES, f"{where}: figure")
    for row in file["rows"]:
        refuse_unknown(_table(row, f"{where}: rows"), _ROW_KEYS, f"{where}: rows")
        if not isinstance(row.get("name"), str):
            raise OptionError(f"{where}: a row needs a name; got {dict(row)}")
        for key in ("title", "panel"):
            if not isinstance(row.get(key, ""), str):
                raise OptionError(f"{where}: the {key} of the row {row['name']!r} must be a text; got {row[key]!r}")
        times = file.get("kind") == "timing"
        for figure in _published(row).values():
            number = float(figure) if is_number(figure) else math.nan
            if times and not 0 < number < math.inf:
                raise OptionError(f"{where}: what is published of times is a positive number of seconds; got {figure!r}")
            if not times and figure != "n/c" and not math.isfinite(number):
                raise OptionError(f"{where}: what is published is a number, or 'n/c' (did not converge); got {figure!r}")
    names_ = [row["name"] for row in file["rows"]]
    if len(set(names_)) < len(names_):
        raise OptionError(f"{where}: rows need different names; got {', '.join(names_)}")
    built_in = _recipes()["budgets"]
    if file.get("kind", "training") != "training":  # their settings are those of trainings
        built_in = {name: {"note": budget.get("note", "")} for name, budget in built_in.items()}
    budgets = {**built_in, **_table(file.get("budgets", {}), f"{where}: budgets")}
    for name, budget in budgets.items():
        refuse_unknown(_table(budget, f"{where}: budgets.{name}"), ("note", "set", "where"), f"{where}: budgets.{name}")
        _table(budget.get("set", {}), f"{where}: budgets.{name}.set")
        if not isinstance(budget.get("note", ""), str):
            raise OptionError(f"{where}: budgets.{name}: the note must be a text; got {budget['note']!r}")
    cells: dict[str, tuple[Cell, ...]] = {}
    refused: dict[str, str] = {}
    for name, budget in budgets.items():
        try:
            cells[name] = tuple(_cells(file, budget, f"{where}, {name}"))
        except OptionError as error:  # noqa: PERF203 - of several budgets
            if name in file.get("budgets", {}) or name == BUDGETS[-1]:
                raise
            refused[name] = str(error)  # it is one that comes with goodinit, and may not be asked for
    experiment = Experiment(
        path.stem,
        path.stem if path.parent == HERE / "experiments" else path.name if path.is_absolute() else str(path),
        file["title"],
        file.get("source", ""),
        file.get("note", ""),
        file.get("kind", "training"),
        file.get("figure", ""),
        {row["name"]: row["title"] for row in file["rows"] if "title" in row},
        {row["name"]: row["panel"] for row in file["rows"] if "panel" in row},
        {name: budget.get("note", "") for name, budget in budgets.items()},
        cells,
        refused,
        {row["name"]: _published(row) for row in file["rows"]},
    )
    _check_figure(experiment, where)
    return experiment


def _check_figure(experiment: Experiment, where: str) -> None:
    """Refuse a figure that could not be drawn, before anything runs."""
    figure = experiment.figure
    cells = [cell for cells in experiment.cells.values() for cell in cells]
    kind = "walk" if figure == "walks" else "training"
    if figure and any(KINDS[kind] is not type(cell.run) for cell in cells):
        raise OptionError(f"{where}: figure = {figure!r} shows experiments of the kind {kind!r}; got {experiment.kind!r}")
    if figure == "updates" and not all(isinstance(cell.run, Training) and cell.run.updates for cell in cells):
        raise OptionError(f"{where}: figure = 'updates' needs the sizes of the updates: set = {{ updates = true }}")
    if figure == "columns" and not all(cell.column.isdecimal() for cell in cells):
        raise OptionError(f"{where}: figure = 'columns' needs columns that are numbers, such as depth = [10, 20]")


def _cells(file: Table, budget: Table, where: str) -> Iterable[Cell]:
    kind = file.get("kind", "training")
    for row in file["rows"]:
        columns = _table(row.get("columns", file.get("columns", {})), f"{where}: columns")
        if len(columns) > 1:
            raise OptionError(f"{where}: columns are the values of one setting; got {', '.join(columns)}")
        for key, values in columns.items():
            if not isinstance(values, list):
                raise OptionError(f"{where}: columns.{key} must be a list of values; got {values!r}")
        score = _one_of(row.get("score", file.get("score", "accuracy")), _SCORES, f"{where}: score")
        recipe = _recipe(row.get("recipe", file.get("recipe")), where)
        published = _published(row)
        if kind == "training":
            refuse_unknown(published, [str(v) for values in columns.values() for v in values] or [""], f"{where}: published")
        axis: Sequence[tuple[str, Table]] = [(str(v), {key: v}) for key, values in columns.items() for v in values] or [("", {})]
        for column, chosen in axis:
            common, own = (_table(part.get("set", {}), f"{where}: set") for part in (file, row))
            settings: Table = {**recipe, **common, **own, **chosen}
            settings = _with_exceptions(settings, file.get("where", ()), where)
            shrunk = _shrunk(settings, budget, where)
            run = run_of(kind, shrunk, f"{where}, {row['name']}")
            same = settings.get("data") == shrunk.get("data")  # on other images a published figure says nothing
            yield Cell(row["name"], column, run, score, published.get(column) if same else None)


def _published(row: Table) -> dict[str, float | str]:
    """By column; one figure alone is that of the only column."""
    given = row.get("published", {})
    return dict(given) if isinstance(given, Mapping) else {"": given}


def _with_exceptions(settings: Table, exceptions: Sequence[Table], where: str) -> Table:
    """Settings with those of the exceptions that hold for them."""
    if not isinstance(exceptions, (list, tuple)):
        raise OptionError(f"{where}: where is written [[where]], one exception after the other; got {exceptions!r}")
    for exception in exceptions:
        refuse_unknown(_table(exception, f"{where}: where"), ("if", "set"), f"{where}: where")
        condition, change = (_table(exception.get(key), f"{where}: where.{key}") for key in ("if", "set"))
        refuse_unknown(condition, _SETTINGS, f"{where}: where.if")
        if all(settings.get(key) == value for key, value in condition.items()):
            settings = {**settings, **change}
    return settings


def _shrunk(settings: Table, budget: Table, where: str) -> Table:
    """Settings for a budget: where it has fewer iterations, milestones move in proportion, and so does the end."""
    asked = budget.get("set", {})
    moving = [key for key in ("milestones", "stop") if key in settings and key not in asked]
    if "iterations" in asked and moving:
        whole = settings.get("iterations", Training.iterations)
        milestones = _list(settings.get("milestones", []), f"{where}: milestones")
        stop = settings.get("stop", 0)
        given = [asked["iterations"], whole, *milestones, stop]
        wrong = [value for value in given if not (is_number(value) and 0 <= value < math.inf)]
        if wrong or not whole:
            raise OptionError(
                f"{where}: iterations, milestones and stop must be numbers, iterations 1 or more; got {[*wrong, whole][0]!r}"
            )
        share = asked["iterations"] / whole
        moved = {
            "milestones": [round(milestone * share) for milestone in milestones],
            "stop": stop and max(1, round(stop * share)),
        }
        settings = {**settings, **{key: moved[key] for key in moving}}
    return _with_exceptions({**settings, **asked}, budget.get("where", ()), where)


def _table(value: Any, what: str) -> Table:
    if not isinstance(value, Mapping):
        raise OptionError(f"{what} must be a table, {{ key = value }}; got {value!r}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise OptionError(f"{what} must be a list, [1, 2]; got {value!r}")
    return value


@cache
def _recipes() -> dict[str, Any]:
    return content(HERE / "recipes.toml")


def _recipe(name: str | None, where: str) -> Table:
    known = [key for key in _recipes() if key != "budgets"]
    return {} if name is None else dict(_recipes()[_one_of(name, known, f"{where}: recipe")])


def _one_of(asked: str, known: Sequence[str], what: str) -> str:
    if asked not in known:
        shown = ", ".join(name or "nothing" for name in known)
        raise OptionError(f"{what} must be one of {shown}; got {asked!r}{did_you_mean(str(asked), known)}")
    return asked
