"""The experiments that come with goodinit, by name, and the budgets.

Without torch, which takes seconds to load: a shell asks this module for what can be typed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from goodinit.errors import OptionError, require

HERE = Path(__file__).parent
COSTS = {
    "smoke": "seconds a run, too short to learn",
    "short": "minutes a run, of CIFAR-10 15 to 45 on one core",
    "full": "as published; most need a GPU",
}
"""Of the budgets that every experiment has."""
BUDGETS = tuple(COSTS)


def names() -> list[str]:
    """Of the experiments that come with goodinit, tables first."""
    found = (path.stem for path in (HERE / "experiments").glob("*.toml"))
    return sorted(found, key=lambda name: (not name.startswith("table"), name))


def path_of(what: str) -> Path:
    """The file of an experiment, which is a name or a file of one's own."""
    return Path(what) if what.endswith(".toml") else HERE / "experiments" / f"{what}.toml"


def budgets(what: str) -> list[str]:
    """Of an experiment, a name or a file: those that all have, and its own.

    Raises:
        OptionError: it cannot be read, or its budgets are no table.
        MissingExtraError: Python 3.10 without tomli.
    """
    own = content(path_of(what)).get("budgets", {})
    if not isinstance(own, dict):
        raise OptionError(f"{what}: budgets must be a table, {{ key = value }}; got {own!r}")
    return list(dict.fromkeys([*BUDGETS, *own]))


def content(path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        OptionError: it cannot be read.
        MissingExtraError: Python 3.10 without tomli.
    """
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli", extra="paper")  # the latter is a copy of the former
    try:
        found: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no such file; not TOML
        raise OptionError(f"the experiment {str(path)!r} cannot be read: {error}") from error
    return found
