"""From decoded images to the batches of a training: preprocessed and augmented a batch at a time, on the device that trains.

What is random follows from the seed and the number of the epoch alone, so that a training can be taken up at any step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from goodinit.errors import OptionError
from goodinit.paper.data import Images

_CHUNK = 1000


@dataclass(frozen=True)
class Preprocessing:
    """uint8 images -> float32: (x - offset) * scale - mean_image."""

    kind: str
    """``"scaled"``: pixels times 0.004, as for MNIST. ``"gcn"``: global contrast normalization, every image to mean 0 and std 1
    over all its pixels and channels, then minus the mean of the training images so normalized."""
    mean_image: Tensor | None = None
    """(channels, height, width), on the device of the images."""

    @classmethod
    def fitted(cls, kind: str, train: Images) -> Preprocessing:
        """With the mean image of the training images."""
        if kind == "scaled":
            return cls(kind)
        plain = cls(kind)
        total = torch.zeros(train.pixels.shape[1:], dtype=torch.float64, device=train.pixels.device)
        for part in train.pixels.split(_CHUNK):
            total += plain(part).sum(0, dtype=torch.float64)
        return cls(kind, (total / len(train)).float())

    def __call__(self, pixels: Tensor) -> Tensor:
        """Floats of uint8 images (n, channels, height, width), in channels_last layout."""
        x = pixels.to(torch.float32, memory_format=torch.channels_last)
        if self.kind == "scaled":
            return x.mul_(0.004)
        flat = x.flatten(1)
        # An image of one colour has std 0, and nothing to be normalized.
        mean, std = flat.mean(1), flat.std(1, correction=0).clamp_min_(1)
        x = x.sub_(_each(mean)).div_(_each(std))
        return x if self.mean_image is None else x.sub_(self.mean_image)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Augmentation:
    """What is done at random to a training image."""

    pad: int = 0
    """Zeros around the image, of which a crop of its size is taken. Where the mean image was subtracted 0 is the mean."""
    mirror: bool = False
    """Whether half of the images are mirrored."""


class Batches:
    """The batches of a training, by their number: every image at most once an epoch, the rest that fills no batch left out."""

    def __init__(self, images: Images, preprocessing: Preprocessing, augmentation: Augmentation, size: int, seed: int) -> None:
        if size > len(images):
            raise OptionError(f"a batch of {size} images is more than the {len(images)} training images")
        self._images = images
        self._preprocessing = preprocessing
        self._augmentation = augmentation
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._draws: tuple[Tensor, ...] = ()

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Images and labels of the batch of a number, from 0."""
        epoch, place = divmod(number, len(self._images) // self._size)
        if epoch != self._epoch:
            self._epoch, self._draws = epoch, self._draw(epoch)
        order, *shifts = (draw[place * self._size : (place + 1) * self._size] for draw in self._draws)
        x = self._preprocessing(self._images.pixels[order])
        return self._augmented(x, *shifts), self._images.labels[order]

    def _draw(self, epoch: int) -> tuple[Tensor, ...]:
        """For every image of an epoch: its number, the crop's first row and column, whether it is mirrored; on the device."""
        generator = torch.Generator().manual_seed(seed_of(self._seed, "epoch", epoch))
        count, device = len(self._images), self._images.pixels.device
        order = torch.randperm(count, generator=generator)
        corners = torch.randint(2 * self._augmentation.pad + 1, (2, count), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5
        return tuple(draw.to(device) for draw in (order, *corners, mirrored))

    def _augmented(self, x: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """Crops of the padded images, some of them mirrored."""
        pad = self._augmentation.pad
        if not pad and not self._augmentation.mirror:
            return x
        n, _, height, width = x.shape
        rows = top[:, None] + torch.arange(height, device=x.device)
        columns = torch.arange(width, device=x.device).expand(n, width)
        if self._augmentation.mirror:
            columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
        columns = columns + left[:, None]
        padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
        image = torch.arange(n, device=x.device)[:, None, None]
        return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def in_order(images: Images, preprocessing: Preprocessing, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images, in batches, as they are tested."""
    for pixels, labels in zip(images.pixels.split(size), images.labels.split(size), strict=True):
        yield preprocessing(pixels), labels


def seed_of(seed: int, *purpose: object) -> int:
    """A seed for one purpose: independent of those for all others."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
