"""The command line as its user meets it: what it prints, where, and its exit code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import goodinit
from goodinit import demo
from goodinit.cli import app
from goodinit.errors import DataError, NonFiniteError

TINY = ["demo", "--steps", "2", "--depth", "1"]


def call(*arguments):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, arguments)


def test_version():
    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"goodinit {goodinit.__version__}\n")


def test_help_names_every_option_and_its_default():
    result = call("demo", "--help")
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    for option, default in {"data": "digits", "steps": "400", "seed": "0", "depth": "30", "out": "goodinit-demo.png"}.items():
        assert re.search(rf"--{option} [^-]*.*?\[default: {re.escape(default)}\]", shown), option
    for option in ("--data-dir", "--activation", "--lr"):
        assert option in shown


def test_no_command_shows_the_commands():
    result = call()
    assert "demo" in result.output
    assert "Usage: " in result.output


def test_demo(tmp_path):
    out = tmp_path / "picture.png"
    result = call(*TINY, "--activation", "relu", "--seed", "3", "--lr", "0.5", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "1 relu convolutions of 16 channels" in result.output
    assert "learning rate 0.5," in result.output
    assert result.output.endswith(f"Picture: {out}\n")
    assert out.read_bytes().startswith(b"\x89PNG\r\n")


def test_options_reach_the_demo(tmp_path, monkeypatch):
    seen = []

    def record(setting, tell):
        seen.append(setting)
        raise DataError("enough")

    monkeypatch.setattr(demo, "run_demo", record)
    asked = {"data": "mnist", "data-dir": "d", "steps": "7", "seed": "8", "depth": "9", "activation": "relu", "lr": "0.5"}
    options = [word for name, value in asked.items() for word in (f"--{name}", value)]
    assert call("demo", *options, "--out", str(tmp_path / "a.png")).exit_code == 1
    call("demo", "--out", str(tmp_path / "a.png"))
    assert seen == [demo.Setting("mnist", Path("d"), 7, 8, 9, "relu", 0.5), demo.Setting()]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--steps", "0"], 2, "goodinit: steps must be 1 or more; got 0\n"),
        (["--steps", "some"], 2, "Invalid value for '--steps'"),
        (["--depth", "0"], 2, "goodinit: depth must be 1 or more; got 0\n"),
        (["--data", "mnits"], 2, "goodinit: data must be digits or mnist; got 'mnits' (did you mean 'mnist'"),
        (["--activation", "gelu"], 2, "goodinit: activation must be tanh or relu; got 'gelu'"),
        (["--data-dir", "."], 2, "goodinit: digits needs no data folder, got '.'"),
        (["--data", "mnist", "--data-dir", "{empty}/none"], 2, "goodinit: there is no data folder '"),
        (["--data", "mnist", "--data-dir", "{empty}"], 1, "goodinit: no MNIST in the data folder '"),
        (["--out", "{empty}/none/a.png"], 2, "No such file or directory; name a file in a folder that you can write to\n"),
        (["--out", "{empty}/a.doc"], 2, "its name should end in .png"),
        (["--stepz", "3"], 2, "No such option: --stepz"),
    ],
)
def test_errors_are_one_message_without_a_traceback(tmp_path, arguments, code, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = ["--out", str(tmp_path / "a.png")] if "--out" not in arguments else []
    result = call("demo", *out, *(a.format(empty=empty) for a in arguments))
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_errors_go_to_standard_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "goodinit", "demo", "--depth", "0"],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "goodinit: depth must be 1 or more; got 0\n")


@pytest.mark.parametrize(("package", "extra"), [("matplotlib", "plot"), ("sklearn", "data")])
def test_missing_packages(monkeypatch, tmp_path, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    result = call(*TINY, "--out", str(tmp_path / "a.png"))
    assert result.exit_code == 1
    assert (
        f"goodinit: {package} is not installed; it comes with the extra '{extra}': pip install 'goodinit[{extra}]'"
        in result.output
    )


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_packages_of_the_command_line(package):
    code = f"import sys; sys.modules[{package!r}] = None; from goodinit.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == f"goodinit: {package} is not installed; it comes with the extra 'cli': pip install 'goodinit[cli]'\n"


def test_the_picture_s_path_is_checked_before_the_training(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "run_demo", lambda *args: pytest.fail("trained first"))
    assert call("demo", "--out", str(tmp_path / "none" / "a.png")).exit_code == 2


def test_errors_while_running_have_exit_code_1_and_bugs_a_traceback(monkeypatch, tmp_path):
    def fail_with(error):
        def run(setting, tell):
            raise error

        monkeypatch.setattr(demo, "run_demo", run)
        return call("demo", "--out", str(tmp_path / "a.png"))

    result = fail_with(NonFiniteError("NaN in conv1"))
    assert (result.exit_code, result.output) == (1, "goodinit: NaN in conv1\n")
    assert isinstance(fail_with(ZeroDivisionError("a bug")).exception, ZeroDivisionError)


@pytest.mark.parametrize("command", [(), ("init",), ("inspect",), ("demo",)])
def test_help_fits_a_narrow_terminal(command):
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    assert "…" not in result.output.replace("cuda:1, …", "")  # nothing is cut off


@pytest.mark.parametrize("command", ["init", "inspect"])
def test_help_says_what_exit_codes_mean(command):
    shown = " ".join(call(command, "--help").output.split())
    assert (
        "Exit codes: 0 done; 1 the command is fine, but the files, the packages or the model are not, or --check found fault; 2"
        in shown
    )


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("goodinit in", ["init", "inspect"]),
        ("goodinit init --ta", ["--target-std", "--target-mean"]),
        ("goodinit reproduce li", ["list"]),
    ],
)
def test_shells_complete_commands_and_options(words, completed):
    """What the script that --install-completion installs asks; without torch, which would take seconds to load."""
    code = "import sys; sys.argv = ['goodinit']; sys.modules['torch'] = None; from goodinit.__main__ import main; main()"
    asked = {"_GOODINIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **asked}
    )
    assert (done.returncode, done.stdout.split()) == (0, completed), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux's")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["reproduce", "--help"]])
def test_a_full_disk_behind_standard_output(arguments):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "goodinit", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "goodinit: cannot write to standard output: No space left on device\n"


def test_without_a_standard_output(tmp_path):
    """Closed by who started it."""
    command = f"{shlex.quote(sys.executable)} -m goodinit reproduce list >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
