"""The paper's thin, deep networks, with each of its non-linearities, and with batch normalization before or after them.

FitNets are those of Romero et al. 2015 (arXiv 1412.6550), FitResNets the same with identity shortcuts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from goodinit.errors import OptionError, did_you_mean

NORMS = ("none", "before", "after")
Body = tuple[int | str, ...]
_POOL = "pool"
# Of maxout: in convolutions, and in the hidden linear layer.
_CONV_PIECES, _LINEAR_PIECES = 2, 5


class Maxout(nn.Module):
    """The largest of ``pieces`` groups of channels (Goodfellow et al. 2013): (n, pieces * c, …) -> (n, c, …).

    max(a, b) is computed as b + ReLU(a - b), which trains up to seven times as fast on a CPU as torch.maximum and differs from
    it by rounding.
    """

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        """The maximum over the groups."""
        largest, *others = x.chunk(self.pieces, 1)
        for other in others:
            largest = other + (largest - other).relu()
        return largest

    def extra_repr(self) -> str:
        """For the printed module."""
        return f"pieces={self.pieces}"


# Non-linearities but maxout, which widens the layer before it. VLReLU: "very leaky", slope 1/3.
_ELEMENTWISE: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "vlrelu": lambda: nn.LeakyReLU(1 / 3),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
ACTIVATIONS = ("maxout", *_ELEMENTWISE)


@dataclass(frozen=True)
class Shape:
    """One of the networks."""

    body: Body
    """Channels of 3x3 convolutions, and ``"pool"``."""
    pools: Sequence[tuple[int, int]]
    """Kernel and stride of each max pooling, in order."""
    channels: int = 3
    """Of the images."""
    pixels: int = 32
    """Height and width of the images."""
    hidden: int = 0
    """Width of a hidden linear layer; 0: none."""
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of the input, after every pooling, and before the last layer."""
    global_pool: bool = True
    """Whether the maximum over all positions goes into the linear layers, not all positions."""
    residual: bool = False
    """Whether there are identity shortcuts around pairs of convolutions of equal width."""


_POOLS = ((2, 2), (2, 2))
_FITNET1: Body = (16, 16, 16, _POOL, 32, 32, 32, _POOL, 48, 48, 64)
_FITNET4: Body = (32, 32, 32, 48, 48, _POOL, 80, 80, 80, 80, 80, 80, _POOL, 128, 128, 128, 128, 128, 128)
NETWORKS: dict[str, Shape] = {
    "fitnet1": Shape(_FITNET1, _POOLS),
    "fitnet4": Shape(_FITNET4, _POOLS, hidden=500, dropout=(0.2, 0.2, 0.2)),
    "fitnet-mnist": Shape(
        (16, 16, _POOL, 16, 16, _POOL, 12, 12, _POOL),
        ((4, 2), (4, 2), (2, 2)),
        channels=1,
        pixels=28,
        dropout=(0.0, 0.0, 0.3),
        global_pool=False,
    ),
    "fitresnet1": Shape(_FITNET1, _POOLS, residual=True),
    "fitresnet4": Shape(_FITNET4, _POOLS, hidden=500, dropout=(0.2, 0.2, 0.2), residual=True),
}


def make_network(name: str, *, activation: str = "maxout", norm: str = "none", classes: int = 10) -> nn.Sequential:
    """One of the paper's networks, in PyTorch's default initialization: images (n, channels, pixels, pixels) -> (n, classes).

    ================  ===========================================================================  ====================
    name              3x3 convolutions | max pooling                                               head
    ================  ===========================================================================  ====================
    ``fitnet1``       16 16 16 | 32 32 32 | 48 48 64                                               global max, linear
    ``fitnet4``       32 32 32 48 48 | 80 x6 | 128 x6                                              global max, 500, linear
    ``fitnet-mnist``  16 16 | 16 16 | 12 12 |                                                      linear
    ``fitresnet1``    fitnet1 with shortcuts                                                       as fitnet1
    ``fitresnet4``    fitnet4 with shortcuts                                                       as fitnet4
    ================  ===========================================================================  ====================

    Args:
        name: a key of `NETWORKS`.
        activation: one of `ACTIVATIONS`: after every layer but the last. Maxout has 2 pieces in convolutions, 5 in the hidden
            linear layer.
        norm: batch normalization ``"before"`` or ``"after"`` every non-linearity, or ``"none"``.
        classes: number of outputs.

    Raises:
        OptionError: an unknown name, activation or norm.

    >>> sum(p.numel() for p in make_network("fitnet4", activation="relu").parameters())
    1276806
    """
    for what, asked, known in (
        ("network", name, tuple(NETWORKS)),
        ("activation", activation, ACTIVATIONS),
        ("norm", norm, NORMS),
    ):
        if asked not in known:
            raise OptionError(f"{what} must be one of {', '.join(known)}; got {asked!r}{did_you_mean(asked, known)}")
    return _Builder(NETWORKS[name], activation, norm).build(classes)


class Residual(nn.Module):
    """x + f(x), f being two convolutions, each with its non-linearity.

    Our reading of the paper's FitResNets: it does not say where exactly the shortcuts lie. They are added after the second
    non-linearity, because maxout halves the number of channels.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        out: Tensor = x + self.branch(x)
        return out


class _Builder:
    """Puts a network's layers together, in their order."""

    def __init__(self, shape: Shape, activation: str, norm: str) -> None:
        self._shape = shape
        self._activation = activation
        self._norm = norm
        self._layers: OrderedDict[str, nn.Module] = OrderedDict()

    def build(self, classes: int) -> nn.Sequential:
        """All of it."""
        shape, layers = self._shape, self._layers
        of_input, of_pools, of_last = shape.dropout
        self._drop("input", of_input)
        channels, pixels = shape.channels, shape.pixels
        for stage, widths in enumerate(_stages(shape.body), 1):
            if stage > 1:
                kernel, stride = shape.pools[stage - 2]
                layers[f"pool{stage - 1}"] = nn.MaxPool2d(kernel, stride, ceil_mode=True)  # Caffe rounds up
                pixels = -(-(pixels - kernel) // stride) + 1
                self._drop(f"pool{stage - 1}", of_pools)
            channels = self._stage(stage, channels, widths)
        if shape.global_pool:
            layers["global_pool"] = nn.AdaptiveMaxPool2d(1)
            pixels = 1
        layers["flatten"] = nn.Flatten()
        features = channels * pixels**2
        if shape.hidden:
            layers["hidden"] = self._layer(features, shape.hidden, linear=True)
            features = shape.hidden
        self._drop("last", of_last)
        layers["classifier"] = nn.Linear(features, classes)
        return nn.Sequential(layers)

    def _stage(self, stage: int, channels: int, widths: Sequence[int]) -> int:
        """Convolutions between two poolings; returns the channels after them."""
        place = 0
        while place < len(widths):
            width, following = widths[place], widths[place + 1 : place + 2]
            name = f"conv{stage}_{place + 1}"
            if self._shape.residual and [channels, *following] == [width, width]:
                pair = {key: self._layer(width, width) for key in ("first", "second")}
                self._layers[name] = Residual(nn.Sequential(OrderedDict[str, nn.Module](pair)))
                place += 2
            else:
                self._layers[name] = self._layer(channels, width)
                place += 1
            channels = width
        return channels

    def _layer(self, inputs: int, outputs: int, *, linear: bool = False) -> nn.Sequential:
        """A convolution or linear layer with its non-linearity and normalization."""
        pieces = (_LINEAR_PIECES if linear else _CONV_PIECES) if self._activation == "maxout" else 1
        normalization = nn.BatchNorm1d if linear else nn.BatchNorm2d
        layer: OrderedDict[str, nn.Module] = OrderedDict()
        if linear:
            layer["linear"] = nn.Linear(inputs, pieces * outputs)
        else:
            layer["conv"] = nn.Conv2d(inputs, pieces * outputs, 3, padding=1)
        if self._norm == "before":
            layer["norm"] = normalization(pieces * outputs)
        layer[self._activation] = Maxout(pieces) if self._activation == "maxout" else _ELEMENTWISE[self._activation]()
        if self._norm == "after":
            layer["norm"] = normalization(outputs)
        return nn.Sequential(layer)

    def _drop(self, where: str, share: float) -> None:
        if share:
            self._layers[f"dropout_{where}"] = nn.Dropout(share)


def _stages(body: Body) -> list[list[int]]:
    """The convolutions' channels between poolings; the last list may be empty."""
    stages: list[list[int]] = [[]]
    for item in body:
        if isinstance(item, int):
            stages[-1].append(item)
        else:
            stages.append([])
    return stages
