"""From content to one HTML file that works without a network, and saves whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import goodinit
from goodinit.errors import OptionError, require
from goodinit.files import check_writable, write_whole
from goodinit.page.content import Content, content_of
from goodinit.page.health import HEALTHS
from goodinit.page.sources import Sources

# Read in this order: each uses what those before it define.
_SCRIPTS = ("data.js", "scale.js", "chart.js", "zoom.js", "layer.js", "table.js", "tree.js", "start.js")
_SUFFIXES = (".html", ".htm")
_CODE = re.compile(r"""([\w.]*\w\([^()]*\)|\w+=(?:'[^']*'|"[^"]*"|\w+(?:\.\w+)*)?)""")
# More of them than a person reads are folded or left out.
_MOST_NOTES, _MOST_NAMES = 8, 6


def save_page(path: str | Path, sources: Sources, *, title: str = "", source: str = "") -> Path:
    """Write a page about an initialization, a signal, or two signals.

    Args:
        path: of the file, whose name ends in ``.html``.
        sources: what the page is about.
        title: of the page.
        source: of the model and the data, a line under the title.

    Returns:
        The path.

    Raises:
        OptionError: the path is a folder, does not end in .html, or cannot be written to; lr is not positive.
        SaveError: the disk is full; what was there before is as it was.
        MissingExtraError: Jinja2 is not installed.
    """
    path = Path(path)
    check_page_path(path)
    if not 0 < sources.rate < math.inf:
        raise OptionError(f"lr must be a positive number, not {sources.rate!r}")
    page = rendered(content_of(sources, title), source)
    write_whole(path, page.encode("utf-8", "backslashreplace"))  # a name may hold half a surrogate pair
    return path


def check_page_path(path: Path) -> None:
    """Refuse a path that no page could be saved at: before the work whose result it should show, not after.

    Raises:
        OptionError: a folder, another ending than .html, no such folder, no permission.
    """
    if not path.is_dir() and path.suffix.lower() not in _SUFFIXES:
        raise OptionError(f"a page cannot be saved as {str(path)!r}: its name should end in .html, by which browsers know it")
    check_writable(path, what="a page", example="goodinit.html")


def rendered(content: Content, source: str = "") -> str:
    """The page as text; ``source``: of the model and the data.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    jinja2 = require("jinja2", extra="page")  # escapes what comes from a model: its names may hold anything
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style, script = _style(content), "\n".join(["'use strict';", *map(_asset, _SCRIPTS)])
    environment.filters["pieces"] = _pieces
    page: str = environment.from_string(_asset("template.html")).render(
        content=content,
        healths=HEALTHS,
        most_notes=_MOST_NOTES,
        most_names=_MOST_NAMES,
        version=goodinit.__version__,
        source=source,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        style=environment.filters["safe"](style),
        script=environment.filters["safe"](script),
        policy=_policy(style, script),
    )
    return page


def _pieces(text: str) -> list[tuple[str, bool]]:
    """Stretches of a text, each with whether it is code: a call, an argument.

    >>> _pieces("Try lsuv_(model, data) or center=True.")
    [('Try ', False), ('lsuv_(model, data)', True), (' or ', False), ('center=True', True), ('.', False)]
    """
    return [(part, i % 2 == 1) for i, part in enumerate(_CODE.split(text)) if part]


def _style(content: Content) -> str:
    """A class of the table hides a column: one rule each, where hiding cell by cell takes seconds in a table of thousands."""
    hiding = (
        f"#table.no-{column.key.replace(':', '-')} tr > :nth-child({i}) {{ display: none; }}"
        for i, column in enumerate(content.columns, 1)
    )
    return "\n".join([_asset("page.css"), *hiding])


def _asset(name: str) -> str:
    return (files("goodinit.page") / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Content-Security-Policy: nothing is loaded from anywhere, and no script or style runs but the page's own."""
    own = f"script-src '{_hash(script)}'; style-src '{_hash(style)}'"
    return f"default-src 'none'; {own}; img-src data:; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
