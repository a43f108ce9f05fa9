"""``python -m goodinit`` and the ``goodinit`` command."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from goodinit.errors import MissingExtraError, require


def main() -> None:
    """Run the command line, or say which extra it needs."""
    if sys.stdout is None:  # closed by who started this, as some daemons do
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until the end
    try:
        _run()
    except MissingExtraError as error:
        sys.exit(f"goodinit: {error}")
    except KeyboardInterrupt:  # while it was still being loaded; later it is the commands' own to say so
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # What is left in the buffer goes nowhere, or Python would try once more at its end, and show a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"goodinit: cannot write to standard output: {error.strerror}")


def _run() -> None:
    require("typer", extra="cli")
    require("rich", extra="cli")
    from goodinit.cli import app  # noqa: PLC0415 - needs the extra

    try:
        app()
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    main()
