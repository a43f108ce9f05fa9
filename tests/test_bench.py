"""benchmarks/bench_lsuv.py, on small networks: it runs, and it would notice a wrong result."""

import importlib
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PROVENANCE = {"run", "date", "seed", "command", "versions", "machine", "commit", "dirty", "n", "seconds", "failed_checks"}


def bench(*arguments):
    command = [sys.executable, BENCHMARKS / "bench_lsuv.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The rows of a quick run, what it printed, and the file."""
    pytest.importorskip("lsuv")
    pytest.importorskip("anyinit")
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("bench") / "rows.jsonl"
    done = bench("--quick", "--out", out)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()], done.stdout, out


@pytest.fixture
def module(monkeypatch):
    """Imports a module of the benchmarks'."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.slow
def test_every_row_can_be_traced(quick):
    rows, _, _ = quick
    assert {row["section"] for row in rows} == set("abcd")
    assert all(row.keys() >= PROVENANCE for row in rows)
    assert len({row["run"] for row in rows}) == 1
    assert rows[0]["versions"]["torch"] == importlib.metadata.version("torch")
    assert rows[0]["machine"].keys() >= {"cpu", "cores", "threads", "memory_gib"}
    assert all(len(row["seconds"]) == row["n"] for row in rows if row["section"] != "d")


@pytest.mark.slow
def test_results_are_checked_while_timing(quick):
    rows, _, _ = quick
    assert not [row["failed_checks"] for row in rows if row["failed_checks"]]
    ours = [
        row for row in rows if row["contestant"] in ("lsuv_", "lsuv_(pre_init=None)", "goodinit lsuv_") and row["section"] in "ab"
    ]
    assert len(ours) >= 15
    for row in ours:
        assert row["forward_passes"] == 1
        assert abs(row["std_min"] - 1) < 1e-3
        assert abs(row["std_max"] - 1) < 1e-3
    grams = [row["gram_error"] for row in rows if row["contestant"] in ("lsuv_", "orthonormal_") and "gram_error" in row]
    assert len(grams) >= 10
    assert all(0 < gram < 5e-6 for gram in grams)


@pytest.mark.slow
def test_peers_that_fail_or_would_take_too_long_are_rows_too(quick):
    rows, _, _ = quick
    by = {(row["name"], row["contestant"]): row for row in rows if row["section"] == "b"}
    deep = by["mlp-1000", "lsuv 0.3.0"]
    assert (deep["status"], deep["n"]) == ("not run", 0)
    assert deep["seconds_at_least"] > deep["cap_seconds"]
    crashed = by["gpt2-like", "anyinit 0.4.0"]
    assert crashed["status"] == "crashed"
    assert crashed["error"].startswith("RuntimeError: ")
    # Hooks on nn.Linear do not see GPT-2's layers.
    assert by["gpt2-like", "lsuv 0.3.0"]["std_min"] < 0.5


@pytest.mark.slow
def test_the_table_is_made_from_the_last_run(quick):
    rows, printed, out = quick
    older = out.with_name("two_runs.jsonl")
    older.write_text(json.dumps({**rows[0], "run": "an older one", "name": "forgotten"}) + "\n" + out.read_text())
    done = bench("--table", older)
    assert done.returncode == 0, done.stderr
    text = older.with_suffix(".md").read_text()
    assert text.strip() == done.stdout.strip()
    assert text.strip() in printed
    assert "forgotten" not in text
    for shown in ("### a.", "### b.", "### c.", "### d.", "None: every result", rows[0]["run"]):
        assert shown in text


@pytest.mark.slow
def test_targets_are_judged_and_wrong_results_named(quick, module):
    rows, _, _ = quick
    full = [{**row, "quick": False} for row in rows]
    full[0]["failed_checks"] = ["fc1 has std 1.00200"]
    text = module("table").markdown(full)
    targets = text.partition("### Targets")[2].partition("###")[0]
    assert len(re.findall(r"\| (?:met|NOT MET) +\|", targets)) >= 5
    assert "a mlp-10 forward: fc1 has std 1.00200" in text


def test_a_wrong_result_ends_with_exit_code_1(module, monkeypatch, tmp_path, capsys):
    bench_lsuv, matrices = module("bench_lsuv"), module("matrices")
    monkeypatch.setattr(matrices, "orthonormal_", lambda w: nn.init.orthogonal_(w, gain=1 + 1e-5))
    monkeypatch.setattr(sys, "argv", ["bench_lsuv.py", "--quick", "--sections", "c", "--out", str(tmp_path / "rows.jsonl")])
    threads = torch.get_num_threads()
    try:
        assert bench_lsuv.main() == 1
    finally:
        torch.set_num_threads(threads)
    assert "WRONG RESULT: c 16x144 orthonormal_: Gram error 2.0e-05" in capsys.readouterr().err


def test_stds_are_taken_before_an_activation_in_place(module):
    checks = module("checks")
    net = nn.Sequential(nn.Linear(8, 400), nn.ReLU(inplace=True), nn.Linear(400, 5))
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    stds = checks.output_stds(net, x, training=True)
    assert stds["0"] == pytest.approx(net[0](x).std(correction=0).item(), rel=1e-5)
    assert checks.failed_stds(stds, expected=2)
    assert checks.failed_stds({"0": 1.0005}, expected=1) == []
    assert checks.failed_stds({"0": 1.0015}, expected=1) == ["0 has std 1.00150"]
    assert checks.failed_stds({"0": float("nan")}, expected=1)
    assert checks.failed_stds({"0": 1.0}, expected=2) == ["2 weights scaled, 1 outputs found"]


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 3, 3, 3)])
def test_gram_errors_are_seen(module, shape):
    gram_error = module("checks").gram_error
    weight = nn.init.orthogonal_(torch.empty(shape))
    assert gram_error(weight).error < 2e-6
    assert gram_error(3 * weight).error == pytest.approx(8, rel=1e-5)
    assert gram_error(3 * weight, up_to_scale=True).error < 2e-6
    weight.view(shape[0], -1)[0, 0] += 1e-3
    assert gram_error(weight, up_to_scale=True).error > 1e-5
    part = gram_error(weight, cost=2 * weight.numel())
    assert (part.rows_checked, part.rows) == (2, min(shape[0], weight.numel() // shape[0]))


def test_gram_errors_of_groups_are_their_own(module):
    gram_error = module("checks").gram_error
    blocks = torch.cat([nn.init.orthogonal_(torch.empty(4, 12)) for _ in range(3)])
    assert gram_error(blocks, groups=3).error < 2e-6
    assert gram_error(blocks).error > 0.1


def rows_of(script, out, *arguments):
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert out.exists(), done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()], done


def test_structured_matrices(tmp_path):
    rows, done = rows_of("bench_structured.py", tmp_path / "rows.jsonl", "speed", "--repeats", 1, "--largest", 1_100_000)
    assert done.returncode == 0, done.stderr
    assert [(r["name"], r["contestant"]) for r in rows] == [("1024x1024", kind) for kind in ("structured", "haar", "torch")]
    assert all(0 < r["gram_error"] < 5e-6 for r in rows[:2])
    assert rows[0]["command"].endswith("--out FILE")
    assert str(tmp_path) not in json.dumps(rows)


@pytest.mark.slow
def test_a_decoder_from_the_meta_device(tmp_path):
    folder = tmp_path / "shards"
    rows, _ = rows_of("bench_meta.py", tmp_path / "rows.jsonl", "--layers", 1, "--width", 256, "--checkpoint", folder)
    (row,) = rows
    assert not [check for check in row["failed_checks"] if "GiB" not in check]  # what libraries take differs by machine
    assert row["std_min"] == pytest.approx(1, abs=0.05)
    assert row["peak_gib"] > row["peak_before_gib"]
    assert row["weights"] == 8
    assert (folder / "model.safetensors.index.json").exists()
    assert str(tmp_path) not in json.dumps(row)


def test_the_figures_of_scale_are_made_from_the_committed_rows():
    code = "import scale_table; print(scale_table.page(), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=BENCHMARKS)
    shown = (BENCHMARKS / "results" / "scale.md").read_text()
    assert done.stdout == shown, "run `python benchmarks/scale_table.py`"
    assert "billion parameters" in shown


def test_the_table_of_the_readme_is_made_from_the_committed_rows(module):
    headline = module("headline")
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    rows = module("rows").last_run(BENCHMARKS / "results" / "bench_lsuv.jsonl")
    assert headline.replaced(readme, headline.headline(rows)) == readme
    faster = [{**row, "median_seconds": 0.5 * row["median_seconds"]} if row["median_seconds"] else row for row in rows]
    assert headline.replaced(readme, headline.headline(faster)) != readme


def test_the_headline_says_what_became_of_a_peer(module):
    found = module("headline")._found
    row = {"seconds_at_least": None, "status": "crashed: it", "median_seconds": None, "forward_passes": None}
    assert found(row) == "crashed"
    assert found({**row, "seconds_at_least": 43.4}) == "> 43 s"
    assert (
        found({**row, "median_seconds": 0.5, "forward_passes": 1, "std_min": 1.0, "std_max": 1.001}) == "0.50 s, 1 pass, std 1.00"
    )
    assert found({**row, "median_seconds": 9, "forward_passes": 2, "std_min": 0.5, "std_max": "inf"}) == (
        "9.00 s, 2 passes, std 0.50 to inf"
    )


@pytest.mark.slow
def test_what_measuring_costs(tmp_path, module):
    out = tmp_path / "rows.jsonl"
    rows, done = rows_of("bench_measure.py", out, "--quick", "--nets", "mlp-wide", "--repeats", 1, "--processes", 1)
    assert done.returncode == 0, done.stderr
    kinds = ("forward", "forward and backward", "measure", "measure, loss")
    assert sorted((r["section"], r["contestant"]) for r in rows) == [(s, kind) for s in ("memory", "time") for kind in kinds]
    ratios = [r["ratio"] for r in rows if r["contestant"].startswith("measure")]
    assert len(ratios) == 4
    assert all(ratio > 0.5 for ratio in ratios)
    assert not any(row["failed_checks"] for row in rows)
    full = [{**row, "quick": False, "ratio": 1.4} if "ratio" in row else {**row, "quick": False} for row in rows]
    text = module("measure_table").markdown(full)
    assert text.count("at most 1.40 (mlp-wide)") == text.count("NOT MET") == 4


def test_measured_stds_are_checked(module):
    wrong = module("bench_measure")._wrong
    signal = [SimpleNamespace(name="a.weight", std=1.0), SimpleNamespace(name="b.weight", std=2.0)]
    assert wrong(signal, {"a": 1.0, "b": 2.00001}) == []
    assert wrong(signal, {"a": 1.0, "b": 2.001}) == ["std of b is 2.0, not 2.001"]
    assert wrong(signal, {"c": 1.0}) == ["no std could be checked"]


def test_the_figures_of_measuring_are_made_from_the_committed_rows(module):
    rows = module("rows").last_run(BENCHMARKS / "results" / "bench_measure.jsonl", by=["section", "name"])
    shown = (BENCHMARKS / "results" / "bench_measure.md").read_text()
    assert module("measure_table").markdown(rows) + "\n" == shown, "run `python benchmarks/bench_measure.py --table FILE`"
    assert "NOT MET" not in shown
    assert not any(row["dirty"] for row in rows)


@pytest.mark.parametrize("name", ["bench_allocator", "bench_ranks", "bench_training"])
def test_other_tables_are_made_from_the_committed_rows(name, module):
    rows = module("rows").last_run(BENCHMARKS / "results" / f"{name}.jsonl")
    shown = (BENCHMARKS / "results" / f"{name}.md").read_text()
    assert module(name).markdown(rows) + "\n" == shown, f"run `python benchmarks/{name}.py --table FILE`"
    assert not any(row["dirty"] for row in rows)


@pytest.mark.slow
def test_two_ranks_against_one(tmp_path):
    pytest.importorskip("transformers")
    arguments = ["--quick", "--nets", "mlp-10,gpt2-like", "--out", tmp_path / "rows.jsonl"]
    command = [sys.executable, BENCHMARKS / "bench_ranks.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["contestant"] for row in rows] == ["1 rank", "2 apart", "2 ranks", "2 ranks, DDP", "2 ranks, FSDP2"] * 2
    assert not any(row["failed_checks"] for row in rows)
    assert all(row["n"] == len(row["seconds"]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its parameters are glibc's")
def test_training_with_and_without_freed_memory_kept(tmp_path):
    arguments = ["--share", "0.05", "--repeats", "1", "--nets", "fitnet-mnist", "--out", tmp_path / "rows.jsonl"]
    command = [sys.executable, BENCHMARKS / "bench_allocator.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["contestant"] for row in rows] == ["glibc's default", "kept"]
    assert all(row["n"] == 1 and row["seconds"][0] > 0 and row["peak_bytes"] > 2**20 for row in rows)
