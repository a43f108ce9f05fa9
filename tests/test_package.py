"""What the package promises as a package."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import goodinit

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_public_names():
    assert sorted(goodinit.__all__) == goodinit.__all__
    assert len(goodinit.__all__) <= 14
    assert all(hasattr(goodinit, name) for name in goodinit.__all__)
    undocumented = [n for n in goodinit.__all__ if not getattr(goodinit, n).__doc__]
    assert not undocumented


def run(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_needs_torch_alone():
    code = "import sys, torch; before = set(sys.modules); from goodinit import *; print(*sorted(set(sys.modules) - before))"
    new = {m.partition(".")[0] for m in run(code).split()}
    assert new - set(sys.stdlib_module_names) == {"goodinit"}
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    dependencies = toml.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [re.match(r"\w+", d).group() for d in dependencies] == ["torch"]


def test_names_are_imported_when_they_are_asked_for():
    """So that a command's help, and what completes its words, need not wait for torch."""
    assert run("import sys, goodinit, goodinit.cli; print('torch' in sys.modules); goodinit.lsuv_").split() == ["False"]
    assert set(goodinit.__all__) <= set(dir(goodinit))
    with pytest.raises(AttributeError, match="module 'goodinit' has no attribute 'lsuv2'"):
        goodinit.lsuv2  # noqa: B018 - that is what is tested


def test_command_without_its_extra_says_how_to_install_it():
    code = "import sys; sys.modules['typer'] = None; import goodinit.__main__ as m; m.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'goodinit[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_versions_agree():
    assert f"version: {goodinit.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {goodinit.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def numbers_masked(text):
    """Times differ from run to run, and the last digit from machine to machine."""
    return [re.sub(r"[\d.]+ s\b", "_ s", line).split() for line in text.strip().splitlines()]


def test_readme_code_prints_what_the_readme_shows():
    code, shown = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", README, re.DOTALL).groups()
    printed = numbers_masked(run(code))
    expected = numbers_masked(shown)
    assert len(printed) == len(expected)
    for got, want in zip(printed, expected, strict=True):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert a == b or float(a) == pytest.approx(float(b), abs=2e-3)


def test_readme_names_the_two_commands():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_no_page_or_module_names_a_private_path():
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    private = re.compile(r"/(?:work|root|tmp/w)/")
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".cff", ".yml", ".txt", ".jsonl", ".json"} and path.exists():
            assert not private.search(path.read_text()), name


def test_a_call_loads_no_more_modules_than_torch_did():
    """Half a second was once spent in importing sympy, by a small helper of torch's."""
    code = (
        "import sys, torch; from torch import nn; import goodinit; before = set(sys.modules)\n"
        "net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2), nn.MultiheadAttention(2, 1))\n"
        "net.forward = lambda x: net[4](*[net[:4](x)] * 3)\n"
        "x = torch.randn(8, 1, 4, 4)\n"
        "str(goodinit.lsuv_(net, x)), str(goodinit.lsuv_(net, x, pre_init=None))\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    assert not [m for m in run(code).split() if m.partition(".")[0] in ("sympy", "numpy") or m.startswith("torch._dynamo")]
