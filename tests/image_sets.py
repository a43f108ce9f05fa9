"""Small image sets in the layout of the hub's, for tests: parquet files with encoded images and labels."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from goodinit.paper.data import Facts, Images, ImageSet


def write_set(
    folder: Path,
    *,
    count: int = 40,
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    classes: int = 10,
    image: str = "img",
    label: str = "label",
    encoding: str = "PNG",
    splits: tuple[str, ...] = ("train", "test"),
    change: Callable[[int, np.ndarray], np.ndarray] = lambda _i, array: array,
    features: bool = True,
) -> Path:
    """Write a set whose image i has label i % classes, and whose pixels are noise; ``change`` may replace them."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(splits):
        noise = np.random.default_rng(seed).integers(0, 256, (count, *size, *([channels] if channels > 1 else [])), np.uint8)
        rows: dict[str, Any] = {
            image: [{"bytes": encoded(change(i, array), encoding), "path": None} for i, array in enumerate(noise)],
            label: [i % classes for i in range(count)],
        }
        kinds = {image: datasets.Image(), label: datasets.ClassLabel(names=[f"class {i}" for i in range(classes)])}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds) if features else None)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def encoded(array: np.ndarray, encoding: str) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, encoding)
    return file.getvalue()


def images(count: int, shape: tuple[int, ...], *, classes: int = 10, seed: int = 0) -> Images:
    """Images in memory that can be learnt: each class has a pattern of its own under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    blocks = torch.rand(classes, shape[0], 4, 4, generator=torch.Generator().manual_seed(99))
    patterns = torch.nn.functional.interpolate(blocks, size=shape[1:])
    noisy = patterns[labels] + 0.1 * torch.randn(count, *shape, generator=generator)
    return Images((noisy.clamp(0, 1) * 255).byte(), labels, Facts(tuple(map(str, range(classes))), {"PNG": count}, "none"))


def image_set(shape: tuple[int, ...], *, train: int = 400, test: int = 100, classes: int = 10) -> ImageSet:
    """A set in memory."""
    return ImageSet("made", images(train, shape, classes=classes), images(test, shape, classes=classes, seed=1))
