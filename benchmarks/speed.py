"""Section a: lsuv_ against what it cannot do without: one plain forward, and drawing the orthonormal matrices."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from checks import GRAM_TOLERANCE, GramError, counted_passes, failed_passes, failed_stds, gram_error, output_stds, span
from networks import Net
from rows import Rows
from timing import interleaved, median_ratio, ratios, timed
from torch import Tensor, nn

from goodinit import Report, lsuv_, orthonormal_

# Multiplications for the Gram matrices of one weight: a check after every call.
_GRAM_COST = 2e9


@dataclass
class Results:
    """What the checks after the calls of one contestant found."""

    failed: list[str] = field(default_factory=list)
    stds: list[tuple[float, float]] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    gram: GramError = field(default_factory=lambda: GramError(0.0, 0, 0))

    def metrics(self) -> dict[str, Any]:
        """For a row."""
        gram = {"gram_error": self.gram.error, "gram_rows_checked": self.gram.rows_checked, "gram_rows": self.gram.rows}
        return {
            "std_min": min(low for low, _ in self.stds),
            "std_max": max(high for _, high in self.stds),
            "forward_passes": max(self.passes),
            "failed_checks": self.failed,
            **(gram if self.gram.rows else {}),
        }


def measure(net: Net, rows: Rows, *, repeats: int, budget: float, seed: int) -> None:
    """Rows of one network."""
    model, batch = net.make(seed)
    # Also gives the forward a signal of unit size: in a deep net as PyTorch initializes it, it would compute with denormal
    # numbers, slowly.
    report = lsuv_(model, batch, pre_init=None)
    shapes = sampled_shapes(model, report)
    full, kept = Results(), Results()
    seconds = interleaved(
        {
            "forward": lambda: timed_forward(model, batch),
            "sampling": lambda: timed_sampling(shapes),
            "lsuv_": lambda: timed_lsuv(model, batch, full, orthonormal=True),
            "lsuv_(pre_init=None)": lambda: timed_lsuv(model, batch, kept, orthonormal=False),
        },
        repeats,
        budget,
    )
    forward, sampling = seconds["forward"], seconds["sampling"]
    common: dict[str, Any] = {"weights": len(shapes), "parameters": sum(p.numel() for p in model.parameters())}
    rows.add("a", net.name, "forward", seconds=forward, **common)
    rows.add("a", net.name, "sampling", seconds=sampling, **common)
    for contestant, results, limit in (
        ("lsuv_", full, (forward, sampling)),
        ("lsuv_(pre_init=None)", kept, (forward,)),
    ):
        own = seconds[contestant]
        limit_ratios: dict[str, Any] = {"ratio": median_ratio(own, *limit), "ratios": ratios(own, *limit)}
        rows.add("a", net.name, contestant, seconds=own, **limit_ratios, **common, **results.metrics())
    print(f"a  {net.name}: lsuv_ {statistics.median(seconds['lsuv_']):.3g} s", flush=True)


@torch.no_grad()
def timed_forward(model: nn.Module, batch: Tensor) -> float:
    return timed(lambda: model(batch))


def sampled_shapes(model: nn.Module, report: Report) -> list[tuple[tuple[int, ...], int]]:
    """Shape and groups of every weight that a report lists as scaled."""
    scaled = [record for record in report if record.status == "scaled"]
    modules = [model.get_submodule(record.name.rpartition(".")[0]) for record in scaled]
    return [(record.shape, getattr(module, "groups", 1)) for record, module in zip(scaled, modules, strict=True)]


def timed_sampling(shapes: list[tuple[tuple[int, ...], int]]) -> float:
    """Seconds of orthonormal_ on tensors of these shapes, their memory already there, as that of a model's weights is."""
    seconds = 0.0
    for shape, groups in shapes:
        seconds += timed(partial(orthonormal_, torch.ones(shape), groups=groups))
    return seconds


def timed_lsuv(model: nn.Module, batch: Tensor, results: Results, *, orthonormal: bool) -> float:
    """Seconds of lsuv_, whose results are then checked."""
    reports: list[Report] = []
    with counted_passes(model) as passes:
        seconds = timed(lambda: reports.append(lsuv_(model, batch, pre_init="orthonormal" if orthonormal else None)))
    stds = output_stds(model, batch, training=True)
    results.failed += failed_stds(stds, expected=sum(record.status == "scaled" for record in reports[0]))
    results.stds.append(span(stds))
    results.passes.append(passes.most)
    results.failed += failed_passes(passes)
    if orthonormal:
        check_gram(model, reports[0], results)
    return seconds


def check_gram(model: nn.Module, report: Report, results: Results) -> None:
    """Every scaled weight is orthonormal but for its scale."""
    found = results.gram
    for record, (_, groups) in zip((r for r in report if r.status == "scaled"), sampled_shapes(model, report), strict=True):
        gram = gram_error(model.get_parameter(record.name), groups, up_to_scale=True, cost=_GRAM_COST)
        found = GramError(max(found.error, gram.error), found.rows_checked + gram.rows_checked, found.rows + gram.rows)
        if not gram.error < GRAM_TOLERANCE:
            results.failed.append(f"{record.name} has a Gram error of {gram.error:.1e}")
    results.gram = found
