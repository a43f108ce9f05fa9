"""The data: real, small, in memory, and there without a network connection."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_TEXT = Path(__file__).parent / "data" / "genesis.txt"
_SPLIT = 0  # seed of what is trained on and what is tested with: the same in all runs


class NoDataError(Exception):
    """A set that is to be given by GOODINIT_DATA_DIR is not there."""


@dataclass(frozen=True)
class Data:
    """Inputs and targets, to train with and to test with."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def _split(x: Tensor, y: Tensor, share: float = 0.25) -> Data:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(_SPLIT))
    test, train = order[: int(share * len(x))], order[int(share * len(x)) :]
    return Data(x[train], y[train], x[test], y[test])


@cache
def digits() -> Data:
    """scikit-learn's 1797 handwritten digits (1, 8, 8), of mean 0 and std 1."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    return _split((x - x.mean()) / x.std(), torch.tensor(found.target))


@cache
def diabetes() -> Data:
    """scikit-learn's diabetes set: 442 patients, 10 features, progression of the disease; all standardized."""
    from sklearn.datasets import load_diabetes

    return _split(*_standardized(*load_diabetes(return_X_y=True)))


@cache
def cancer() -> Data:
    """scikit-learn's breast cancer set: 569 patients, 30 features, benign or malignant."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return _split(_standardized(x, y)[0], torch.tensor(y))


def _standardized(x: object, y: object) -> tuple[Tensor, Tensor]:
    a, b = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32).view(-1, 1)
    return (a - a.mean(0)) / a.std(0), (b - b.mean()) / b.std()


@cache
def images(name: str, train: int, test: int) -> Data:
    """The first images of MNIST or CIFAR-10, each channel of mean 0 and std 1.

    Raises:
        NoDataError: GOODINIT_DATA_DIR names no folder that has the set.
    """
    from goodinit.paper.data import load

    folder = os.environ.get("GOODINIT_DATA_DIR")
    if folder is None or not (Path(folder) / name).exists():
        raise NoDataError(f"{name} is not there; set GOODINIT_DATA_DIR to a folder that holds {name}/ as parquet files")
    found = load(name, Path(folder))
    parts = [found.train.first(train), found.test.first(test)]
    x, test_x = (part.pixels.float() for part in parts)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return Data((x - mean) / std, parts[0].labels.clone(), (test_x - mean) / std, parts[1].labels.clone())


@cache
def rows_of_digits() -> Data:
    """MNIST's images as sequences of 14 rows, every second one, of 28 pixels."""
    found = images("mnist", 4096, 1000)
    return Data(found.x[:, 0, ::2], found.y, found.test_x[:, 0, ::2], found.test_y)


@cache
def wine() -> Data:
    """scikit-learn's wine set: 178 wines, 13 features, 3 cultivars."""
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    return _split(_standardized(x, y)[0], torch.tensor(y))


def themselves(found: Data) -> Data:
    """Inputs as their own targets."""
    return Data(found.x, found.x, found.test_x, found.test_x)


@cache
def photograph(name: str = "flower.jpg", size: int = 48) -> Data:
    """A photograph of scikit-learn's in gray: coordinates in (-1, 1), brightness of std 1; the test has the pixels between."""
    from sklearn.datasets import load_sample_image

    image = torch.tensor(load_sample_image(name), dtype=torch.float32).mean(2)[None, None]
    fine = torch.nn.functional.interpolate(image[..., :420, 100:520], (2 * size, 2 * size), mode="area")[0, 0]
    fine = (fine - fine.mean()) / fine.std()
    axis = torch.linspace(-1, 1, 2 * size)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    known = torch.zeros(2 * size, 2 * size, dtype=torch.bool)
    known[::2, ::2] = True
    return Data(places[known], fine[known].view(-1, 1), places[~known][::4], fine[~known][::4].view(-1, 1))


@cache
def text(length: int = 32) -> Data:
    """Genesis, letter by letter: sequences and the same a letter later. The last tenth is the test."""
    letters = _TEXT.read_text(encoding="utf-8")
    known = sorted(set(letters))
    codes = torch.tensor([known.index(c) for c in letters])
    windows = codes.unfold(0, length + 1, length)
    cut = int(0.9 * len(windows))
    train, test = windows[:cut], windows[cut : cut + 256]
    return Data(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])


LETTERS = len(set(_TEXT.read_text(encoding="utf-8")))


@cache
def neighbours(nearest: int = 8) -> tuple[Data, Tensor]:
    """The digits as a graph: every image and those nearest to it, and the normalized adjacency (n, n) of Kipf & Welling 2017.

    All nodes are seen, the labels of a tenth of them are trained on; inputs are the nodes' numbers.
    """
    from sklearn.neighbors import kneighbors_graph

    found = digits()
    x = torch.cat([found.x, found.test_x]).flatten(1)
    graph = torch.tensor(kneighbors_graph(x.numpy(), nearest).toarray(), dtype=torch.float32)
    graph = ((graph + graph.T) > 0).float() + torch.eye(len(x))
    scale = graph.sum(1).rsqrt()
    nodes, labels, cut = torch.arange(len(x)), torch.cat([found.y, found.test_y]), len(x) // 10
    # One chunk, so that a test is one pass.
    return Data(nodes[:cut], labels[:cut], nodes[cut : cut + 500], labels[cut : cut + 500]), (
        scale[:, None] * graph * scale
    ).to_sparse()


@cache
def features() -> Tensor:
    """Of the nodes of `neighbours`."""
    found = digits()
    return torch.cat([found.x, found.test_x]).flatten(1)


@cache
def collocation(count: int = 512) -> Data:
    """Points of the square (-1, 1)^2 for Poisson's equation; the test has the solution there."""
    generator = torch.Generator().manual_seed(_SPLIT)
    x = torch.rand(count, 2, generator=generator) * 2 - 1
    test = torch.rand(400, 2, generator=generator) * 2 - 1
    return Data(x, torch.zeros(count, 1), test, solution(test))


def solution(x: Tensor) -> Tensor:
    """u of -laplace u = 2 pi^2 sin(pi x) sin(pi y), 0 on the boundary."""
    return (torch.pi * x).sin().prod(1, keepdim=True)


Source = Callable[[], Data]
