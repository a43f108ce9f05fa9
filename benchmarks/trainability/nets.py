"""The networks, in PyTorch's default initialization: most without normalization layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit.paper.blocks import Prepared, largest
from trainability.sets import LETTERS, features, neighbours

Activation = Callable[[], nn.Module]


class Sine(nn.Module):
    """sin(30 x), of SIREN (Sitzmann et al. 2020); the 30 belongs to the first layer alone."""

    def __init__(self, frequency: float = 1.0) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """The sine."""
        return (self.frequency * x).sin()


def perceptron(  # noqa: PLR0917 - in the order of the data's way
    depth: int, width: int, inputs: int, outputs: int, activation: Activation, norm: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """``depth`` linear layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth - 1):
        layers.append(nn.Linear(width if i else inputs, width))
        layers += [norm(width)] if norm else []
        layers.append(activation())
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def plain_convolutions(
    depth: int, width: int, activation: Activation = nn.ReLU, norm: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """A convolution with stride 2, and then 3x3 ones, of images (3, 32, 32): at 16x16 the first fifth of them, then at 8x8."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1)]
    for i in range(depth - 2):
        layers += [norm(width)] if norm else []
        layers.append(activation())
        if i == depth // 5:
            layers.append(nn.AvgPool2d(2))
        layers.append(nn.Conv2d(width, width, 3, padding=1))
    layers += [norm(width)] if norm else []
    return nn.Sequential(*layers, activation(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * width, 10))


class Maxout(nn.Module):
    """The largest of two groups of channels: (n, 2 c, …) -> (n, c, …)."""

    def forward(self, x: Tensor) -> Tensor:
        """The maximum over the groups."""
        return largest(x.chunk(2, 1))


def fitnet(activation: str, norm: Callable[[int], nn.Module] | None = None) -> nn.Sequential:
    """FitNet-1 (Romero et al. 2015) with half the channels: 8 8 8, 16 16 16, 24 24 32."""
    makers: dict[str, Activation] = {
        "relu": nn.ReLU,
        "vlrelu": lambda: nn.LeakyReLU(1 / 3),
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "maxout": Maxout,
    }
    pieces, layers, before = 2 if activation == "maxout" else 1, list[nn.Module](), 3
    for stage in ((8, 8, 8), (16, 16, 16), (24, 24, 32)):
        for width in stage:
            layers.append(nn.Conv2d(before, pieces * width, 3, padding=1))
            layers += [norm(pieces * width)] if norm else []
            layers.append(makers[activation]())
            before = width
        layers.append(nn.MaxPool2d(2) if before < 32 else nn.AdaptiveMaxPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))


class Block(nn.Module):
    """x + f(x), f two convolutions; with ``norm`` the first of them normalized and the second too."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module] | None) -> None:
        super().__init__()
        between = [norm(width)] if norm else []
        first = [norm(width)] if norm else []
        self.branch = nn.Sequential(
            *first, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), *between, nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        out: Tensor = x + self.branch(x)
        return out


class SkipBlock(Block, Prepared):
    """x + alpha f(x), alpha 0 (De & Smith 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, None)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        out: Tensor = x + self.alpha * self.branch(x)
        return out

    def prepare_(self, blocks: int, gate_bias: float) -> None:
        """Alpha is 0 already."""


class FixupBlock(Prepared):
    """x + s conv(relu(conv(relu(x + b1) + b2) + b3)) + b4 (Zhang et al. 2019), in the order of `Block`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.biases, self.scale = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        b1, b2, b3, b4 = self.biases
        h = F.relu(self.first(F.relu(x + b1)) + b2)
        out: Tensor = x + self.scale * self.second(h + b3) + b4
        return out

    def prepare_(self, blocks: int, gate_bias: float) -> None:  # noqa: ARG002 - has no gates
        """He's first convolution scaled down, the second one 0."""
        nn.init.kaiming_normal_(self.first.weight)
        with torch.no_grad():
            self.first.weight.mul_(blocks**-0.5)
        nn.init.zeros_(self.second.weight)


def residual(
    blocks: int, width: int, block: Callable[[int], nn.Module] | None = None, norm: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """A convolution with stride 2, blocks at 16x16 and, from a third on, at 8x8."""
    make = block or (lambda w: Block(w, norm))
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1)]
    for i in range(blocks):
        layers += [nn.AvgPool2d(2)] if i == blocks // 3 else []
        layers.append(make(width))
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def autoencoder(norm: Callable[[int], nn.Module] | None = None) -> nn.Sequential:
    """784 -> 256 128 64 32 16 and back, tanh; Hinton & Salakhutdinov 2006 in small."""
    widths = (784, 256, 128, 64, 32, 16, 32, 64, 128, 256)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(widths):
        layers.append(nn.Linear(a, b))
        layers += [norm(b)] if norm else []
        layers.append(nn.Tanh())
    return nn.Sequential(*layers, nn.Linear(256, 784))


def siren(width: int, depth: int) -> nn.Sequential:
    """Coordinates to brightness through sines."""
    layers: list[nn.Module] = [nn.Linear(2, width), Sine(30)]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), Sine()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


class Physics(nn.Module):
    """A perceptron u whose forward gives the residual of Poisson's equation and u on the boundary; see `solution`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """In training residuals (n, 2): inside, and on the boundary. In testing u (n, 1)."""
        if not self.training:
            return self.value(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            u = self.value(x)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            second = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
            source = 2 * torch.pi**2 * (torch.pi * x).sin().prod(1)
            inside = (second[0] + second[1] + source) / (2 * torch.pi**2)
            edge = torch.where((x.abs() == x.abs().amax(1, keepdim=True)), x.sign(), x)
        return torch.stack([inside, self.value(edge)[:, 0]], 1)

    def value(self, x: Tensor) -> Tensor:
        """u."""
        u: Tensor = self.net(x)
        return u


class Attention(nn.Module):
    """A block of a GPT: causal attention and a perceptron, each beside a shortcut, with LayerNorm before them or without."""

    def __init__(self, width: int, heads: int, *, norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, length, width)."""
        n, length, width = x.shape
        q, k, v = (t.view(n, length, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return out


class GPT(nn.Module):
    """Letters to scores of the next letter."""

    def __init__(self, depth: int, width: int, *, norm: bool, length: int = 32) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Attention(width, 4, norm=norm) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, LETTERS)

    def forward(self, codes: Tensor) -> Tensor:
        """(n, length) -> (n, length, letters)."""
        x = self.letters(codes) + self.places.weight
        scores: Tensor = self.head(self.norm(self.blocks(x)))
        return scores


class Recurrent(nn.Module):
    """Two layers of LSTM and a classifier of the last state."""

    def __init__(self, width: int = 48, *, norm: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, width, num_layers=2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(n, rows, 28) -> (n, 10)."""
        scores: Tensor = self.head(self.norm(self.lstm(x)[0][:, -1]))
        return scores


class Graph(nn.Module):
    """Graph convolutions (Kipf & Welling 2017) on the digits' neighbours: ReLU(A h W + b)."""

    def __init__(self, depth: int, width: int, norm: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        sizes = [64, *[width] * (depth - 1)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(norm(width) if norm else nn.Identity() for _ in self.layers)
        self.head = nn.Linear(width, 10)

    def forward(self, nodes: Tensor) -> Tensor:
        """Scores of some nodes."""
        h, graph = features(), neighbours()[1]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = F.relu(norm(layer(graph @ h)))
        scores: Tensor = self.head(h[nodes])
        return scores


class _Sign(torch.autograd.Function):
    """The sign, with the gradient of a clipped identity (Hubara et al. 2016)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        out: Tensor = gradients[0] * (x.abs() <= 1)
        return out


class Sign(nn.Module):
    """Binary activations."""

    def forward(self, x: Tensor) -> Tensor:
        """-1 or 1."""
        out: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]  # torch's
        return out


def siren_reference_(model: nn.Module) -> None:
    """SIREN's own initialization: U(-1/n, 1/n) in the first layer, U(-a, a), a = sqrt(6/n), behind it."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for i, layer in enumerate(linears):
        n = layer.in_features
        bound = 1 / n if i == 0 else math.sqrt(6 / n)
        nn.init.uniform_(layer.weight, -bound, bound)
