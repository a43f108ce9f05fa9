"""The page: our figures beside the published ones, every number from a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goodinit.files import write_whole
from goodinit.paper.config import Training
from goodinit.paper.experiment import Experiment, experiments
from goodinit.paper.figures import draw
from goodinit.paper.results import Digests, Result
from goodinit.paper.summary import summary
from goodinit.paper.tables import (
    TRAINED,
    Drift,
    Filled,
    Filling,
    by_method,
    deepest,
    drift,
    fillings,
    markdown,
    median_update,
    times,
)

# Budgets whose tables are shown even where no run has filled them yet. Smoke is a test, no figure.
_SHOWN = ("short", "full")
HIDDEN = "smoke"
_OURS = "reproducing.md"
"""The page beside it in the documentation."""
_INTRODUCTION = """# The paper, reproduced

Made by `goodinit reproduce report` from raw rows; no figure on this page is typed. Networks, recipes and published figures are
those of Mishkin & Matas, [All you need is a good init](https://arxiv.org/abs/1511.06422), ICLR 2016; where the paper leaves
something open, or we differ, OURS.

- A cell has the mean over n seeds, ± their standard deviation, and n in brackets: `91.20 ± 0.15 (3)`. It is the accuracy (or
  error) after the last iteration, in percent, on all test images; the best of all tests is in the rows.
- `n/c`: did not converge. The loss became infinite or NaN, or the network ended no better than guessing.
- `·`: not run yet. Tables of different budgets or precisions never mix.
- *published*: quoted from the paper, or what a table says instead; not measured here, and always for the full schedule.

| budget | what it is |
| --- | --- |
| `smoke` | seconds a run; a test that everything runs, not shown here |
| `short` | minutes a run, of CIFAR-10 15 to 45 on one core: the schedule shrunk in proportion, mostly a smaller network |
| `full` | as published |
"""


def write_page(results: Sequence[Result], out: Path, own: Sequence[Experiment] = ()) -> list[Path]:
    """Write the page, and its pictures into a folder of its name beside it.

    Args:
        results: the rows.
        out: the page.
        own: experiments that do not come with goodinit.

    Returns:
        The pictures.

    Raises:
        SaveError: it cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    folder = out.with_suffix("") if out.suffix else out.with_name(f"{out.name}-pictures")
    pictures: list[Path] = []
    tables = [(e, [t for t in fillings(e, results, _SHOWN) if t.budget != HIDDEN]) for e in (*experiments(), *own)]
    ours = f"[this says what is ours]({_OURS})" if (out.parent / _OURS).exists() else "goodinit's documentation says what is ours"
    parts = [_INTRODUCTION.replace("OURS", ours), summary([table for _, found in tables for table in found])]
    for experiment, found in tables:
        parts.append(_heading(experiment))
        for table in found:
            parts.append(section(table))
            picture = folder / f"{experiment.name}-{table.budget}{table.reduced.replace(', ', '-')}.png"
            if draw(table, picture):
                pictures.append(picture)
                parts.append(f"![{experiment.title}, {table.budget}]({folder.name}/{picture.name})\n")
    write_whole(out, "\n".join(parts).encode())
    return pictures


def _heading(experiment: Experiment) -> str:
    source = f"The paper's {experiment.source}. " if experiment.source else ""
    return f"## {experiment.name}: {experiment.title}\n\n{source}{experiment.note}".rstrip() + "\n"


def section(table: Filling) -> str:
    """A table as Markdown, and under it where its figures come from; folded where it has none."""
    experiment, budget = table.experiment, table.budget
    grid = {"timing": _timings, "walk": _walks, "training": _scores}[experiment.kind](table)
    title = f"{experiment.name}, {budget}{table.reduced}"
    parts = [_sentence(experiment.budgets[budget]), *_deepest(table), grid, *_teachers(table), _provenance(table)]
    if table.results:
        return "\n\n".join([f"### {title}", *parts]) + "\n"
    # The attribute is for the site's Markdown, which otherwise leaves what is inside as it is.
    return "\n\n".join([f'<details markdown="1"><summary>{title}: not run yet</summary>', *parts, "</details>"]) + "\n"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text and text[-1] not in ".?!" else text


def _scores(table: Filling) -> str:
    """Rows and columns of the experiment; published figures on a line of their own in each cell."""
    updates = table.experiment.figure == "updates"
    (score, *others) = dict.fromkeys(filled.cell.score for filled in table.cells)
    lines = [["", *(column or ("" if others else f"{score}, %") for column in table.columns)]]
    for row in table.rows:
        cells = (table.at(row, column) for column in table.columns)
        lines.append([table.title(row), *("" if c is None else _cell(c, updates=updates) for c in cells)])
    return markdown(lines)


def _deepest(table: Filling) -> list[str]:
    """Where the columns are numbers of layers: the largest with which each method trains its network, a column a panel."""
    if table.experiment.figure != "columns" or not table.results:
        return []
    methods = by_method(table)
    panels = list(dict.fromkeys(panel for cells in methods.values() for panel in cells))
    lines = [["method", *panels]]
    lines += [[method, *(deepest(cells.get(panel, ())) for panel in panels)] for method, cells in methods.items()]
    guessing = max(float(result.row["guessing"]) for result in table.results)
    told = (
        f"The deepest network that each method trains. Trained is one that ends with {TRAINED:.0%} of the test images right or "
        f"more, as the mean over the seeds; one that guesses has up to {guessing:.0%}, and a run that diverged counts as that. "
        "In brackets: fewer layers with which the method failed, more layers that have not run. All accuracies follow."
    )
    return [told, markdown(lines)]


def _teachers(table: Filling) -> list[str]:
    """The teachers of the networks in the table, as a sentence."""
    named = [f"{filled.cell.column} {filled}" for filled in table.teachers]
    return [f"Learnt from: {', '.join(named)}."] if named else []


def _cell(filled: Filled, *, updates: bool) -> str:
    lines = [str(filled)]
    if updates and (size := median_update(filled)) is not None:
        lines.append(f"update {size:.2%}")
    if filled.published:
        lines.append(f"*published {filled.published}*")
    return "<br>".join(lines)


def _timings(table: Filling) -> str:
    """Seconds of every contender beside the published; of training steps the ratio to that without normalization."""
    inits, steps = [["seconds", "orthonormal", "LSUV"]], [["seconds", "no BN", "BN before", "BN after"]]
    for filled in table.cells:
        title, found = table.title_of(filled.cell), times(filled)
        if getattr(filled.cell.run, "measure", "") == "init":
            published = table.experiment.published[filled.cell.row]
            inits.append([title, *(_seconds(found.get(name), published.get(name)) for name in ("orthonormal", "lsuv"))])
        else:
            steps.append([title, *(_step(found, name) for name in ("no BN", "BN before", "BN after"))])
    return f"{markdown(inits)}\n\n{markdown(steps)}"


def _walks(table: Filling) -> str:
    """Drift, step and ratio of every row."""
    lines = [["", "drift", "step", "ratio"]]
    for filled in table.cells:
        found = drift(filled)
        title = table.title_of(filled.cell)
        nothing = ["·" if not filled.results else "0 or infinite"] * 3
        lines.append([title, *(nothing if found is None else _drift(found))])
    return markdown(lines)


def _drift(found: Drift) -> list[str]:
    return [f"{found.mean:+.4f} ± {found.error:.4f}", f"{found.step:.3f}", f"{found.ratio:.3g}"]


def _seconds(ours: float | None, published: float | str | None) -> str:
    own = "·" if ours is None else f"{ours:.3g}"
    return own if published is None else f"{own}<br>*published {published}*"


def _step(found: Mapping[str, float], name: str) -> str:
    return "·" if name not in found else f"{found[name]:.3g} ({found[name] / found['no BN']:.2f} times)"


def _provenance(table: Filling) -> str:
    """Which machines, versions and commits, and the commands that make the rows again."""
    rows = [result.row for result in table.results]
    if not rows:
        return f"No run yet: `goodinit reproduce {table.experiment.command} --budget {table.budget}`."
    facts = [
        f"{len(rows)} run{'s' if len(rows) > 1 else ''}",
        f"seeds {', '.join(map(str, sorted({row['seed'] for row in rows})))}",
        _each(f"{row['device']}: {row['machine']['cpu']}, {row['machine']['threads']} threads" for row in rows),
        _each(f"torch {row['versions']['torch']}" for row in rows),
        f"commit {_each(_commit(row) for row in rows)}",
        *([f"{_interrupted(rows)} of them broken off and taken up again"] if _interrupted(rows) else []),
        *_data(table.results),
    ]
    commands = [f"`{command}`" for command in dict.fromkeys(str(row["command"]) for row in rows)]
    told = "; ".join(facts)
    if len(commands) == 1:
        return f"{told}. Made by {commands[0]}."
    folded = "\n".join(f"- {command}" for command in commands)
    return f'{told}.\n\n<details markdown="1"><summary>Made by {len(commands)} commands</summary>\n\n{folded}\n\n</details>'


def _interrupted(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(bool(row.get("interruptions")) for row in rows)


def _commit(row: Mapping[str, Any]) -> str:
    if row["commit"] is None:  # installed, not a clone
        return f"none, goodinit {row['versions']['goodinit']}"
    return f"{str(row['commit'])[:10]}{' with changes' if row['dirty'] else ''}"


def _each(values: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(values))


def _data(results: Iterable[Result]) -> list[str]:
    """What the images were stored as, where that loses something of them; and sets that are not the same in all rows."""
    lossy: dict[str, str] = {}
    different: dict[tuple[str, int], set[Digests]] = {}
    for result in results:
        run, row = result.run, result.row
        if isinstance(run, Training):
            different.setdefault((run.data, run.image_size), set()).add(result.images)
        parts = {word: row.get("data", {}).get(part) for part, word in (("train", "training"), ("test", "test"))}
        some = [
            f"{count:,} lossy JPEG files among {facts['images']:,} {word} images"
            for word, facts in parts.items()
            if facts and (count := facts["encodings"].get("JPEG", 0))
        ]
        if some:
            lossy[row["run"]["data"]] = f"{row['run']['data']} from {' and '.join(some)}"
    return [*lossy.values(), *(f"{name} in {len(sets)} different sets" for (name, _), sets in different.items() if len(sets) > 1)]
