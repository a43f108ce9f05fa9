"""CaffeNet and GoogLeNet as the BVLC model zoo has them (local response normalization, groups, Caffe's poolings), and VGG-16.

At images of another size than the published the first linear layer is as wide as what is left of them. With batch normalization
there is no local response normalization.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from goodinit.errors import OptionError


def caffenet(classes: int = 1000, pixels: int = 227, norm: str = "none") -> nn.Sequential:
    """CaffeNet: AlexNet (Krizhevsky et al. 2012) with pooling before normalization. Images (n, 3, 227, 227) -> (n, classes)."""
    side = pixels
    for kernel, stride in ((11, 4), (3, 2), (3, 2), (3, 2)):  # conv1, then the poolings, which round up
        side = (side - kernel) // stride + 1 if kernel == 11 else _pooled(side, kernel, stride)
    _check(side, "caffenet", pixels, least=39)
    layers: OrderedDict[str, nn.Module] = OrderedDict()

    def add(number: int, operator: nn.Conv2d | nn.Linear, *after: tuple[str, nn.Module]) -> None:
        kind = "conv" if isinstance(operator, nn.Conv2d) else "fc"
        layers[f"{kind}{number}"] = operator
        for name, module in (*_activated(operator, norm), *after):
            layers[f"{name}{number}"] = module

    add(1, nn.Conv2d(3, 96, 11, stride=4), ("pool", _pool(3, 2)), *(("response", m) for m in _responses(norm)))
    add(2, nn.Conv2d(96, 256, 5, padding=2, groups=2), ("pool", _pool(3, 2)), *(("response", m) for m in _responses(norm)))
    add(3, nn.Conv2d(256, 384, 3, padding=1))
    add(4, nn.Conv2d(384, 384, 3, padding=1, groups=2))
    add(5, nn.Conv2d(384, 256, 3, padding=1, groups=2), ("pool", _pool(3, 2)))
    layers["flatten"] = nn.Flatten()
    add(6, nn.Linear(256 * side**2, 4096), ("drop", nn.Dropout(0.5)))
    add(7, nn.Linear(4096, 4096), ("drop", nn.Dropout(0.5)))
    layers["fc8"] = nn.Linear(4096, classes)
    return nn.Sequential(layers)


def vgg16(classes: int = 1000, pixels: int = 224, norm: str = "none") -> nn.Sequential:
    """VGG-16 (configuration D of Simonyan & Zisserman 2015). Images (n, 3, 224, 224) -> (n, classes)."""
    side = pixels // 32
    _check(side, "vgg16", pixels, least=32)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for i in range(1, depth + 1):
            layers[f"conv{stage}_{i}"] = _convolution(channels, width, 3, norm=norm)
            channels = width
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    features = channels * side**2
    for number in (6, 7):
        linear = nn.Linear(features, 4096)
        layers[f"fc{number}"] = nn.Sequential(linear, *(module for _, module in _activated(linear, norm)))
        layers[f"drop{number}"] = nn.Dropout(0.5)
        features = 4096
    layers["fc8"] = nn.Linear(features, classes)
    return nn.Sequential(layers)


def _check(side: int, name: str, pixels: int, least: int) -> None:
    if side < 1:
        raise OptionError(f"{name} takes images of {least}x{least} pixels or more; got {pixels}x{pixels}")


def _pooled(side: int, kernel: int, stride: int) -> int:
    return -(-(side - kernel) // stride) + 1


def _pool(kernel: int, stride: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel, stride, ceil_mode=True)  # Caffe rounds up


def _responses(norm: str) -> list[nn.Module]:
    """Local response normalization, where there is no batch normalization."""
    return [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)] if norm == "none" else []


def _activated(operator: nn.Conv2d | nn.Linear, norm: str) -> list[tuple[str, nn.Module]]:
    """What follows an operator: ReLU, and batch normalization before or after it."""
    relu: tuple[str, nn.Module] = ("relu", nn.ReLU(inplace=norm != "before"))
    if norm == "none":
        return [relu]
    width = operator.weight.shape[0]
    normalized: tuple[str, nn.Module] = (
        "norm",
        nn.BatchNorm2d(width) if isinstance(operator, nn.Conv2d) else nn.BatchNorm1d(width),
    )
    return [normalized, relu] if norm == "before" else [relu, normalized]


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, *, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return nn.Sequential(conv, *(module for _, module in _activated(conv, norm)))


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1, 3x3; 1x1, 5x5; 3x3 max pooling, 1x1 (Szegedy et al. 2015)."""

    def __init__(
        self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int, *, norm: str = "none"
    ) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
            return _convolution(inputs, outputs, kernel, norm=norm)

        self.one = convolution(channels, one, 1)
        self.three = nn.Sequential(convolution(channels, three[0], 1), convolution(three[0], three[1], 3))
        self.five = nn.Sequential(convolution(channels, five[0], 1), convolution(five[0], five[1], 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), convolution(channels, pool, 1))
        self.channels = one + three[1] + five[1] + pool

    def forward(self, x: Tensor) -> Tensor:
        """The channels of all branches."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Auxiliary(nn.Sequential):
    """The classifier on a middle layer: 4x4 averages (5x5 average pooling of 14x14 positions), 1x1 convolution, 1024 units."""

    def __init__(self, channels: int, classes: int, side: int, *, norm: str) -> None:
        pool: nn.Module = nn.AvgPool2d(5, 3, ceil_mode=True) if side == 14 else nn.AdaptiveAvgPool2d(4)
        super().__init__(
            pool,
            _convolution(channels, 128, 1, norm=norm),
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, 1024),
            nn.ReLU(inplace=True),
            nn.Dropout(0.7),
            nn.Linear(1024, classes),
        )


# The nine modules in three stages, max pooling between them: 1x1; 1x1, 3x3; 1x1, 5x5; after pooling.
_MODULES: dict[str, tuple[int, tuple[int, int], tuple[int, int], int]] = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}
# An auxiliary classifier looks at the output of these.
_AUXILIARY = ("4a", "4d")


class GoogLeNet(nn.Module):
    """GoogLeNet (Szegedy et al. 2015). Images (n, 3, 224, 224) -> scores (n, classes).

    In training the scores of the two auxiliary classifiers come after it: a tuple of three.
    """

    def __init__(self, classes: int = 1000, pixels: int = 224, norm: str = "none") -> None:
        super().__init__()
        self.classes = classes
        side = -(-pixels // 2)
        for _ in range(3):
            side = _pooled(side, 3, 2)
        _check(side - 1, "googlenet", pixels, least=31)
        self.stem = nn.Sequential(
            _convolution(3, 64, 7, stride=2, norm=norm),
            _pool(3, 2),
            *_responses(norm),
            _convolution(64, 64, 1, norm=norm),
            _convolution(64, 192, 3, norm=norm),
            *_responses(norm),
            _pool(3, 2),
        )
        channels = 192
        self.inception = nn.ModuleDict()
        self.auxiliary = nn.ModuleDict()
        for name, widths in _MODULES.items():
            module = Inception(channels, *widths, norm=norm)
            self.inception[name], channels = module, module.channels
            if name in _AUXILIARY:
                self.auxiliary[name] = Auxiliary(channels, classes, side, norm=norm)
        self.pool = _pool(3, 2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Scores; in training those of the auxiliary classifiers too."""
        x, stage, others = self.stem(x), "3", []
        for name, module in self.inception.items():
            if name[0] != stage:
                x, stage = self.pool(x), name[0]
            x = module(x)
            if self.training and name in self.auxiliary:
                others.append(self.auxiliary[name](x))
        scores: Tensor = self.head(x)
        return (scores, *others) if others else scores
