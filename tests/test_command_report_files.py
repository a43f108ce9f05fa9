"""Reports as files, by the file's name; paths are checked before the work."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from goodinit import Report, Signal, lsuv_, measure
from goodinit.command.report_files import check_paths, need_signals, save_reports
from goodinit.errors import MissingExtraError, OptionError
from nets import mlp


@pytest.fixture(scope="module")
def found():
    model, x = mlp(4, 5, 3), torch.randn(32, 4)
    before = measure(model, x)
    return {"report": lsuv_(model, x), "before": before, "after": measure(model, x)}


def test_json_is_what_reads_back(tmp_path, found):
    save_reports([tmp_path / "r.json"], "net", **found)
    assert Report.from_json((tmp_path / "r.json").read_text()) == found["report"]
    save_reports([tmp_path / "s.json"], "net", after=found["after"])
    assert Signal.from_json((tmp_path / "s.json").read_text()) == found["after"]


@pytest.mark.parametrize("alone", [False, True])
def test_pages_and_pictures(tmp_path, found, alone):
    pytest.importorskip("jinja2")
    names = {"a.html": b"<!doctype html>", "a.png": b"\x89PNG", "a.svg": b"<?xml", "a.PDF": b"%PDF"}
    given = {"after": found["after"]} if alone else found
    save_reports([tmp_path / name for name in names], "my net", "my data", **given)
    for name, start in names.items():
        assert (tmp_path / name).read_bytes().lower().startswith(start.lower()), name
    page = (tmp_path / "a.html").read_text()
    assert "my net" in page
    assert "my data · " in page
    assert "0.weight" in page


def test_a_picture_on_a_full_disk(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    code = (
        "import resource, torch, goodinit\nfrom pathlib import Path\nfrom goodinit.command.report_files import save_reports\n"
        "signal = goodinit.measure(torch.nn.Linear(3, 3), torch.randn(8, 3))\n"
        f"from goodinit.errors import SaveError\nimport matplotlib.font_manager\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"try: save_reports([Path({str(tmp_path / 'a.png')!r})], '', after=signal)\n"
        "except SaveError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot save a.png in {str(tmp_path)!r}: File too large")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.png": b"old"}


def test_signals_are_measured_for_what_shows_them(tmp_path):
    assert not need_signals([tmp_path / "a.json"])
    assert need_signals([tmp_path / "a.json", tmp_path / "a.svg"])


@pytest.mark.parametrize(
    ("reports", "out", "message"),
    [
        (["a.doc"], None, r"a report cannot be saved as 'a.doc': its name should end in .html, .json, .png, .svg or .pdf$"),
        (["a"], None, "a report cannot be saved as 'a': its name should end in"),
        (["none/a.html"], None, "a report cannot be saved as 'none/a.html': No such file or directory"),
        (["none/a.png"], None, "a report cannot be saved as 'none/a.png': No such file or directory"),
        (["folder.json"], None, "a report cannot be saved as 'folder.json', which is a folder"),
        (["a.json", "./a.json"], None, "'a.json' is given twice: it would be written over"),
        (["data.json"], None, "'data.json' is given twice"),
        ([], "data.json", "'data.json' is given twice"),
        (["w.png"], "w.png", "'w.png' is given twice"),
    ],
)
def test_paths_that_cannot_be(tmp_path, monkeypatch, reports, out, message):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OptionError, match=message):
        check_paths([Path(p) for p in reports], None if out is None else Path(out), "data.json", None)


def test_paths_that_can_be_are_not_touched(tmp_path):
    (tmp_path / "a.json").write_text("old")
    check_paths([tmp_path / "a.json", tmp_path / "b.png"], tmp_path / "w.safetensors", "noise:3")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.json": "old"}


@pytest.mark.parametrize(("package", "name", "extra"), [("matplotlib", "a.png", "plot"), ("jinja2", "a.html", "page")])
def test_what_is_not_installed(monkeypatch, tmp_path, package, name, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"^{package} is not installed; .* pip install 'goodinit\[{extra}\]'"):
        check_paths([tmp_path / name], None)
