"""What to run, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from goodinit.errors import OptionError
from goodinit.paper.config import Run
from goodinit.paper.experiment import Cell, Experiment


@dataclass(frozen=True)
class Order:
    """The runs of an experiment that are asked for."""

    experiment: Experiment
    budget: str
    seeds: int = 1
    only: tuple[str, ...] = ()
    data_dir: Path | None = None
    device: str = "cpu"
    compiled: bool = False
    precision: str | None = None
    """In place of that of the experiment."""
    checkpoint_seconds: float = 60.0
    """How much work a kill may cost."""

    def runs(self) -> list[tuple[Cell, Run]]:
        """All of them, every cell once before any has a second seed.

        Raises:
            OptionError: an unknown budget, a pattern without a match, no seed.
        """
        if self.seeds < 1:
            raise OptionError(f"seeds must be 1 or more; got {self.seeds}")
        if self.compiled and self.experiment.kind != "training":
            raise OptionError(f"--compile is for trainings; nothing is trained in {self.experiment.name}")
        cells = self.experiment.selected(self.budget, self.only)
        return [(cell, self._of_seed(cell.run, seed)) for seed in range(self.seeds) for cell in cells]

    def with_what_applies(self) -> Order:
        """Without what its experiment cannot have: nothing is compiled but trainings, and walks have one precision."""
        kind = self.experiment.kind
        return replace(self, compiled=self.compiled and kind == "training", precision=None if kind == "walk" else self.precision)

    def _of_seed(self, run: Run, seed: int) -> Run:
        return replace(run, seed=seed, precision=self.precision or run.precision)


def device_named(name: str, *, elsewhere: bool = False) -> str:
    """``"cpu"``, ``"cuda"``, or for ``"auto"`` a GPU if there is one here. ``elsewhere``: it is another machine's.

    Raises:
        OptionError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise OptionError(f"device must be cpu, cuda or auto; got {name!r}")
    if name == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise OptionError("there is no GPU that this PyTorch can use (torch.cuda.is_available() is False); try --device cpu")
    return name
