"""What ``target_std="auto"`` measured and chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One setting of `goodinit.lsuv_`, measured in one forward and one backward pass."""

    target_std: float
    center: bool
    target_mean: float
    gradient_ratio: float | None
    """Size of the gradient at the outputs of the first layers, as a multiple of that at the last ones. None: there is none."""
    similarity: float | None
    """Mean cosine between distinct samples in the last layers: at 1 the output is the same whatever the input. None for a batch
    of one."""
    distinct: float | None
    """What the layers leave of the distance between samples: 1 - cosine in the last layers as a multiple of that in the first."""
    forward_ratio: float | None
    """Std of the outputs of the last layers as a multiple of that of the first ones."""
    decades: float
    """How far this is from a gradient as large in the first layers as in the last, from samples as distinct and outputs as large
    in the last as in the first, and from samples that are alike in the last where they are alike in the first: the powers of ten,
    added up."""
    likeness: float | None = None
    """Whether samples that are alike in the first layer are those that are alike in the last ones before the output: correlation,
    over pairs of samples, of their cosines there; below 0 counts as 0. 1: just those; 0: which ones is forgotten. None where
    fewer than eight samples or three layers tell, or all pairs are equally alike in the first."""

    def __str__(self) -> str:
        gradient = "not measured" if self.gradient_ratio is None else f"{self.gradient_ratio:.2g}"
        distinct = "not measured" if self.distinct is None else f"{self.distinct:.2g}"
        likeness = "not measured" if self.likeness is None else f"{self.likeness:.2g}"
        return f"{_call(self)}: gradient ratio {gradient}, samples distinct {distinct}, likeness kept {likeness}"


@dataclass(frozen=True)
class Choice:
    """The setting that was chosen, and why."""

    target_std: float
    center: bool
    target_mean: float
    head: str | None
    """The weight that makes the model's output; None if the last operator's weight was not to be scaled there."""
    head_std: float | None
    """The target of this one: 0.1 at most, unless the batch's targets are classes."""
    reason: str
    trials: tuple[Trial, ...]
    """All that were measured, in their order."""
    passes: int
    """Forward passes that it took; a backward pass for each trial besides."""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Choice:
        """From what JSON has of it."""
        return cls(**{**raw, "trials": tuple(Trial(**trial) for trial in raw["trials"])})

    def __str__(self) -> str:
        head = "" if self.head is None or self.head_std == self.target_std else f", {self.head!r} {self.head_std:g}"
        return "\n".join([f"auto: {_call(self)}{head}: {self.reason}", *(f"  {trial}" for trial in self.trials)])


def _call(chosen: Trial | Choice) -> str:
    """The options, as one would write them."""
    mean = f", target_mean={chosen.target_mean:g}" if chosen.target_mean else ""
    return f"target_std={chosen.target_std:g}{', center=True' if chosen.center else ''}{mean}"
