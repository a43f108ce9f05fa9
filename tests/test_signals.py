"""A signal as table, verdict, JSON, picture; and as an assertion of a test-suite."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodinit import OptionError, measure
from goodinit.errors import UnhealthyError
from goodinit.measurement.layer import Layer
from goodinit.measurement.signals import Signal, rate_of
from goodinit.report import percent

LAYER = Layer(
    "fc.weight", "linear", (4, 3), 0.0, 0.5, 0.25, rank_limit=3, effective_rank=0.5, weight_norm=2.0, output_shape=(8, 4)
)


def signal(*stds, **changes):
    """One layer a std."""
    return Signal(tuple(replace(LAYER, name=f"{i}.weight", std=std, **changes) for i, std in enumerate(stds)))


VANISHING = signal(*(0.5**i for i in range(30)))


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return measure(model, (torch.randn(32, 6), torch.arange(32) % 3), F.cross_entropy, lr=0.1)


def test_layers_by_name_and_place(measured):
    assert [layer.name for layer in measured] == ["0.weight", "2.weight"]
    assert measured["2.weight"] is measured[1] is measured[-1]
    with pytest.raises(KeyError, match=r"no weight is called '1\.weight' \(did you mean '2\.weight', '0\.weight'\?\)"):
        measured["1.weight"]


def test_the_table_and_the_verdict(measured):
    lines = str(measured).splitlines()
    assert lines[0].split() == ["weight", "operator", "std", "of", "samples", "rank", "then", "gradient", "update"]
    assert lines[2].split()[:2] == ["0.weight", "linear"]
    assert f"{measured[0].std:.3f}" in lines[2]
    assert "tanh" in lines[2]
    assert lines[2].endswith(f"  {percent(measured[0].relative_update(0.1))}")
    assert lines[-1] == "Healthy: no fault found in 2 layers."
    assert "gradient" not in str(signal(1.0)).splitlines()[0]


def test_the_columns_are_explained_under_the_table(measured):
    forward = "of samples: std between samples; rank: effective rank, of 1; then: the non-linearity that follows"
    backward = (
        "gradient: norm of the loss's at the output; update: of the weight by a first step of SGD, of its norm, at learning rate"
    )
    assert str(measured).splitlines()[4] == f"({forward}; {backward} 0.1)"
    assert str(signal(1.0)).splitlines()[3] == f"({forward})"
    assert f"({forward}; {backward} 0.01)" in str(replace(signal(1.0), loss=1.0))


def test_dead_and_saturated_shares_in_the_table():
    row = str(signal(1.0, activation="relu", dead=0.25, saturated=0.5)).splitlines()[2]
    assert "relu, 25 % dead, 50 % flat" in row


def test_relative_updates():
    layer = replace(LAYER, weight_grad_norm=0.2)
    assert layer.relative_update(0.5) == pytest.approx(0.05)
    assert layer.relative_update() == pytest.approx(0.001)
    assert LAYER.relative_update() is None
    assert replace(layer, weight_norm=0.0).relative_update() == math.inf
    assert replace(layer, weight_norm=0.0, weight_grad_norm=0.0).relative_update() == 0


def test_the_update_is_that_of_an_optimizer():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(32, 6)
    found = measure(model, x, lambda y: y.square().mean())
    before = [p.detach().clone() for p in (model[0].weight, model[2].weight)]
    model(x).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.3).step()
    moved = [((p - old).norm() / old.norm()).item() for p, old in zip((model[0].weight, model[2].weight), before, strict=True)]
    assert [layer.relative_update(0.3) for layer in found] == pytest.approx(moved, rel=1e-3)


def test_an_assertion_for_a_test_suite(measured):
    measured.assert_healthy()
    with pytest.raises(AssertionError, match=r"Not healthy, 30 layers: vanishing \(4\.weight\)") as caught:
        VANISHING.assert_healthy()
    assert isinstance(caught.value, UnhealthyError)
    assert str(caught.value) == VANISHING.verdict
    assert not VANISHING.healthy
    VANISHING.assert_healthy(allow="vanishing")
    VANISHING.assert_healthy(allow=["dead", "vanishing"])
    with pytest.raises(UnhealthyError):
        VANISHING.assert_healthy(allow=["dead"])
    with pytest.raises(OptionError, match=r"allow: kinds of findings are .*; got 'vanish' \(did you mean 'vanishing', "):
        VANISHING.assert_healthy(allow="vanish")


def test_json_reads_back(measured):
    assert Signal.from_json(measured.to_json()) == measured
    odd = replace(signal(math.nan, math.inf, effective_rank=None), loss=math.nan)
    text = odd.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = Signal.from_json(text)
    assert math.isnan(again[0].std)
    assert again[1].std == math.inf
    assert math.isnan(again.loss)
    assert again.to_json() == text


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": 3, "layers": []}', '{"schema": 4, "layers": []}'])
def test_json_of_something_else(text):
    with pytest.raises(ValueError, match="not a goodinit signal of schema 4"):
        Signal.from_json(text)


def test_show_prints_it(measured, capsys):
    measured.show()
    assert capsys.readouterr().out == f"{measured}\n"


def test_where_a_fault_begins_is_red():
    console = pytest.importorskip("rich.console")
    import io

    out = io.StringIO()
    console.Console(file=out, force_terminal=True, width=120, color_system="standard").print(VANISHING)
    red = [line for line in out.getvalue().splitlines() if "\x1b[1;31m" in line]
    assert len(red) == 1
    assert "4.weight" in red[0]


@pytest.mark.parametrize("name", ["a.png", "a.PDF", "a.svg"])
def test_a_picture(measured, tmp_path, name):
    pytest.importorskip("matplotlib")
    measured.save_picture(tmp_path / name, before=measured, theme="dark")
    assert (tmp_path / name).read_bytes()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")


def test_a_picture_that_cannot_be(measured, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(OptionError, match=r"a\.doc"):
        measured.save_picture(tmp_path / "a.doc")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_in_six_lines(tmp_path):
    """From an installed package to a picture of one's own model."""
    lines = [
        "import torch, goodinit",
        "from torch import nn",
        "model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))",
        "signal = goodinit.measure(model, torch.randn(32, 8))",
        "signal.save_picture('signal.png')",
    ]
    assert len(lines) <= 6
    pytest.importorskip("matplotlib")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "signal.png").stat().st_size > 10_000


def test_which_learning_rate_updates_are_shown_for():
    early, late, without = (Signal((), None, "", lr, 0.0) for lr in (0.1, 0.5, None))
    assert rate_of(None, [early, late]) == 0.5
    assert rate_of(None, [early, without]) == 0.1
    assert rate_of(0.3, [early, late]) == 0.3
    assert rate_of(None, [without]) == 0.01
