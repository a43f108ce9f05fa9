"""Image-classification sets as the Hugging Face hub has them: by name from there, or from a folder of the same layout."""

from __future__ import annotations

import errno
import glob
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from goodinit.errors import DataError, OptionError, require, some_of

Split = Literal["train", "test"]
# What sets call their splits; the first one counts that a set has.
_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
_UNLABELLED_TEST = frozenset({"ILSVRC/imagenet-1k"})  # whose validation images are tested with
_TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def read_split(repository: str, split: Split, data_dir: Path | None = None, *, rows: str = "") -> Any:
    """A part of a data set, images not decoded.

    Args:
        repository: name on the hub, ``"ylecun/mnist"``.
        split: the training images or those to test with.
        data_dir: folder of parquet files to read instead, or one with a subfolder of the set's name that holds them.
        rows: which rows, ``"[:100]"``; all by default.

    Returns:
        A ``datasets.Dataset``.

    Raises:
        OptionError: there is no such folder.
        DataError: it does not hold the set, or the set cannot be read.
        MissingExtraError: the package ``datasets`` is not installed.
    """
    require("datasets", extra="data")
    import datasets  # noqa: PLC0415 - needs the extra

    if data_dir is not None:
        kind, files = files_of(repository, data_dir)
        with reading(" and ".join(files[split])), quiet(datasets):
            # One split alone: of several the first one's classes would be taken for those of all.
            return datasets.load_dataset(kind, data_files={split: [as_pattern(f) for f in files[split]]}, split=split + rows)
    with reading(f"{repository} from the Hugging Face hub", fetched=True), quiet(datasets):
        if split == "train":
            return datasets.load_dataset(repository, split=split + rows)
        known = datasets.get_dataset_split_names(repository)
        names = _NAMES[split][repository in _UNLABELLED_TEST :]
        name = next((name for name in names if name in known), split)
        return datasets.load_dataset(repository, split=name + rows)


@contextmanager
def reading(place: str, *, fetched: bool = False, option: str = "--data-dir") -> Iterator[None]:
    """Whatever goes wrong inside is an error in reading ``place``.

    Args:
        place: for the error's text.
        fetched: whether it is fetched from the hub.
        option: of the command, that takes a folder instead.

    Raises:
        DataError: one of many kinds: of the network, the hub, the file system, Arrow, Pillow.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = _first_cause(error)
        hint = f"fetch its parquet files by hand, and name their folder with {option}" if fetched else "is it complete?"
        if isinstance(reason, OSError) and reason.errno == errno.ENOSPC:
            hint = "its cache, the folder in HF_HOME, needs more room"
        raise DataError(f"cannot read {place} ({type(reason).__name__}: {reason}); {hint}") from error


def _first_cause(error: BaseException) -> BaseException:
    """What an exception of another one was raised for: datasets wraps all of them in one that says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def files_of(repository: str, data_dir: Path) -> tuple[str, dict[Split, list[str]]]:
    """The files of the train and test sets, in the folder or, as sets lie side by side, in its subfolder; and how to read them.

    Returns:
        ``"parquet"`` and the files, or ``"imagefolder"`` and the folder of each set, whose folders are the classes.

    Raises:
        OptionError: there is no such folder.
        DataError: it does not hold them.
    """
    name, title = repository.rpartition("/")[2], title_of(repository)
    if not data_dir.is_dir():
        raise OptionError(f"there is no data folder {str(data_dir)!r}; without a data folder {title} is downloaded")
    others = {"mnist", *_TITLES} - {name}
    if data_dir.resolve().name in others and not (data_dir / name).is_dir():
        raise DataError(
            f"the data folder {str(data_dir)!r} is {title_of(data_dir.resolve().name)}'s by its name; asked for was {title}"
        )
    # The subfolder first: a folder of many sets may hold files of another one too.
    for folder in (data_dir / name, data_dir / name.replace("-", "_"), data_dir):
        for kind, find in (("parquet", _parquet_files), ("imagefolder", _class_folders)):
            files = {split: find(folder, names) for split, names in _NAMES.items()}
            if all(files.values()):
                return kind, files
    held = sorted(path.name for path in data_dir.iterdir())
    raise DataError(
        f"no {title} in the data folder {str(data_dir)!r}: expected train-*.parquet and test-*.parquet, in it or in its "
        f"subfolder {name}, as in {repository} on the Hugging Face hub, or folders train and test with a folder of images for "
        f"each class; it holds {some_of(held)}. Without a data folder {title} is downloaded"
    )


def _parquet_files(folder: Path, names: tuple[str, ...]) -> list[str]:
    """The files of the first of these splits that the folder has."""
    every = (sorted(str(path) for path in folder.glob(f"{name}*.parquet")) for name in names)
    return next((files for files in every if files), [])


def _class_folders(folder: Path, names: tuple[str, ...]) -> list[str]:
    """The first of these splits that is a folder of folders."""
    splits = (folder / name for name in names)
    return next(([str(split)] for split in splits if any(path.is_dir() for path in split.glob("*"))), [])


def as_pattern(path: str) -> str:
    """What ``datasets`` reads a file by, or all files in the folders of a folder: its paths are patterns."""
    return glob.escape(path) + ("/*/**" if Path(path).is_dir() else "")


def title_of(repository: str) -> str:
    """What people call it: ``"MNIST"``."""
    name = repository.rpartition("/")[2]
    return _TITLES.get(name, name)


@contextmanager
def quiet(datasets: Any) -> Iterator[None]:
    """Progress bars on a terminal only; afterwards they are on or off as before."""
    off = datasets.utils.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if not off:
            datasets.utils.enable_progress_bars()
