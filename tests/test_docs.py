"""Whatever the documentation shows is run, page by page, in an empty folder; output that is shown is compared.

Before a block there may be a comment: ``<!-- setup`` and code that makes what the reader is assumed to have, or
``<!-- long: reason -->``, after which a block of commands is parsed and not run.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from goodinit.measurement.layer import KINDS
from goodinit.report import STATUSES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"<!-- (?P<comment>setup|long)(?P<text>.*?)-->|```(?P<kind>\w+)\n(?P<code>.*?)```", re.DOTALL)

pytestmark = [
    pytest.mark.filterwarnings("default"),  # a page may show what warns
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning"),  # lightning's use of torch
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),  # torch's, of a machine without a GPU
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),  # data are short
]


def blocks(page: Path) -> list[tuple[str, str, bool]]:
    """(kind, code, whether it takes long) of all blocks of a page, in order; a setup is one of kind python."""
    found, long = [], False
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match["comment"] == "setup":
            found.append(("setup", match["text"], False))
        elif match["comment"] == "long":
            assert match["text"].strip(": \n"), "a reason"
            long = True
        else:
            found.append((match["kind"], match["code"], long))
            long = False
    return found


def with_blocks(kind: str) -> list[Any]:
    return [pytest.param(page, id=page.name) for page in PAGES if any(k == kind for k, _, _ in blocks(page))]


def masked(text: str) -> list[list[str]]:
    """Words of the lines; times differ from run to run."""
    return [re.sub(r"[\d.]+ s\b", "_ s", line).split() for line in text.strip().splitlines()]


def assert_shown(printed: str, shown: str) -> None:
    got, want = masked(printed), masked(shown)
    assert [len(line) for line in got] == [len(line) for line in want], f"printed:\n{printed}"
    for a, b in ((a, b) for x, y in zip(got, want, strict=True) for a, b in zip(x, y, strict=True)):
        assert a == b or value(a) == pytest.approx(value(b), rel=0.02, abs=2e-3), f"{a!r} is printed where {b!r} is shown"


def value(word: str) -> float:
    """A number, whose last digit differs by machine; NaN, which equals nothing, for any other word."""
    return float(word) if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", word) else math.nan


@pytest.mark.parametrize("page", with_blocks("python"))
def test_code_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    printed = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for kind, code, _ in blocks(page):
            if kind == "text" and printed is not None:
                assert_shown(printed, code)
            if kind in ("python", "setup"):
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(code, f"{page.name}", "exec"), vars(module))
                printed = out.getvalue() if kind == "python" else None


@pytest.mark.parametrize("page", with_blocks("sh"))
def test_commands_exist_and_take_these_options(page, tmp_path, monkeypatch):
    """A command of goodinit's is parsed as far as ``--help``; the others are those that the README and CI run."""
    from goodinit.cli import app

    monkeypatch.chdir(tmp_path)
    for kind, code, _ in blocks(page):
        if kind != "sh":
            continue
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if Path(words[0]).name == "goodinit":
                done = CliRunner().invoke(app, [*words[1:], "--help"])
                assert done.exit_code == 0, f"{line}\n{done.output}"
            else:
                assert Path(words[0]).name in ("pip", "python3", "python", "make", "torchrun"), line


def test_the_pages_of_the_site_are_there():
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE))
    assert named == {page.name for page in PAGES} - {"README.md"}


def test_every_status_has_its_case():
    page = (ROOT / "docs" / "cases.md").read_text()
    assert set(re.findall(r"\| `([\w-]+)` \|$", page, re.MULTILINE)) == set(STATUSES)


def test_every_kind_of_finding_has_its_line():
    page = (ROOT / "docs" / "diagnosing.md").read_text()
    assert dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", page, re.MULTILINE)).items() >= KINDS.items()
    sources = "".join(path.read_text() for path in (ROOT / "src" / "goodinit" / "measurement").glob("*.py"))
    assert set(re.findall(r'\bFinding\(\s*"([\w-]+)"', sources)) == set(KINDS)


def test_every_module_has_its_line_for_contributors():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    there = {path.name for path in (ROOT / "src" / "goodinit").rglob("*.py")} - {"__init__.py"}
    assert there <= named


def test_a_block_that_fails_would_be_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- setup\nx = 1\n-->\n```python\nprint(x)\n```\n```text\n2\n```\n<!-- long: why -->\n```sh\nmake\n```\n")
    assert [kind for kind, _, _ in blocks(page)] == ["setup", "python", "text", "sh"]
    assert blocks(page)[-1][2]
    with pytest.raises(AssertionError):
        assert_shown("1", "2")
    assert_shown("3 weights; 1 pass, 0.10 s", "3 weights; 1 pass, 7.25 s")
    for shown in ("7", "b"):
        with pytest.raises(AssertionError, match=f"'a' is printed where '{shown}' is shown"):
            assert_shown("a", shown)
