"""Errors and warnings as lines on standard error, and exit codes."""

from __future__ import annotations

import sys
import warnings

import pytest
from torch import nn

from goodinit.console import code_error, errors_shown
from goodinit.errors import GoodinitError, GoodinitWarning, OptionError, annotate


@pytest.mark.parametrize(("error", "code"), [(OptionError("no"), 2), (GoodinitError("no"), 1)])
def test_errors_are_a_line_and_an_exit_code(capsys, error, code):
    with pytest.raises(SystemExit) as caught, errors_shown():
        raise error
    assert caught.value.code == code
    assert capsys.readouterr() == ("", "goodinit: no\n")


def test_notes_on_an_error_are_shown(capsys):
    error = GoodinitError("no")
    annotate(error, "after 3 operators")
    with pytest.raises(SystemExit), errors_shown():
        raise error
    assert capsys.readouterr().err == "goodinit: no\nafter 3 operators\n"


def test_ctrl_c(capsys):
    with pytest.raises(SystemExit) as caught, errors_shown():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "goodinit: interrupted\n"


def test_errors_of_nobody_s_are_bugs():
    with pytest.raises(ZeroDivisionError), errors_shown():
        raise ZeroDivisionError


def test_the_whole_traceback_where_it_is_asked_for(capsys):
    with pytest.raises(SystemExit), errors_shown(whole=True):
        raise GoodinitError("no")
    shown = capsys.readouterr().err
    assert "test_console.py" in shown
    assert shown.endswith("goodinit: no\n")


def test_warnings_are_lines_without_a_place(capsys):
    with errors_shown():
        warnings.warn("look at a.weight", GoodinitWarning, stacklevel=1)
    assert capsys.readouterr().err == "goodinit: warning: look at a.weight\n"
    with pytest.raises(DeprecationWarning), errors_shown():  # others are as they were
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def raised_by(function, *arguments):
    try:
        function(*arguments)
    except (ValueError, RuntimeError, SystemExit) as error:
        return str(code_error("this", error))


def test_code_of_the_caller_s_is_named_by_its_innermost_line(monkeypatch, tmp_path):
    def mine():
        return nn.Linear(3, -1)

    text = raised_by(mine)
    assert text.startswith("this raised RuntimeError: ")
    assert text.endswith(f"test_console.py:{mine.__code__.co_firstlineno + 1}, in mine: return nn.Linear(3, -1)")
    assert raised_by(sys.exit, 4).startswith("this called sys.exit(4)")


def test_a_place_below_the_current_folder_is_named_from_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "goodinit").mkdir()  # a checkout, say: no package of ours
    path = tmp_path / "goodinit" / "mine.py"
    path.write_text("def fail():\n    raise ValueError('no')\n")
    names: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    assert raised_by(names["fail"]) == "this raised ValueError: no\nat goodinit/mine.py:2, in fail: raise ValueError('no')"
