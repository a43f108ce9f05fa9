"""The report: table, JSON, what counts as well."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from goodinit import Record, Report, lsuv_
from goodinit.report import STATUSES
from nets import build

number = st.floats(allow_nan=False, allow_infinity=False)
records = st.builds(
    Record,
    name=st.text(),
    operator=st.text(),
    shape=st.lists(st.integers(1, 10**6), max_size=5).map(tuple),
    status=st.sampled_from(sorted(STATUSES)),
    target=number,
    std_before=st.none() | number,
    std_after=st.none() | number,
    factor=number,
    uses=st.lists(number, max_size=3).map(tuple),
)


@given(st.builds(Report, st.lists(records, max_size=4).map(tuple), st.integers(0, 9), number, number, st.text()))
def test_json_round_trip(report):
    again = Report.from_json(report.to_json())
    assert again == report
    assert str(again) == str(report)


RENAMED = lsuv_(nn.Linear(4, 2), torch.randn(8, 4)).to_json().replace('"factor"', '"times"')


@pytest.mark.parametrize("text", ["{}", "[1]", '{"schema": 2}', '{"schema": 1, "records": []}', RENAMED])
def test_json_that_is_no_report(text):
    with pytest.raises(ValueError, match="not a goodinit report"):
        Report.from_json(text)


def test_records_by_name_and_place():
    report = lsuv_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(8, 4))
    assert report[0] is report["0.weight"]
    assert report[-1] is report["1.weight"]


def test_table():
    model, data = build("residual")
    report = lsuv_(model, data)
    header, rule, *rows, summary = str(report).splitlines()
    assert header.split() == ["weight", "operator", "shape", "std", "as", "drawn", "std", "after", "factor", "status"]
    assert set(rule) == {"-"}
    assert [row.split()[0] for row in rows] == [r.name for r in report]
    assert rows[0].split()[1:3] == ["linear", "6x6"]
    assert rows[0].split()[4] == "1.000"
    assert rows[0].split()[5] == f"{report[report.records[0].name].factor:.3f}"
    assert summary.startswith("4 weights (4 scaled); 1 forward pass, ")
    assert json.loads(report.to_json())["records"][0]["shape"] == [6, 6]


def test_the_std_as_drawn_is_not_called_that_of_weights_that_were_kept():
    model, data = build("mlp")
    kept = lsuv_(model, data, pre_init=None)
    assert not kept.drawn
    assert str(kept).split("\n")[0].split()[3:7] == ["std", "before", "std", "after"]
    assert "std as drawn" in str(lsuv_(model, data))


def test_uses_of_a_shared_weight_are_shown():
    layer = nn.Linear(3, 3)
    assert "shared (2 uses, std " in str(lsuv_(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(64, 3)))


def test_small_and_missing_numbers_are_readable():
    record = Record("w", "linear", (3, 4), "unused", 1.0, None, 1.234e-9, 1e6)
    line = str(Report((record,), 1, 0.5, 0.25)).splitlines()[2]
    assert line.split() == ["w", "linear", "3x4", "-", "1.2e-09", "1.0e+06", "unused"]


@pytest.mark.parametrize(
    ("status", "ok"), [("scaled", True), ("unused", True), ("frozen", True), ("no-signal", False), ("bias-dominated", False)]
)
def test_ok(status, ok):
    good = Record("a", "linear", (2, 2), "scaled", 1.0, 1.0, 1.0, 1.0)
    report = Report((good, dataclasses.replace(good, name="b", status=status)), 1, 0.0, 0.0)
    assert report.ok == ok
    assert report["b"].ok == ok
    with pytest.raises(KeyError, match=r"no weight is called 'b\.' \(did you mean 'b'\?\)"):
        report["b."]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_show_is_plain_off_a_terminal_and_on_one_without_rich(monkeypatch, capsys):
    report = lsuv_(*build("mlp"))
    report.show()
    assert capsys.readouterr().out == f"{report}\n"
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys, "stdout", Terminal())
    report.show()
    assert sys.stdout.getvalue() == f"{report}\n"


def test_show_uses_rich_on_a_terminal(monkeypatch):
    pytest.importorskip("rich")
    from rich.console import Console

    report = lsuv_(*build("mlp"))
    out = io.StringIO()
    Console(file=out, width=120, force_terminal=True, color_system="truecolor").print(report)
    text = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert text != out.getvalue()  # in colour
    for record in report:
        assert record.name in text
    assert report.summary().split(";")[0] in text


@pytest.mark.parametrize(("width", "plain"), [(120, False), (40, True)])
def test_a_table_too_wide_for_the_terminal_is_not_cut(monkeypatch, capsys, width, plain):
    """rich would cut off the ends of numbers; a plain line is broken by the terminal."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("rich._console", Console(width=width))
    report = lsuv_(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(64, 8))
    report.show()
    printed = capsys.readouterr().out
    assert (printed == f"{report}\n") is plain
    assert all(f"{record.std_before:.3f}" in printed for record in report)
