"""Image sets, decoded once: uint8 pixels and labels in memory-mapped files, so that the next start takes no time and no memory.

Sets come from the hub by name, or from a folder of parquet files of the same layout (`goodinit.hub`).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goodinit.errors import DataError, SaveError, require, some_of
from goodinit.hub import Split, read_split, reading, title_of
from goodinit.paper.decode import FACTS, Facts, Progress, Wish, decode
from goodinit.paper.files import locked

# Short names of sets -> their names on the hub; any other name is one on the hub itself.
REPOSITORIES = {
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
    "imagenet": "ILSVRC/imagenet-1k",
}
# What some of them are known to be: (channels, height, width), number of classes.
_KNOWN = {"mnist": ((1, 28, 28), 10), "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100)}
_FORMAT = 2  # of the cache


@dataclass(frozen=True)
class Images:
    """Images of one size and their labels."""

    pixels: Tensor
    """uint8 (n, channels, height, width)."""
    labels: Tensor
    """int64 (n,), from 0 to classes - 1."""
    facts: Facts

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> Images:
        """The first ``count`` images; all for None."""
        return Images(self.pixels[:count], self.labels[:count], self.facts)

    def with_classes_of(self, training: Images, name: str) -> Images:
        """With the labels that the training images of the same classes have: each part may count its own.

        Raises:
            DataError: there are images of classes that the training images do not know.
        """
        own, known = self.facts.classes, training.facts.classes
        if own == known:
            return self
        places = {each: i for i, each in enumerate(known)}
        if unknown := [own[i] for i in self.labels.unique().tolist() if own[i] not in places]:
            raise DataError(
                f"test images of {name} are of classes that the training images do not have: {some_of(unknown)}; those have "
                f"{some_of(known)}"
            )
        labels = torch.tensor([places.get(each, -1) for each in own])[self.labels]
        return Images(self.pixels, labels, replace(self.facts, classes=known))

    def to(self, device: torch.device) -> Images:
        """On a GPU if they take less than half of its free memory; otherwise, and on the CPU, the memory-mapped file itself."""
        if device.type != "cuda" or self.pixels.numel() > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        return Images(self.pixels.to(device), self.labels.to(device), self.facts)


@dataclass(frozen=True)
class ImageSet:
    """The two parts of a set."""

    name: str
    train: Images
    test: Images

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return tuple(self.train.pixels.shape[1:])

    @property
    def classes(self) -> int:
        """Their number."""
        return len(self.train.facts.classes)

    def __str__(self) -> str:
        channels, height, width = self.shape
        colour = "gray" if channels == 1 else "colour"
        return (
            f"{title_of(self.name)}: {len(self.train):,} training and {len(self.test):,} test images, {height}x{width}, {colour}"
        )


def load(
    name: str, data_dir: Path | None = None, *, size: int = 0, cache: Path | None = None, progress: Progress | None = None
) -> ImageSet:
    """An image-classification set, from its cache or decoded into it.

    Args:
        name: ``"mnist"``, ``"cifar10"``, ``"cifar100"``, ``"tiny-imagenet"``, or the name of any other set on the hub that has
            one column of images, all of one size unless ``size`` is given, and one of labels.
        data_dir: folder to read instead of the hub: of the set's parquet files, or of ``train`` and ``test`` (or ``val``) with a
            folder of image files for each class in them, or of such folders by the sets' names.
        size: what to resize images to, the middle of them square; 0: not at all.
        cache: folder of decoded sets; `default_cache` if not given.
        progress: told how far the decoding is.

    Raises:
        OptionError: there is no such folder.
        DataError: the set is not there, is broken, or has not the form above.
        MissingExtraError: a package that reads it is not installed.
    """
    cache = cache or default_cache()
    train, test = parts = [_part(name, split, data_dir, cache, Wish(size, progress)) for split in ("train", "test")]
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        shapes = [tuple(part.pixels.shape[1:]) for part in parts]
        raise DataError(f"the training images of {name} are of shape {shapes[0]}, its test images of shape {shapes[1]}")
    found = ImageSet(name, train, test.with_classes_of(train, name))
    if name in _KNOWN and not size and (found.shape, found.classes) != _KNOWN[name]:
        raise DataError(
            f"{title_of(name)} has {_KNOWN[name][1]} classes of images of shape {_KNOWN[name][0]}; what is in "
            f"{str(data_dir) if data_dir else REPOSITORIES[name]!r} has {found.classes} of shape {found.shape}"
        )
    return found


def default_cache() -> Path:
    """``$GOODINIT_CACHE``, or ``goodinit`` in the user's folder for caches."""
    own = os.environ.get("GOODINIT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goodinit"


def _part(name: str, split: Split, data_dir: Path | None, cache: Path, wish: Wish) -> Images:
    require("datasets", extra="paper")
    require("PIL.Image", extra="paper")
    repository = REPOSITORIES.get(name, name)
    rows = read_split(repository, split, data_dir)
    scaled = f"-{wish.size}" if wish.size else ""
    folder = cache / f"{repository.replace('/', '--')}-{split}{scaled}-{_fingerprint(rows)}"
    if not (folder / FACTS).exists():
        try:
            with locked(folder, wait=True), reading(f"the {split} images of {repository}", fetched=data_dir is None):
                if not (folder / FACTS).exists():  # another process may have been at it
                    decode(rows, f"{split} images of {title_of(name)}", wish, folder)
        except SaveError as error:
            raise DataError(f"{error}; GOODINIT_CACHE names another folder") from error
    return _opened(folder)


def _fingerprint(rows: Any) -> str:
    """Of the files that the rows are in. ``datasets`` names them by a hash of what they were made from."""
    files = [str(file["filename"]) for file in rows.cache_files]
    return hashlib.sha256(json.dumps([_FORMAT, len(rows), files]).encode()).hexdigest()[:16]


def _opened(folder: Path) -> Images:
    """The decoded part in a folder."""
    try:
        # "c": the mapping may be written to as far as numpy and torch are concerned, but never is, and could not reach the file.
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in ("pixels", "labels")]
        raw = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        facts = Facts(tuple(raw["classes"]), raw["encodings"], raw["sha256"])
        pixels, labels = (torch.from_numpy(array) for array in arrays)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the decoded images in {str(folder)!r} cannot be read ({error}); delete this folder") from error
    return Images(pixels, labels, facts)
