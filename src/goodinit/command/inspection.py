"""The work of ``goodinit inspect``, in its order: check what is asked for, measure, save."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import goodinit
from goodinit.command.inputs import Inputs
from goodinit.command.objective import objective
from goodinit.command.preparation import Setup, running
from goodinit.command.report_files import check_paths, save_reports
from goodinit.errors import OptionError
from goodinit.measurement.propagation import measure
from goodinit.measurement.signals import Signal
from goodinit.progress import busy


@dataclass(frozen=True)
class Inspected:
    """What was found."""

    setup: Setup
    inputs: Inputs
    signal: Signal
    reports: tuple[Path, ...]

    def show(self) -> None:
        """Print it for people."""
        self.signal.show()
        lines = [self.setup.source(self.inputs)]
        if self.signal.loss is None:
            lines.append("Gradients were not judged: --loss does that.")
        print("\n".join([*lines, *(f"Saved {path}" for path in self.reports)]))  # noqa: T201 - its purpose

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "goodinit": goodinit.__version__,
            "model": self.setup.model,
            "data": self.inputs.text,
            "seed": self.setup.seed,
            "healthy": self.signal.healthy,
            "verdict": self.signal.verdict,
            "findings": [asdict(finding) for finding in self.signal.findings],
            "reports": [str(path) for path in self.reports],
            "signal": json.loads(self.signal.to_json()),
        }


def inspected(setup: Setup, loss: str | None, lr: float | None, reports: tuple[Path, ...]) -> Inspected:
    """Measure a model.

    Raises:
        GoodinitError: of many kinds; nothing was saved, and what was there before is as it was.
    """
    if lr is not None and loss is None:
        raise OptionError("--lr judges the updates that follow from gradients, so it needs --loss")
    check_paths(reports, None, setup.data, setup.weights)
    model, inputs = setup.prepare()
    function = None if loss is None else objective(loss, inputs.labels)
    with running(model, inputs), busy("goodinit: measuring"):
        signal = measure(model, inputs.batches[0], function, lr=lr)
    save_reports(reports, setup.model, setup.source(inputs), after=signal)
    return Inspected(setup, inputs, signal, reports)
