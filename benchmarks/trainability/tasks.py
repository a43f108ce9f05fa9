"""The tasks: a network, data, a loss, and when it counts as trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit.schemes import Nonlinearity
from trainability import nets, sets
from trainability.sets import Data

Loss = Callable[[Tensor, Tensor], Tensor]
Make = Callable[[], nn.Module]


def error_share(scores: Tensor, y: Tensor) -> Tensor:
    """Of a classifier: how many are wrong."""
    return (scores.argmax(-1) != y).float().mean()


def variance_left(prediction: Tensor, y: Tensor) -> Tensor:
    """Of a regression: mean squared error as a share of the variance; 1 is what the mean would give."""
    return (prediction - y.flatten(1)).square().mean() / (y - y.mean(0)).square().mean()


def next_letter(scores: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, nats a letter."""
    return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def squares(prediction: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return (prediction - y.flatten(1)).square().mean()


def residuals(found: Tensor, _y: Tensor) -> Tensor:
    """Of the equation inside, and of the boundary's values."""
    return found[:, 0].square().mean() + 4 * found[:, 1].square().mean()


@dataclass(frozen=True)
class Task:
    """What every contestant gets the same of."""

    name: str
    kind: str
    """Of network, for the advice."""
    about: str
    make: Make
    data: Callable[[], Data]
    steps: int
    trained: float
    """The test's error under which it counts as trained; the error of knowing nothing is well above."""
    norm: Make | None = None
    """The same with normalization layers."""
    others: dict[str, Make] = field(default_factory=dict)
    """The same with blocks that bring an initialization of their own."""
    own: Callable[[nn.Module], None] | None = None
    """The initialization that the network's authors prescribe."""
    nonlinearity: Nonlinearity = "relu"
    """The nearest that the schemes of init_ know."""
    loss: Loss = F.cross_entropy
    error: Loss = error_share
    unit: str = "errors"
    batch: int = 64
    branches: tuple[str, ...] = ()
    """Patterns of the layers at the ends of residual branches."""
    normalized: bool = False
    """Whether it has normalization layers as it is."""
    unbounded: bool = False
    """Whether it is a chain of layers with non-linearities whose output can have any std."""
    held_out: bool = False
    """Whether it was first run after what lsuv_ does had been decided; with the core contestants only."""


_REGRESSION: dict[str, Any] = {"loss": squares, "error": variance_left, "unit": "variance left"}
_CIFAR = partial(sets.images, "cifar10", 6000, 1000)
_MNIST = partial(sets.images, "mnist", 4096, 1000)


def _perceptron(depth: int, activation: nets.Activation) -> tuple[Make, Make]:
    make = partial(nets.perceptron, depth, 64, 64, 10, activation)
    return make, partial(make, nn.BatchNorm1d)


def _deep(depth: int, name: str, activation: nets.Activation, steps: int) -> Task:
    make, norm = _perceptron(depth, activation)
    known: Nonlinearity = "tanh" if name == "tanh" else "relu"
    about = f"perceptron of {depth} layers of 64 units, {name}, on scikit-learn's digits"
    return Task(
        f"mlp{depth}-{name.lower()}",
        f"deep perceptrons, {name}",
        about,
        make,
        sets.digits,
        steps,
        0.5,
        norm,
        nonlinearity=known,
        unbounded=name != "tanh",
    )


def _held_out(name: str, about: str, make: Make, data: Callable[[], Data], **more: Any) -> Task:
    return Task(name, "held out", about, make, data, **{"steps": 250, "trained": 0.5, **more}, held_out=True)


def _fitnet(activation: str) -> Task:
    make, norm = (partial(nets.fitnet, activation, norm) for norm in (None, nn.BatchNorm2d))
    saturating: dict[str, Nonlinearity] = {"tanh": "tanh", "sigmoid": "sigmoid"}
    return Task(
        f"fitnet1-{activation}",
        "plain CNNs of 10 layers",
        f"FitNet-1 with half its channels, {activation}, on CIFAR-10",
        make,
        _CIFAR,
        150,
        0.8,
        norm,
        nonlinearity=saturating.get(activation, "relu"),
        batch=32,
        unbounded=activation not in saturating,
    )


def _plain(depth: int, steps: int) -> Task:
    make, norm = (partial(nets.plain_convolutions, depth, 16, nn.ReLU, norm) for norm in (None, nn.BatchNorm2d))
    about = f"{depth} plain layers of 16 channels, ReLU, on CIFAR-10"
    return Task(f"cnn{depth}-relu", "deep plain CNNs, ReLU", about, make, _CIFAR, steps, 0.8, norm, batch=32, unbounded=True)


_RESIDUAL = partial(nets.residual, 12, 16)
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _plain(20, 200),
        _plain(50, 200),
        *(_fitnet(activation) for activation in ("relu", "vlrelu", "tanh", "sigmoid", "maxout")),
        Task(
            "resnet26",
            "residual nets without normalization",
            "12 residual blocks of two convolutions, no normalization, on CIFAR-10",
            _RESIDUAL,
            _CIFAR,
            200,
            0.8,
            partial(_RESIDUAL, norm=nn.BatchNorm2d),
            branches=("*.branch.3",),
            others={"fixup": partial(_RESIDUAL, nets.FixupBlock), "skipinit": partial(_RESIDUAL, nets.SkipBlock)},
            batch=32,
        ),
        Task(
            "resnet26-bn",
            "nets with normalization layers",
            "the same with batch normalization",
            partial(_RESIDUAL, norm=nn.BatchNorm2d),
            _CIFAR,
            200,
            0.8,
            batch=32,
            normalized=True,
        ),
        _deep(30, "tanh", nn.Tanh, 300),
        _deep(100, "tanh", nn.Tanh, 200),
        _deep(30, "GELU", nn.GELU, 300),
        _deep(100, "GELU", nn.GELU, 200),
        _deep(30, "relu", nn.ReLU, 300),
        _deep(100, "relu", nn.ReLU, 200),
        Task(
            "autoencoder",
            "autoencoders",
            "perceptron 784-256-128-64-32-16 and back, tanh, on MNIST",
            nets.autoencoder,
            lambda: sets.themselves(_MNIST()),
            400,
            0.85,
            partial(nets.autoencoder, nn.BatchNorm1d),
            nonlinearity="tanh",
            **_REGRESSION,
        ),
        Task(
            "siren",
            "coordinate networks, sines",
            "coordinate network of 5 layers of 64 sines on a photograph of scikit-learn's",
            partial(nets.siren, 64, 5),
            sets.photograph,
            400,
            0.7,
            own=nets.siren_reference_,
            nonlinearity="linear",
            **_REGRESSION,
            batch=256,
        ),
        Task(
            "poisson",
            "physics-informed nets",
            "physics-informed perceptron of 6 layers of 32 units, tanh, called inside and on the edge, for Poisson's equation",
            lambda: nets.Physics(nets.perceptron(6, 32, 2, 1, nn.Tanh)),
            sets.collocation,
            300,
            0.5,
            nonlinearity="tanh",
            loss=residuals,
            error=variance_left,
            unit="variance left",
            batch=128,
        ),
        Task(
            "gpt",
            "transformers without normalization",
            "GPT of 6 blocks of width 48, no normalization, letters of Genesis",
            partial(nets.GPT, 6, 48, norm=False),
            sets.text,
            200,
            2.6,
            partial(nets.GPT, 6, 48, norm=True),
            branches=("blocks.*.out", "blocks.*.down"),
            loss=next_letter,
            error=next_letter,
            unit="nats a letter",
            batch=16,
        ),
        Task(
            "gpt-ln",
            "nets with normalization layers",
            "the same with LayerNorm",
            partial(nets.GPT, 6, 48, norm=True),
            sets.text,
            200,
            2.6,
            loss=next_letter,
            error=next_letter,
            unit="nats a letter",
            batch=16,
            normalized=True,
        ),
        Task(
            "lstm",
            "recurrent nets",
            "two layers of LSTM, 48 units, on MNIST's rows",
            nets.Recurrent,
            sets.rows_of_digits,
            250,
            0.5,
            partial(nets.Recurrent, norm=True),
            nonlinearity="tanh",
        ),
        Task(
            "gcn16",
            "graph nets",
            "16 graph convolutions of 32 units, ReLU, on the digits' graph of neighbours",
            partial(nets.Graph, 16, 32),
            lambda: sets.neighbours()[0],
            60,
            0.5,
            partial(nets.Graph, 16, 32, nn.BatchNorm1d),
        ),
        Task(
            "tabular",
            "shallow nets on tables",
            "perceptron of 8 layers of 64 units, GELU, scikit-learn's diabetes (regression)",
            partial(nets.perceptron, 8, 64, 10, 1, nn.GELU),
            sets.diabetes,
            300,
            0.8,
            partial(nets.perceptron, 8, 64, 10, 1, nn.GELU, nn.BatchNorm1d),
            **_REGRESSION,
            unbounded=True,
        ),
        Task(
            "cancer",
            "shallow nets on tables",
            "perceptron of 4 layers of 32 units, ReLU, scikit-learn's breast cancer set",
            partial(nets.perceptron, 4, 32, 30, 2, nn.ReLU),
            sets.cancer,
            300,
            0.2,
            partial(nets.perceptron, 4, 32, 30, 2, nn.ReLU, nn.BatchNorm1d),
            unbounded=True,
        ),
        Task(
            "binary",
            "quantized nets",
            "perceptron of 8 layers of 64 binary activations (straight-through gradients) on scikit-learn's digits",
            _perceptron(8, nets.Sign)[0],
            sets.digits,
            300,
            0.5,
            _perceptron(8, nets.Sign)[1],
            nonlinearity="tanh",
        ),
        _held_out(
            "mlp60-silu",
            "perceptron of 60 layers of 48 units, SiLU, on scikit-learn's digits",
            partial(nets.perceptron, 60, 48, 64, 10, nn.SiLU),
            sets.digits,
        ),
        _held_out(
            "mlp50-elu",
            "perceptron of 50 layers of 96 units, ELU, on scikit-learn's digits",
            partial(nets.perceptron, 50, 96, 64, 10, nn.ELU),
            sets.digits,
        ),
        _held_out(
            "cnn30-gelu",
            "30 plain layers of 16 channels, GELU, on CIFAR-10",
            partial(nets.plain_convolutions, 30, 16, nn.GELU),
            _CIFAR,
            trained=0.8,
            batch=32,
        ),
        _held_out(
            "autoencoder-relu",
            "perceptron of 16 layers of 48 units, ReLU, from scikit-learn's digits to themselves",
            partial(nets.perceptron, 16, 48, 64, 64, nn.ReLU),
            lambda: sets.themselves(sets.digits()),
            trained=0.85,
            **_REGRESSION,
        ),
        _held_out(
            "siren-china",
            "coordinate network of 8 layers of 48 sines on another photograph of scikit-learn's",
            partial(nets.siren, 48, 8),
            partial(sets.photograph, "china.jpg"),
            trained=0.7,
            nonlinearity="linear",
            batch=256,
            **_REGRESSION,
        ),
        _held_out(
            "wine",
            "perceptron of 12 layers of 32 units, tanh, scikit-learn's wine set",
            partial(nets.perceptron, 12, 32, 13, 3, nn.Tanh),
            sets.wine,
            trained=0.2,
            nonlinearity="tanh",
        ),
    )
}


def batches(task: Task, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The batch of every step, the same for all contestants."""
    found = task.data()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        chosen = torch.randint(len(found.x), (min(task.batch, len(found.x)),), generator=generator)
        return found.x[chosen], found.y[chosen]

    return batch
