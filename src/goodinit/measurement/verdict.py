"""What is wrong with a signal, in plain words: where it begins, and what to do about it.

A fault is a course over the layers, not one odd layer: models have outputs that are small, constant or without a gradient by
design (gates, heads, branches that start at zero). So medians over the first and the last third of the layers are compared, and
how steadily the numbers between them go one way. The thresholds were set with the 300 stock models of the tests, which should
have no finding as they come or after `goodinit.lsuv_`, and with plain nets of 5 to 200 layers, of which most should have some.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from goodinit.measurement.advice import (
    NO_FACTOR,
    against_collapse,
    against_large_gradients,
    against_loss_of_scale,
    against_small_gradients,
)
from goodinit.measurement.courses import Course, quotient
from goodinit.measurement.layer import HEALTHY_UPDATES, Finding, Input, Layer
from goodinit.measurement.units import dead, has_enough, leads_to, saturated, share, updates

__all__ = ["HEALTHY_UPDATES", "findings_of", "unjudged", "verdict_on"]

# Std, end to start. Small weights and heads make a factor of 100 by design: DeepSeek-V3 (small config) has 1/128, MobileViT 120,
# but no steady course.
_VANISHING, _EXPLODING = 1e-2, 1e3
# The same where nothing steady leads to it: one layer that is far out.
_LOST, _BURST = 1e-4, 1e6
# Sample std to std at the end, and how far that has fallen from its most at the start. VGG-11 has 0.11.
_ALIKE, _ALIKE_FALLEN = 0.05, 0.1
# Of outputs that are the same for all samples but for rounding: float32's last digits.
_SAME = 2e-6
# Dimensions that samples spread over at the end, 1 being a line; how many times fewer than at the start; told where 8 could be.
# From LSUV, on digits, plain SiLU nets of 20 layers have 2.8 and train, of 40 layers 1.0, and do not; GELU, 50 layers: 1.3.
_LINE, _LINE_FALLEN, _SPACE = 1.5, 4.0, 8
# Gradient norms, end to start or back: twenty times the width of the band of relative updates that converge. AlexNet from
# PyTorch's initialization has 100. Weights in front of a normalization layer do not mind as much: a longer gradient lengthens
# them, which shortens it (ConvMixer: 500).
_GRADIENT, _GRADIENT_NORMALIZED = 200.0, 1e4
# Steadiness of a course (1: with every layer). Stock models have 0.41 at most where the gradient falls.
_STEADY = 0.7
# Cross-entropy of outputs that know nothing, in the loss of guessing, ln(classes). Outputs of std 1 have ln(classes) + 1/2.
_SURE = 2.0
# Std of an output that by itself may make a cross-entropy like that; of twice the std that LSUV gives.
_LARGE = 2.0
# Std of inputs: images in [0, 1] have 0.2 to 0.35, in [0, 255] 60 and more.
_INPUT = 0.1, 10.0
# The least gradient, of the last layer's, in front of which it is cut and has not faded.
_TINY = 1e-6
# Fewer layers have no course.
_FEW = 4


def findings_of(
    layers: Sequence[Layer], *, loss: float | None, lr: float | None, cross_entropy: tuple[float, int, str] | None = None
) -> tuple[Finding, ...]:
    """All faults, the gravest first."""
    if not layers:
        text = "No linear operator on a weight was reached, so nothing was measured."
        return (Finding("nothing-measured", "", text, "Does the forward use the model's parameters? Pass forward=… if not."),)
    # What lies behind NaN or infinity says nothing; a weight of zeros is zero by design.
    sound = [layer for layer in layers[: _place_of_first_broken(layers)] if layer.weight_norm > 0]
    found = [_non_finite(layers, loss)]
    if not any(layer.weight_norm or layer.sample_std for layer in layers):  # neither is 0 where there is NaN
        text = f"All weights are zero, from {layers[0].name} on, and so is every output but for biases."
        found.append(Finding("vanishing", layers[0].name, text, "Draw them: goodinit.lsuv_(model, data)."))
    if sound:
        same = _same_samples(sound)  # which is all that there is to say of their differences, and of what they leave off
        collapse = same or _alike(sound) or _on_a_line(sound)
        dying = None if same else dead(sound, collapse)
        first = dying is not None and collapse is not None and leads_to(collapse, dying, sound)
        exploding = _exploding(sound)
        found += [
            exploding,
            _vanishing(sound),
            _same_units(sound),
            *((dying, _following(collapse)) if first else (collapse,)),
            _gradient(sound, layers),
            None if first else dying,
            saturated(sound),
        ]
        found.append(None if exploding else _sure(sound, cross_entropy))  # which would follow from it
    found.append(None if lr is None or not sound else updates(sound, lr))
    return tuple(finding for finding in found if finding is not None)


def verdict_on(findings: Sequence[Finding], count: int) -> str:
    """One sentence, then each finding on a line of its own."""
    layers = f"{count} layer{'' if count == 1 else 's'}"
    if not findings:
        return f"Healthy: no fault found in {layers}."
    kinds = ", ".join(f"{finding.kind} ({finding.layer})" if finding.layer else finding.kind for finding in findings)
    return "\n".join([f"Not healthy, {layers}: {kinds}.", *(f"- {finding}" for finding in findings)])


def unusual(inputs: Sequence[Input], *, faults: bool) -> tuple[str, ...]:
    """Inputs that no network is made for, a sentence each; ``faults``: whether something was found, which may follow from it."""
    notes = []
    for name, mean, std, between in inputs:
        if std and not (_INPUT[0] <= std <= _INPUT[1] and abs(mean) <= _INPUT[1] * std):
            seen = f"has the mean {mean:.3g} and the std {std:.3g}"
            notes.append(f"The input ({name}) {seen}: normalize it, networks are made for about 0 and 1.")
        elif between is not None and _SAME * std < between < _ALIKE * std:
            seen = f"is nearly the same for all samples: of its std, what lies between samples is {share(between / std)}"
            notes.append(f"The input ({name}) {seen}. Subtract each feature's mean, and divide by its std.")
    return tuple(f"{note} What was found may follow from it: begin there." if faults else note for note in notes)


_REASONS = {
    "recurrent": "recurrent (their operators are not linear in them)",
    "unsupported": "used by operators that goodinit does not know",
    "unused": "not used in this forward",
}


def unjudged(layers: Sequence[Layer], unmeasured: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """What a verdict does not cover, a sentence each."""
    notes = []
    if layers and all(layer.output_shape and _is_single(layer) for layer in layers):
        notes.append("The batch holds one sample: what lies between samples was not judged. Measure with several.")
    activated = [layer for layer in layers if layer.dead is not None]
    if activated and not any(map(has_enough, activated)):
        notes.append(
            "Units have too few outputs in this batch: whether they are dead was not judged. Measure with 32 samples or more."
        )
    names: dict[str, list[str]] = {}
    for name, reason in unmeasured:
        names.setdefault(reason, []).append(name)
    parts = [
        f"{len(found)} weight{'' if len(found) == 1 else 's'} {_REASONS.get(reason, reason)}, such as {found[0]}"
        for reason, found in names.items()
    ]
    if parts:
        notes.append(f"Not measured: {'; '.join(parts)}.")
    return tuple(notes)


# Non-finite numbers.


def _place_of_first_broken(layers: Sequence[Layer]) -> int:
    return next((i for i, layer in enumerate(layers) if not layer.finite), len(layers))


def _non_finite(layers: Sequence[Layer], loss: float | None) -> Finding | None:
    place = _place_of_first_broken(layers)
    if place < len(layers):
        layer = layers[place]
        before = f" The output before it, of {layers[place - 1].name}, has the std {layers[place - 1].std:.2g}." if place else ""
        text = f"NaN or infinity from {layer.name} on ({layer.operator}, {place + 1} of {len(layers)}).{before}"
        if not math.isfinite(layer.weight_norm):
            text = f"The weight {layer.name} holds NaN or infinity ({layer.operator}, {place + 1} of {len(layers)}).{before}"
            advice = (
                "Go back to weights from before that, or draw it anew; if training made it so, look for a step that was too "
                "large, or for a loss or a gradient that was not finite."
            )
            return Finding("non-finite", layer.name, text, advice)
        advice = (
            "LSUV mends it where the outputs before it grow out of all bounds; else look between these two operators for a "
            "division by zero, log or sqrt of a negative number, a mask that leaves nothing, and into the bias; in float16 try "
            "bfloat16 or float32."
        )
        return Finding("non-finite", layer.name, text, advice)
    if loss is not None and not math.isfinite(loss):
        advice = "Look at the loss: a log of 0, a division by a number of samples that is 0, labels out of range."
        return Finding("non-finite", layers[-1].name, f"The loss is {loss}, while all outputs are finite.", advice)
    bad = [layer for layer in layers if not all(map(math.isfinite, (layer.grad_std or 0, layer.weight_grad_norm or 0)))]
    if bad:
        text = f"The gradient holds NaN or infinity from {bad[-1].name} back to {bad[0].name}; outputs and loss are finite."
        advice = "Look for the root or norm of zeros, or 0/0 in a branch that torch.where leaves out; in float16 scale the loss."
        return Finding("non-finite", bad[-1].name, text, advice)
    return None


# The way forward.


def _inner(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Without the last one, and those before it that were given the same: heads may be scaled by design.

    Of few layers only where there are several heads.
    """
    last = _input_of(layers[-1])
    heads = len(list(takewhile(lambda layer: _input_of(layer) == last, reversed(layers))))
    return layers[: max(1, len(layers) - heads)] if len(layers) >= _FEW or heads > 1 else layers


def _input_of(layer: Layer) -> str:
    """What it was given, by the first layer that was."""
    return layer.beside or layer.name


def _vanishing(layers: Sequence[Layer]) -> Finding | None:
    course = Course.of(_inner(layers), lambda layer: layer.std)
    if course.ratio < _LOST or (course.ratio < _VANISHING and course.steadiness() < -_STEADY):
        first = course.first_below(0.1).name
        advice = against_loss_of_scale() if course.end else NO_FACTOR
        return Finding("vanishing", first, f"The signal vanishes from {first} on: std {course}.", advice)
    return None


def _exploding(layers: Sequence[Layer]) -> Finding | None:
    course = Course.of(_inner(layers), lambda layer: layer.std)
    if course.ratio > _BURST or (course.ratio > _EXPLODING and course.steadiness() > _STEADY):
        first = course.first_above(10).name
        return Finding("exploding", first, f"The signal explodes from {first} on: std {course}.", against_loss_of_scale())
    return None


def _difference(layer: Layer) -> float | None:
    """How much of an output depends on the sample; of one sample that cannot be told."""
    return None if _is_single(layer) or not layer.std else layer.sample_std / layer.std


def _is_single(layer: Layer) -> bool:
    """Whether there are not two samples; or no axis of them: a matrix makes an axis of channels, which then is all there is."""
    return not layer.output_shape or layer.output_shape[0] < 2 or (layer.channels is None and len(layer.shape) > 1)


def _same_samples(layers: Sequence[Layer]) -> Finding | None:
    """No output differs from sample to sample, from the first layer on: it is the data."""
    differences = [difference for layer in layers if (difference := _difference(layer)) is not None]
    if not differences or max(differences) >= _SAME:
        return None
    text = "Every sample of the batch has the same output, at all layers, from the first one on."
    advice = "Are the samples the same, or does the forward not use them? Measure with a batch of different ones."
    return Finding("same-samples", layers[0].name, text, advice)


def _same_units(layers: Sequence[Layer]) -> Finding | None:
    """Weights whose rows are equal, and stay so in training."""
    judged = [layer for layer in layers if layer.same_units is not None]
    same = [layer for layer in judged if layer.same_units]
    if not same or len(same) < len(judged) / 2:
        return None
    text = (
        f"All units of a layer put out the same, from {same[0].name} on, in {len(same)} of {len(judged)} layers: their "
        "weights are equal, and so are their gradients."
    )
    return Finding("same-units", same[0].name, text, "Draw the weights: goodinit.lsuv_(model, data).")


def _alike(layers: Sequence[Layer]) -> Finding | None:
    course = Course.of(_inner(layers), _difference)
    if not course.values or course.end >= min(_ALIKE, _ALIKE_FALLEN * max(course.head)):
        return None
    if course.end >= _SAME and not course.falls_in_steps():  # a jump is by design mostly: a class token, queries of a decoder
        return None
    first = course.first_below(0.1)
    text = (
        f"The samples become alike from {first.name} on: of the std, what lies between samples is {share(course.values[0])} at "
        f"{course.layers[0].name}, {share(course.values[-1])} at {course.layers[-1].name}. Whatever the input, the output is "
        "nearly the same."
    )
    return Finding("collapse", first.name, text, against_collapse(layers))


def _on_a_line(layers: Sequence[Layer]) -> Finding | None:
    course = Course.of(_inner(layers), lambda layer: layer.dimensions if (layer.rank_limit or 0) >= _SPACE else None)
    if not course.values or course.end >= min(_LINE, max(course.head) / _LINE_FALLEN) or not course.falls_in_steps():
        return None
    first = course.first_below(2 * course.end / max(course.values))
    text = (
        f"The samples collapse onto a line: of its dimensions the output uses {course.values[0]:.0f} at {course.layers[0].name}, "
        f"{course.values[-1]:.1f} at {course.layers[-1].name}."
    )
    return Finding("collapse", first.name, text, against_collapse(layers))


def _following(collapse: Finding | None) -> Finding | None:
    """A collapse behind a layer that stops everything."""
    return None if collapse is None else replace(collapse, advice="It follows from the dead units: mend these first.")


def _sure(layers: Sequence[Layer], cross_entropy: tuple[float, int, str] | None) -> Finding | None:
    """A loss that is far above that of guessing."""
    if cross_entropy is None or cross_entropy[1] < 2:
        return None
    value, classes, name = cross_entropy
    guessing = math.log(classes)
    if not math.isfinite(value) or value <= _SURE * guessing + _SURE:
        return None
    text = f"The cross-entropy is {value:.3g}, where guessing one of {classes:,} classes costs {guessing:.3g}: "
    last = next((layer for layer in layers if layer.name == name and not layer.normalized), None)
    if last is None and layers[-1].std > _LARGE:
        last = layers[-1]
    if last is None and max(layer.std for layer in layers) <= _LARGE:
        return None  # a factor between the layers and the loss, a temperature, which is by design
    if last is None:
        text += "the output that it is of is too large."
        return Finding("overconfident", "", text, "Give the layer that makes it a target_std of 0.1: goodinit.lsuv_.")
    text += f"the output of {last.name} is too large (std {last.std:.2g})."
    advice = (
        f"Training begins with unlearning that. LSUV mends it: goodinit.lsuv_(model, data, target_std={{{last.name!r}: 0.1}}); "
        "an embedding that shares the weight gets smaller with it."
    )
    return Finding("overconfident", last.name, text, advice)


# The way back.


def _gradient(layers: Sequence[Layer], everything: Sequence[Layer]) -> Finding | None:
    course = Course.of(layers, lambda layer: layer.grad_norm)
    if not course.values or not all(map(math.isfinite, course.values)):
        return None
    if not any(course.values):
        if any(layer.grad_norm for layer in everything):  # a head that starts at zero stops it for one step
            return None
        advice = (
            "Does the loss depend on the output? Is it flat there (a sigmoid that saturates, a hinge that is met)? Is a gain 0?"
        )
        return Finding("gradient-vanishing", layers[-1].name, "No gradient reaches any layer.", advice)
    if (cut := _cut(course)) is not None:
        return cut
    if len(course.values) < _FEW:
        return None
    limit = _GRADIENT_NORMALIZED if sum(layer.normalized for layer in layers) > len(layers) / 2 else _GRADIENT
    first, last = course.layers[0].name, course.layers[-1].name
    arrived = quotient(course.values[0], course.values[-1])
    # One layer without a gradient is by design mostly: a router of which only the largest output is asked for.
    gone = not course.start and not any(course.values[:2])
    if (gone or (course.start and course.ratio > limit)) and course.steadiness() > _STEADY:
        left = f"its norm is {arrived:.1e} of what it is at {last}" if arrived else "nothing of it is left"
        text = f"The gradient vanishes on its way back: at {first} {left}."
        return Finding("gradient-vanishing", first, text, against_small_gradients(layers))
    if course.ratio < 1 / limit and course.steadiness() < -_STEADY:
        times = f"{arrived:,.0f}" if arrived < 1e5 else f"{arrived:.1e}"
        text = f"The gradient explodes on its way back: at {first} its norm is {times} times what it is at {last}."
        return Finding("gradient-exploding", first, text, against_large_gradients(layers))
    return None


def _cut(course: Course) -> Finding | None:
    """Nothing of the gradient reaches the first layers, and all that is behind them has one."""
    behind = next(i for i, value in enumerate(course.values) if value)
    # One layer without a gradient is by design mostly. What fades away is tiny where it ends.
    if behind < 2 or not all(course.values[behind:]) or course.values[behind] < _TINY * course.values[-1]:
        return None
    first, last, next_ = (course.layers[i].name for i in (0, behind - 1, behind))
    text = (
        f"No gradient reaches {first} to {last}, {behind} layers: the loss does not depend on them, or it is cut before {next_}."
    )
    advice = (
        "Look there for a detach(), torch.no_grad(), an argmax or a rounding, a gain or a gate of 0, units that are all dead; or "
        "is it the output of another branch that the loss is of?"
    )
    return Finding("gradient-vanishing", first, text, advice)
