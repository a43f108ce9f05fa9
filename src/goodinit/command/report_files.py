"""What a command found as files: a page, a picture, JSON, by the file's name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from goodinit.errors import OptionError, require
from goodinit.files import check_writable, write_whole
from goodinit.measurement.signals import Signal
from goodinit.report import Report

_PAGES = (".html", ".htm")


def check_paths(reports: Iterable[Path], out: Path | None, *sources: str | Path | None) -> None:
    """Refuse paths that no report could be saved at, or that would take another file's place: before the work, not after.

    Args:
        reports: where to save reports.
        out: where to save weights.
        sources: what is read.

    Raises:
        OptionError: an unknown kind of file, no such folder, no permission, the same file twice.
        MissingExtraError: what makes it is not installed.
    """
    taken = [Path(source).resolve() for source in sources if source is not None]
    for path in (*([] if out is None else [out]), *reports):
        if path.resolve() in taken:
            raise OptionError(f"{str(path)!r} is given twice: it would be written over")
        taken.append(path.resolve())
    for path in reports:
        _check(path)


def _check(path: Path) -> None:
    kind = path.suffix.lower()
    if kind in _PAGES:
        require("jinja2", extra="page")
    elif kind != ".json":
        _check_picture(path)
    check_writable(path, what="a report", example="report.html")


def _check_picture(path: Path) -> None:
    from goodinit.canvas import picture_formats  # noqa: PLC0415 - needs the extra

    formats = picture_formats()
    if path.suffix.lower().lstrip(".") not in formats:
        raise OptionError(f"a report cannot be saved as {str(path)!r}: its name should end in .html, .json, .png, .svg or .pdf")


def need_signals(paths: Iterable[Path]) -> bool:
    """Whether a file shows signals too: JSON of an initialization does not."""
    return any(path.suffix.lower() != ".json" for path in paths)


def save_reports(
    paths: Sequence[Path],
    title: str,
    source: str = "",
    *,
    report: Report | None = None,
    before: Signal | None = None,
    after: Signal | None = None,
) -> None:
    """Save an initialization with the signals before and after it, or a signal alone (``after``).

    Pages say whose they are by ``title`` and ``source``, that of the model and the data.

    Raises:
        SaveError: the disk is full, or the like; what was there before is as it was.
    """
    found = report or after
    assert found is not None
    for path in paths:
        kind = path.suffix.lower()
        if kind == ".json":
            write_whole(path, found.to_json().encode() + b"\n")
        elif kind not in _PAGES:
            assert after is not None
            after.save_picture(path, before)
        elif report is None:
            found.save_html(path, title=title, source=source)
        else:
            report.save_html(path, before=before, after=after, title=title, source=source)
