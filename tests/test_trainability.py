"""benchmarks/trainability: every task and contestant runs, rows are made once whatever happens, the page says what they say."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("filelock")

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # before the imports below, which the whole file needs

from trainability import runner, sets  # noqa: E402
from trainability.contestants import CONTESTANTS  # noqa: E402
from trainability.page import page  # noqa: E402
from trainability.protocol import GRID, Run, count, estimate, fingerprint, grid, pairs, repeats  # noqa: E402
from trainability.runner import Done, sessions_of  # noqa: E402
from trainability.summary import Summary, average_ranks, compared_with, critical_difference, general  # noqa: E402
from trainability.tasks import TASKS, batches  # noqa: E402
from trainability.train import run  # noqa: E402

from goodinit.paper.files import read_lines  # noqa: E402

OFFLINE = (
    *("mlp30-tanh", "mlp30-relu", "siren", "poisson", "gpt", "gpt-ln", "gcn16", "tabular", "cancer", "binary"),
    *("mlp60-silu", "mlp50-elu", "autoencoder-relu", "siren-china", "wine"),
)


@pytest.mark.parametrize("name", OFFLINE)
def test_tasks_train_for_some_steps_from_ours(name):
    found = run(TASKS[name], CONTESTANTS["lsuv"], seed=0, optimizer="adamw", lr=0.0005, steps=3)
    assert found["status"] in ("trained", "untrained")
    steps, seconds, _, errors = zip(*found["checkpoints"], strict=True)
    assert steps == (0, 1, 2, 3)
    assert list(seconds) == sorted(seconds)
    assert all(error is not None for error in errors)


@pytest.mark.skipif("GOODINIT_DATA_DIR" not in os.environ, reason="MNIST and CIFAR-10 are given by GOODINIT_DATA_DIR")
@pytest.mark.parametrize("name", sorted(set(TASKS) - set(OFFLINE)))
@pytest.mark.slow
def test_all_other_tasks_train_for_some_steps(name):
    assert run(TASKS[name], CONTESTANTS["lsuv-auto"], seed=0, optimizer="sgd", lr=0.0005, steps=2)["status"] != "init-failed"


@pytest.mark.parametrize("name", sorted(CONTESTANTS))
def test_contestants_start_a_network_or_do_not_apply(name):
    if name in ("lsuv-package", "anyinit", "anyinit-empirical"):
        pytest.importorskip(name.partition("-")[0])
    other = {"authors": "siren", "lsuv-branches": "gpt", "lsuv-after": "mlp30-relu"}
    contestant, task = CONTESTANTS[name], TASKS[other.get(name, "mlp30-tanh")]
    if not contestant.applies(task):
        assert name in ("fixup", "skipinit")
        return
    found = run(task, contestant, seed=0, optimizer="sgd", lr=0.0005, steps=2)
    assert found["status"] in ("trained", "untrained"), found.get("error")
    assert ("choice" in found) == (name == "lsuv-auto")


def test_blocks_with_an_initialization_of_their_own_begin_as_they_should():
    x = torch.randn(2, 3, 32, 32)
    for name in ("fixup", "skipinit"):
        net = CONTESTANTS[name].network(TASKS["resnet26"])
        stem = net[0](x)
        with torch.no_grad():
            assert torch.equal(net[1](stem), stem)  # every branch begins at 0


def test_the_std_after_the_non_linearity_can_be_asked_for():
    task = TASKS["tabular"]
    net, batch = task.make(), batches(task, 0)
    CONTESTANTS["lsuv-after"].call(net, task, batch)
    x, after = batch(0)[0], []
    with torch.no_grad():
        for layer in net.children():
            x = layer(x)
            after += [x.std(correction=0).item()] if isinstance(layer, torch.nn.GELU) else []
    assert after == pytest.approx([1] * 7, rel=1e-4)
    assert x.std(correction=0).item() == pytest.approx(1, rel=1e-4)


def test_everybody_gets_the_same_batches_and_other_seeds_others():
    one, same, other = (batches(TASKS["cancer"], seed)(5)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_run_again_is_the_same_run():
    errors = [
        [c[3] for c in run(TASKS["cancer"], CONTESTANTS["lsuv-auto"], seed=1, optimizer="sgd", lr=0.02, steps=10)["checkpoints"]]
        for _ in range(2)
    ]
    assert errors[0] == errors[1]


def test_what_diverges_and_what_fails_to_start_are_results():
    assert run(TASKS["mlp30-relu"], CONTESTANTS["lsuv"], seed=0, optimizer="sgd", lr=1e6, steps=20)["status"] == "diverged"
    contestant = CONTESTANTS["anyinit"]
    broken = type(contestant)("broken", "", lambda *_: 1 / 0)
    found = run(TASKS["cancer"], broken, seed=0, optimizer="sgd", lr=0.1)
    assert found["status"] == "init-failed"
    assert found["error"] == "ZeroDivisionError: division by zero"


def test_the_solution_of_poissons_equation_has_no_residual():
    net = TASKS["poisson"].make()
    vars(net)["value"] = sets.solution
    assert net(sets.collocation().x)[:, 0].abs().max() < 1e-4
    assert net(sets.collocation().x)[:, 1].abs().max() < 1e-5


def test_the_grid_has_every_run_once_and_the_same_points_for_all():
    runs = list(grid(pairs()))
    assert len({r.key for r in runs}) == len(runs) == 8 * len(pairs())
    assert {r.seed for r in runs} == {0}
    for task in TASKS.values():
        points = {
            name: {(r.optimizer, r.lr) for r in runs if (r.task, r.contestant) == (task.name, name)}
            for name in CONTESTANTS
            if CONTESTANTS[name].applies(task)
        }
        assert len({frozenset(p) for p in points.values()}) == 1
    assert len(TASKS) >= 14
    assert sorted(pairs(core=True) + pairs(core=False), key=str) == sorted(pairs(), key=str)


def test_tasks_that_are_held_out_are_compared_by_themselves():
    held = [task for task in TASKS.values() if task.held_out]
    assert len(held) >= 5
    assert {c.name for _, c in pairs([t.name for t in held])} == {"default", "he", "orthonormal", "lsuv", "lsuv-auto"}
    rows = [made(task, name, error) for task in ("wine", "cancer", "siren") for name, error in (("he", 0.3), ("lsuv-auto", 0.2))]
    summary = Summary(rows)
    assert {task.name for task in summary.tasks} == {"cancer", "siren"}
    assert set(summary.ranks(["he", "lsuv-auto"])) == {"cancer", "siren"}
    assert summary.held_out.ranks(["he", "lsuv-auto"]) == {"wine": {"he": 2, "lsuv-auto": 1}}
    text = page(summary, [{"session": "s", "machine": {"cpu": "C", "cores": 2}, "versions": {"torch": "T"}}])
    before, _, after = text.partition('## Tasks that `target_std="auto"` had not seen')
    section = after.partition("\n## ")[0]
    assert "It wins on 1, ties on 0, loses on 0 of 1 tasks" in section
    assert "| wine | wins | 0.200 | 0.300 (`he`) |" in section
    assert "| wine |" not in before


def whole_grid(task, contestant, errors):
    """Rows of the first seed; ``errors``: of the points in GRID's order."""
    points = [(optimizer, lr) for optimizer, lrs in GRID.items() for lr in lrs]
    return [made(task, contestant, e, optimizer=o, lr=lr) for (o, lr), e in zip(points, errors, strict=True)]


def test_other_seeds_see_the_best_point():
    wanted = pairs(["cancer"], ["he"])
    rows = whole_grid("cancer", "he", (0.5, 0.3, 0.3, 0.9, 0.9, 0.8, 0.7, 0.1))
    assert not list(repeats(wanted, rows[:-1]))  # a point of the grid is missing
    assert [(r.seed, r.optimizer, r.lr) for r in repeats(wanted, rows)] == [(1, "adamw", 0.01), (2, "adamw", 0.01)]
    broken = [{**rows[-1], "status": "diverged"}, *rows[:-1]]  # a diverged run is no best point, wherever it was before
    assert [(r.optimizer, r.lr) for r in repeats(wanted, broken, seeds=2)] == [("sgd", 0.003)]  # of equals the smaller rate
    assert count(wanted) == 8 + 2


def test_how_long_it_takes_is_told_by_the_latest_rows():
    older, latest = made("cancer", "he", 0.5) | {"cpu_seconds": 50.0}, made("cancer", "he", 0.5)
    runs = [Run("cancer", "he", 1, "sgd", 0.02), Run("cancer", "lsuv", 1, "sgd", 0.02), Run("siren", "he", 0, "sgd", 0.02)]
    assert estimate(runs, [*[older] * 20, *[latest] * 10]) == (3 * 2.0, 1)


def test_errors_are_means_over_the_seeds_at_the_point_that_the_first_chose():
    rows = [
        *whole_grid("cancer", "he", (0.5, 0.3, 0.4, 0.9, 0.9, 0.8, 0.7, 0.1)),
        *whole_grid("cancer", "default", (0.6,) * 8),
        made("cancer", "he", 0.4, seed=1, optimizer="adamw", lr=0.01),
        made("cancer", "he", 0.2, seed=1, lr=0.003),
    ]
    assert Summary(rows).standings["cancer"][0].error == 0.1  # the other has one seed only, so both are judged by one
    rows.append(made("cancer", "default", 0.6, seed=1, optimizer="adamw", lr=0.0001))
    he = Summary(rows).standings["cancer"][0]
    assert (he.contestant, he.point, he.error) == ("he", ("adamw", 0.01), pytest.approx(0.25))


def command(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-m", "trainability", *arguments], env=environment, stdout=subprocess.PIPE, text=True, **options
    )


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_where_it_was(tmp_path):
    rows = tmp_path / "rows.jsonl"
    asked = ("run", "--tasks", "cancer", "--contestants", "lsuv", "he", "--seeds", "1", "--rows", str(rows))
    first = command(*asked)
    for line in first.stdout:
        if "cancer/" in line:
            break
    first.kill()
    first.wait()
    first.stdout.close()
    second = command(*asked)
    told, _ = second.communicate(timeout=300)
    assert second.returncode == 0
    assert "0 of them done" not in told
    for _ in range(600):  # a process of the first call ends the run that it was at
        if rows.read_text().count("\n") == 16:
            break
        time.sleep(0.1)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    keys = [Run(*(row[name] for name in ("task", "contestant", "seed", "optimizer", "lr"))).key for row in found]
    assert len(keys) == len(set(keys)) == 16
    sessions = {json.loads(line)["session"]: json.loads(line) for line in sessions_of(rows).read_text().splitlines()}
    assert all(sessions[row["session"]].keys() >= {"versions", "machine", "commit"} for row in found)
    assert not any(str(tmp_path) in session["command"] for session in sessions.values())
    assert "16 runs, 16 of them done" in command(*asked).communicate(timeout=60)[0]


@pytest.mark.parametrize(("parent", "rows"), [(os.getppid(), 1), (0, 0)], ids=["lives", "was killed before this began"])
def test_runs_end_with_the_call_that_asked_for_them(monkeypatch, tmp_path, parent, rows):
    monkeypatch.setattr(runner, "_warm_up", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # of the tests' process
    path = tmp_path / "rows.jsonl"
    runner.work([Run("cancer", "he", 0, "sgd", 0.1)], path, "it", math.inf, parent)
    assert len(read_lines(path)) == rows


def made(task, contestant, error, *, seed=0, optimizer="sgd", lr=0.02, status="trained", init=0.1, slow=1.0, day=1):
    """``slow``: how many times the seconds of another machine it took."""
    run, steps = Run(task, contestant, seed, optimizer, lr), TASKS[task].steps
    checkpoints = [[0, 0.0, None, 1.0], [steps // 2, slow, 0.5, (1 + error) / 2], [steps, 2 * slow, 0.5, error]]
    row = {
        "task": task,
        "contestant": contestant,
        "seed": seed,
        "optimizer": optimizer,
        "lr": lr,
        "status": status,
        "steps": steps,
    }
    common = {
        "definition": fingerprint(run),
        "session": "s",
        "load": 1.0,
        "cpu_seconds": 2.0,
        "date": f"2026-01-0{day}T00:00:00Z",
    }
    common["init_seconds"] = slow * init
    if status == "init-failed":
        return row | common | {"error": "it"}
    return row | common | {"train_seconds": 2.0 * slow, "checkpoints": checkpoints}


def some_rows():
    for task in ("cancer", "tabular", "siren"):
        for lr in (0.02, 0.1):
            yield made(task, "default", 0.9, lr=lr, status="untrained")
            yield made(task, "he", 0.5 if task == "siren" else 0.2, lr=lr)
            yield made(task, "lsuv", 0.1 if lr == 0.02 else 0.6, lr=lr, status="trained" if lr == 0.02 else "diverged")
            yield made(task, "lsuv-auto", 0.3, lr=lr, init=1.5)
    yield made("cancer", "gradinit", 0.05, lr=0.02)  # lacks a point of the grid, so is not compared


def test_the_page_of_the_docs_is_made_from_the_committed_rows():
    rows, shown = BENCHMARKS / "results" / "trainability.jsonl", BENCHMARKS.parent / "docs" / "trainability.md"
    made = page(Summary(read_lines(rows)), read_lines(sessions_of(rows)))
    assert made == shown.read_text(encoding="utf-8"), "run `python -m trainability page`"


def test_what_the_readme_claims_is_in_the_committed_rows():
    readme = " ".join((BENCHMARKS.parent / "README.md").read_text(encoding="utf-8").split())
    claim = (
        "has the best average rank of all that leaves a network as it is: PyTorch's default, Glorot's, He's, orthonormal "
        "weights, GradInit, the packages lsuv and anyinit, and nine fixed settings of `lsuv_`. It trains whatever any of these "
        "trains. On six tasks that were held out these two statements hold against PyTorch's default, He's, orthonormal "
        "weights and plain LSUV."
    )
    assert f'`target_std="auto"` {claim}' in readme
    summary = Summary(read_lines(BENCHMARKS / "results" / "trainability.jsonl"))
    assert "LSUV as in the paper, `lsuv_(model, data)`, is behind the best of the others on most tasks" in readme
    plain = [verdict for verdict, *_ in compared_with(summary, "lsuv").values()]
    assert plain.count("loses") > len(plain) / 2
    core = {"default", "he", "orthonormal", "lsuv", "lsuv-auto"}
    peers = {"glorot", "gradinit", "lsuv-package", "anyinit", "anyinit-empirical"}
    assert peers <= set(general())
    assert len(set(general()) - {"default", "he", "orthonormal", "lsuv-auto"} - peers) == 9
    assert len(summary.held_out.planned) == 6
    for found, expected in ((summary, set(general())), (summary.held_out, core)):
        names = found.unassisted()
        assert expected <= set(names)
        assert len(found.ranks(names)) == len(found.planned)
        for value in ("error", "at_time"):
            assert average_ranks(found.ranks(names, value))[0].contestant == "lsuv-auto"
        for standings in found.standings.values():
            trains = {s.contestant for s in standings if s.trains and not CONTESTANTS[s.contestant].variant}
            assert not trains or "lsuv-auto" in trains


def test_the_numbers_of_the_page_are_those_of_the_rows():
    summary = Summary(some_rows())
    assert [s.contestant for s in summary.standings["cancer"]] == ["lsuv", "he", "lsuv-auto", "default"]
    best = summary.standings["cancer"][0]
    assert (best.point, best.error, best.share) == (("sgd", 0.02), 0.1, 0.5)
    # A second in: he is half-way, auto has just begun.
    assert summary.standings["cancer"][1].at_time == pytest.approx(1 - 0.9 * 0.4)
    ranks = summary.ranks(summary.unassisted())
    assert ranks["cancer"] == {"lsuv": 1, "he": 2, "lsuv-auto": 3, "default": 4}
    order = average_ranks(ranks)
    assert (order[0].contestant, order[0].mean, order[-1].contestant) == ("lsuv", 1.0, "default")
    assert order[0].low <= order[0].mean <= order[0].high
    assert {task: verdict for task, (verdict, *_) in compared_with(summary, "lsuv-auto").items()} == {
        "cancer": "loses",
        "tabular": "loses",
        "siren": "wins",
    }
    text = page(summary, [{"session": "s", "machine": {"cpu": "C", "cores": 2}, "versions": {"torch": "T"}}])
    assert "The 4 that have run on 3 tasks (siren, tabular, cancer); differences" in text
    assert "**Coverage: 25 of the" in text
    assert "It wins on 1, ties on 0, loses on 2 of 3 tasks" in text
    assert "| cancer | loses | 0.300 | 0.200 (`he`) |" in text
    assert "C, 2 cores, torch T, one thread" in text
    assert "`lsuv_(model, x)` costs as much as 15.0 training steps (median), 20 at most (siren): 5.0% of these short runs" in text
    assert "under 1 % of any run of 2,000 steps, and on half of the tasks of one of 1,500." in text


def test_equal_time_is_the_same_on_fast_and_slow_machines():
    fast = [
        made("cancer", "default", 0.9),
        made("cancer", "he", 0.2, init=0.5),
        made("cancer", "normalized", 0.2, init=0, slow=4),
    ]
    slow = [made("cancer", "default", 0.9, slow=3, day=2), made("cancer", "normalized", 0.2, init=0, slow=12, day=2)]
    for rows in (fast, [*slow, fast[1]], [*slow, made("cancer", "he", 0.2, init=0.5, slow=3, day=2)]):
        at = {s.contestant: s.at_time for s in Summary(rows).standings["cancer"]}
        # At half of the time of the steps: he's initialization took half a second of two, so it has come a quarter of its steps,
        # half the way to the first checkpoint; a step with normalization costs four, so it has come an eighth.
        assert at == {"default": pytest.approx(0.955), "he": pytest.approx(0.8), "normalized": pytest.approx(0.9)}
    assert Summary(fast).cells["cancer", "he"].init_steps() == pytest.approx(TASKS["cancer"].steps / 4)


def test_a_row_of_another_definition_of_its_task_does_not_count(tmp_path):
    row, path = made("cancer", "he", 0.2), tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "seed": 1, "definition": "older"}) + "\n" + '{"task": "can')
    done = Done(path)
    assert Run("cancer", "he", 0, "sgd", 0.02) in done
    assert Run("cancer", "he", 1, "sgd", 0.02) not in done
    assert not Summary([{**row, "definition": "older"}]).rows


def test_a_failed_start_counts_as_untrained():
    rows = [made("cancer", "default", 0.9), made("cancer", "he", 0, status="init-failed"), made("cancer", "lsuv", 0.5)]
    standings = {s.contestant: s for s in Summary(rows).standings["cancer"]}
    assert standings["he"].error == 1.0
    assert not standings["he"].trains


def test_the_error_before_training_is_that_of_the_default():
    large = made("cancer", "lsuv", 0.5)
    large["checkpoints"][0][3] = 7.0
    ended_worse = made("cancer", "he", 3.0)
    standings = {
        s.contestant: s
        for s in Summary([large, large | {"seed": 1}, ended_worse, made("cancer", "default", 0.9)]).standings["cancer"]
    }
    assert standings["he"].error == 1.0


def test_critical_difference_is_the_books():
    # Demšar 2006, section 3.2.2: four classifiers, fourteen data sets, q = 2.569.
    assert critical_difference(4, 14) == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, rel=1e-3)
