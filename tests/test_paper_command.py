"""What `goodinit reproduce` says of itself: its help and its list, on narrow and on wide terminals."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from goodinit.cli import app
from goodinit.paper.catalogue import BUDGETS, COSTS, names
from goodinit.paper.experiment import experiments
from goodinit.paper.order import Order


def shown(*words, columns=80):
    runner = CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"})
    done = runner.invoke(app, ["reproduce", *words], prog_name="goodinit")
    assert done.exit_code == 0, done.output
    return [line.rstrip() for line in done.output.splitlines()]


def paragraphs(lines):
    """Of prose, before the first panel: blocks of lines that begin in the first column."""
    text = "\n".join(line.removeprefix(" ") for line in lines).partition("╭")[0]
    blocks = [block.strip("\n").splitlines() for block in text.split("\n\n")]
    return [lines for lines in blocks if lines and not lines[0].startswith((" ", "Usage"))]


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_lines_of_the_help_end_where_the_terminal_does(columns):
    found = paragraphs(shown("--help", columns=columns))
    assert sum(len(lines) > 1 for lines in found) >= 2
    for lines in found:
        for line, after in zip(lines, lines[1:], strict=False):
            assert len(line) <= columns - 2
            assert len(f"{line} {after.split()[0]}") > columns - 2, line


def test_help_says_what_an_experiment_is():
    lines = shown("--help")
    text = " ".join(" ".join(lines).split())
    assert "Usage: goodinit reproduce EXPERIMENT [OPTIONS] | list | report [OPTIONS]" in text
    assert f"EXPERIMENT is {', '.join(names())}; all, which is all of them, one after the other; or a TOML file" in text
    assert "does it work? seconds a run" in text
    assert max(map(len, lines)) <= 80


def test_examples_in_the_help_name_what_there_is():
    examples = [line.split("  ")[0].split()[2:] for line in map(str.strip, shown("--help")) if line.startswith("goodinit reprod")]
    assert len(examples) >= 3
    assert [words[0] for words in examples] == ["list", "table3", "table3", "table3", "report"]
    table3 = next(experiment for experiment in experiments() if experiment.name == "table3")
    options = [words[1:] for words in examples if len(words) == 3]
    assert {option for option, _ in options} == {"--budget", "--only"}
    for option, value in options:
        assert table3.selected(value) if option == "--budget" else table3.selected("short", value.split(","))


def test_help_of_an_experiment_names_every_option_and_what_budgets_cost():
    text = " ".join(" ".join(shown("table3", "--help", columns=200)).split())
    assert text.startswith("Usage: goodinit reproduce run [OPTIONS]")
    for option in (
        "--budget", "--seeds", "--only", "--data-dir", "--results", "--device", "--precision", "--compile", "--tensorboard",
    ):  # fmt: skip
        assert option in text
    told = re.sub(r"[^\w:.,;-]+", " ", text)  # without the frame, which lines are broken at
    assert ". ".join(f"{name}: {cost}" for name, cost in COSTS.items()) in told


def entries(lines):
    """The rows of the list: its words by name."""
    found: dict[str, list[str]] = {}
    for line in lines[1 : lines.index("")]:
        if not line.startswith(" "):
            found[line.split()[0]] = []
        found[next(reversed(found))].append(line)
    return found


@pytest.mark.parametrize("columns", [80, 160])
def test_list_gives_the_text_the_rest_of_the_line(columns):
    lines = shown("list", columns=columns)
    assert max(map(len, lines)) <= columns
    found = entries(lines)
    assert list(found) == names()
    for experiment in experiments():
        mine = found[experiment.name]
        (runs,) = {str(len(cells)) for cells in experiment.cells.values()}
        text = " ".join(" ".join(mine).split())
        assert text == " ".join(
            [experiment.name, runs, experiment.title, *([f"({experiment.source})"] if experiment.source else [])]
        )
        assert len(mine) <= (3 if columns == 80 else 1)


def test_list_explains_budgets():
    lines = shown("list", columns=160)
    assert re.search(r"^smoke +seconds a run", "\n".join(lines), re.MULTILINE)
    explained = [
        line.split()[0] for line in lines[next(i for i, line in enumerate(lines) if line.startswith("--budget")) + 1 :] if line
    ]
    assert explained[: len(BUDGETS)] == list(BUDGETS)
    assert any(re.match(r"short-fitnet4 +table3 alone: ", line) for line in lines)


def test_no_command_shows_the_help():
    done = CliRunner().invoke(app, ["reproduce"])
    assert "Usage: " in done.output
    assert "EXPERIMENT is table2, " in " ".join(done.output.split())


def test_options_may_come_before_the_experiment(tmp_path):
    done = CliRunner().invoke(app, ["reproduce", "--budget", "shrt", "table3", "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert "--budget must be one of smoke, short, full, short-fitnet4; got 'shrt'" in done.output
    assert "Usage: " in CliRunner().invoke(app, ["reproduce", "--help"]).output


def test_what_an_experiment_cannot_have_is_refused_of_it_alone(tmp_path):
    for words, message in (
        (["walk", "--precision", "bfloat16"], "goodinit: precision must be one of float32; got 'bfloat16'"),
        (["timings", "--compile"], "goodinit: --compile is for trainings; nothing is trained in timings"),
    ):
        done = CliRunner().invoke(app, ["reproduce", *words, "--results", str(tmp_path)])
        assert (done.exit_code, message in done.output) == (2, True), done.output
    orders = [Order(each, "smoke", compiled=True, precision="bfloat16").with_what_applies() for each in experiments()]
    of_kind = {order.experiment.kind: (order.compiled, {run.precision for _, run in order.runs()}) for order in orders}
    assert of_kind == {
        "training": (True, {"bfloat16"}),
        "timing": (False, {"float32", "bfloat16"}),  # an initialization is never autocast
        "walk": (False, {"float32"}),
    }
