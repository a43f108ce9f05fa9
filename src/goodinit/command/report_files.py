"""What a command found as files: a page, a picture, JSON, by the file's name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from goodinit.errors import OptionError, require
from goodinit.files import check_writable, write_whole
from goodinit.report import Report
from goodinit.signals import Signal


def check_paths(reports: Iterable[Path], out: Path | None, data: str) -> None:
    """Refuse paths that no report could be saved at, or that would take another file's place: before the work, not after.

    Raises:
        OptionError: an unknown kind of file, no such folder, no permission, the same file twice.
        MissingExtraError: what makes it is not installed.
    """
    taken = {Path(data).resolve(): "--data"} | ({} if out is None else {out.resolve(): "--out"})
    for path in (*([] if out is None else [out]), *reports):
        option = "--out" if path is out else "--report"
        if taken.get(path.resolve(), option) != option:
            raise OptionError(f"{option} {str(path)!r} is the file of {taken[path.resolve()]}, which it would replace")
    for path in reports:
        _check(path)


def _check(path: Path) -> None:
    kind = path.suffix.lower()
    if kind in (".html", ".json"):
        check_writable(path, what="a report", example="report.html")
    if kind == ".html":
        require("jinja2", extra="page")
    if kind not in (".html", ".json"):
        from goodinit.plots import check_picture_path, picture_formats  # noqa: PLC0415 - needs the extra

        formats = picture_formats()
        if kind.lstrip(".") not in formats:
            raise OptionError(
                f"--report {str(path)!r}: its name should end in .html, .json, or one of a picture: {', '.join(formats)}"
            )
        check_picture_path(path)


def save_reports(
    paths: Sequence[Path], title: str, *, report: Report | None = None, before: Signal | None = None, after: Signal | None = None
) -> None:
    """Save an initialization with the signals before and after it, or a signal.

    Raises:
        SaveError: the disk is full, or the like; what was there before is as it was.
    """
    for path in paths:
        if path.suffix.lower() == ".json":
            found = report or after
            assert found is not None
            write_whole(path, found.to_json().encode() + b"\n")
