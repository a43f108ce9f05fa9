"""Makes the pictures of the documentation, from the code of its pages: python docs/pictures.py."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "pictures"
# Name, width and height, colours.
VIEWS = (("desktop", 1280, 1180, "light"), ("phone", 360, 780, "dark"))


def main() -> None:
    """Make all of them."""
    PICTURES.mkdir(exist_ok=True)
    tutorial()
    pages()


def tutorial() -> None:
    """Run the tutorial, and keep its picture."""
    path = PICTURES / "tutorial.png"
    exec(code_of("tutorial.md").replace('"signal.png"', repr(str(path)) + ", dpi=80"), {})  # noqa: S102 - our own page's


def pages() -> None:
    """Run the page on diagnosing, and photograph the report that it saves, in Chromium."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(code_of("diagnosing.md"), {})  # noqa: S102 - our own page's
        photograph(Path(folder) / "report.html")
        os.chdir(DOCS)


def photograph(report: Path) -> None:
    """Take a picture of every view, with the mouse over a layer."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        for name, width, height, colours in VIEWS:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
            page.goto(report.as_uri())
            if name == "phone":
                page.locator("#depth").evaluate("section => section.scrollIntoView({behavior: 'instant'})")
            page.locator("svg.panel").first.hover(position={"x": width * 0.5, "y": 130})
            page.screenshot(path=PICTURES / f"page-{name}.png")
        browser.close()


def code_of(name: str) -> str:
    """All that a page of the documentation runs, what it takes for granted included."""
    page = (DOCS / name).read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- setup\n(.*?)-->|```python\n(.*?)```", page, re.DOTALL)
    return "\n".join(setup or code for setup, code in blocks)


if __name__ == "__main__":
    main()
