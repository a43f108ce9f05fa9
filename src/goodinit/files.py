"""Files that are whole, whatever happens: a kill, a power cut, a full disk; and what JSON can hold."""

from __future__ import annotations

import glob
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goodinit.errors import OptionError, SaveError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment either its old content is there or the new.

    Raises:
        SaveError: the disk is full, the folder read-only, or the like.
    """
    with replacing(path, len(content)) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def replacing(path: Path, size: int) -> Iterator[Path]:
    """Write a file under another name inside, which takes the place of ``path`` at the end unless anything is raised.

    Args:
        path: the file to be; folders on the way to it are made. Where it is a link, what it points at is replaced.
        size: in bytes, for the error's text.

    Yields:
        Path of an empty file in the same folder, to be written.

    Raises:
        SaveError: the disk is full, the folder read-only, or the like.
    """
    unfinished: Path | None = None
    try:
        _refuse_special(path)
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        # As the file that is there: one's own weights may be nobody else's to read. A temporary one is its owner's alone.
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
        descriptor, name = tempfile.mkstemp(prefix=_unfinished(path), dir=path.parent)
        unfinished = Path(name)
        os.close(descriptor)
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.chmod(mode)
        unfinished.replace(path)
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(f"cannot save {path.name} in {str(path.parent)!r}: {error.strerror}; {size:,} bytes") from error
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


def delete_unfinished(path: Path) -> None:
    """Delete what `replacing` could not, its process having been killed. Only for who alone writes this file."""
    path = path.resolve()
    for unfinished in path.parent.glob(f"{glob.escape(_unfinished(path))}*"):
        unfinished.unlink(missing_ok=True)


def _unfinished(path: Path) -> str:
    """What the names of a file begin with until it is whole."""
    return f".{path.name}-"


def check_writable(path: Path, *, what: str, example: str) -> None:
    """Refuse a path that no file could be saved at: before the work whose result it should hold, not after.

    Args:
        path: asked for.
        what: the thing to be saved, for the message: ``"a picture"``.
        example: a file's name to suggest where ``path`` is a folder.

    Raises:
        OptionError: a folder, in no folder, no permission; a device or a pipe.
    """
    if _is_special(path):
        raise OptionError(f"{what} cannot be saved as {str(path)!r}, which is a device or a pipe; name a file")
    try:
        is_folder, is_new = path.is_dir(), not path.exists()
        if not is_folder:
            with path.open("ab"):  # asks the file system itself, and leaves a file that is there as it is
                pass
    except (OSError, ValueError) as error:  # the latter of a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"{what} cannot be saved as {str(path)!r}: {reason}; name a file in a folder that you can write to"
        ) from error
    if is_folder:
        raise OptionError(
            f"{what} cannot be saved as {str(path)!r}, which is a folder; name a file in it, {str(path / example)!r}"
        )
    if is_new:
        path.unlink()


def _refuse_special(path: Path) -> None:
    if _is_special(path):
        raise SaveError(f"cannot save {str(path)!r}: it is a device or a pipe, in whose place no file may be put")


def _is_special(path: Path) -> bool:
    """Whether something is there, at the end of links too, that is neither a file nor a folder: it may not even be opened."""
    try:
        return path.exists() and not (path.is_file() or path.is_dir())
    except OSError:  # no name that a file can have: opening it will say so
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def for_json(value: Any) -> Any:
    """Numbers that JSON does not know as strings: ``"nan"``, ``"inf"``, ``"-inf"``."""
    if isinstance(value, dict):
        return {key: for_json(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
