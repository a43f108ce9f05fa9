"""The work of ``goodinit init``, in its order: check what is asked for, initialize, save."""

from __future__ import annotations

import contextlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

import goodinit
from goodinit.command import arguments
from goodinit.command.inputs import Inputs
from goodinit.command.preparation import Setup, running
from goodinit.command.report_files import check_paths, need_signals, save_reports
from goodinit.command.weight_files import check_saveable, check_weights_path, save_weights
from goodinit.errors import GoodinitWarning, OptionError
from goodinit.lazy import shapeless
from goodinit.lsuv import lsuv_
from goodinit.measurement.propagation import measure
from goodinit.options import VARIANCES
from goodinit.progress import busy
from goodinit.report import Report

if TYPE_CHECKING:
    from goodinit.options import Variance


_KEPT = frozenset({"skipped", "frozen", "tied", "unsupported", "scale-invariant"})
"""What becomes of a matrix that is not drawn."""


@dataclass(frozen=True)
class Wishes:
    """What is asked for beyond a model and data, as words of the command line."""

    skip: tuple[str, ...] = ()
    target_std: tuple[str, ...] = ()
    pre_init: str = "orthonormal"
    variance: str = "all"
    center: bool = False
    target_mean: float = 0.0
    out: Path | None = None
    reports: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Initialized:
    """What was done."""

    setup: Setup
    inputs: Inputs
    report: Report
    out: Path | None
    size: int
    """Of the file ``out``, in bytes."""
    reports: tuple[Path, ...]
    was_lazy: bool = False
    """Whether the model that was made had layers without a form."""

    def show(self) -> None:
        """Print it for people."""
        self.report.show()
        lines = [self.setup.source(self.inputs)]
        if self.out is None:
            lines.append("The weights were not saved: --out FILE.safetensors does that.")
        else:
            first = ", once a forward has given the lazy layers their form" if self.was_lazy else ""
            load = f"load it with safetensors.torch.load_model(model, {str(self.out)!r}){first}"
            lines.append(f"Saved {self.out} ({self.size:,} bytes); {load}")
        print("\n".join([*lines, *(f"Saved {path}" for path in self.reports)]))  # noqa: T201 - its purpose

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "goodinit": goodinit.__version__,
            "model": self.setup.model,
            "data": self.inputs.text,
            "seed": self.setup.seed,
            "ok": self.report.ok,
            "out": None if self.out is None else str(self.out),
            "reports": [str(path) for path in self.reports],
            "report": json.loads(self.report.to_json()),
        }


def _given(inputs: Inputs, *, with_labels: bool) -> dict[str, Any]:
    """Arguments of `goodinit.lsuv_`; ``with_labels``: which decide, if they are classes, how large the model's output may be."""
    if not with_labels or inputs.labels is None:
        return {"data": inputs.data}

    def forward(model: nn.Module, batch: dict[str, Any]) -> object:
        given = batch["given"]
        return model(**given) if isinstance(given, dict) else model(*given)

    return {"data": {"given": inputs.data, "labels": inputs.labels}, "forward": forward}


def initialize(setup: Setup, wishes: Wishes) -> Initialized:
    """Initialize a model and save it.

    Raises:
        GoodinitError: of many kinds; nothing was saved, and what was there before is as it was.
    """
    targets = arguments.targets(wishes.target_std)
    pre_init = arguments.PRE_INITS[arguments.chosen("--pre-init", wishes.pre_init, arguments.PRE_INITS)]
    variance = cast("Variance", arguments.chosen("--variance", wishes.variance, VARIANCES))
    if wishes.target_mean and not wishes.center:
        raise OptionError("--target-mean is what --center brings the channels' means to: give both")
    check_paths(wishes.reports, wishes.out, setup.data, setup.weights)
    if wishes.out is not None:
        check_weights_path(wishes.out)
    model, inputs = setup.prepare()
    if wishes.out is not None:
        check_saveable(model)
    was_lazy, shown = shapeless(model) is not None, need_signals(wishes.reports)
    several = len(inputs.batches) > 1  # which show a bar of their own
    with running(model, inputs), contextlib.nullcontext() if several else busy("goodinit: initializing"):
        before = measure(model, inputs.batches[0]) if shown else None
        report = lsuv_(
            model,
            **_given(inputs, with_labels=targets == "auto"),
            target_std=targets,
            variance=variance,
            center=wishes.center,
            target_mean=wishes.target_mean,
            pre_init=pre_init,
            skip=wishes.skip,
            batches=len(inputs.batches),
            generator=torch.Generator().manual_seed(setup.seed),
        )
        after = measure(model, inputs.batches[0]) if shown else None
    if setup.weights is not None and pre_init is not None and not any(record.status in _KEPT for record in report):
        warnings.warn(
            f"all matrices of {str(setup.weights)!r} are drawn anew: --pre-init none keeps and scales them, --skip keeps some",
            GoodinitWarning,
            stacklevel=2,
        )
    size = 0 if wishes.out is None else save_weights(model, wishes.out)
    save_reports(wishes.reports, setup.model, setup.source(inputs), report=report, before=before, after=after)
    return Initialized(setup, inputs, report, wishes.out, size, wishes.reports, was_lazy)
