"""``python -m goodinit`` and the ``goodinit`` command."""

from __future__ import annotations

import sys

from goodinit.errors import MissingExtraError, require


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        require("typer", extra="cli")
        require("rich", extra="cli")
        from goodinit.cli import app  # noqa: PLC0415 - needs the extra

        app()
    except MissingExtraError as error:
        sys.exit(f"goodinit: {error}")
    except KeyboardInterrupt:  # while it was still being loaded
        sys.exit(130)


if __name__ == "__main__":
    main()
