"""What a page says first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from goodinit import Record, Report
from goodinit.choice import Choice, Trial
from goodinit.measurement.propagation import Layer, Signal
from goodinit.page.verdict import Verdict, verdict_of_report, verdict_of_signal

RECORD = Record("a.weight", "linear", (2, 2), "scaled", 1.0, 0.5, 1.0, 2.0)


def report(*statuses):
    records = tuple(replace(RECORD, name=f"l{i}.weight", status=status) for i, status in enumerate(statuses))
    return Report(records, 1, 0.1, 0.05)


@pytest.mark.parametrize(
    ("statuses", "health", "sentence"),
    [
        (["scaled"], "healthy", "The weight has the target std."),
        (["scaled", "shared"], "healthy", "All 2 weights have the target std."),
        (["scaled", "frozen"], "healthy", "1 of 2 weights has the target std; 1 was not to be scaled."),
        (["scaled", "scaled", "tied", "skipped"], "healthy", "2 of 4 weights have the target std; 2 were not to be scaled."),
        (["scaled", "no-signal", "bias-dominated"], "fault", "2 of 3 weights could not be brought to the target std."),
        (["drawn", "drawn", "frozen"], "unjudged", "2 of 3 weights were drawn; none was scaled."),
        ([], "unjudged", "There is no weight in this report."),
    ],
)
def test_of_a_report(statuses, health, sentence):
    verdict = verdict_of_report(report(*statuses))
    assert (verdict.health, verdict.sentence) == (health, sentence)


def test_each_status_that_is_not_as_hoped_has_a_note_the_gravest_first():
    verdict = verdict_of_report(report("frozen", "scaled", "no-signal", "frozen"))
    failed, frozen = verdict.notes
    assert (failed.health, failed.kind, failed.names) == ("fault", "no-signal", ("l2.weight",))
    assert "look upstream of the first of them" in failed.advice
    assert frozen.names == ("l0.weight", "l3.weight")
    assert frozen.text == "2 weights: requires_grad=False: left as it is."


def test_what_could_not_be_done_and_what_auto_chose():
    first, second = report("scaled", "scaled").records
    trial = Trial(1.0, False, 0.0, 250.0, 0.5, 0.1, 1.0, 3.4, 0.5)
    choice = Choice(0.5, True, 0.0, "l1.weight", 0.1, "the gradient keeps its size", (trial,), 9)
    noted = tuple(replace(record, note="no bias to centre") for record in (first, second))
    note, auto = verdict_of_report(Report(noted, 1, 0.1, 0.05, choice=choice)).notes
    assert (note.names, note.text) == (("l0.weight", "l1.weight"), "2 weights: no bias to centre.")
    assert auto.names == ("l1.weight",)
    assert auto.text == "target_std=0.5, center=True, 'l1.weight' 0.1: the gradient keeps its size."
    assert auto.advice.startswith("Tried: target_std=1: gradient ratio 2.5e+02, samples distinct 0.1, likeness kept 0.5.")


def test_of_a_signal_its_findings():
    layer = Layer("a.weight", "linear", (9, 9), 0.0, 1.0, 1.0, weight_norm=3.0)
    assert verdict_of_signal(Signal((layer,))) == Verdict("healthy", "Healthy: no fault found in 1 layer.")
    verdict = verdict_of_signal(Signal((replace(layer, std=float("nan")),)))
    assert verdict.health == "fault"
    assert verdict.sentence.startswith("Not healthy, 1 layer: non-finite")
    assert "\n" not in verdict.sentence
    (note,) = verdict.notes
    assert note.names == ("a.weight",)
    assert note.text.startswith("NaN or infinity from a.weight on")
    nothing = verdict_of_signal(Signal(()))
    assert nothing.health == "fault"
    assert nothing.notes[0].names == ()
