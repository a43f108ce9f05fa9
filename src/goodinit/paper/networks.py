"""The networks by name: FitNets and what is built in their shapes, perceptrons, CaffeNet, GoogLeNet, VGG-16.

FitNets are those of Romero et al. 2015 (arXiv 1412.6550), FitResNets the same with identity shortcuts, Highway networks those of
Srivastava et al. 2015 (arXiv 1507.06228).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from goodinit.errors import OptionError, did_you_mean
from goodinit.paper.blocks import ACTIVATIONS, NORMS, Fixup, Highway, Residual, SkipInit, Style
from goodinit.paper.imagenet import GoogLeNet, caffenet, vgg16

Body = tuple[int | str, ...]
_POOL = "pool"


class Network(Protocol):
    """What makes a network of one shape."""

    @property
    def channels(self) -> int:
        """Of the images."""

    @property
    def pixels(self) -> int | None:
        """Height and width of the images; None: of any size."""

    @property
    def published_pixels(self) -> int:
        """Height and width of the images of its paper."""

    def make(self, style: Style, *, classes: int, depth: int, pixels: int) -> nn.Module:
        """The network."""


@dataclass(frozen=True)
class Shape:
    """A network of 3x3 convolutions and max poolings."""

    body: Body
    """Channels of convolutions, and ``"pool"``."""
    pools: Sequence[tuple[int, int]]
    """Kernel and stride of each max pooling, in order."""
    channels: int = 3
    pixels: int = 32
    kernel: int = 3
    """Of the convolutions."""
    hidden: int = 0
    """Width of a hidden linear layer; 0: none."""
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of the input, after every pooling, and before the last layer."""
    global_pool: bool = True
    """Whether the maximum over all positions goes into the linear layers, not all positions."""
    shortcut: str = "none"
    """Around pairs of convolutions of equal width ``"identity"``, ``"fixup"``, ``"skipinit"``; around each one ``"highway"``."""

    @property
    def published_pixels(self) -> int:
        """Height and width of the images of its paper."""
        return self.pixels

    def make(self, style: Style, *, classes: int, depth: int, pixels: int) -> nn.Module:  # noqa: ARG002 - its shape is given
        """The network."""
        return _Builder(self, style).build(classes)


@dataclass(frozen=True)
class Dense:
    """A perceptron: linear layers of one width on the flattened images; all but the first and the last may be highways."""

    width: int
    highway: bool = False
    channels: int = 1
    pixels: int = 28

    @property
    def published_pixels(self) -> int:
        """Height and width of the images of its paper."""
        return self.pixels

    def make(self, style: Style, *, classes: int, depth: int, pixels: int) -> nn.Module:
        """``depth`` linear layers in all."""
        if depth < 2:
            raise OptionError(f"a perceptron needs depth=, its number of layers, of 2 or more; got {depth}")
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        layers["layer1"] = style.linear(self.channels * pixels**2, self.width)
        for i in range(2, depth):
            layer = style.linear(self.width, self.width)
            layers[f"layer{i}"] = Highway(layer, nn.Linear(self.width, self.width)) if self.highway else layer
        layers["classifier"] = nn.Linear(self.width, classes)
        return nn.Sequential(layers)


@dataclass(frozen=True)
class ImageNet:
    """One of the ImageNet networks; ReLU, whatever the style says, as published."""

    maker: Callable[[int, int, str], nn.Module]
    """Called with the number of classes, the height and width of the images, and where batch normalization goes."""
    published_pixels: int
    channels: int = 3
    pixels: int | None = None

    def make(self, style: Style, *, classes: int, depth: int, pixels: int) -> nn.Module:  # noqa: ARG002 - its depth is given
        """The network."""
        if style.activation != "relu":
            raise OptionError(f"the ImageNet networks are published with activation='relu'; got {style.activation!r}")
        return self.maker(classes, pixels, style.norm)


_POOLS = ((2, 2), (2, 2))
_MNIST_POOLS = ((4, 2), (4, 2), (2, 2))
_FITNET1: Body = (16, 16, 16, _POOL, 32, 32, 32, _POOL, 48, 48, 64)
_FITNET4: Body = (32, 32, 32, 48, 48, _POOL, 80, 80, 80, 80, 80, 80, _POOL, 128, 128, 128, 128, 128, 128)
_HIGHWAY32: Body = (*[32] * 10, _POOL, *[48] * 10, _POOL, *[64] * 10)
_DROPOUT = (0.2, 0.2, 0.2)
NETWORKS: dict[str, Network] = {
    "fitnet1": Shape(_FITNET1, _POOLS),
    "fitnet4": Shape(_FITNET4, _POOLS, hidden=500, dropout=_DROPOUT),
    "fitnet-mnist": Shape(
        (16, 16, _POOL, 16, 16, _POOL, 12, 12, _POOL),
        _MNIST_POOLS,
        channels=1,
        pixels=28,
        dropout=(0.0, 0.0, 0.3),
        global_pool=False,
    ),
    "fitresnet1": Shape(_FITNET1, _POOLS, shortcut="identity"),
    "fitresnet4": Shape(_FITNET4, _POOLS, hidden=500, dropout=_DROPOUT, shortcut="identity"),
    "fixup1": Shape(_FITNET1, _POOLS, shortcut="fixup"),
    "fixup4": Shape(_FITNET4, _POOLS, hidden=500, dropout=_DROPOUT, shortcut="fixup"),
    "skipinit1": Shape(_FITNET1, _POOLS, shortcut="skipinit"),
    "skipinit4": Shape(_FITNET4, _POOLS, hidden=500, dropout=_DROPOUT, shortcut="skipinit"),
    "highway11": Shape(_FITNET1, _POOLS, hidden=500, dropout=_DROPOUT, shortcut="highway"),
    "highway19": Shape(_FITNET4, _POOLS, hidden=500, dropout=_DROPOUT, shortcut="highway"),
    "highway32": Shape(_HIGHWAY32, _POOLS, hidden=500, dropout=_DROPOUT, shortcut="highway"),
    "highway-mnist": Shape(
        (*[16] * 3, _POOL, *[16] * 3, _POOL, *[16] * 3, _POOL),
        _MNIST_POOLS,
        channels=1,
        pixels=28,
        dropout=(0.0, 0.0, 0.3),
        global_pool=False,
        shortcut="highway",
    ),
    "teacher-cifar": Shape((96, _POOL, 192, _POOL, 192, _POOL), (*_POOLS, (2, 2)), kernel=5, hidden=500, dropout=_DROPOUT),
    "teacher-mnist": Shape(
        (48, _POOL, 48, _POOL, 24, _POOL),
        _MNIST_POOLS,
        channels=1,
        pixels=28,
        kernel=5,
        dropout=(0.0, 0.0, 0.3),
        global_pool=False,
    ),
    # Widths of the Highway paper's comparison, which give both about as many weights a layer.
    "mlp": Dense(71),
    "highway-mlp": Dense(50, highway=True),
    "caffenet": ImageNet(caffenet, 227),
    "googlenet": ImageNet(GoogLeNet, 224),
    "vgg16": ImageNet(vgg16, 224),
}


def make_network(
    name: str, *, activation: str = "maxout", norm: str = "none", classes: int = 10, depth: int = 0, pixels: int | None = None
) -> nn.Module:
    """One of the networks, in PyTorch's default initialization: images (n, channels, pixels, pixels) -> (n, classes).

    ===================  ===========================================================================  ====================
    name                 3x3 convolutions | max pooling                                               head
    ===================  ===========================================================================  ====================
    ``fitnet1``          16 16 16 | 32 32 32 | 48 48 64                                               global max, linear
    ``fitnet4``          32 32 32 48 48 | 80 x6 | 128 x6                                              global max, 500, linear
    ``fitnet-mnist``     16 16 | 16 16 | 12 12 |                                                      linear
    ``fitresnet1``, 4    fitnet1 and fitnet4 with identity shortcuts; ``fixup1``, ``fixup4``,         as fitnet1, fitnet4
                         ``skipinit1``, ``skipinit4``: with Fixup's, SkipInit's blocks in their place
    ``highway11``, 19    fitnet1 and fitnet4 with gates; ``highway32``: 32 x10 | 48 x10 | 64 x10      global max, 500, linear
    ``highway-mnist``    16 x3 | 16 x3 | 16 x3 |, with gates                                          linear
    ``teacher-cifar``    5x5: 96 | 192 | 192 |                                                        global max, 500, linear
    ``teacher-mnist``    5x5: 48 | 48 | 24 |                                                          linear
    ``mlp``              ``depth`` linear layers of 71 units; ``highway-mlp``: of 50, with gates
    ``caffenet``, ``googlenet``, ``vgg16``: see `goodinit.paper.imagenet`; images of any size
    ===================  ===========================================================================  ====================

    Args:
        name: a key of `NETWORKS`.
        activation: one of `ACTIVATIONS`: after every layer but the last. Maxout has 2 pieces in convolutions, 5 in hidden
            linear layers.
        norm: batch normalization ``"before"`` or ``"after"`` every non-linearity, or ``"none"``.
        classes: number of outputs.
        depth: number of layers of the perceptrons.
        pixels: height and width of the images; those of the network's paper by default.

    Raises:
        OptionError: an unknown name, activation or norm; a perceptron without depth; images of another size than the network
            takes.

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
    network = NETWORKS[name]
    pixels = pixels or network.published_pixels
    if network.pixels not in (None, pixels):
        raise OptionError(f"{name} takes images of {network.pixels}x{network.pixels} pixels; got {pixels}x{pixels}")
    return network.make(Style(activation, norm), classes=classes, depth=depth, pixels=pixels)


class _Builder:
    """Puts the layers of a `Shape` together, in their order."""

    def __init__(self, shape: Shape, style: Style) -> None:
        self._shape = shape
        self._style = style
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
            self._drop("global_pool", of_pools)
        layers["flatten"] = nn.Flatten()
        features = channels * pixels**2
        if shape.hidden:
            layers["hidden"] = self._style.linear(features, shape.hidden)
            features = shape.hidden
        self._drop("last", of_last)
        layers["classifier"] = nn.Linear(features, classes)
        return nn.Sequential(layers)

    def _stage(self, stage: int, channels: int, widths: Sequence[int]) -> int:
        """Convolutions between two poolings; returns the channels after them."""
        shortcut, place = self._shape.shortcut, 0
        while place < len(widths):
            width, following = widths[place], widths[place + 1 : place + 2]
            name = f"conv{stage}_{place + 1}"
            if shortcut in _PAIRS and [channels, *following] == [width, width]:
                self._layers[name] = _PAIRS[shortcut](width, self._style)
                place += 2
            else:
                layer = self._style.convolution(channels, width, self._shape.kernel)
                gated = shortcut == "highway" and channels == width
                self._layers[name] = Highway(layer, nn.Conv2d(width, width, 3, padding=1)) if gated else layer
                place += 1
            channels = width
        return channels

    def _drop(self, where: str, share: float) -> None:
        if share:
            self._layers[f"dropout_{where}"] = nn.Dropout(share)


def _pair(width: int, style: Style) -> nn.Sequential:
    """Two convolutions of equal width."""
    pair = {key: style.convolution(width, width) for key in ("first", "second")}
    return nn.Sequential(OrderedDict[str, nn.Module](pair))


_PAIRS: dict[str, Callable[[int, Style], nn.Module]] = {
    "identity": lambda width, style: Residual(_pair(width, style)),
    "skipinit": lambda width, style: SkipInit(_pair(width, style)),
    "fixup": Fixup,
}


def _stages(body: Body) -> list[list[int]]:
    """The convolutions' channels between poolings; the last list may be empty."""
    stages: list[list[int]] = [[]]
    for item in body:
        if isinstance(item, int):
            stages[-1].append(item)
        else:
            stages.append([])
    return stages
