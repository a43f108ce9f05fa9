"""The page as a file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import goodinit
from goodinit import Record, Report
from goodinit.errors import MissingExtraError, OptionError, SaveError
from goodinit.measurement.comparison import Comparison
from goodinit.measurement.propagation import Layer, Signal
from goodinit.page.content import content_of
from goodinit.page.html import check_page_path, rendered
from goodinit.page.sources import Sources

ROOT = Path(__file__).parent.parent
RECORD = Record("a.weight", "linear", (4, 3), "scaled", 1.0, 0.5, 1.0, 2.0)
REPORT = Report((RECORD, replace(RECORD, name="b.weight")), 1, 0.1, 0.05)
LAYER = Layer("a.weight", "linear", (4, 3), 0.0, 0.5, 0.25, weight_norm=2.0, histogram=(1, 2, 1))


class Page(HTMLParser):
    """Elements with their attributes, and the text of those that are asked for."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = [tag, dict(attrs).get("id")]

    def handle_data(self, data):
        for name in self._open:
            self.texts[name] = self.texts.get(name, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_saved_where_asked(tmp_path):
    path = REPORT.save_html(str(tmp_path / "a.html"))
    assert path == tmp_path / "a.html"
    assert path.read_text("utf-8").startswith("<!doctype html>")
    REPORT.save_html(path, title="my model")
    assert "<title>my model: All 2 weights have the target std.</title>" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_whose_page_it_is_and_when_it_was_made(tmp_path):
    made = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d [+-]\d{{4}} · goodinit {re.escape(goodinit.__version__)}"
    signal, source = Signal((LAYER,)), "net:Net on 64 images of <images>; seed 0"
    sources: tuple[Report | Signal | Comparison, ...] = (REPORT, signal, signal.compare(signal))
    for i, found in enumerate(sources):
        text = found.save_html(tmp_path / f"{i}.html", source=source).read_text("utf-8")
        assert re.search(rf'<p class="made">net:Net on 64 images of &lt;images&gt;; seed 0 · {made}</p>', text)
    assert re.search(rf'<p class="made">{made}</p>', REPORT.save_html(tmp_path / "a.html").read_text("utf-8"))


def test_of_signals(tmp_path):
    signal = Signal((LAYER,))
    assert "Signal report" in signal.save_html(tmp_path / "a.htm").read_text("utf-8")
    compared = signal.compare(signal, labels=("run A", "run B")).save_html(tmp_path / "b.HTML")
    assert "run B" in compared.read_text("utf-8")
    assert "before" in REPORT.save_html(tmp_path / "c.html", before=signal, after=signal).read_text("utf-8")


def test_the_tree_of_a_flat_model_is_closed(tmp_path):
    nested = replace(REPORT, records=tuple(replace(RECORD, name=f"body.{i}.weight") for i in range(2)))
    for report, place in ((REPORT, 'flat">\n<details class="modules">'), (nested, '<details class="modules" open>')):
        assert place in report.save_html(tmp_path / "a.html").read_text("utf-8")


def test_code_in_advice_is_marked_as_code(tmp_path):
    signal = Signal(tuple(replace(LAYER, name=f"{i}.weight", std=0.5**i) for i in range(30)))
    text = signal.save_html(tmp_path / "a.html").read_text("utf-8")
    assert re.search(r'<p class="advice">LSUV mends this: <code>goodinit\.lsuv_\(model, data\)</code> \w', text)


def test_nothing_is_loaded_from_anywhere(tmp_path):
    page = Page(REPORT.save_html(tmp_path / "a.html", after=Signal((LAYER,))).read_text("utf-8"))
    links = [value for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")]
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert "url(" not in page.texts["style"]
    assert "@import" not in page.texts["style"]
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


EVIL = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\"'&amp;{{ 7*7 }}"


def test_names_are_text(tmp_path):
    record = replace(RECORD, name=f"{EVIL}.weight", operator=EVIL, status="no-signal")
    layer = replace(LAYER, name=f"{EVIL}.weight", operator=EVIL, activation=EVIL)
    signal = Signal((layer,), batch=EVIL)
    path = Report((record,), 1, 0.0, 0.0, EVIL).save_html(tmp_path / "a.html", before=signal, after=signal, title=EVIL)
    page = Page(path.read_text("utf-8"))
    assert len(page.all("script")) == 2
    assert page.all("img") == []
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert json.loads(page.texts["data"])["columns"]["name"] == [f"{EVIL}.weight"]
    assert any(button.get("data-layer") == f"{EVIL}.weight" for button in page.all("button"))


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters()), st.floats())
def test_any_name_and_any_number(name, number):
    text = rendered(content_of(Sources(after=Signal((replace(LAYER, name=name, std=number),)))))
    data = json.loads(Page(text).texts["data"], parse_constant=pytest.fail)
    assert data["columns"]["name"] == [name]
    text.encode("utf-8", "backslashreplace")


def test_half_a_surrogate_pair_in_a_name(tmp_path):
    path = Signal((replace(LAYER, name="a\ud800.weight"),)).save_html(tmp_path / "a.html")
    assert r"a\ud800" in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("report.pdf", r"a page cannot be saved as '.*report\.pdf': its name should end in \.html, by which browsers know it"),
        ("report", r"its name should end in \.html"),
        ("folder", r"which is a folder; name a file in it, '.*folder.goodinit\.html'"),
        ("nowhere/a.html", r"No such file or directory; name a file in a folder that you can write to"),
    ],
)
def test_a_path_that_no_page_can_have(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError, match=message):
        REPORT.save_html(tmp_path / name)
    with pytest.raises(OptionError, match=message):
        check_page_path(tmp_path / name)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_cannot_be(tmp_path, lr):
    with pytest.raises(OptionError, match="lr must be a positive number, not "):
        REPORT.save_html(tmp_path / "a.html", lr=lr)
    assert list(tmp_path.iterdir()) == []


def test_on_a_full_disk_the_old_page_stays(tmp_path):
    path = tmp_path / "a.html"
    path.write_text("old")
    (tmp_path / "report.json").write_text(REPORT.to_json())
    code = (
        "import resource, sys; from pathlib import Path; from goodinit import Report; from goodinit.errors import SaveError\n"
        f"report = Report.from_json(Path({str(tmp_path / 'report.json')!r}).read_text())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"try: report.save_html({str(path)!r})\nexcept SaveError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot save a.html in " in done.stdout
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "report.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises((OptionError, SaveError), match="Permission denied"):
        REPORT.save_html(tmp_path / "a.html")


def test_without_jinja(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"jinja2 is not installed; .* pip install 'goodinit\[page\]'"):
        REPORT.save_html(tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_a_thousand_layers_is_under_three_megabytes():
    """With all that can be measured, before and after."""
    layers = [
        Layer(
            f"transformer.blocks.{i // 4}.attention.projection{i % 4}.weight",
            *("addmm", (1024, 4096), 0.0123456, 1.2345e-7 * (i + 1), 0.00123456, 0.123456, 0.456789),
            activation="gelu",
            **dict.fromkeys(("dead", "saturated", "grad_std", "weight_norm", "weight_grad_norm"), 1.23456e-4 * i),
            histogram=tuple((7 * i * k) % 251 for k in range(32)),
            output_shape=(64, 128, 1024),
        )
        for i in range(1000)
    ]
    records = tuple(replace(RECORD, name=layer.name, factor=1.23456 * i) for i, layer in enumerate(layers))
    signal = Signal(tuple(layers), loss=1.0)
    text = rendered(content_of(Sources(Report(records, 1, 1.0, 0.5), signal, signal)))
    assert len(text.encode()) < 3_000_000
    assert len(re.findall("<tr>", text)) == 1001


def test_the_page_s_files_are_in_the_wheel(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    pytest.importorskip("hatchling")
    subprocess.run(build, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("goodinit/page/")}
    assert names >= {path.name for path in (ROOT / "src" / "goodinit" / "page").iterdir() if path.is_file()}
