"""Decoding the images of a set into one array on disk: by several threads, never all in memory, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goodinit.errors import DataError
from goodinit.image_modes import in_eight_bits

FACTS = "facts.json"  # written last
_LABELS = ("label", "fine_label", "labels")
_CHUNK = 512  # images read at once

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True)
class Wish:
    """How to decode a set."""

    size: int = 0
    """What the shorter side of the images is resized to, the middle of the longer one being kept; 0: not at all."""
    progress: Progress | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of a decoded part of a set."""

    classes: tuple[str, ...]
    encodings: dict[str, int]
    """How many images were stored as what: ``{"PNG": 60000}``. JPEG is lossy."""
    sha256: str
    """Of all pixels and labels."""


def decode(rows: Any, what: str, wish: Wish, folder: Path) -> None:
    """Write the pixels and labels of all images, and what is known of them, into a folder.

    Args:
        rows: a ``datasets.Dataset`` with a column of images and one of labels.
        what: what messages call them.
        wish: how.
        folder: does not exist yet; no other process writes it.

    Raises:
        DataError: no such columns, images of different sizes, broken ones, labels that are none, a full disk.
    """
    image, label = _columns(rows, what)
    labels, names = _labels(list(rows[label]), getattr(rows.features[label], "names", None), what)
    source = _Source(rows, image, what, wish)
    with _whole(folder) as unfinished:
        digest, encodings = _write_pixels(unfinished / "pixels.npy", source)
        np.save(unfinished / "labels.npy", labels)
        digest.update(labels.tobytes())
        facts = Facts(tuple(names), dict(encodings), digest.hexdigest())
        (unfinished / FACTS).write_text(json.dumps(asdict(facts)), encoding="utf-8")


def _labels(values: Sequence[Any], names: Sequence[str] | None, what: str) -> tuple[np.ndarray, Sequence[str]]:
    """Labels from 0 on, and the names of the classes: those that the set has, or its labels themselves, in order."""
    if names is None:
        kinds = {type(value) for value in values}
        if not (kinds <= {int, bool} or kinds == {str}):
            kind = str if isinstance(values[0], str) else int
            place = next(i for i, value in enumerate(values) if not isinstance(value, kind))
            raise DataError(
                f"labels must be whole numbers, or all of them names; of the {what} that of image {place} is {values[place]!r}"
            )
        classes = sorted(value for value in set(values) if isinstance(value, str) or value >= 0)
        places, names = {value: i for i, value in enumerate(classes)}, [str(value) for value in classes]
    else:
        places = {i: i for i in range(len(names))}
    if outside := [i for i, value in enumerate(values) if value not in places]:
        raise DataError(f"the {what} have {len(names)} classes; the label of image {outside[0]} is {values[outside[0]]}")
    return np.array([places[value] for value in values], dtype=np.int64), names


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


@dataclass(frozen=True)
class _Source:
    rows: Any
    column: str
    what: str
    wish: Wish

    def arrays(self) -> Iterator[tuple[np.ndarray, str]]:
        """The images in order, decoded by several threads."""
        import datasets  # noqa: PLC0415 - needs the extra

        stored = self.rows.cast_column(self.column, datasets.Image(decode=False))
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(stored), _CHUNK):
                files = stored[start : start + _CHUNK][self.column]
                yield from pool.map(self._decoded, range(start, start + len(files)), files)

    def _decoded(self, place: int, file: Any) -> tuple[np.ndarray, str]:
        """uint8 (channels, height, width), 1 channel or 3, and the format that it was stored in."""
        from PIL import Image, ImageOps  # noqa: PLC0415 - needs the extra

        size = self.wish.size
        try:
            with Image.open(io.BytesIO(file["bytes"]) if file["bytes"] else file["path"]) as opened:
                encoding = str(opened.format)
                image = in_eight_bits(opened)
                if size:
                    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
                array = np.asarray(image)
        except DataError as error:
            raise DataError(f"image {place} of the {self.what} {error}") from error
        except Exception as error:
            raise DataError(f"image {place} of the {self.what} cannot be decoded ({type(error).__name__}: {error})") from error
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1), encoding


class _ColourError(Exception):
    """A coloured image where only gray ones were expected."""


def _write_pixels(path: Path, source: _Source) -> tuple[Any, Counter[str]]:
    """All images as one array; returns the hash of the pixels, and how many were stored as what.

    Gray images among coloured ones get three equal channels: at the first coloured one all is begun anew.
    """
    try:
        return _write_channels(path, source, channels=1)
    except _ColourError:
        return _write_channels(path, source, channels=3)


def _write_channels(path: Path, source: _Source, *, channels: int) -> tuple[Any, Counter[str]]:
    digest, encodings, count = hashlib.sha256(), Counter[str](), len(source.rows)
    size: tuple[int, ...] = ()
    # Written from front to back, not through a memory map, for which a full disk is no error but the end of the process.
    with path.open("wb") as file:
        for i, (array, encoding) in enumerate(source.arrays()):
            if array.shape[0] > channels:
                raise _ColourError
            if not size:
                size = array.shape[1:]
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, channels, *size)}
                np.lib.format.write_array_header_1_0(file, header)
            if array.shape[1:] != size:
                a, b = ("x".join(map(str, each)) for each in (array.shape[1:], size))
                raise DataError(f"the images of a set must be of one size; of the {source.what} image {i} is {a}, image 0 {b}")
            content = np.broadcast_to(array, (channels, *size)).tobytes()
            file.write(content)
            digest.update(content)
            encodings[encoding] += 1
            if source.wish.progress and (i % 1000 == 0 or i + 1 == count):
                source.wish.progress(f"decoding the {source.what}", i + 1, count)
        if not size:
            raise DataError(f"there are no {source.what}")
    return digest, encodings


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name at the end; if anything fails there is none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed: there is one at a time
        shutil.rmtree(left, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield unfinished
        unfinished.rename(folder)
    except OSError as error:
        place = str(folder.parent)
        raise DataError(
            f"cannot save the decoded images in {place!r} ({error.strerror}); GOODINIT_CACHE names another folder"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
