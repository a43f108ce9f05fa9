"""The networks of the benchmarks, with random data for them: shapes of well-known ones, not pretrained, without dropout.

Inputs have mean 0 and variance 1. Sizes are parameters, so that a test can run all of it in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Net:
    """A network and a batch for it, made anew at every call from torch's global generator."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Tensor]

    def make(self, seed: int) -> tuple[nn.Module, Tensor]:
        """The network in train mode, and its batch."""
        torch.manual_seed(seed)
        return self.build().train(), self.batch()


def full_size() -> list[Net]:
    """At their published widths, but for plain-cnn-50, gpt2-like and the MLPs, which have none."""
    return [
        Net("mlp-10", lambda: mlp(10), lambda: torch.randn(512, 256)),
        Net("mlp-100", lambda: mlp(100), lambda: torch.randn(512, 256)),
        Net("mlp-1000", lambda: mlp(1000), lambda: torch.randn(512, 256)),
        Net("plain-cnn-50", plain_cnn, lambda: torch.randn(16, 3, 32, 32)),
        Net("gpt2-like", gpt2, lambda: torch.randint(8192, (8, 128))),
        Net("resnet18-like", resnet18, lambda: torch.randn(8, 3, 224, 224)),
        Net("resnet50-like", resnet50, lambda: torch.randn(8, 3, 224, 224)),
        Net("inception-like", inception, lambda: torch.randn(8, 3, 224, 224)),
        Net("caffenet", caffenet, lambda: torch.randn(16, 3, 227, 227)),
        Net("vgg16", vgg16, lambda: torch.randn(8, 3, 224, 224)),
    ]


def small_size() -> list[Net]:
    """The same forms, narrow and on few pixels: for a test of the benchmark, not for figures."""
    return [
        Net("mlp-10", lambda: mlp(10, width=64), lambda: torch.randn(64, 64)),
        Net("mlp-100", lambda: mlp(100, width=64), lambda: torch.randn(64, 64)),
        Net("mlp-1000", lambda: mlp(1000, width=32), lambda: torch.randn(32, 32)),
        Net("plain-cnn-50", lambda: plain_cnn(width=16), lambda: torch.randn(8, 3, 16, 16)),
        Net("gpt2-like", lambda: gpt2(width=64, layers=2, vocabulary=256), lambda: torch.randint(256, (4, 32))),
        Net("resnet18-like", lambda: resnet18(width=16), lambda: torch.randn(4, 3, 64, 64)),
        Net("resnet50-like", lambda: resnet50(width=16), lambda: torch.randn(4, 3, 64, 64)),
        Net("inception-like", lambda: inception(share=4), lambda: torch.randn(4, 3, 64, 64)),
        Net("caffenet", lambda: caffenet(share=8), lambda: torch.randn(4, 3, 67, 67)),
        Net("vgg16", lambda: vgg16(share=8, pixels=32), lambda: torch.randn(4, 3, 32, 32)),
    ]


def mlp(depth: int, width: int = 256) -> nn.Module:
    """``depth`` linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def plain_cnn(depth: int = 50, width: int = 64) -> nn.Module:
    """``depth`` layers, all but the last 3x3 convolutions; no normalization, no shortcuts; ReLU in place, as is usual."""
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(depth - 1):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def gpt2(width: int = 384, layers: int = 6, vocabulary: int = 8192) -> nn.Module:
    """transformers' GPT-2 with its language-model head, which is tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=128,
        n_embd=width,
        n_layer=layers,
        n_head=width // 32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    return model


class Residual(nn.Module):
    """A block with its shortcut: convolutions of (out, kernel) channels, each normalized, ReLU between and after the sum."""

    def __init__(self, channels: int, convolutions: Sequence[tuple[int, int]], stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        current = channels
        # The stride is the first 3x3 convolution's, as in torchvision.
        strided = next(i for i, (_, kernel) in enumerate(convolutions) if kernel == 3)
        for i, (out, kernel) in enumerate(convolutions):
            conv = nn.Conv2d(current, out, kernel, stride if i == strided else 1, kernel // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            current = out
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != current:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, current, 1, stride, bias=False), nn.BatchNorm2d(current))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """ReLU(branch + shortcut)."""
        out: Tensor = self.relu(self.branch(x) + self.shortcut(x))
        return out


def _resnet(depths: Sequence[int], block: Callable[[int], Sequence[tuple[int, int]]], width: int) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = width
    for stage, depth in enumerate(depths):
        convolutions = block(width << stage)
        for i in range(depth):
            layers.append(Residual(channels, convolutions, stride=2 if stage > 0 and i == 0 else 1))
            channels = convolutions[-1][0]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def resnet18(width: int = 64) -> nn.Module:
    return _resnet((2, 2, 2, 2), lambda w: [(w, 3), (w, 3)], width)


def resnet50(width: int = 64) -> nn.Module:
    return _resnet((3, 4, 6, 3), lambda w: [(w, 1), (w, 3), (4 * w, 1)], width)


def _normalized(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out, eps=0.001),
        nn.ReLU(inplace=True),
    )


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1, 3x3; 1x1, 3x3 (torchvision's stand-in for 5x5); pooling, 1x1."""

    def __init__(self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.one = _normalized(channels, one, 1)
        self.three = nn.Sequential(_normalized(channels, three[0], 1), _normalized(three[0], three[1], 3))
        self.five = nn.Sequential(_normalized(channels, five[0], 1), _normalized(five[0], five[1], 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _normalized(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The channels of all branches."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


# GoogLeNet's nine modules; None: max pooling.
_INCEPTIONS: Sequence[tuple[int, tuple[int, int], tuple[int, int], int] | None] = (
    (64, (96, 128), (16, 32), 32),
    (128, (128, 192), (32, 96), 64),
    None,
    (192, (96, 208), (16, 48), 64),
    (160, (112, 224), (24, 64), 64),
    (128, (128, 256), (24, 64), 64),
    (112, (144, 288), (32, 64), 64),
    (256, (160, 320), (32, 128), 128),
    None,
    (256, (160, 320), (32, 128), 128),
    (384, (192, 384), (48, 128), 128),
)


def inception(share: int = 1) -> nn.Module:
    """GoogLeNet as torchvision has it, with BatchNorm, less auxiliary heads and dropout; 1 / ``share`` of its channels."""
    channels = 192 // share
    layers: list[nn.Module] = [
        _normalized(3, 64 // share, 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _normalized(64 // share, 64 // share, 1),
        _normalized(64 // share, channels, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ]
    for module in _INCEPTIONS:
        if module is None:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            continue
        one, three, five, pool = module
        (a, b), (c, d) = three, five
        layers.append(Inception(channels, one // share, (a // share, b // share), (c // share, d // share), pool // share))
        channels = sum(x // share for x in (one, b, d, pool))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def caffenet(share: int = 1) -> nn.Module:
    """CaffeNet's weights (with its two groups) and poolings, less local response normalization and dropout."""
    a, b, c = 96 // share, 256 // share, 384 // share
    hidden = 4096 // share
    # 6x6 positions are left of 227 px; of the 67 px of a test, one.
    side = 6 if share == 1 else 1
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, a, 11, 4),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(3, 2),
            conv2=nn.Conv2d(a, b, 5, padding=2, groups=2),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(3, 2),
            conv3=nn.Conv2d(b, c, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(c, c, 3, padding=1, groups=2),
            relu4=nn.ReLU(inplace=True),
            conv5=nn.Conv2d(c, b, 3, padding=1, groups=2),
            relu5=nn.ReLU(inplace=True),
            pool5=nn.MaxPool2d(3, 2),
            flatten=nn.Flatten(),
            fc6=nn.Linear(b * side * side, hidden),
            relu6=nn.ReLU(inplace=True),
            fc7=nn.Linear(hidden, hidden),
            relu7=nn.ReLU(inplace=True),
            fc8=nn.Linear(hidden, 1000),
        )
    )


def vgg16(share: int = 1, pixels: int = 224) -> nn.Module:
    """VGG-16 (configuration D), less dropout; 1 / ``share`` of its channels."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width // share, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width // share
        layers.append(nn.MaxPool2d(2))
    hidden, side = 4096 // share, pixels // 32
    layers += [nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU(inplace=True)]
    layers += [nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 1000)]
    return nn.Sequential(*layers)
