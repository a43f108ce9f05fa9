"""The images of the demonstration: scikit-learn's digits, which need no download, and MNIST."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from goodinit.errors import DataError, require
from goodinit.hub import Split, read_split, reading

CLASSES = 10
MNIST = "ylecun/mnist"  # on the Hugging Face hub
# MNIST's first training images; 400 steps of 64 images see each of them about once.
MNIST_TRAIN = 20_000


@dataclass(frozen=True)
class Images:
    """Images (n, 1, height, width), standardized with the mean and std of the training set, and their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    source: str

    @classmethod
    def standardized(cls, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], source: str) -> Images:
        """From images and labels."""
        mean, std = train[0].mean(), train[0].std()
        return cls((train[0] - mean) / std, train[1], (test[0] - mean) / std, test[1], source)

    def __str__(self) -> str:
        height, width = self.train.shape[2:]
        return f"{self.source}, {len(self.train):,} training and {len(self.test):,} test images of {height}x{width}"


def digits() -> Images:
    """scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, a fifth of every class held out, always the same ones."""
    require("sklearn", extra="data")
    from sklearn.datasets import load_digits  # noqa: PLC0415 - needs the extra
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x.reshape(-1, 1, 8, 8), y, test_size=0.2, stratify=y, random_state=0)
    train, test = (torch.as_tensor(part, dtype=torch.float32) for part in parts[:2])
    train_labels, test_labels = (torch.as_tensor(part, dtype=torch.int64) for part in parts[2:])
    return Images.standardized((train, train_labels), (test, test_labels), "scikit-learn's digits")


def mnist(data_dir: Path | None = None) -> Images:
    """MNIST, its first 20,000 training images and all of its test images, each 2x2 pixels averaged to one.

    At 28x28 pixels 30 layers would take four times as long.
    """
    train, test = _mnist_part(data_dir, "train", f"[:{MNIST_TRAIN}]"), _mnist_part(data_dir, "test")
    return Images.standardized(train, test, "MNIST at half its resolution")


def _mnist_part(data_dir: Path | None, split: Split, rows: str = "") -> tuple[Tensor, Tensor]:
    """Images and labels of a part of MNIST, from parquet files or from the hub."""
    part = read_split(MNIST, split, data_dir, rows=rows)
    with reading(f"the {split} images of {MNIST}", fetched=data_dir is None):
        return _decoded(part)


def _decoded(rows: Any) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 14, 14) with values from 0 to 1, and labels."""
    import datasets  # noqa: PLC0415 - needs the extra
    import numpy as np  # noqa: PLC0415

    if not {"image", "label"} <= set(rows.column_names):
        raise DataError(f"MNIST has the columns image and label; found: {', '.join(rows.column_names)}")
    images = [np.asarray(image) for image in rows.cast_column("image", datasets.Image())["image"]]
    for i, image in enumerate(images):
        if image.shape != (28, 28):
            raise DataError(f"MNIST's images are gray and of 28x28 pixels; image {i} is an array of shape {image.shape}")
    labels = list(rows["label"])
    for i, label in enumerate(labels):
        if label not in range(CLASSES):
            raise DataError(f"MNIST's labels are the numbers 0 to {CLASSES - 1}; label {i} is {label!r}")
    pixels = torch.as_tensor(np.stack(images))[:, None].float() / 255
    return F.avg_pool2d(pixels, 2), torch.as_tensor(labels)
