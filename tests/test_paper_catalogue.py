"""Names of experiments and budgets, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from goodinit.errors import MissingExtraError, OptionError
from goodinit.paper.catalogue import BUDGETS, COSTS, budgets, content, names, path_of
from goodinit.paper.experiment import experiments


def test_budgets_are_those_of_the_experiments():
    for experiment in experiments():
        assert budgets(experiment.name) == list(experiment.cells)
    assert budgets("table3") == [*BUDGETS, "short-fitnet4"]


def test_smoke_is_seconds_a_run():
    assert COSTS["smoke"].startswith("seconds a run")


def test_files_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("[budgets.night]\nnote = 'hours'\n[budgets.short]\nnote = 'less'\n")
    assert budgets("mine.toml") == [*BUDGETS, "night"]
    (tmp_path / "odd.toml").write_text("budgets = 3")
    with pytest.raises(OptionError, match=r"odd.toml: budgets must be a table, { key = value }; got 3"):
        budgets("odd.toml")
    for what in ("none.toml", "nosuch"):
        with pytest.raises(OptionError, match=r"the experiment '.*' cannot be read: .*No such file"):
            budgets(what)


def test_without_a_reader_of_toml(monkeypatch):
    monkeypatch.setitem(sys.modules, "tomllib" if sys.version_info >= (3, 11) else "tomli", None)
    assert "table3" in names()
    with pytest.raises(MissingExtraError, match=r"pip install 'goodinit\[paper\]'"):
        content(path_of("table3"))


def test_torch_is_not_needed():
    code = "import sys; sys.modules['torch'] = None; from goodinit.paper import catalogue as c; print(*c.budgets('table3'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == budgets("table3")
