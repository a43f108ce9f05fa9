"""A folder that an initialization is written to as it goes, as safetensors, and that an interrupted one is taken up from.

A shard is written whenever so many bytes of finished weights have come together, and after it ``goodinit.json``, which says which
tensor is in which shard and what has been done to it: at any moment the folder holds one consistent state. In the end there is
``model.safetensors.index.json`` too, by which transformers and others load the shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from goodinit.batches import Call
from goodinit.errors import OptionError, SaveError, ShardsError, require
from goodinit.files import write_whole
from goodinit.interception.operation import Operation
from goodinit.interception.weights import parameter_name
from goodinit.options import Options

_STATE, _INDEX = "goodinit.json", "model.safetensors.index.json"
_FORMAT = 1
SHARD_BYTES = 1 << 29
"""Of a shard, at least. What is written is copied first, so that memory has to hold it twice."""


@dataclass
class Progress:
    """What has been done to the weights, by their places in the model: see `goodinit.interception.weights.Weight.place`."""

    seed: int = 0
    """That all matrices follow from."""
    drawn: list[str] = field(default_factory=list)
    scaled: dict[str, list[float]] = field(default_factory=dict)
    """std before, factor, whether alive, whether scaled."""


class Shards:
    """The state of an initialization on disk."""

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        purpose: Mapping[str, str],
        number: int | None = None,
        *,
        size: int | None = None,
    ) -> None:
        """Take up what is in the folder.

        Args:
            folder: made if it is not there.
            model: whose tensors are written.
            purpose: what the initialization depends on, by what it is called: digests of the model, the options, the batch.
            number: that all matrices would follow from, where the caller chose it; an interrupted call goes on with its own.
            size: bytes of a shard, about.

        Raises:
            OptionError: the folder holds the beginning of another initialization, or other files; it cannot be written to.
            ShardsError: it is broken.
            MissingExtraError: safetensors is not installed.
        """
        require("safetensors", extra="checkpoint")
        self._folder = Path(folder)
        self._size = SHARD_BYTES if size is None else size
        self._purpose = dict(purpose)
        self._files: dict[str, str] = {}
        self._versions: dict[str, int] = {}
        self._parameters = dict(model.named_parameters())
        self._model = model
        self.known = Progress()
        """What an earlier call had finished."""
        self.snapshot: Callable[[], Progress] = Progress
        """Of what has been finished by now."""
        self._take_up(number)

    def take(self, name: str, tensor: Tensor) -> None:
        """Read a tensor, if it is there."""
        file = self._files.get(name)
        if file is None:
            return
        with self._opened(file) as shard:
            tensor.detach().copy_(shard.get_tensor(name))
        self._versions[name] = tensor._version

    def has(self, name: str) -> bool:
        """Whether a tensor is there."""
        return name in self._files

    def flush_if_full(self) -> None:
        """Write a shard if enough has come together."""
        changed = self._changed()
        if sum(tensor.nbytes for tensor in changed.values()) >= self._size:
            self._flush(changed)

    def finish(self) -> None:
        """Write all that is left, and the index."""
        kept = self._model.state_dict(keep_vars=True)
        buffers = {name: kept[name] for name, _ in self._model.named_buffers() if name in kept}
        self._flush({**self._changed(), **buffers})
        self._tidy()
        sizes = {name: tensor.nbytes for name, tensor in (*self._parameters.items(), *buffers.items())}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(self._files.items()))}
        write_whole(self._folder / _INDEX, json.dumps(index, indent=1).encode())

    def _changed(self) -> dict[str, Tensor]:
        """Parameters that have been written since they were saved, or never were."""
        return {n: p for n, p in self._parameters.items() if not p.is_meta and self._versions.get(n) != p._version}

    def wrote(self, operation: Operation) -> None:
        """Note that weight and bias of an operator were written, by what does not count up their versions."""
        bias = operation.bias_weight
        for root in (*operation.weight.roots(), *(() if bias is None else bias.roots())):
            self._versions.pop(parameter_name(root.name), None)

    def _flush(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors:
            number = 1 + max((int(file.split("-")[1].split(".")[0]) for file in self._files.values()), default=0)
            file = f"model-{number:05d}.safetensors"
            self._save(file, _apart(tensors))
            self._files |= dict.fromkeys(tensors, file)
            self._versions |= {name: tensor._version for name, tensor in tensors.items()}
        state = {"format": _FORMAT, "purpose": self._purpose, "files": self._files, **asdict(self.snapshot())}
        write_whole(self._folder / _STATE, json.dumps(state).encode())

    def _save(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        from safetensors import SafetensorError  # noqa: PLC0415 - an extra
        from safetensors.torch import save_file  # noqa: PLC0415

        path = self._folder / file
        unfinished = path.with_name(f".{file}")
        try:
            save_file(dict(tensors), unfinished, metadata={"format": "pt"})
            with unfinished.open("rb+") as written:  # Windows flushes what can be written to
                os.fsync(written.fileno())
            unfinished.replace(path)
        except (OSError, SafetensorError) as error:
            raise SaveError(f"cannot save {file} in {str(self._folder)!r}: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Take out of the shards what later ones hold anew, and shards that nothing refers to: loaders read all of a shard."""
        for path in sorted(self._folder.glob("model-*.safetensors")):
            with self._opened(path.name) as shard:
                own = {name for name, file in self._files.items() if file == path.name}
                # Copies: Windows replaces no file that is still mapped.
                kept = {name: shard.get_tensor(name).clone() for name in own} if own != set(shard.keys()) else None
            if not own:
                path.unlink()
            elif kept is not None:
                self._save(path.name, kept)

    def _take_up(self, number: int | None) -> None:
        state = self._folder / _STATE
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            others = sorted(path.name for path in self._folder.iterdir() if path.suffix in (".safetensors", ".json", ".bin"))
            text = state.read_text(encoding="utf-8") if state.exists() else None
        except OSError as error:
            raise OptionError(f"checkpoint={str(self._folder)!r} cannot be used: {error.strerror}") from error
        if text is None:
            if others:
                raise OptionError(
                    f"checkpoint={str(self._folder)!r} holds {others[0]!r} and no {_STATE}: it is no beginning of an "
                    "initialization; name a new folder"
                )
            return
        try:
            found = json.loads(text)
            purpose, files = found["purpose"], found["files"]
            self.known = Progress(found["seed"], found["drawn"], found["scaled"])
        except (ValueError, KeyError, TypeError) as error:
            raise ShardsError(f"{str(state)!r} is broken ({error}); delete the folder to begin anew") from error
        different = [what for what, digest in self._purpose.items() if purpose.get(what) != digest]
        if different or found.get("format") != _FORMAT:
            raise OptionError(
                f"checkpoint={str(self._folder)!r} is of an initialization with another "
                f"{different[0] if different else 'format'}; give it the same model, options and batch, or name a new folder"
            )
        self._files = files
        if (self._folder / _INDEX).exists() and number not in (None, self.known.seed):
            raise OptionError(
                f"checkpoint={str(self._folder)!r} holds an initialization that was finished, from another state of the "
                "generator; name a new folder, or leave generator= out to get its weights"
            )

    @contextlib.contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - an extra

        try:
            with safe_open(self._folder / file, framework="pt") as shard:
                yield shard
        except (OSError, SafetensorError) as error:
            raise ShardsError(f"{str(self._folder / file)!r} is broken ({error}); delete the folder to begin anew") from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they can be saved: contiguous, and no two of them in the same memory."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.detach().clone().contiguous() if memory in seen else tensor.detach().contiguous()
        seen.add(memory)
    return apart


def purpose_of(model: nn.Module, options: Options, mode: str, call: Call) -> dict[str, str]:
    """What an initialization depends on, as digests by what they are of."""
    table = [(name, tuple(p.shape), str(p.dtype)) for name, p in model.named_parameters()]
    asked = {**vars(options), "mode": mode, "pre_init": _described(options.pre_init)}
    kept = [
        part
        for name, p in model.named_parameters()
        if not (p.is_meta or is_lazy(p)) and (options.pre_init is None or not p.requires_grad or options.skips(name))
        for part in (name, p)
    ]
    batch = _digest(*(t for _, t in call.tensors()), call)
    return {"model": _digest(table), "set of options": _digest(asked), "batch": batch, "set of kept weights": _digest(*kept)}


def _described(value: object, seen: frozenset[int] = frozenset()) -> str:
    """What a function does, or a value is, the same in another process."""
    if id(value) in seen:  # a function that calls itself
        return "again"
    seen |= {id(value)}
    parts: Iterable[object] = ()
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, CodeType):
        parts = value.co_code.hex(), value.co_names, value.co_consts
    elif isinstance(value, partial):
        parts = value.func, value.args, value.keywords
    elif isinstance(value, FunctionType):
        own = value.__module__, value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__
        parts = *own, *map(_enclosed, value.__closure__ or ())
    elif isinstance(value, Mapping):
        return str(sorted((_described(key, seen), _described(each, seen)) for key, each in value.items()))
    elif isinstance(value, (set, frozenset)):
        return str(sorted(_described(each, seen) for each in value))
    elif isinstance(value, (tuple, list)):
        parts = value
    elif " at 0x" not in (text := repr(value)):
        return text
    elif (name := getattr(value, "__qualname__", None)) is not None:  # of what is written in C, a class
        return f"{getattr(value, '__module__', '')}.{name}"
    else:
        parts = type(value), getattr(value, "__dict__", {})
    return str([_described(each, seen) for each in parts])


def _enclosed(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty yet
        return None


def _digest(*parts: object) -> str:
    """Of the numbers of tensors, and of the text of all else."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            values = part.detach().to("cpu").contiguous()
            found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b"")
            found.update(str((part.dtype, tuple(part.shape))).encode())
        else:
            found.update(str(part).encode())
        found.update(b"/")
    return found.hexdigest()[:16]
