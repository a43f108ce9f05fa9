"""CaffeNet and GoogLeNet as the BVLC model zoo has them: local response normalization, groups, Caffe's poolings.

Where PyTorch's own init and the published ones (Gaussians with hand-chosen std, biases of 0.1) differ, `goodinit.init_` decides.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn


def caffenet(classes: int = 1000) -> nn.Sequential:
    """CaffeNet: AlexNet (Krizhevsky et al. 2012) with pooling before normalization. Images (n, 3, 227, 227) -> (n, classes)."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(3, 96, 11, stride=4),
            relu1=nn.ReLU(inplace=True),
            pool1=_pool(3, 2),
            norm1=_normalization(),
            conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
            relu2=nn.ReLU(inplace=True),
            pool2=_pool(3, 2),
            norm2=_normalization(),
            conv3=nn.Conv2d(256, 384, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
            relu5=nn.ReLU(inplace=True),
            pool5=_pool(3, 2),
            flatten=nn.Flatten(),
            fc6=nn.Linear(256 * 6 * 6, 4096),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(0.5),
            fc7=nn.Linear(4096, 4096),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(0.5),
            fc8=nn.Linear(4096, classes),
        )
    )


def _pool(kernel: int, stride: int, padding: int = 0) -> nn.MaxPool2d:
    return nn.MaxPool2d(kernel, stride, padding, ceil_mode=True)  # Caffe rounds up


def _normalization() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1, 3x3; 1x1, 5x5; 3x3 max pooling, 1x1 (Szegedy et al. 2015)."""

    def __init__(self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.one = _convolution(channels, one, 1)
        self.three = nn.Sequential(_convolution(channels, three[0], 1), _convolution(three[0], three[1], 3))
        self.five = nn.Sequential(_convolution(channels, five[0], 1), _convolution(five[0], five[1], 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _convolution(channels, pool, 1))
        self.channels = one + three[1] + five[1] + pool

    def forward(self, x: Tensor) -> Tensor:
        """The channels of all branches."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU(inplace=True))


class Auxiliary(nn.Sequential):
    """The classifier on a middle layer of 14x14 positions: 5x5 average pooling, 1x1 convolution, 1024 units."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            nn.AvgPool2d(5, 3, ceil_mode=True),
            _convolution(channels, 128, 1),
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
    """GoogLeNet (Szegedy et al. 2015), without batch normalization. Images (n, 3, 224, 224) -> scores (n, classes).

    In training the scores of the two auxiliary classifiers come after it: a tuple of three.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(3, 64, 7, stride=2),
            _pool(3, 2),
            _normalization(),
            _convolution(64, 64, 1),
            _convolution(64, 192, 3),
            _normalization(),
            _pool(3, 2),
        )
        channels = 192
        self.inception = nn.ModuleDict()
        self.auxiliary = nn.ModuleDict()
        for name, widths in _MODULES.items():
            module = Inception(channels, *widths)
            self.inception[name], channels = module, module.channels
            if name in _AUXILIARY:
                self.auxiliary[name] = Auxiliary(channels, classes)
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


# Network -> what makes it, and the height and width of its images.
IMAGENET: dict[str, tuple[Callable[[], nn.Module], int]] = {"caffenet": (caffenet, 227), "googlenet": (GoogLeNet, 224)}
