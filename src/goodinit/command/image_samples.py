"""Images as samples: drawn from a folder or from a set on the hub, brought to one size, standardized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goodinit.command.samples import Samples, Wanted
from goodinit.errors import DataError, OptionError, require, some_of
from goodinit.hub import as_pattern, quiet, reading
from goodinit.image_modes import GRAY, shallow
from goodinit.progress import progress

SIZE = 224
_BUFFER = 1000


def folder_samples(folder: Path, wanted: Wanted) -> Samples:
    """Images drawn at random from a folder: of files in it at any depth, or of parquet files as sets on the hub have them.

    Where all images lie in folders of it, these are the classes, whose numbers are the labels.

    Raises:
        DataError: no images there, or one that cannot be read.
        MissingExtraError: Pillow, NumPy or datasets is not installed.
    """
    Image = _pillow()  # noqa: N806 - a module whose name is that
    suffixes = _readable(Image)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not _is_hidden(path.relative_to(folder)) and path.is_file()
    )
    if not files:
        return _parquet_samples(folder, wanted)
    chosen = [files[i] for i in _drawn(len(files), wanted)]
    images = [_opened(Image, path) for path in progress(iter(chosen), len(chosen), "goodinit: images")]
    classes = sorted({path.relative_to(folder).parts[0] for path in files})
    in_folders = len(classes) > 1 and all(path.parent != folder for path in files)
    labels = [classes.index(path.relative_to(folder).parts[0]) for path in chosen] if in_folders else None
    return _samples(images, labels, wanted, f"{len(images)} of {len(files):,} images of {str(folder)!r}")


def _parquet_samples(folder: Path, wanted: Wanted) -> Samples:
    files = sorted(map(str, folder.glob("train*.parquet"))) or sorted(map(str, folder.glob("*.parquet")))
    if not files:
        held = sorted(path.name for path in folder.iterdir())
        raise DataError(f"no images and no parquet files in the folder {str(folder)!r}; it holds {some_of(held)}")
    datasets = _datasets()
    with reading(str(folder)), quiet(datasets):
        rows = datasets.load_dataset("parquet", data_files=[as_pattern(file) for file in files], split="train")
        found = list(rows.select(_drawn(len(rows), wanted)))
    return _samples_of_rows(found, wanted, f"{len(found)} of {len(rows):,} images", repr(str(folder)))


def hub_samples(name: str, wanted: Wanted) -> Samples:
    """Images drawn at random from the first ones of a set on the Hugging Face hub, of which no more than these are fetched.

    Raises:
        OptionError: no name.
        DataError: it cannot be read, or has no images.
        MissingExtraError: datasets, Pillow or NumPy is not installed.
    """
    if not name:
        raise OptionError("--data hub: expected the name of a set, such as hub:ylecun/mnist")
    datasets, place = _datasets(), f"{name} from the Hugging Face hub"
    with reading(place, fetched=True, option="--data"), quiet(datasets):
        rows = datasets.load_dataset(name, split="train", streaming=True)
        drawn = rows.shuffle(seed=wanted.seed, buffer_size=max(_BUFFER, wanted.rows)).take(wanted.rows)
        found = list(progress(iter(drawn), wanted.rows, "goodinit: images"))
    return _samples_of_rows(found, wanted, f"{len(found)} images", place)


def _samples_of_rows(rows: Sequence[dict[str, Any]], wanted: Wanted, text: str, place: str) -> Samples:
    """Of the first column of images, and the first of whole numbers for labels."""
    Image = _pillow()  # noqa: N806 - a module whose name is that
    first = rows[0] if rows else {}
    image = next((key for key, value in first.items() if isinstance(value, Image.Image)), None)
    label = next((key for key, value in first.items() if isinstance(value, int)), None)
    if image is None:
        raise DataError(f"there is no column of images in {place}; the columns are {', '.join(first) or 'none'}")
    labels = None if label is None else [row[label] for row in rows]
    return _samples([row[image] for row in rows], labels, wanted, f"{text} of {place}")


def _pillow() -> Any:
    require("PIL", extra="data")
    from PIL import Image  # noqa: PLC0415 - needs the extra

    return Image


def _readable(Image: Any) -> set[str]:  # noqa: N803 - a module whose name is that
    """Suffixes of what Pillow itself can read; PDF it only writes, of HDF5 it knows the name alone."""
    from PIL.ImageFile import StubImageFile  # noqa: PLC0415 - needs the extra

    def is_real(kind: str) -> bool:
        factory = Image.OPEN[kind][0] if kind in Image.OPEN else None
        return factory is not None and not (isinstance(factory, type) and issubclass(factory, StubImageFile))

    return {suffix for suffix, kind in Image.registered_extensions().items() if is_real(kind)}


def _is_hidden(path: Path) -> bool:
    """Whether it is what systems and tools leave in a folder, and no data."""
    return any(part.startswith(".") for part in path.parts)


def _datasets() -> Any:
    """The library; a project may have a package of that name of its own."""
    datasets = require("datasets", extra="data")
    if not hasattr(datasets, "load_dataset"):
        place = getattr(datasets, "__file__", None) or "a folder of that name"
        raise DataError(
            f"datasets is {place!r} here, not the library of Hugging Face that reads such data; run the command in another "
            "folder, and name the model's file"
        )
    return datasets


def _drawn(count: int, wanted: Wanted) -> list[int]:
    """Which of so many, in the order in which they are taken."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(wanted.seed))
    return [int(i) for i in order[: wanted.rows]]


def _opened(Image: Any, path: Path) -> Any:  # noqa: N803 - a module whose name is that
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises of broken images
        raise DataError(f"cannot read the image {str(path)!r}: {error}; take it out of the folder") from error


def _samples(images: Sequence[Any], labels: Sequence[int] | None, wanted: Wanted, text: str) -> Samples:
    require("numpy", extra="data")
    size = (wanted.image_size, wanted.image_size) if wanted.image_size else _size(images)
    grey = all(image.mode in GRAY for image in images)
    pixels = torch.stack(list(_pixels(images, size, grey=grey)))
    mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True)
    tensors: dict[str, Tensor] = {"images": (pixels - mean) / std.clamp_min(1e-6)}
    if labels is not None:
        tensors["labels"] = torch.tensor(labels)
    width, height = size
    shape = f"{pixels.shape[1]}x{height}x{width}"
    return Samples(tensors, f"{text}, {shape}, standardized", ordered=True)


def _size(images: Iterable[Any]) -> tuple[int, int]:
    """Width and height: those of all images, or a common size for images of several."""
    sizes = {image.size for image in images}
    return sizes.pop() if len(sizes) == 1 else (SIZE, SIZE)


def _pixels(images: Iterable[Any], size: tuple[int, int], *, grey: bool) -> Iterator[Tensor]:
    """Images as (channels, height, width): cut to the shape asked for, then scaled."""
    import numpy as np  # noqa: PLC0415 - needs the extra
    from PIL import ImageOps  # noqa: PLC0415

    for image in images:
        plain = shallow(image)
        if grey:
            converted = plain.convert("L" if plain.mode == "LA" else plain.mode).convert("F")
        else:
            converted = (plain.convert("L") if plain.mode == "F" else plain).convert("RGB")
        fitted = converted if image.size == size else ImageOps.fit(converted, size)
        array = np.array(fitted, dtype=np.float32)
        yield torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
