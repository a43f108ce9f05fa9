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
    over all its pixels and channels, then minus the mean of the training images so normalized. ``"standardized"``: every channel
    minus its mean and divided by its std over the training images. ``"centred"``: every channel minus its mean, from 0 to 255, as
    Caffe's ImageNet networks have it."""
    mean: Tensor | None = None
    """The mean image (channels, height, width), or the channels' means (channels, 1, 1), on the device that trains."""
    std: Tensor | None = None
    """Of the channels, (channels, 1, 1)."""

    @classmethod
    def fitted(cls, kind: str, train: Images, device: torch.device) -> Preprocessing:
        """With the means of the training images."""
        if kind == "scaled":
            return cls(kind)
        plain = cls(kind)
        shape = train.pixels.shape[1:]
        total, squares = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2))
        for part in train.pixels.split(_CHUNK):
            x = plain(part.to(device))
            total += x.sum(0, dtype=torch.float64)
            squares += x.square_().sum(0, dtype=torch.float64)
        mean = total / len(train)
        if kind == "gcn":
            return cls(kind, mean.float())
        by_channel = mean.mean((1, 2), keepdim=True)
        if kind == "centred":
            return cls(kind, by_channel.float())
        std = ((squares / len(train)).mean((1, 2), keepdim=True) - by_channel.square()).sqrt()
        return cls(kind, by_channel.float(), std.clamp_min(1e-3).float())

    def __call__(self, pixels: Tensor) -> Tensor:
        """Floats of uint8 images (n, channels, height, width), in channels_last layout."""
        x = pixels.to(torch.float32, memory_format=torch.channels_last)
        if self.kind == "scaled":
            return x.mul_(0.004)
        if self.kind == "gcn":
            flat = x.flatten(1)
            # An image of one colour has std 0, and nothing to be normalized.
            mean, std = flat.mean(1), flat.std(1, correction=0).clamp_min_(1)
            x = x.sub_(_each(mean)).div_(_each(std))
        elif self.kind == "standardized":
            x = x.div_(255)
        x = x if self.mean is None else x.sub_(self.mean)
        return x if self.std is None else x.div_(self.std)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Augmentation:
    """What is done at random to a training image."""

    pad: int = 0
    """Zeros around the image, of which a crop of its size is taken. Where the mean image was subtracted 0 is the mean."""
    mirror: bool = False
    """Whether half of the images are mirrored."""
    crop: int = 0
    """Height and width of the crops; 0: those of the image."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out."""
        return (self.crop, self.crop) if self.crop else (height, width)


@dataclass(frozen=True)
class Share:
    """Which part of every batch a process takes: one of several that train together."""

    rank: int = 0
    of: int = 1


class Batches:
    """The batches of a training, by their number: every image at most once an epoch, the rest that fills no batch left out."""

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        size: int,
        seed: int,
        device: torch.device,
        share: Share | None = None,
    ) -> None:
        if size > len(images):
            raise OptionError(f"a batch of {size} images is more than the {len(images)} training images")
        self._images = images
        self._preprocessing = preprocessing
        self._augmentation = augmentation
        self._size = size
        self._seed = seed
        self._device = device
        self._share = share or Share()
        self._epoch = -1
        self._draws: tuple[Tensor, ...] = ()

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Images and labels of the batch of a number, from 0."""
        epoch, place = divmod(number, len(self._images) // self._size)
        if epoch != self._epoch:
            self._epoch, self._draws = epoch, self._draw(epoch)
        own = self._size // self._share.of
        first = place * self._size + self._share.rank * own
        order, *shifts = (draw[first : first + own] for draw in self._draws)
        x = self._preprocessing(self._images.pixels[order].to(self._device))
        return self._augmented(x, *shifts), self._images.labels[order].to(self._device)

    def _draw(self, epoch: int) -> tuple[Tensor, ...]:
        """For every image of an epoch: its number, the crop's first row and column, whether it is mirrored."""
        generator = torch.Generator().manual_seed(seed_of(self._seed, "epoch", epoch))
        count = len(self._images)
        order = torch.randperm(count, generator=generator).to(self._images.pixels.device)
        corners = [torch.randint(slack + 1, (count,), generator=generator) for slack in self._slack()]
        mirrored = torch.rand(count, generator=generator) < 0.5
        return (order, *(draw.to(self._device) for draw in (*corners, mirrored)))

    def _slack(self) -> tuple[int, int]:
        """By how much a crop may be moved down, and to the right."""
        height, width = self._images.pixels.shape[2:]
        out_height, out_width = self._augmentation.size(height, width)
        pad = 2 * self._augmentation.pad
        return height + pad - out_height, width + pad - out_width

    def _augmented(self, x: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        """Crops of the padded images, some of them mirrored."""
        pad, (n, _, height, width) = self._augmentation.pad, x.shape
        out_height, out_width = self._augmentation.size(height, width)
        if not any(self._slack()) and not self._augmentation.mirror:
            return x
        rows = top[:, None] + torch.arange(out_height, device=x.device)
        columns = torch.arange(out_width, device=x.device).expand(n, out_width)
        if self._augmentation.mirror:
            columns = torch.where(mirrored[:, None], out_width - 1 - columns, columns)
        columns = columns + left[:, None]
        padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
        image = torch.arange(n, device=x.device)[:, None, None]
        return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def in_order(
    images: Images, preprocessing: Preprocessing, *, size: int, device: torch.device, crop: int = 0, share: Share | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images, or a share of them, in batches, as they are tested: of each the middle."""
    share = share or Share()
    parts = zip(images.pixels.split(size), images.labels.split(size), strict=True)
    for i, (pixels, labels) in enumerate(parts):
        if i % share.of == share.rank:
            yield _middle(preprocessing(pixels.to(device)), crop), labels.to(device)


def _middle(x: Tensor, crop: int) -> Tensor:
    """The middle of images, with zeros around those that are smaller."""
    if not crop:
        return x
    top, left = ((side - crop) // 2 for side in x.shape[2:])
    if min(top, left) < 0:
        pad = -min(top, left)
        x, top, left = F.pad(x, (pad, pad, pad, pad)), top + pad, left + pad
    return x[:, :, top : top + crop, left : left + crop]


def seed_of(seed: int, *purpose: object) -> int:
    """A seed for one purpose: independent of those for all others."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
