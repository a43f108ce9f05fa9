"""How each layer fares: one word, by which a page colours it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from goodinit.measurement.layer import Finding, Layer
from goodinit.measurement.signals import Signal
from goodinit.report import Record

# What the words mean; the gravest first, which is the order of sorting.
HEALTHS: dict[str, str] = {
    "fault": "a fault begins here",
    "affected": "suffers from a fault that begins elsewhere",
    "healthy": "no fault found",
    "unjudged": "left as it was, or not measured",
}
# Faults that everything behind them suffers from.
_SPREADING = frozenset({"vanishing", "exploding", "collapse", "non-finite"})
_TIMES = 10


def worst(healths: Iterable[str]) -> str:
    """The gravest of them; ``"unjudged"`` of none."""
    found = set(healths)
    return next((health for health in HEALTHS if health in found), "unjudged")


def health_of_record(record: Record) -> str:
    """By its status, for no threshold is needed: LSUV reaches its target or says why not."""
    if not record.ok:
        return "fault"
    return "healthy" if record.status in ("scaled", "shared") else "unjudged"


def healths_of_signal(signal: Signal) -> Mapping[str, str]:
    """Of every layer by name: where a fault begins, and what suffers from it."""
    healths = {layer.name: "healthy" for layer in signal}
    for finding in signal.findings:
        suffers = _sufferers(finding, signal)
        for place, layer in enumerate(signal):
            if layer.name == finding.layer:
                healths[layer.name] = "fault"
            elif suffers(place, layer):
                healths[layer.name] = worst([healths[layer.name], "affected"])
    return healths


def _sufferers(finding: Finding, signal: Signal) -> Callable[[int, Layer], bool]:
    """Tells by its place in call order and its figures whether a layer suffers from a fault."""
    begins = next((layer for layer in signal if layer.name == finding.layer), None)
    if finding.kind == "non-finite" and begins is not None and begins.finite:  # on the way back
        return lambda _, layer: not all(map(math.isfinite, (layer.grad_std or 0, layer.weight_grad_norm or 0)))
    if finding.kind in _SPREADING:
        start = next((place for place, layer in enumerate(signal) if layer.name == finding.layer), len(signal))
        return lambda place, _: place > start
    if finding.kind in ("dead", "saturated"):
        return lambda _, layer: (getattr(layer, finding.kind) or 0) >= 0.5
    if finding.kind == "same-units":
        return lambda _, layer: bool(layer.same_units)
    if finding.kind in ("gradient-vanishing", "gradient-exploding"):
        end = next((layer.grad_norm for layer in reversed(signal.layers) if layer.grad_norm is not None), 0)
        return lambda _, layer: layer.grad_norm is not None and not end / _TIMES <= layer.grad_norm <= end * _TIMES
    return lambda *_: False
