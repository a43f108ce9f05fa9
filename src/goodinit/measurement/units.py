"""Faults of single layers: units that are dead, outputs where a non-linearity is flat, steps of the wrong size."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from goodinit.measurement.advice import against_saturation
from goodinit.measurement.courses import Course
from goodinit.measurement.layer import HEALTHY_UPDATES, Finding, Layer

# Share of units dead: in one layer, in a tenth of them. SqueezeNet has 54 % in one.
_DEAD, _MOSTLY_DEAD, _OFTEN = 0.5, 0.75, 0.1
# Share of elements where tanh or the like is flat; at std 1 tanh has 3 %.
_SATURATED = 0.5
# Of fewer elements than this a unit may have none above 0 by chance.
_ELEMENTS = 32
# Relative updates: ten times outside of the healthy ones.
_UPDATE_LARGE, _UPDATE_SMALL = 10 * HEALTHY_UPDATES[1], HEALTHY_UPDATES[0] / 10


def dead(layers: Sequence[Layer], collapse: Finding | None) -> Finding | None:
    """Units that no sample moves."""
    # An output of zeros has an input of zeros, by design or for a reason further up.
    judged = [layer for layer in layers if layer.dead is not None and layer.std and has_enough(layer)]
    bad = [layer for layer in judged if (layer.dead or 0) >= _DEAD]
    worst = max(bad, key=lambda layer: layer.dead or 0, default=None)
    if worst is None or ((worst.dead or 0) < _MOSTLY_DEAD and len(bad) < max(2, _OFTEN * len(judged))):
        return None
    others = f", and half or more in {len(bad)} of {len(judged)} layers" if len(bad) > 1 else ""
    begin = f"From {bad[0].name} on units are dead: {share(bad[0].dead or 0)} after it, " if bad[0] is not worst else ""
    are = "" if begin else " of the units are dead"
    text = (
        f"{begin}{share(worst.dead or 0)}{are} after {worst.name} ({worst.activation}; its output has the mean "
        f"{worst.mean:.3g} and the std {worst.std:.2g}){others}."
    )
    finding = Finding("dead", bad[0].name, text, "")
    advice = "It comes with the collapse: where samples are alike, a unit is on for all of them or for none."
    if worst.normalized:
        advice = (
            "A normalization layer lies in between, whose bias and gain say where its outputs are, and LSUV leaves these: set "
            "them to 0 and 1. In training it comes from a learning rate that is too large. A leaky ReLU has no dead units."
        )
    elif collapse is None or leads_to(collapse, finding, layers):
        advice = (
            "LSUV mends it where biases far below 0 are the cause: goodinit.lsuv_(model, data) sets them to 0. In training it "
            "comes from a learning rate that is too large. A leaky ReLU has no dead units."
        )
    return replace(finding, advice=advice)


def leads_to(collapse: Finding, dying: Finding, layers: Sequence[Layer]) -> bool:
    """Whether a layer that stops nearly everything lies in front of it: in a gradual collapse half of the units are dead."""
    names = [layer.name for layer in layers]
    place = names.index(dying.layer)
    return (layers[place].dead or 0) >= _MOSTLY_DEAD and place < names.index(collapse.layer)


def has_enough(layer: Layer) -> bool:
    """Whether a unit has enough elements in the batch to be judged by."""
    return math.prod(layer.output_shape) / (layer.channels or 1) >= _ELEMENTS


def saturated(layers: Sequence[Layer]) -> Finding | None:
    """Outputs where the non-linearity is flat."""
    bad = [layer for layer in layers if (layer.saturated or 0) >= _SATURATED]
    if not bad:
        return None
    worst = max(bad, key=lambda layer: layer.saturated or 0)
    others = f"; half or more in {len(bad)} layers" if len(bad) > 1 else ""
    where = f"the output of {worst.name} (std {worst.std:.2g})"
    text = f"{share(worst.saturated or 0)} of {where} lie where {worst.activation} is flat{others}."
    return Finding("saturated", bad[0].name, text, against_saturation(layers))


def updates(layers: Sequence[Layer], lr: float) -> Finding | None:
    """Steps that are too large or too small for a learning rate."""
    course = Course.of(layers, lambda layer: layer.relative_update(lr))
    if not course.values or not any(course.values) or not all(map(math.isfinite, course.values)):
        return None
    middle, most = statistics.median(course.values), max(course.values)
    worst, suits = course.layers[course.values.index(most)].name, lr * HEALTHY_UPDATES[1] / most
    median = f"by {share(middle)} in the median; 0.1 % to 1 % is healthy"
    if most > _UPDATE_LARGE:
        text = f"At lr={lr:g} the first step of SGD changes {worst} by {share(most)} of its norm, all weights {median}."
        return Finding("update-size", worst, text, f"lr={suits:.1g} would suit that weight.")
    if middle < _UPDATE_SMALL:
        text = f"At lr={lr:g} the first step of SGD changes the weights {median}."
        return Finding("update-size", worst, text, f"Take lr={suits:.1g}, unless Adam or the like sets the size of steps.")
    return None


def share(value: float) -> str:
    """As percents, or scientific where these would hide it."""
    percent = 100 * value
    return f"{value:.1e}" if value < 1e-4 and value else f"{percent:.0f} %" if percent >= 10 or not value else f"{percent:.2g} %"
