"""The experiments that come with goodinit, and files of one's own."""

from __future__ import annotations

import re

import pytest

from goodinit import OptionError
from goodinit.paper.catalogue import BUDGETS, names
from goodinit.paper.config import Training
from goodinit.paper.experiment import experiments, named, read

SMALL = """
title = "a title"
recipe = "cifar"
columns = { activation = ["relu", "tanh"] }
[[rows]]
name = "lsuv"
set = { init = "lsuv" }
published = { relu = 90.5 }
[[rows]]
name = "he"
title = "He"
set = { init = "he", lr = 0.5 }
score = "error"
[[where]]
if = { init = "he", activation = "tanh" }
set = { lr = 0.25 }
[budgets.short]
note = "a ninth"
set = { iterations = 10_000 }
where = [{ if = { network = "fitnet4" }, set = { network = "fitnet1" } }]
"""


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_paper_s_experiments_are_there():
    paper = {"table2", "table3", "table4", "table5", "batchsize", "curves", "figure1", "gaussian", "imagenet", "timings"}
    assert set(names()) == paper | {"systems-mnist", "systems-cifar10", "newer", "depth", "walk"}
    assert names()[:4] == ["table2", "table3", "table4", "table5"]
    for experiment in experiments():
        assert set(BUDGETS) <= set(experiment.cells), experiment.name
        assert experiment.title
        assert all(experiment.budgets[budget] for budget in BUDGETS)


def test_table3_is_the_paper_s():
    table = named("table3")
    cells = {cell.name: cell for cell in table.selected("full")}
    assert len(cells) == 25
    assert cells["lsuv/maxout"].published == 93.94
    assert cells["he/maxout"].published == "n/c"
    assert cells["orthonormal-he/tanh"].published is None
    run = cells["lsuv/relu"].run
    assert run == Training(
        data="cifar10", network="fitnet4", activation="relu", init="lsuv", lr=0.01, momentum=0.9, weight_decay=5e-4, pad=4,
        mirror=True, milestones=(40_000, 60_000, 80_000), iterations=90_000, batch=128, linear_bias_decay=False,
    )  # fmt: skip
    # The authors' own recipes for two cells.
    he, xavier = cells["he/maxout"].run, cells["xavier/maxout"].run
    assert (he.lr, he.momentum, he.milestones, he.clip_gradients) == (0.001, 0.5, (80_000,), 50.0)
    assert (xavier.lr, xavier.momentum, xavier.milestones) == (0.01, 0.5, (40_000, 60_000, 80_000))


def test_mnist_s_recipe():
    run = {cell.name: cell for cell in named("table2").selected("full")}["mnist-hinge/lsuv"].run
    assert (run.optimizer, run.lr, run.rms_decay, run.batch, run.iterations) == ("rmsprop", 0.002, 0.99, 64, 50_000)
    assert run.bias_decay
    assert run.linear_bias_decay
    assert (run.milestones, run.gamma, run.weight_decay, run.pixels, run.loss) == (
        (15_000, 30_000, 45_000), 0.1, 5e-4, "scaled", "hinge",
    )  # fmt: skip


def test_runs_of_one_table_serve_others():
    """curves has table3's runs, so that they are not done twice."""
    for budget in BUDGETS:
        table3 = {cell.run for cell in named("table3").selected(budget)}
        assert {cell.run for cell in named("curves").selected(budget)} <= table3
        assert named("table5").selected(budget, ["lsuv/relu"])[0].run in table3


def test_settings_come_one_over_the_other(tmp_path):
    experiment = read(written(tmp_path, SMALL))
    full = {cell.name: cell for cell in experiment.selected("full")}
    assert list(full) == ["lsuv/relu", "lsuv/tanh", "he/relu", "he/tanh"]
    assert [cell.run.lr for cell in full.values()] == [0.01, 0.01, 0.5, 0.25]
    assert [cell.score for cell in full.values()] == ["accuracy", "accuracy", "error", "error"]
    assert full["lsuv/relu"].published == 90.5
    short = experiment.selected("short", ["lsuv/relu"])[0].run
    assert (short.network, short.iterations, short.milestones) == ("fitnet1", 10_000, (4444, 6667, 8889))
    assert experiment.titles == {"he": "He"}
    assert experiment.budgets["short"] == "a ninth"
    assert set(experiment.cells) == {"smoke", "short", "full"}


def test_cells_are_selected_by_patterns(tmp_path):
    experiment = read(written(tmp_path, SMALL))

    def names_of(*only):
        return [cell.name for cell in experiment.selected("short", only)]

    assert names_of("he") == ["he/relu", "he/tanh"]
    assert names_of("he/relu", "lsuv/*") == ["lsuv/relu", "lsuv/tanh", "he/relu"]
    assert names_of("*/tanh") == ["lsuv/tanh", "he/tanh"]
    assert len(names_of()) == 4
    with pytest.raises(OptionError, match=r"^--budget must be one of smoke, short, full; got 'shrt' \(did you mean 'short'\?\)$"):
        experiment.selected("shrt")
    with pytest.raises(OptionError, match=r"^--budget must be one of smoke, short, full; got 'tiny'$"):
        experiment.selected("tiny")


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("nosuch", ""),
        ("lsvu", " (did you mean 'lsuv'"),
        ("lsuv/rleu", " (did you mean 'lsuv/relu', "),
        ("relu", " (did you mean '*/relu', "),  # a column, which a pattern of a row does not mean
    ],
)
def test_a_pattern_that_means_no_cell_is_told_what_there_is(tmp_path, pattern, meant):
    with pytest.raises(OptionError) as caught:
        read(written(tmp_path, SMALL)).selected("short", ["he", pattern])
    message = str(caught.value)
    assert message.startswith(f"--only: mine has no row or row/column {pattern!r}{meant}")
    assert message.endswith("; its rows are lsuv, he; its columns, named as in '*/relu', are relu, tanh")
    assert ("did you mean" in message) == bool(meant)


def test_rows_without_columns_are_told_of_alone(tmp_path):
    text = 'title = "t"\nrecipe = "mnist"\n[[rows]]\nname = "a"\n[[rows]]\nname = "b"\n'
    with pytest.raises(OptionError, match=r"^--only: mine has no row or row/column 'relu'; its rows are a, b$"):
        read(written(tmp_path, text)).selected("short", ["relu"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title =", "titel =", "mine.toml: unknown key 'titel' (did you mean 'title'?)"),
        ('title = "a title"', "title = 3", "mine.toml: an experiment needs a title and rows"),
        ('name = "he"\n', "", "mine.toml: a row needs a name"),
        (
            'recipe = "cifar"',
            'recipe = "cfar"',
            "mine.toml, short: recipe must be one of mnist, cifar, cifar-rmsprop; got 'cfar'",
        ),
        ("lr = 0.5", "lrate = 0.5", "mine.toml, short, he: unknown key 'lrate'"),
        ("score =", "skore =", "mine.toml: rows: unknown key 'skore' (did you mean 'score'"),
        ('"error"', '"errors"', "score must be one of accuracy, error; got 'errors'"),
        ("[[where]]\nif =", "[[where]]\nwhen =", "mine.toml, short: where: unknown key 'when'"),
        ("published = { relu", "published = { relo", "mine.toml, short: published: unknown key 'relo' (did you mean 'relu'"),
        (
            "columns =",
            "figure = 'curvs'\ncolumns =",
            "mine.toml: figure must be one of nothing, curves, updates, columns, walks; got 'curvs'",
        ),
        (
            "columns =",
            "kind = 'traning'\ncolumns =",
            "mine.toml: kind must be one of training, timing, walk; got 'traning' (did you mean",
        ),
        ('note = "a ninth"', 'nte = "a ninth"', "mine.toml: budgets.short: unknown key 'nte' (did you mean 'note'"),
        ('["relu", "tanh"]', '["relu", "tahn"]', "mine.toml, short, lsuv: activation must be one of"),
        ("columns = {", "columns = { loss = ['hinge'],", "columns are the values of one setting; got loss, activation"),
        ("title =", "title", "mine.toml' cannot be read: "),
        ('[[rows]]\nname = "lsuv"', '[rows]\nname = "lsuv"', "cannot be read"),
        ('["relu", "tanh"]', '"relu"', "mine.toml, short: columns.activation must be a list of values; got 'relu'"),
        (
            'if = { init = "he", activation = "tanh" }',
            "",
            "mine.toml, short: where.if must be a table, { key = value }; got None",
        ),
        ('activation = "tanh" }', 'activatoin = "tanh" }', "where.if: unknown key 'activatoin' (did you mean 'activation'"),
        ("set = { lr = 0.25 }", 'set = "x"', "mine.toml, short: where.set must be a table, { key = value }; got 'x'"),
        ('name = "he"', 'name = "lsuv"', "mine.toml: rows need different names; got lsuv, lsuv"),
        ("[[where]]", "[where]", "mine.toml, short: where is written [[where]], one exception after the other; got {'if'"),
        ('title = "He"', "title = 5", "mine.toml: the title of the row 'he' must be a text; got 5"),
        ("relu = 90.5", "relu = 'abc'", "mine.toml: what is published is a number, or 'n/c' (did not converge); got 'abc'"),
        (
            "iterations = 10_000",
            "iterations = '4'",
            "milestones and stop must be numbers, iterations 1 or more; got '4'",
        ),
        ('set = { init = "lsuv"', 'set = { milestones = 3, init = "lsuv"', "short: milestones must be a list, [1, 2]; got 3"),
        ('set = { init = "lsuv"', 'set = { iterations = 0, init = "lsuv"', "iterations 1 or more; got 0"),
        ("lr = 0.5", "momentum = -0.5", "momentum must be 0 or more and less than 1; got -0.5"),
        ("lr = 0.5", "weight_decay = -1.0", "weight_decay must be 0 or more; got -1.0"),
        (
            "columns =",
            "figure = 'updates'\ncolumns =",
            "'updates' needs the sizes of the updates: set = { updates = true }",
        ),
        ("columns =", "figure = 'columns'\ncolumns =", "figure = 'columns' needs columns that are numbers, such as depth"),
        ('note = "a ninth"', "note = 9", "mine.toml: budgets.short: the note must be a text; got 9"),
        ("set = { iterations = 10_000 }", "set = 1", "mine.toml: budgets.short.set must be a table, { key = value }; got 1"),
        ("iterations = 10_000", "iterations = inf", "iterations 1 or more; got inf"),
        ("columns =", "note = 4\ncolumns =", "mine.toml: the note must be a text; got 4"),
        ("relu = 90.5", "relu = nan", "mine.toml: what is published is a number, or 'n/c' (did not converge); got nan"),
        ("columns =", "figure = 'walks'\ncolumns =", "figure = 'walks' shows experiments of the kind 'walk'; got 'training'"),
    ],
)
def test_bad_files(tmp_path, old, new, message):
    assert old in SMALL
    with pytest.raises(OptionError, match=re.escape(message)):
        read(written(tmp_path, SMALL.replace(old, new)))


def test_unknown_experiments(tmp_path):
    with pytest.raises(
        OptionError, match=r"^there is no experiment 'tabel3' \(did you mean 'table3'.*\?\); there are "
    ) as caught:
        named("tabel3")
    assert f"; there are {', '.join(names())}; all, for all of them; and files of your own" in str(caught.value)
    with pytest.raises(OptionError, match=r"the experiment '.*none.toml' cannot be read: .*No such file"):
        read(tmp_path / "none.toml")


def test_names_of_goodinit_s_are_taken(tmp_path):
    (tmp_path / "table3.toml").write_text(SMALL)
    with pytest.raises(OptionError, match=r"table3.toml: an experiment of that name comes with goodinit; give the file another"):
        read(tmp_path / "table3.toml")


def test_one_figure_may_be_published_for_a_row_without_columns(tmp_path):
    text = 'title = "t"\nrecipe = "mnist"\n[[rows]]\nname = "a"\npublished = 0.5\n'
    (cell,) = read(written(tmp_path, text)).selected("full")
    assert (cell.name, cell.column, cell.published) == ("a", "", 0.5)


def test_a_run_may_stop_before_its_schedule_does():
    run = named("imagenet").selected("full", ["lsuv/googlenet"])[0].run
    assert (run.iterations, run.stop, run.total, run.schedule) == (2_400_000, 400_000, 400_000, "poly")


def test_rows_are_written_with_two_brackets(tmp_path):
    with pytest.raises(OptionError, match=r"mine.toml: rows are written \[\[rows\]\], one after the other; got 5"):
        read(written(tmp_path, 'title = "t"\nrows = 5\n'))


def test_budgets_of_goodinit_s_are_for_trainings(tmp_path):
    text = 'title = "t"\nkind = "walk"\n[set]\ndata = "mnist"\n[[rows]]\nname = "a"\n[budgets.full]\nnote = "all"\n'
    experiment = read(written(tmp_path, text))
    assert set(experiment.cells) == {"smoke", "short", "full"}
    assert experiment.command == "mine.toml"
    assert named("table3").command == "table3"


def test_milestones_move_with_the_default_schedule_too(tmp_path):
    text = 'title = "t"\n[set]\ndata = "mnist"\nnetwork = "fitnet-mnist"\nmilestones = [45000]\n[[rows]]\nname = "a"\n'
    (cell,) = read(written(tmp_path, text)).selected("short")
    assert cell.run.milestones == (1500,)


def test_the_end_moves_with_the_schedule(tmp_path):
    text = SMALL.replace('recipe = "cifar"', 'recipe = "cifar"\nset = { stop = 45_000 }')
    ends = {budget: {cell.run.stop for cell in read(written(tmp_path, text)).selected(budget)} for budget in BUDGETS}
    assert ends == {"smoke": {3}, "short": {5_000}, "full": {45_000}}


def test_a_budget_of_goodinit_s_that_does_not_go_with_a_file_is_refused_when_it_is_asked_for(tmp_path):
    text = SMALL.replace('recipe = "cifar"', 'recipe = "cifar"\nset = { schedule = "poly", power = 2.0 }')
    text = text.replace("set = { lr = 0.25 }", 'set = { method = "hints", teacher = "fitnet4", hint_iterations = 9_000 }')
    experiment = read(written(tmp_path, text))
    assert len(experiment.selected("full")) == len(experiment.selected("short")) == 4
    with pytest.raises(OptionError, match=r"^mine.toml, smoke, he: the hints have the schedule of iterations=6"):
        experiment.selected("smoke")


def test_times_that_are_published_are_numbers(tmp_path):
    text = 'title = "t"\nkind = "timing"\n[set]\nmeasure = "init"\nnetwork = "fitnet4"\n'
    text += '[[rows]]\nname = "a"\npublished = { lsuv = X }\n'
    assert read(written(tmp_path, text.replace("X", "4"))).published == {"a": {"lsuv": 4}}
    for wrong in ("'n/c'", "0", "inf"):
        with pytest.raises(OptionError, match=f"of times is a positive number of seconds; got {wrong}$"):
            read(written(tmp_path, text.replace("X", wrong)))


def test_exceptions_of_a_budget_see_its_settings(tmp_path):
    """``set`` first, then ``where``."""
    text = SMALL.replace('if = { network = "fitnet4" }, set = { network = "fitnet1" }', "if = { lr = 9.0 }, set = { batch = 7 }")
    text = text.replace("set = { iterations = 10_000 }", "set = { iterations = 10_000, lr = 9.0 }")
    assert {cell.run.batch for cell in read(written(tmp_path, text)).selected("short")} == {7}
