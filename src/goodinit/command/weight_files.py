"""Weights on disk, as safetensors: written whole or not at all, read without unpickling."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn

import goodinit
from goodinit.command.tensor_files import read_safetensors, refuse_pickles
from goodinit.errors import ModelError, OptionError, SaveError, require
from goodinit.files import check_writable, replacing
from goodinit.lazy import shapeless


def check_weights_path(path: Path) -> None:
    """Refuse a path that no weights could be saved at: before the work, not after.

    Raises:
        OptionError: another kind of file, no such folder, no permission.
        MissingExtraError: safetensors is not installed.
    """
    require("safetensors", extra="cli")
    if not path.is_dir() and path.suffix.lower() != ".safetensors":
        raise OptionError(f"--out {str(path)!r}: weights are saved as safetensors, so its name should end in .safetensors")
    check_writable(path, what="weights", example="weights.safetensors")


def check_saveable(model: nn.Module) -> None:
    """Refuse a model whose state safetensors cannot hold: before the work, not after.

    Raises:
        ModelError: something in its state_dict is no tensor.
    """
    other = next((name for name, value in model.state_dict().items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise ModelError(f"the weights cannot be saved as safetensors: {other!r} in the model's state_dict is no tensor")


def save_weights(model: nn.Module, path: Path) -> int:
    """Write all parameters and buffers; of tied ones the first, as safetensors.torch.load_model expects it.

    Returns:
        The size of the file in bytes.

    Raises:
        SaveError: the disk is full, or the like; what was there before is as it was.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 - needs the extra

    tensors, tied = _distinct(model)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    metadata = {"format": "pt", "made_by": f"goodinit {goodinit.__version__}", **tied}
    with replacing(path, size) as unfinished:
        try:
            save_file(tensors, unfinished, metadata=metadata)
            _sort_metadata(unfinished)
        except Exception as error:
            raise _as_os_error(error, path) from error
    return path.stat().st_size


def _sort_metadata(path: Path) -> None:
    """Give the entries of the metadata, which safetensors writes in any order, always the same: equal weights, equal bytes."""
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory; for each name that is left out, the name of the same tensor that is not.

    safetensors.torch.save_model refuses parts of one tensor, which the weights of an LSTM are on a GPU.
    """
    kept: dict[object, str] = {}
    tensors, tied = {}, {}
    for name, tensor in model.state_dict().items():
        same = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        first = kept.setdefault(same, name)
        if first != name:
            tied[name] = first
        else:
            part = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if part else tensor.contiguous()
    return tensors, tied


def _as_os_error(error: Exception, path: Path) -> OSError:
    """What the system had against it, which safetensors says in its message alone."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"os error (\d+)", str(error))
    if found is None:
        return SaveError(f"cannot save {path.name}: {error}")
    return OSError(int(found[1]), os.strerror(int(found[1])))


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model with the weights of a file, all of them.

    Raises:
        OptionError: there is no such file, or it is a pickle.
        DataError: it cannot be read.
        ModelError: the model has other parameters.
    """
    refuse_pickles(path)
    if not path.is_file():
        raise OptionError(f"--weights: there is no file {str(path)!r}")
    read_safetensors(path)  # whose errors say more
    from safetensors.torch import load_model  # noqa: PLC0415 - needs the extra

    try:
        if shapeless(model) is not None:  # whose numbers it would look for
            model.load_state_dict(_with_tied(path))
        else:
            load_model(model, path)
    except RuntimeError as error:
        raise ModelError(f"the weights in {str(path)!r} are of another model. {error}") from error


def _with_tied(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `save_weights` by all of their names."""
    from safetensors import safe_open  # noqa: PLC0415 - needs the extra

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        tied = {name: first for name, first in (file.metadata() or {}).items() if first in tensors}
    return {**{name: tensors[first] for name, first in tied.items()}, **tensors}
