"""Files that are whole, whatever happens: a kill, a power cut, a full disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from goodinit.errors import GoodinitError, OptionError


class SaveError(GoodinitError, OSError):
    """A file could not be saved; what was there before is as it was."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment either its old content is there or the new.

    Raises:
        SaveError: the disk is full, the folder read-only, or the like.
    """
    unfinished: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}-", dir=path.parent, delete=False) as file:
            unfinished = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).chmod(0o666 & ~_umask())  # a temporary file is its owner's alone
        os.replace(unfinished, path)  # noqa: PTH105 - as atomic as Path.replace, of a name that is a string
    except OSError as error:
        raise SaveError(f"cannot save {path.name} in {str(path.parent)!r}: {error.strerror}; {len(content):,} bytes") from error
    finally:
        if unfinished is not None:
            Path(unfinished).unlink(missing_ok=True)


def check_writable(path: Path, *, what: str, example: str) -> None:
    """Refuse a path that no file could be saved at: before the work whose result it should hold, not after.

    Args:
        path: asked for.
        what: the thing to be saved, for the message: ``"a picture"``.
        example: a file's name to suggest where ``path`` is a folder.

    Raises:
        OptionError: a folder, in no folder, no permission.
    """
    if path.is_dir():
        raise OptionError(
            f"{what} cannot be saved as {str(path)!r}, which is a folder; name a file in it, {str(path / example)!r}"
        )
    is_new = not path.exists()
    try:
        with path.open("ab"):  # asks the file system itself, and leaves a file that is there as it is
            pass
    except OSError as error:
        raise OptionError(
            f"{what} cannot be saved as {str(path)!r}: {error.strerror}; name a file in a folder that you can write to"
        ) from error
    if is_new:
        path.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
