"""Makes deep networks trainable before the first step of training: LSUV initialization in one forward pass."""

import importlib
from typing import TYPE_CHECKING, Any

from goodinit.errors import (
    DataError,
    GoodinitError,
    GoodinitWarning,
    ModelError,
    NonFiniteError,
    OptionError,
)

if TYPE_CHECKING:
    from goodinit.lsuv import lsuv_
    from goodinit.measurement.propagation import measure
    from goodinit.measurement.signals import Signal
    from goodinit.orthonormal import orthonormal_
    from goodinit.report import Record, Report
    from goodinit.schemes import init_

__version__ = "0.1.0"

__all__ = [
    "DataError",
    "GoodinitError",
    "GoodinitWarning",
    "ModelError",
    "NonFiniteError",
    "OptionError",
    "Record",
    "Report",
    "Signal",
    "init_",
    "lsuv_",
    "measure",
    "orthonormal_",
]

# Imported when they are asked for: torch takes seconds to load, which the command line need not wait for to print its help, or to
# complete a word.
_MODULES = {
    "Record": "report",
    "Report": "report",
    "Signal": "measurement.signals",
    "init_": "schemes",
    "lsuv_": "lsuv",
    "measure": "measurement.propagation",
    "orthonormal_": "orthonormal",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"goodinit.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
