"""What a page says, before it is HTML."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from goodinit import Record, Report
from goodinit.measurement.propagation import Layer, Signal
from goodinit.page.content import content_of
from goodinit.page.quantities import QUANTITIES, written
from goodinit.page.sources import Sources

LAYER = Layer("a.weight", "linear", (4, 3), 0.0, 0.5, 0.25, weight_norm=2.0)
RECORD = Record("a.weight", "linear", (4, 3), "scaled", 1.0, 0.5, 1.0, 2.0)


def signal(*stds, **changes):
    return Signal(tuple(replace(LAYER, name=f"{n}.weight", std=std, **changes) for n, std in zip("abcdef", stds, strict=False)))


def report(*names, **changes):
    return Report(tuple(replace(RECORD, name=f"{n}.weight", **changes) for n in names), 1, 0.1, 0.05, "a batch")


def keys(content):
    return [column.key for column in content.columns]


def values(content, key):
    return list(next(column.values for column in content.columns if column.key == key))


def test_of_a_report_alone_the_stds_as_drawn_and_after():
    content = content_of(Sources(report("a", "b")))
    assert content.data["sides"] == ["as drawn", "after"]
    assert values(content, "std:0") == [0.5, 0.5]
    assert values(content, "std:1") == [1.0, 1.0]
    assert keys(content) == ["order", "name", "health", "std:0", "std:1", "factor", "status", "operator", "shape", "target"]
    assert content.headline == "All 2 weights have the target std."
    assert dict(content.facts) == {
        "weights": "2",
        "forward passes": "1",
        "time": "0.10 s, 0.05 s of it drawing matrices",
        "data": "a batch",
    }


def test_of_a_report_on_weights_that_were_kept_the_stds_before_and_after():
    content = content_of(Sources(replace(report("a", "b"), drawn=False)))
    assert content.data["sides"] == ["before", "after"]


def test_signals_take_the_place_of_the_report_s_stds():
    content = content_of(Sources(report("a", "b"), signal(0.1, 0.01), signal(1.0, 1.0)))
    assert content.data["sides"] == ["before", "after"]
    assert values(content, "std:0") == [0.1, 0.01]
    assert [label for label, _ in content.verdicts] == ["", "before", "after"]


def test_a_signal_after_alone_beside_the_stds_as_drawn():
    content = content_of(Sources(report("a"), after=signal(1.0, grad_std=0.5)))
    assert content.data["sides"] == ["as drawn", "after"]
    assert "grad_std:0" not in keys(content)
    assert values(content, "grad_std:1") == [0.5]


def test_of_one_signal_there_is_one_side():
    content = content_of(Sources(after=signal(1.0, 2.0)))
    assert [s["key"] for s in content.data["panels"][0]["series"]] == ["std:0", "sample_std:0"]
    assert not any(column.side for column in content.columns)
    assert content.title == "Signal report"


def test_two_signals_of_different_models():
    both = signal(1.0, 2.0).compare(signal(1.0, 2.0, 3.0), labels=("A", "B"))
    content = content_of(Sources(None, both.before, both.after, both.labels))
    assert values(content, "name") == ["a.weight", "b.weight", "c.weight"]
    assert values(content, "std:0") == [1.0, 2.0, None]
    assert content.title == "Two signals compared"
    assert [column.side for column in content.columns if column.key.startswith("std:")] == ["A", "B"]


def test_the_target_of_most_weights_is_drawn():
    a, b, c = report("a", "b", "c", target=0.5).records
    content = content_of(Sources(Report((a, b, replace(c, target=0.1)), 1, 0.0, 0.0)))
    assert content.data["target"] == 0.5


def test_a_scheme_that_does_not_scale_has_no_stds_to_draw():
    content = content_of(Sources(report("a", "b", status="drawn", std_before=None, std_after=None)))
    assert content.data["panels"] == []
    assert content.data["sides"] == []


def test_gradients_and_updates_if_they_were_measured():
    found = replace(signal(1.0, 1.0, grad_std=0.1, weight_grad_norm=4.0), loss=2.5)
    content = content_of(Sources(after=found, lr=0.1))
    assert values(content, "relative_update:0") == [pytest.approx(0.2)] * 2
    assert [panel["title"] for panel in content.data["panels"]][1:] == [
        "Gradient at the output: norm",
        "Relative update of the weight",
    ]
    assert ("loss", "2.500") in content.facts
    assert ("relative updates at", "learning rate 0.1") in content.facts


def test_one_layer_is_no_curve():
    assert content_of(Sources(after=signal(1.0))).data["panels"] == []
    first, second = signal(1.0, 2.0).layers
    panels = content_of(Sources(after=Signal((first, replace(second, effective_rank=0.5))))).data["panels"]
    assert [panel["title"] for panel in panels] == ["Output: standard deviation"]


def test_numbers_that_json_does_not_know():
    content = content_of(Sources(after=signal(1.0, math.inf, math.nan, -math.inf, 0.0)))
    text = json.dumps(content.data, allow_nan=False)
    assert json.loads(text)["columns"]["std:0"] == [1.0, "inf", "nan", "-inf", 0.0]
    assert "std:0" in content.data["numbers"]
    assert content.healths == ("healthy", "fault", "affected", "affected", "affected")


def test_a_layer_called_nan_is_text():
    content = content_of(Sources(report("nan")))
    assert "name" not in content.data["numbers"]


def test_histograms():
    content = content_of(Sources(None, signal(1.0, 2.0), signal(1.0, 2.0, histogram=(0, 2, 2, 1))))
    assert content.bins == 4
    assert content.curves == (("", "M0 20h1v-20h2v10h1"),) * 2
    assert "distribution" in keys(content)
    assert "distribution" not in keys(content_of(Sources(after=signal(1.0))))


def test_nothing_at_all():
    content = content_of(Sources(after=Signal(())))
    assert content.columns == ()
    assert content.healths == ()
    assert content_of(Sources(Report((), 0, 0.0, 0.0))).headline == "There is no weight in this report."


def test_every_quantity_is_a_field_of_a_layer():
    """A renamed field would leave its column away without a word."""
    shares = {"channel_spread": 0.5, "effective_rank": 0.5, "dead": 0.1, "saturated": 0.1}
    everything = replace(LAYER, **shares, grad_std=0.1, weight_grad_norm=1.0, output_shape=(2, 2))
    found = keys(content_of(Sources(after=Signal((everything,)))))
    assert [f"{quantity.key}:0" for quantity in QUANTITIES if f"{quantity.key}:0" not in found] == []


@pytest.mark.parametrize(
    ("value", "is_share", "text"),
    [(math.inf, True, "∞"), (-math.inf, False, "-∞"), (math.nan, True, "NaN"), (None, True, "-"), (1.0, True, "100 %")],
)
def test_how_numbers_are_written(value, is_share, text):
    assert written(value, is_share=is_share) == text
