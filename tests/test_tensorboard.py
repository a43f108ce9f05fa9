"""Reports and signals in TensorBoard, read back from the event file."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nets import mlp

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from goodinit import OptionError, lsuv_
from goodinit.integrations.tensorboard import to_tensorboard
from goodinit.measurement.propagation import measure
from goodinit.measurement.signals import Layer, Signal


def written(folder, result, *args, **kwargs):
    """All that is in the event file: scalars by tag as (step, value), texts, histograms."""
    with SummaryWriter(folder) as writer:
        to_tensorboard(result, writer, *args, **kwargs)
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    tags = events.Tags()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    histograms = {tag: events.Histograms(tag)[0].histogram_value for tag in tags["histograms"]}
    return scalars, texts, histograms


def test_a_report(tmp_path):
    net, x = mlp(6, 20, 4), torch.randn(64, 6)
    report = lsuv_(net, x, target_std={"2": 0.5})
    scalars, texts, histograms = written(tmp_path, report, 3, model=net)
    assert len(scalars) == 6
    for record in report:
        assert scalars[f"goodinit/std_before/{record.name}"] == [(3, pytest.approx(record.std_before))]
        assert scalars[f"goodinit/std_after/{record.name}"] == [(3, pytest.approx(record.target, abs=1e-4))]
        assert scalars[f"goodinit/factor/{record.name}"] == [(3, pytest.approx(record.factor))]
        weight, histogram = net.get_parameter(record.name), histograms[f"goodinit/weight/{record.name}"]
        assert histogram.num == weight.numel()
        assert histogram.sum_squares == pytest.approx(weight.square().sum().item(), rel=1e-4)
    (table,) = texts.values()
    head, rule, first, _, _, summary = table.splitlines()
    assert head == "| weight | operator | shape | std as drawn | std after | factor | status |"
    assert set(rule) == set("|- ")
    assert first.startswith("| 0.weight | linear | 20x6 | ")
    assert summary == report.summary()


def test_weights_that_are_not_finite_or_complex(tmp_path):
    """A training that went wrong is what one wants to look at."""
    net, x = mlp(6, 20, 4), torch.randn(64, 6)
    report = lsuv_(net, x)
    with torch.no_grad():
        net[0].weight.fill_(torch.nan)
        net[2].weight[0, :3] = torch.inf
    _, _, histograms = written(tmp_path / "a", report, model=net)
    assert {tag: histogram.num for tag, histogram in histograms.items()} == {"goodinit/weight/2.weight": 4 * 20 - 3}
    complex_, z = nn.Linear(6, 4, dtype=torch.complex64), torch.randn(64, 6, dtype=torch.complex64)
    _, _, histograms = written(tmp_path / "b", lsuv_(complex_, z), model=complex_)
    assert histograms["goodinit/weight/weight"].sum == pytest.approx(complex_.weight.abs().sum().item(), rel=1e-4)


def test_what_was_not_measured_is_left_out(tmp_path):
    net = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
    report = lsuv_(net, torch.randn(32, 4), forward=lambda net, x: net["used"](x))
    scalars, _, _ = written(tmp_path, report, tag="init")
    assert sorted(scalars) == [
        "init/factor/unused.weight",
        "init/factor/used.weight",
        "init/std_after/used.weight",
        "init/std_before/used.weight",
    ]


def test_a_signal(tmp_path):
    x = torch.randn(256, 6)
    signal = measure(mlp(6, 20, 4), x)
    scalars, texts, _ = written(tmp_path, signal, step=7)
    for layer in signal:
        assert scalars[f"goodinit/std/{layer.name}"] == [(7, pytest.approx(layer.std))]
        assert scalars[f"goodinit/sample_std/{layer.name}"] == [(7, pytest.approx(layer.sample_std))]
    assert "goodinit/loss" not in scalars
    assert not [tag for tag in scalars if "grad" in tag or "update" in tag]
    assert signal.verdict in texts["goodinit/table/text_summary"]


def test_gradients_of_a_signal(tmp_path):
    x, y = torch.randn(256, 6), torch.randint(4, (256,))
    for lr, folder in ((None, "usual"), (0.5, "given")):
        signal = measure(mlp(6, 20, 4), (x, y), loss=nn.functional.cross_entropy, lr=lr)
        scalars, _, _ = written(tmp_path / folder, signal)
        for layer in signal:
            assert scalars[f"goodinit/grad_norm/{layer.name}"] == [(0, pytest.approx(layer.grad_norm))]
            expected = layer.relative_update(0.01 if lr is None else lr)
            assert scalars[f"goodinit/relative_update/{layer.name}"] == [(0, pytest.approx(expected))]


def test_outputs_of_a_signal(tmp_path):
    """Counts in bins from mean - 4 std to mean + 4 std come back as a histogram with these edges."""
    layer = Layer("w", "linear", (4, 4), mean=2.0, std=0.5, sample_std=0.5, dead=0.25, histogram=(1, 5, 9, 5))
    broken = Layer("x", "linear", (4, 4), mean=math.nan, std=math.nan, sample_std=math.nan, histogram=(0, 0, 0, 0))
    scalars, _, histograms = written(tmp_path, Signal((layer, broken), loss=1.5))
    assert scalars["goodinit/loss"] == [(0, 1.5)]
    assert scalars["goodinit/dead/w"] == [(0, 0.25)]
    assert math.isnan(scalars["goodinit/std/x"][0][1])
    (histogram,) = histograms.values()
    assert (histogram.min, histogram.max, histogram.num) == (0, 4, 20)
    assert list(histogram.bucket_limit) == [0, 1, 2, 3, 4]
    assert list(histogram.bucket) == [0, 1, 5, 9, 5]
    assert histogram.sum / histogram.num == 2
    assert histogram.sum_squares / histogram.num - 4 == pytest.approx(0.25)


def test_what_cannot_be_meant(tmp_path):
    net = mlp(6, 20, 4)
    report = lsuv_(net, torch.randn(64, 6))
    with pytest.raises(OptionError, match=r"Sequential has no parameter '0\.weight'; pass the model that the result is of"):
        to_tensorboard(report, None, model=nn.Sequential(nn.Sequential(net)))
    with pytest.raises(OptionError, match="takes a Report or a Signal; got str"):
        to_tensorboard(str(report), None)
