"""Image sets, decoded once: uint8 pixels and labels in memory-mapped files, so that the next start takes no time and no memory.

Sets come from the hub by name, or from a folder of parquet files of the same layout (`goodinit.hub`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from goodinit.errors import DataError, require
from goodinit.hub import Split, read_split, reading, title_of

# Short names of sets -> their names on the hub; any other name is one on the hub itself.
REPOSITORIES = {
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}
_LABELS = ("label", "fine_label", "labels")
_FORMAT = 1  # of the cache

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True)
class Facts:
    """What is known of a decoded part of a set."""

    classes: tuple[str, ...]
    encodings: dict[str, int]
    """How many images were stored as what: ``{"PNG": 60000}``. JPEG is lossy."""
    sha256: str
    """Of all pixels and labels."""


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

    def to(self, device: torch.device) -> Images:
        """On a device. On the CPU the memory-mapped file itself."""
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


def load(name: str, data_dir: Path | None = None, *, cache: Path | None = None, progress: Progress | None = None) -> ImageSet:
    """An image-classification set, from its cache or decoded into it.

    Args:
        name: ``"mnist"``, ``"cifar10"``, ``"cifar100"``, ``"tiny-imagenet"``, or the name of any other set on the hub that has
            one column of images, all of one size, and one of labels.
        data_dir: folder to read instead of the hub: of the set's parquet files, or of sets by their names.
        cache: folder of decoded sets; `default_cache` if not given.
        progress: told how far the decoding is.

    Raises:
        OptionError: there is no such folder.
        DataError: the set is not there, is broken, or has not the form above.
        MissingExtraError: a package that reads it is not installed.
    """
    cache = cache or default_cache()
    parts = [_part(name, split, data_dir, cache, progress) for split in ("train", "test")]
    train, test = parts
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        shapes = [tuple(part.pixels.shape[1:]) for part in parts]
        raise DataError(f"the training images of {name} are of shape {shapes[0]}, its test images of shape {shapes[1]}")
    return ImageSet(name, train, test)


def default_cache() -> Path:
    """``$GOODINIT_CACHE``, or ``goodinit`` in the user's folder for caches."""
    own = os.environ.get("GOODINIT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goodinit"


def _part(name: str, split: Split, data_dir: Path | None, cache: Path, progress: Progress | None) -> Images:
    require("datasets", extra="paper")
    require("PIL.Image", extra="paper")
    repository = REPOSITORIES.get(name, name)
    rows = read_split(repository, split, data_dir)
    folder = cache / f"{repository.replace('/', '--')}-{split}-{_fingerprint(rows)}"
    if not (folder / "facts.json").exists():
        with reading(f"the {split} images of {repository}", fetched=data_dir is None):
            decoded = _decoded(rows, f"{split} images of {title_of(name)}", progress)
        _save(folder, *decoded)
    return _opened(folder)


def _fingerprint(rows: Any) -> str:
    """Of the files that the rows are in. ``datasets`` names them by a hash of what they were made from."""
    files = [str(file["filename"]) for file in rows.cache_files]
    return hashlib.sha256(json.dumps([_FORMAT, len(rows), files]).encode()).hexdigest()[:16]


def _decoded(rows: Any, what: str, progress: Progress | None) -> tuple[np.ndarray, np.ndarray, Facts]:
    """Pixels, labels, and what is known of them."""
    import datasets  # noqa: PLC0415 - needs the extra

    image, label = _columns(rows, what)
    encodings: Counter[str] = Counter()
    arrays: list[np.ndarray] = []
    for i, row in enumerate(rows.cast_column(image, datasets.Image(decode=False))[image]):
        arrays.append(_pixels(row, f"image {i} of the {what}", encodings))
        if arrays[i].shape[1:] != arrays[0].shape[1:]:
            sizes = ["x".join(map(str, array.shape[1:])) for array in (arrays[i], arrays[0])]
            raise DataError(f"the images of a set must be of one size; of the {what} image {i} is {sizes[0]}, image 0 {sizes[1]}")
        if progress and (i % 1000 == 0 or i + 1 == len(rows)):
            progress(f"decoding the {what}", i + 1, len(rows))
    if not arrays:
        raise DataError(f"there are no {what}")
    channels = max(len(array) for array in arrays)  # gray ones among coloured ones get three equal channels
    pixels = np.stack([np.broadcast_to(array, (channels, *array.shape[1:])) for array in arrays])
    labels = np.asarray(rows[label], dtype=np.int64)
    names = getattr(rows.features[label], "names", None) or [str(i) for i in range(int(labels.max()) + 1)]
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        raise DataError(f"the {what} have {len(names)} classes; the label of image {outside[0]} is {labels[outside[0]]}")
    sha256 = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    return pixels, labels, Facts(tuple(names), dict(encodings), sha256)


def _columns(rows: Any, what: str) -> tuple[str, str]:
    """Names of the columns of images and labels."""
    kinds = {name: type(feature).__name__ for name, feature in rows.features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"] or [n for n in ("image", "img") if n in kinds]
    labels = [name for name in _LABELS if name in kinds] or [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if not images or not labels:
        raise DataError(
            f"the {what} need a column of images (image, img) and one of labels ({', '.join(_LABELS)}); "
            f"found: {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}"
        )
    return images[0], labels[0]


def _pixels(row: Any, where: str, encodings: Counter[str]) -> np.ndarray:
    """uint8 (channels, height, width), 1 channel or 3."""
    from PIL import Image  # noqa: PLC0415 - needs the extra

    try:
        with Image.open(io.BytesIO(row["bytes"]) if row["bytes"] else row["path"]) as image:
            encodings[str(image.format)] += 1
            array = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except Exception as error:
        raise DataError(f"{where} cannot be decoded ({type(error).__name__}: {error})") from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _save(folder: Path, pixels: np.ndarray, labels: np.ndarray, facts: Facts) -> None:
    """Write a decoded part whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        np.save(unfinished / "pixels.npy", pixels)
        np.save(unfinished / "labels.npy", labels)
        (unfinished / "facts.json").write_text(json.dumps(asdict(facts)), encoding="utf-8")
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not (folder / "facts.json").exists():  # else another process was faster
            raise DataError(
                f"cannot save the decoded images in {str(folder.parent)!r} ({error.strerror}); they need "
                f"{pixels.nbytes / 2**20:.0f} MiB. GOODINIT_CACHE names another folder"
            ) from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _opened(folder: Path) -> Images:
    """The decoded part in a folder."""
    try:
        # "c": the mapping may be written to as far as numpy and torch are concerned, but never is, and could not reach the file.
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in ("pixels", "labels")]
        raw = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        facts = Facts(tuple(raw["classes"]), raw["encodings"], raw["sha256"])
        pixels, labels = (torch.from_numpy(array) for array in arrays)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"the decoded images in {str(folder)!r} cannot be read ({error}); delete this folder") from error
    return Images(pixels, labels, facts)
