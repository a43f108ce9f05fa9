"""What to do about a fault: whether LSUV mends it, and where it cannot, what does."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from goodinit.measurement.layer import Layer

LSUV = "LSUV mends this: goodinit.lsuv_(model, data)"
_AS_LSUV_LEAVES = "LSUV cannot mend this: the stds are as it leaves them."

# Slopes of a sigmoid are 1/4 at most and its outputs positive: stacks of them lose the samples' differences and the gradient
# whatever the weights' scale. The paper has "n/c" for all initializations of them.
_SIGMOIDS = frozenset({"sigmoid", "hardsigmoid", "logsigmoid", "softplus"})
_BOUNDED = frozenset({"tanh", "hardtanh", "softsign"})
_RECTIFIERS = frozenset({"relu", "gelu", "silu", "leaky_relu", "relu6", "mish", "clamp"})
# LSUV's stds are equal on its own batch, nearly on another; where biases rule, they are nearly equal but for the first layers.
_EQUAL, _MOSTLY = 0.2, 0.8
# Plain ReLU nets of more layers lose the samples' differences from any weights.
_DEEP = 50
# No LSUV target is larger.
_LARGEST_TARGET = 1.5

NO_SIGMOIDS = (
    "LSUV as in the paper cannot mend this: a sigmoid's slope is 1/4 at most and its outputs are all positive. Take tanh or ReLU "
    "between the layers, put normalization layers in front, or move the means: goodinit.lsuv_(model, data, center=True)."
)


NO_FACTOR = (
    "No factor on a weight mends an output that is 0: look in front of it for units that are all dead, a gate or a gain of 0, "
    "weights of zeros, or data that are constant."
)


def activation_of(layers: Sequence[Layer]) -> str | None:
    """The most common non-linearity."""
    counts = Counter(layer.activation for layer in layers if layer.activation)
    return counts.most_common(1)[0][0] if counts else None


def is_scaled(layers: Sequence[Layer]) -> bool:
    """Whether the stds are as LSUV leaves them: nearly all the same, and not large."""
    middle = statistics.median(layer.std for layer in layers)
    near = [abs(layer.std - middle) <= _EQUAL * middle for layer in layers]
    return 0 < middle <= _LARGEST_TARGET and near[0] and sum(near) >= _MOSTLY * len(layers)


def against_loss_of_scale() -> str:
    """The signal shrinks or grows."""
    return f"{LSUV} gives every output the std 1."


AUTO = "goodinit.lsuv_(model, data, target_std='auto')"


def against_collapse(layers: Sequence[Layer]) -> str:
    """Samples become alike."""
    if not all(layer.std for layer in layers):
        return NO_FACTOR
    kind = activation_of(layers)
    if kind in _SIGMOIDS:
        return NO_SIGMOIDS
    if is_scaled(layers):
        return (
            f"{_AS_LSUV_LEAVES} Depth does it, above all with non-linearities like ReLU, whose outputs have a mean: {AUTO} looks "
            "for means that keep samples apart; or add normalization layers or shortcuts, take tanh or SELU, or fewer layers."
        )
    deep = f" At {len(layers)} layers with {kind} part of it will stay." if kind in _RECTIFIERS and len(layers) > _DEEP else ""
    return f"{LSUV} sets the biases to 0, which are what is left in the outputs, and the stds to 1.{deep}"


def against_small_gradients(layers: Sequence[Layer]) -> str:
    """The gradient vanishes on its way back."""
    if not all(layer.std for layer in layers):
        return NO_FACTOR
    if activation_of(layers) in _SIGMOIDS:
        return NO_SIGMOIDS
    if is_scaled(layers):
        return f"{_AS_LSUV_LEAVES} Add shortcuts or normalization layers, or take fewer layers."
    return f"{LSUV}; what keeps the outputs' std mostly keeps the gradient's."


def against_large_gradients(layers: Sequence[Layer]) -> str:
    """The gradient grows on its way back."""
    if not is_scaled(layers):
        return f"{LSUV}; what keeps the outputs' std mostly keeps the gradient's."
    if activation_of(layers) in _BOUNDED:
        return (
            "The stds are as LSUV leaves them, but weights that make up for what the non-linearity cuts off make the gradient "
            f"grow: a smaller target helps, goodinit.lsuv_(model, data, target_std={_middle(layers) / 2:.1g}), or {AUTO}."
        )
    return f"{_AS_LSUV_LEAVES} {AUTO} looks for a target that keeps it; or add shortcuts or normalization layers, or clip it."


def against_saturation(layers: Sequence[Layer]) -> str:
    """Outputs lie where the non-linearity is flat."""
    if is_scaled(layers):
        return f"A smaller target helps: goodinit.lsuv_(model, data, target_std={_middle(layers) / 4:.1g})."
    return f"{LSUV} gives every output the std 1, of which 3 % lie there for tanh, and none for sigmoid."


def _middle(layers: Sequence[Layer]) -> float:
    return statistics.median(layer.std for layer in layers)
