"""Files of tensors: safetensors, and NumPy's without pickled objects. Files that would have to be unpickled are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goodinit.command.samples import Samples
from goodinit.errors import DataError, OptionError, require

_OF_TORCH = frozenset({".pt", ".pth", ".bin", ".ckpt"})
_OF_PYTHON = frozenset({".pkl", ".pickle", ".joblib", ".dill"})


def read_tensors(path: Path) -> Samples:
    """All tensors of a file; those of an unnamed kind are ordered.

    Raises:
        OptionError: a pickle, or an unknown kind of file.
        DataError: it cannot be read, is empty, or holds what is no tensor.
        MissingExtraError: what reads it is not installed.
    """
    refuse_pickles(path)
    kind = path.suffix.lower()
    if kind == ".safetensors":
        tensors = read_safetensors(path)
    elif kind in (".npz", ".npy"):
        tensors = _read_numpy(path)
    else:
        raise OptionError(
            f"--data {str(path)!r}: expected a file .safetensors, .npz or .npy, a folder of images, hub:NAME, noise:3x224x224 or "
            "tokens:128"
        )
    if not tensors:
        raise DataError(f"{str(path)!r} holds no tensor")
    if not all(t.numel() for t in tensors.values()):
        empty = next(name for name, t in tensors.items() if not t.numel())
        raise DataError(f"{str(path)!r}: {empty!r} is empty, of shape {tuple(tensors[empty].shape)}")
    return Samples(tensors, str(path), ordered=len(tensors) == 1 or all(re.fullmatch(r"arr_\d+", name) for name in tensors))


def refuse_pickles(path: Path) -> None:
    """Refuse what only unpickling could read.

    Raises:
        OptionError: by its name it is a pickle.
    """
    if path.suffix.lower() not in _OF_TORCH | _OF_PYTHON:
        return
    if path.suffix.lower() in _OF_TORCH:
        what = "torch.save makes pickles"
        file, to = str(path), str(path.with_suffix(".safetensors"))
        line = (
            f'python -c "import torch; from safetensors.torch import save_file; d = torch.load({file!r}); '
            "d = d if isinstance(d, dict) else dict(enumerate(d)) if isinstance(d, (list, tuple)) else {'x': d}; "
            "d = d.get('state_dict', d.get('model', d)); "
            "save_file({f'arr_{k}' if isinstance(k, int) else k: t.contiguous() for k, t in d.items() if torch.is_tensor(t)}, "
            f'{to!r})"'
        )
    else:
        what, line = "it is a pickle", f"in Python: numpy.savez({path.with_suffix('.npz').name!r}, x=array)"
    raise OptionError(
        f"{str(path)!r} is not read: {what}, and reading one runs whatever code its author put into it. If you trust it, "
        f"convert it once:\n  {line}"
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        DataError: it is no such file, or cannot be read.
        MissingExtraError: safetensors is not installed.
    """
    require("safetensors", extra="cli")
    from safetensors import SafetensorError  # noqa: PLC0415 - needs the extra
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"cannot read {str(path)!r} as safetensors: {error}; is it complete?") from error


def _read_numpy(path: Path) -> dict[str, Tensor]:
    require("numpy", extra="data")
    import numpy as np  # noqa: PLC0415 - needs the extra

    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if isinstance(held, np.ndarray):
                return {"array": _tensor(held, path, "the array")}
            return {name: _tensor(held[name], path, repr(name)) for name in _sorted(held.files)}
    except DataError:
        raise
    except Exception as error:  # of the file system, zip, zlib, and NumPy's of many kinds
        raise DataError(_why_not(path, error)) from error


def _why_not(path: Path, error: Exception) -> str:
    # numpy says "pickled data" of any file that it does not know, be it text.
    if "allow_pickle" in str(error) and not ("Object arrays" in str(error) or _begins_as_a_pickle(path)):
        kind, made_by = ("npz", "numpy.savez") if path.suffix.lower() == ".npz" else ("npy", "numpy.save")
        return f"{str(path)!r} is not an {kind} file, or it is incomplete; {made_by} writes one"
    if "allow_pickle" in str(error):
        return (
            f"{str(path)!r} holds pickled objects, and reading one runs whatever code its author put into it: save arrays of "
            "numbers, numpy.savez('batch.npz', x=array)"
        )
    return f"cannot read {str(path)!r} as NumPy's: {type(error).__name__}: {error}; is it complete?"


def _begins_as_a_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"  # the opcode PROTO, of every protocol since the second


def _sorted(names: Iterable[str]) -> list[str]:
    """``arr_2`` before ``arr_10``, all others as they are."""
    return sorted(names, key=lambda name: int(name[4:]) if re.fullmatch(r"arr_\d+", name) else -1)


def _tensor(array: Any, path: Path, name: str) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch knows this machine's order of bytes alone
    try:
        return torch.from_numpy(native.copy() if not native.flags.writeable else native)
    except TypeError as error:
        raise DataError(f"{str(path)!r}: {name} is of NumPy's type {array.dtype}, not of numbers that torch knows") from error
