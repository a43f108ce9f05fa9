"""Makes deep networks trainable before the first step of training: LSUV initialization in one forward pass."""

from goodinit.errors import (
    DataError,
    GoodinitError,
    GoodinitWarning,
    ModelError,
    NonFiniteError,
    OptionError,
)
from goodinit.lsuv import lsuv_
from goodinit.orthonormal import orthonormal_
from goodinit.propagation import measure
from goodinit.report import Record, Report
from goodinit.schemes import init_
from goodinit.signals import Signal

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
