"""Tables, pictures and the page: every number from rows, budgets and precisions apart, empty cells visible."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from goodinit.cli import app
from goodinit.errors import GoodinitError, SaveError
from goodinit.paper.catalogue import BUDGETS
from goodinit.paper.experiment import experiments, named, read
from goodinit.paper.figures import draw
from goodinit.paper.files import append_line
from goodinit.paper.page import write_page
from goodinit.paper.results import Result, Results
from goodinit.paper.tables import drift, fillings, median_update, times

ROOT = Path(__file__).parent.parent
COMMON = {
    "schema": 1, "commit": "0123456789abcdef", "dirty": False, "device": "cpu", "command": "goodinit reproduce x",
    "machine": {"cpu": "a CPU", "threads": 2}, "versions": {"torch": "9.9"}, "interruptions": 0,
    "data": {"train": {"images": 50_000, "encodings": {"PNG": 50_000}}},
}  # fmt: skip


def cell_of(experiment, cell, budget="short"):
    return named(experiment).selected(budget, [cell])[0]


def row(run, accuracy, **more):
    """A row as a training leaves it."""
    measured = {
        "guessing": 0.11, "status": "done" if accuracy is not None else "n/c", "final_accuracy": accuracy,
        "evaluations": [[1, 0.1, 2.3], [2, accuracy or 0.1, 1.0]],
    }  # fmt: skip
    return {**COMMON, "seed": run.seed, **measured, "run": run.plain(), **more}


def result(run, accuracy, **more):
    return Result(run, row(run, accuracy, **more))


def cells(markdown):
    """The cells of all tables, by the table's heading."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in markdown.splitlines():
        heading = line[4:] if line.startswith("### ") else line[3:] if line.startswith("## ") else heading
        if folded := re.fullmatch(r'<details markdown="1"><summary>(.*): not run yet</summary>', line):
            heading = folded[1]
        if line.startswith("|") and not line.startswith("| ---"):
            found.setdefault(heading, []).append([part.strip() for part in line.strip("|").split("|")])
    return found


def page(results, tmp_path):
    write_page(results, tmp_path / "page.md")
    return cells((tmp_path / "page.md").read_text())


def test_a_cell_has_mean_std_and_n(tmp_path):
    run = cell_of("table3", "lsuv/relu").run
    found = page([result(replace(run, seed=seed), accuracy) for seed, accuracy in enumerate((0.80, 0.82, 0.87))], tmp_path)
    assert found["table3, short"][1][2] == "83.00 ± 3.61 (3)<br>*published 92.11*"
    assert found["table3, full"][1][2] == "·<br>*published 92.11*"
    assert found["curves, short"][1][2] == "83.00 ± 3.61 (3)"  # the same run


def test_runs_that_did_not_converge_are_counted(tmp_path):
    relu, tanh = cell_of("table3", "he/relu").run, cell_of("table3", "he/tanh").run
    results = [result(relu, 0.5), result(replace(relu, seed=1), None), result(tanh, None), result(replace(tanh, seed=1), None)]
    assert page(results, tmp_path)["table3, short"][5][2:5:2] == [
        "50.00 (1), n/c (1)<br>*published 90.91*",
        "n/c (2)<br>*published 89.54*",
    ]


def test_budgets_and_precisions_never_mix(tmp_path):
    short, full = cell_of("table3", "lsuv/relu").run, cell_of("table3", "lsuv/relu", "full").run
    results = [
        result(short, 0.5),
        result(full, 0.9),
        result(replace(short, precision="bfloat16"), 0.6),
        result(replace(short, lr=5.0), 0.7),
    ]
    found = page(results, tmp_path)
    assert found["table3, short"][1][2] == "50.00 (1)<br>*published 92.11*"
    assert found["table3, full"][1][2] == "90.00 (1)<br>*published 92.11*"
    assert found["table3, short, bfloat16"][1][2] == "60.00 (1)<br>*published 92.11*"
    assert "table3, full, bfloat16" not in found


def test_errors_instead_of_accuracies(tmp_path):
    run = cell_of("table2", "mnist-hinge/lsuv", "full").run
    found = page([result(run, 0.9961)], tmp_path)["table2, full"]
    assert found[1] == ["MNIST, hinge loss, error", "0.39 (1)<br>*published 0.38*", "·<br>*published 0.43*"]


def test_a_run_that_was_done_twice_counts_once():
    run = cell_of("table3", "lsuv/relu").run
    (table,) = fillings(named("table3"), [result(run, 0.1), result(run, 0.9)], ())
    assert [float(r.row["final_accuracy"]) for r in table.results] == [0.9]


def test_runs_on_other_images_are_in_no_cell_together():
    run = cell_of("table3", "lsuv/relu").run
    data = [{"train": {"sha256": a}, "test": {"sha256": b}} for a, b in (("a", "b"), ("a", "c"))]
    found = [result(run, 0.1, data=data[0]), result(replace(run, seed=1), 0.2, data=data[0])]
    (table,) = fillings(named("table3"), found, ())
    assert len(table.results) == 2
    (table,) = fillings(named("table3"), [*found, result(run, 0.9, data=data[1])], ())
    assert [float(r.row["final_accuracy"]) for r in table.results] == [0.9]


def test_every_cell_of_every_experiment_is_there(tmp_path):
    """Empty ones too, in the budgets that are shown."""
    found = page([], tmp_path)
    for experiment in experiments():
        for budget in BUDGETS[1:]:
            table = found[f"{experiment.name}, {budget}"]
            shown = sum(cell.startswith("·") for line in table[1:] for cell in line[1:])
            count = len(experiment.cells[budget])
            assert shown == {"training": count, "timing": 2 * 3 + 3 * 2, "walk": 3 * count}[experiment.kind]
        assert f"{experiment.name}, smoke" not in found


def test_tables_that_have_not_run_are_folded(tmp_path):
    """Others are not: an empty cell beside a full one is seen without a click."""
    write_page([result(cell_of("table3", "lsuv/relu").run, 0.8)], tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "\n### table3, short\n" in text
    assert "table3, short: not run yet" not in text
    assert '<details markdown="1"><summary>table3, full: not run yet</summary>\n\nAs published.\n\n|' in text
    assert "\n### table3, full" not in text
    assert text.count("<details") == text.count("\n</details>\n") == len(re.findall("No run yet: ", text))


def test_what_has_run_is_at_the_top(tmp_path):
    run = cell_of("table3", "lsuv/relu").run
    others = [cell_of("table3", name).run for name in ("he/relu", "he/tanh")]
    results = [result(replace(run, seed=seed), 0.8) for seed in (0, 1)] + [result(other, 0.8) for other in others]
    results.append(result(replace(run, precision="bfloat16"), 0.8))
    results.append(result(cell_of("systems-mnist", "lsuv", "full").run, 0.99))
    found = {line[0]: line for line in page(results, tmp_path)["What has run"]}
    assert found["experiment"] == ["experiment", "what", "short", "full"]
    assert found["table3"][2:] == ["3 of 25 cells, 1 to 2 seeds<br>1 of 25 cells, 1 seed, bfloat16", "none of 25 cells"]
    assert found["systems-mnist"][2:] == ["none of 7 cells", "1 of 7 cells, 1 seed"]
    every = [result(cell.run, 0.5) for cell in named("newer").selected("short")]
    assert {line[0]: line[2] for line in page(every, tmp_path)["What has run"]}["newer"] == "all 7 cells, 1 seed"


def test_ours_beside_the_published(tmp_path):
    """With the difference, budgets apart."""
    short, full = cell_of("table3", "lsuv/relu").run, cell_of("table3", "lsuv/relu", "full").run
    results = [result(replace(short, seed=seed), accuracy) for seed, accuracy in enumerate((0.80, 0.90))]
    results += [result(full, 0.9311), result(cell_of("systems-mnist", "lsuv", "full").run, 0.994)]
    results += [result(cell_of("table3", name).run, accuracy) for name, accuracy in (("he/maxout", 0.7), ("lsuv/sigmoid", None))]
    results += [result(cell_of("table3", "he/tanh").run, None), result(cell_of("table5", "xavier-before/relu").run, 0.5)]
    found = page(results, tmp_path)
    full_ones, short_ones = found["Beside the published: full"], found["Beside the published: short"]
    assert full_ones == [
        ["table", "cell", "score", "ours", "published", "difference"],
        ["table2", "MNIST, softmax, error, lsuv", "error, %", "0.60 (1)", "0.48", "+0.12"],  # one run is in two tables
        ["table3", "lsuv, relu", "accuracy, %", "93.11 (1)", "92.11", "+1.00"],
        ["systems-mnist", "FitNet-MNIST, LSUV", "error, %", "0.60 (1)", "0.48", "+0.12"],
    ]
    assert short_ones[1:] == [
        ["table3", "lsuv, relu", "accuracy, %", "85.00 ± 7.07 (2)", "92.11", "-7.11"],
        ["table3", "lsuv, sigmoid", "accuracy, %", "n/c (1)", "n/c", "neither converged"],
        ["table3", "he, maxout", "accuracy, %", "70.00 (1)", "n/c", "ours converged"],
        ["table3", "he, tanh", "accuracy, %", "n/c (1)", "89.54", "ours did not converge"],
    ]
    write_page([], tmp_path / "none.md")
    assert "Ours beside the published" not in (tmp_path / "none.md").read_text()


def test_figures_on_other_images_are_not_compared(tmp_path):
    """The short budget of imagenet is on Tiny ImageNet."""
    found = page([result(cell_of("imagenet", "lsuv/caffenet").run, 0.3)], tmp_path)
    assert found["imagenet, short"][1] == ["LSUV", "30.00 (1)", "·"]
    assert found["imagenet, full"][1] == ["LSUV", "·<br>*published 47.10*", "·"]
    assert "Beside the published: short" not in found


def test_the_deepest_network_of_each_method(tmp_path):
    """By panel; half of the test images right counts as trained, and the mean over the seeds decides."""
    accuracies: dict[str, dict[int, float | None]] = {
        "relu-lsuv": {10: 0.95, 20: 0.9, 50: 0.5, 100: 0.49, 200: None},
        "tanh-lsuv": {10: 0.9, 20: 0.1135, 50: 0.8},
        "relu-he": {10: 0.3, 20: None},
        "tanh-he": dict.fromkeys((10, 20, 50, 100, 200), 0.9),
    }
    results = [
        result(cell_of("depth", f"{row}/{depth}", "full").run, accuracy, guessing=0.123)
        for row, by_depth in accuracies.items()
        for depth, accuracy in by_depth.items()
    ]
    results.append(result(replace(cell_of("depth", "tanh-he/200", "full").run, seed=1), None, guessing=0.08))
    write_page(results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    found = {line[0]: line[1:] for line in cells(text)["depth, full"]}
    assert found["method"] == ["ReLU", "VLReLU", "tanh", "sigmoid"]
    assert found["LSUV"] == ["50", "·", "50 (not 20; 100, 200 not run)", "·"]
    assert found["He"] == ["none (50, 100, 200 not run)", "·", "100", "·"]  # (0.9 + 0.08) / 2 with 200 layers
    assert found["ReLU, LSUV"] == ["95.00 (1)", "90.00 (1)", "50.00 (1)", "49.00 (1)", "n/c (1)"]
    assert "ends with 50% of the test images right or more, as the mean over the seeds; one that guesses has up to 12%" in text
    assert "method" not in [line[0] for line in cells(text)["depth, short"]]


def test_teachers_are_shown(tmp_path):
    student = cell_of("systems-mnist", "hints").run
    write_page([result(student.teacher_run, 0.995), result(student, 0.99)], tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "\nLearnt from: teacher-mnist 0.50 (1).\n" in text
    assert cells(text)["systems-mnist, short"][0] == ["", "error, %"]


def test_where_the_figures_come_from(tmp_path):
    run = cell_of("table3", "lsuv/relu").run
    lossy = {part: {"images": n, "encodings": {"JPEG": 7, "PNG": n - 7}} for part, n in (("train", 100), ("test", 50))}
    results = [
        result(run, 0.5),
        result(
            replace(run, seed=1), 0.5, commit="fedcba9876543210", dirty=True, interruptions=2, data=lossy, command="goodinit y"
        ),
    ]
    write_page(results, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert (
        "2 runs; seeds 0, 1; cpu: a CPU, 2 threads; torch 9.9; commit 0123456789 and fedcba9876 with changes; 1 of them broken "
        "off and taken up again; cifar10 from 7 lossy JPEG files among 100 training images and 7 lossy JPEG files "
        "among 50 test images.\n\n"
        '<details markdown="1"><summary>Made by 2 commands</summary>\n\n- `goodinit reproduce x`\n- `goodinit y`\n\n</details>\n'
    ) in text
    write_page(results[:1], tmp_path / "page.md")
    assert "; commit 0123456789. Made by `goodinit reproduce x`.\n" in (tmp_path / "page.md").read_text()
    assert "No run yet: `goodinit reproduce table4 --budget full`." in text


def test_timings(tmp_path):
    init, step = cell_of("timings", "googlenet", "full").run, cell_of("timings", "iteration-relu", "full").run
    results = [
        Result(
            init, {**COMMON, "seed": 0, "seconds": {"orthonormal": [3.0, 1.0, 2.0], "lsuv": [9.0, 4.0, 5.0]}, "run": init.plain()}
        ),
        Result(
            step, {**COMMON, "seed": 0, "seconds": {"no BN": [0.5], "BN before": [0.7], "BN after": [0.6]}, "run": step.plain()}
        ),
    ]
    found = page(results, tmp_path)["timings, full"]
    assert found[3] == ["GoogLeNet, 32 images of 224x224", "2<br>*published 24*", "5<br>*published 60*"]
    assert found[5][1:] == ["0.5 (1.00 times)", "0.7 (1.40 times)", "0.6 (1.20 times)"]
    compared = page(results, tmp_path)["Beside the published: full"]
    assert [line[1:] for line in compared[1:]] == [
        ["GoogLeNet, 32 images of 224x224, orthonormal", "seconds", "2", "24", "0.083 times"],
        ["GoogLeNet, 32 images of 224x224, lsuv", "seconds", "5", "60", "0.083 times"],
    ]
    (table,) = fillings(named("timings"), results, ())
    assert times(table.cells[2]) == {"orthonormal": 2.0, "lsuv": 5.0}
    more = {**results[0].row, "seconds": {"orthonormal": [8.0, 9.0], "lsuv": [9.0, 9.0]}}
    (table,) = fillings(named("timings"), [*results, Result(replace(init, seed=1), {**more, "seed": 1})], ())
    assert times(table.cells[2]) == {"orthonormal": 3.0, "lsuv": 9.0}  # over the rounds of both seeds


def test_walks(monkeypatch, tmp_path):
    run = cell_of("walk", "relu-he", "full").run
    walked = {"step_mean": [0.01, 0.03, 0.02], "step_std": [0.2, 0.4, 0.6], "paths": [[0.0, 1.0, 2.0]] * 3}
    vanished = cell_of("walk", "relu-lsuv", "full").run
    lost = {"step_mean": [None, 0.1, 0.1], "step_std": [0.1] * 3, "paths": [[0.0, None, None]] * 3}
    results = [Result(r, {**COMMON, "seed": 0, "run": r.plain(), **found}) for r, found in ((run, walked), (vanished, lost))]
    assert [p.name for p in write_page(results, tmp_path / "page.md")] == ["walk-full.png"]
    found = cells((tmp_path / "page.md").read_text())["walk, full"]
    # Standard deviation 0.01 of three means; exp(0.02 x 198) from the last of 199 layers to the first.
    assert found[2] == ["ReLU, He", "+0.0200 ± 0.0058", "0.400", "52.5"]
    assert found[4][1:] == ["0 or infinite"] * 3
    assert found[1][1:] == ["·"] * 3
    second = {**results[0].row, "seed": 1, "step_mean": [0.04], "paths": [[0.0, 9.0, 9.0]]}
    (table, *_) = fillings(named("walk"), [results[0], Result(replace(run, seed=1), second)], ())
    assert drift(table.cells[1]).mean == pytest.approx(0.025)  # of the draws of both seeds
    drawn = picture_of(table, monkeypatch, tmp_path)
    mean = drawn.axes[0].get_lines()[-1]
    assert mean.get_xdata().tolist() == [0, 10, 20]  # of every tenth layer the path is kept
    assert mean.get_ydata().tolist() == [0, 3, 3.75]


def picture_of(table, monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    assert draw(table, tmp_path / "pictures" / "a.png") is True
    return drawn[0]


def test_columns_of_timings_and_walks_are_told_apart(tmp_path):
    head = 'title = "t"\nkind = "{}"\ncolumns = {{ depth = [4, 5] }}\n'
    timing = 'set = { measure = "init", network = "mlp" }\n[[rows]]\nname = "a"\n'
    walk = 'figure = "walks"\nset = { data = "mnist" }\n[[rows]]\nname = "a"\n'
    for kind, text in (("timing", timing), ("walk", walk)):
        path = tmp_path / f"my-{kind}.toml"
        path.write_text(head.format(kind) + text)
        write_page([], tmp_path / "page.md", [read(path)])
        assert [line[0] for line in cells((tmp_path / "page.md").read_text())[f"my-{kind}, short"][1:3]] == ["a, 4", "a, 5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": {}}, "line 1 of .* lacks machine.cpu, machine.threads"),
        ({"versions": 5}, "line 1 of .* lacks versions.torch"),
    ],
)
def test_rows_that_lack_a_part_of_something(tmp_path, change, message):
    append_line(tmp_path / "runs.jsonl", {**row(cell_of("table3", "lsuv/relu").run, 0.75), **change})
    with pytest.raises(GoodinitError, match=message):
        Results(tmp_path).read()


def test_times_are_those_of_a_device_and_of_a_number_of_threads(monkeypatch):
    run, training = cell_of("timings", "googlenet", "full").run, cell_of("table3", "lsuv/relu").run
    timed = Result(run, {**COMMON, "seed": 0, "seconds": {}, "run": run.plain()})
    monkeypatch.setattr("goodinit.paper.results.get_num_threads", lambda: 2)
    assert (timed.is_of(run, "cpu"), timed.is_of(run, "cuda")) == (True, False)
    monkeypatch.setattr("goodinit.paper.results.get_num_threads", lambda: 1)
    assert not timed.is_of(run, "cpu")
    assert result(training, 0.5).is_of(training, "cuda")  # its accuracy is the same wherever it is trained


def test_pictures_show_means(monkeypatch, tmp_path):
    """Of the seeds, in their panels."""
    table = named("depth")
    runs = [table.selected("full", ["relu-he/10"])[0].run, table.selected("full", ["relu-he/20"])[0].run]
    results = [result(replace(run, seed=seed), accuracy) for run in runs for seed, accuracy in enumerate((0.2, 0.3, 0.7))]
    lost = table.selected("full", ["tanh-he/10"])[0].run
    results.append(result(lost, None, guessing=0.109))
    (filling,) = fillings(table, results, ())
    panels = {ax.get_title(): ax for ax in picture_of(filling, monkeypatch, tmp_path).axes}
    assert list(panels) == ["ReLU", "tanh"]
    (line,) = panels["ReLU"].get_lines()
    assert line.get_label() == "He"
    assert line.get_xdata().tolist() == [10, 20]
    assert line.get_ydata().tolist() == pytest.approx([40, 40])
    assert panels["tanh"].get_lines()[0].get_ydata().tolist() == pytest.approx([10.9])


def test_relative_updates_and_their_picture(tmp_path):
    cell = cell_of("figure1", "1/relu", "full")
    updates = {f"layer{i}": [[1, 0.5], [100, 0.002 * i], [500, -1.0]] for i in (1, 2, 3)}
    lost = replace(cell.run, init_gain=10.0)
    results = [result(cell.run, 0.5, updates=updates), result(lost, None, updates={"layer1": [[1, -1.0]]})]
    pictures = write_page(results, tmp_path / "page.md")
    found = cells((tmp_path / "page.md").read_text())["figure1, full"]
    assert found[4][2] == "50.00 (1)<br>update 0.40%"
    assert found[7][2] == "n/c (1)"
    assert [p.name for p in pictures] == ["figure1-full.png"]
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    assert "(page/figure1-full.png)" in (tmp_path / "page.md").read_text()
    (table,) = fillings(named("figure1"), results, ())
    assert median_update(table.cells[0]) is None


def test_curves_and_their_picture(tmp_path):
    runs = [cell_of("curves", name).run for name in ("lsuv/relu", "he/relu", "he/maxout")]
    results = [result(replace(run, seed=seed), 0.5) for run in runs for seed in (0, 1)]
    assert [p.name for p in write_page(results, tmp_path / "page.md")] == ["curves-short.png"]
    first = (tmp_path / "page" / "curves-short.png").read_bytes()
    write_page(results, tmp_path / "page.md")
    assert (tmp_path / "page" / "curves-short.png").read_bytes() == first  # the same rows, the same picture


def test_the_command(tmp_path):
    run = cell_of("table3", "lsuv/relu").run
    append_line(tmp_path / "r" / "runs.jsonl", row(run, 0.75))
    done = CliRunner().invoke(app, ["reproduce", "report", "--results", str(tmp_path / "r"), "--out", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    assert "75.00 (1)" in (tmp_path / "page.md").read_text()
    assert done.output.endswith(f"{tmp_path / 'page.md'}, and 1 pictures in {tmp_path / 'page'}\n")


def test_experiments_of_one_s_own_are_on_the_page_if_named(tmp_path):
    (tmp_path / "mine.toml").write_text('title = "my own"\nrecipe = "cifar"\n[[rows]]\nname = "a"\n')
    append_line(tmp_path / "r" / "runs.jsonl", row(cell_of("table3", "lsuv/relu").run, 0.75))
    words = ["reproduce", "report", "--results", str(tmp_path / "r"), "--out", str(tmp_path / "page"), "--experiment"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "mine.toml")])
    assert done.exit_code == 0, done.output
    assert done.output == f"{tmp_path / 'page'}, and 1 pictures in {tmp_path / 'page-pictures'}\n"
    assert "## mine: my own" in (tmp_path / "page").read_text()
    assert "we differ, goodinit's documentation says what is ours." in (tmp_path / "page").read_text()
    assert (tmp_path / "page-pictures").is_dir()  # a file of that name could not be a folder too


def test_rows_of_smoke_are_counted_where_they_are_not_shown(tmp_path):
    append_line(tmp_path / "r" / "runs.jsonl", {**row(cell_of("table3", "lsuv/relu").run, 0.75), "budget": "smoke"})
    done = CliRunner().invoke(app, ["reproduce", "report", "--results", str(tmp_path / "r"), "--out", str(tmp_path / "p.md")])
    assert done.output.endswith("; 1 rows of the budget smoke are not shown\n")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("page.html", "goodinit: the page is Markdown, its name should end in .md; got '"),
        (".", "goodinit: the page cannot be saved as '"),
    ],
)
def test_what_no_page_can_be_saved_as(tmp_path, out, message):
    append_line(tmp_path / "r" / "runs.jsonl", row(cell_of("table3", "lsuv/relu").run, 0.75))
    done = CliRunner().invoke(app, ["reproduce", "report", "--results", str(tmp_path / "r"), "--out", str(tmp_path / out)])
    assert (done.exit_code, message in done.output) == (2, True), done.output


def test_no_rows_at_all_is_an_error(tmp_path):
    done = CliRunner().invoke(app, ["reproduce", "report", "--results", str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert "there are no rows in" in done.output


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"schema": 9}, r"line 1 of '.*runs.jsonl' is no row of schema 1"),
        ({"run": {"kind": "training", "data": "x"}}, r"line 1 of '.*runs.jsonl': network must be given"),
        ({"run": {"kind": "sleeping"}}, "is no row of schema 1"),
        ({"run": {"kind": []}}, "is no row of schema 1"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, broken, message):
    append_line(tmp_path / "runs.jsonl", {**row(cell_of("table3", "lsuv/relu").run, 0.5), **broken})
    with pytest.raises(GoodinitError, match=message):
        Results(tmp_path).read()


def test_the_page_of_the_docs_is_made_from_the_committed_rows(tmp_path):
    committed = ROOT / "benchmarks" / "results" / "paper"
    if not (committed / "runs.jsonl").exists():
        pytest.skip("not in a checkout")
    (tmp_path / "reproducing.md").touch()  # the page beside it
    write_page(Results(committed).read(), tmp_path / "paper.md")
    assert (tmp_path / "paper.md").read_text() == (ROOT / "docs" / "paper.md").read_text(), "run `make paper`"
    pictures = re.findall(r"\]\((paper/[^)]*)\)", (ROOT / "docs" / "paper.md").read_text())
    assert pictures
    assert all((ROOT / "docs" / picture).exists() for picture in pictures)


@pytest.mark.parametrize("key", ["status", "machine", "final_accuracy"])
def test_rows_that_lack_something(tmp_path, key):
    whole = row(cell_of("table3", "lsuv/relu").run, 0.5)
    append_line(tmp_path / "runs.jsonl", {k: v for k, v in whole.items() if k != key})
    with pytest.raises(GoodinitError, match=rf"line 1 of '.*runs.jsonl' lacks {key}"):
        Results(tmp_path).read()


def test_rows_of_an_installed_goodinit_have_no_commit(tmp_path):
    installed = {"commit": None, "dirty": None, "versions": {"torch": "9.9", "goodinit": "1.2.3"}}
    write_page([result(cell_of("table3", "lsuv/relu").run, 0.5, **installed)], tmp_path / "page.md")
    assert "; commit none, goodinit 1.2.3." in (tmp_path / "page.md").read_text()


def test_the_axis_of_layers_has_those_of_all_methods(monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr("goodinit.paper.figures.write_whole", lambda *_: None)
    monkeypatch.setattr("matplotlib.axes.Axes.set_xticks", lambda _ax, ticks, _labels: found.append(list(ticks)))
    runs = [cell_of("depth", name, "full").run for name in ("relu-lsuv/10", "relu-lsuv/50", "relu-highway/10")]
    write_page([result(run, 0.5, guessing=0.1) for run in runs], tmp_path / "page.md")
    assert found == [[10, 50]]


def test_a_page_that_cannot_be_saved(tmp_path):
    (tmp_path / "page").write_text("a file where the folder of the pictures should be")
    with pytest.raises(SaveError, match=r"cannot save curves-short\.png"):
        write_page([result(cell_of("curves", "lsuv/relu").run, 0.5)], tmp_path / "page.md")
