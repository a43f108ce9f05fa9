"""How each layer fares, by statuses and by findings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from goodinit import Record
from goodinit.measurement.propagation import Layer, Signal
from goodinit.page.health import HEALTHS, health_of_record, healths_of_signal, worst
from goodinit.report import STATUSES

RECORD = Record("a.weight", "linear", (2, 2), "scaled", 1.0, 0.5, 1.0, 2.0)
LAYER = Layer("a.weight", "linear", (9, 9), 0.0, 1.0, 1.0, weight_norm=3.0, output_shape=(64, 9), channels=9)


def signal(key, values, **changes):
    return Signal(tuple(replace(LAYER, name=str(i), **{key: value}, **changes) for i, value in enumerate(values)))


def kinds_and_healths(found):
    return {finding.kind for finding in found.findings}, list(healths_of_signal(found).values())


def test_every_status_has_a_health():
    assert {health_of_record(replace(RECORD, status=status)) for status in STATUSES} == {"fault", "healthy", "unjudged"}


def test_the_gravest():
    assert worst(["healthy", "fault", "unjudged"]) == "fault"
    assert worst(["unjudged", "healthy"]) == "healthy"
    assert worst([]) == "unjudged"
    assert next(iter(HEALTHS)) == "fault"


def test_healthy():
    assert kinds_and_healths(signal("std", [1.0] * 5)) == (set(), ["healthy"] * 5)


def test_a_vanishing_signal_spreads_from_where_it_begins():
    kinds, healths = kinds_and_healths(signal("std", [10.0**-i for i in range(9)]))
    assert "vanishing" in kinds
    start = healths.index("fault")
    assert healths == ["healthy"] * start + ["fault"] + ["affected"] * (8 - start)


def test_behind_nan_everything_suffers():
    assert kinds_and_healths(signal("std", [1.0, math.nan, 1.0])) == ({"non-finite"}, ["healthy", "fault", "affected"])


def test_units_that_are_the_same_are_where_they_are():
    kinds, healths = kinds_and_healths(signal("same_units", [None, False, True, True]))
    assert kinds == {"same-units"}
    assert healths == ["healthy", "healthy", "fault", "affected"]


def test_dead_units_are_where_they_are():
    kinds, healths = kinds_and_healths(signal("dead", [0.0, 0.9, 0.1, 0.8, 0.0], activation="relu"))
    assert kinds == {"dead"}
    assert healths == ["healthy", "fault", "healthy", "affected", "healthy"]


@pytest.mark.parametrize(("base", "kind"), [(10.0, "gradient-vanishing"), (0.1, "gradient-exploding")])
def test_a_gradient_that_vanishes_or_explodes_on_its_way_back(base, kind):
    kinds, healths = kinds_and_healths(signal("grad_std", [base**i for i in range(9)]))
    assert kinds == {kind}
    assert healths[0] == "fault"
    assert healths[1:7] == ["affected"] * 6
    assert healths[8] == "healthy"
