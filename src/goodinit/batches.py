"""From what the caller passes as data to ``model(*args, **kwargs)``."""

from __future__ import annotations

import copy
import inspect
import sys
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from goodinit.errors import DataError, OptionError
from goodinit.loaders import Batches, Loading

Forward = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Call:
    """One forward pass, ready to run."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    left_out: tuple[str, ...] = ()
    """What of the batch the model does not take: its labels, mostly."""
    forward: Forward | None = None
    rest: tuple[Any, ...] = ()
    """What a loss may be given besides the model's output: what was left out; with ``forward`` the batch itself."""

    def __call__(self, model: nn.Module) -> Any:
        """Run it."""
        return model(*self.args, **self.kwargs) if self.forward is None else self.forward(model, self.args[0])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the batch with the names of the arguments that hold them."""
        for i, value in enumerate(self.args):
            yield from _tensors(value, f"argument {i}")
        for key, value in self.kwargs.items():
            yield from _tensors(value, f"argument {key!r}")

    @property
    def is_empty(self) -> bool:
        """Whether none of its tensors holds a number."""
        sizes = [tensor.numel() for _, tensor in self.tensors()]
        return bool(sizes) and not any(sizes)

    @property
    def classes(self) -> bool:
        """Whether the batch has targets for a loss, and they are integers: classes.

        Targets are what the model does not take, or takes under the name that transformers' models have for them; where a forward
        of the caller's takes the whole batch, what has this name in it, or is the last of several items.
        """
        given = self.kwargs.get("labels", self.rest) if self.forward is None else _targets(self.args[0])
        targets = [t for _, t in _tensors(given, "targets")]
        return bool(targets) and not any(t.is_floating_point() or t.is_complex() for t in targets)

    @property
    def samples_are_same(self) -> bool:
        """Whether its data, of two axes or more, are one sample several times; or one sample, without places of its own."""
        data = [x for _, x in self.tensors() if x.dim() > 1 and x.layout is torch.strided and not x.is_meta and len(x)]
        return bool(data) and all(map(_is_one_sample, data))

    def __str__(self) -> str:
        given = ", ".join(shape_and_dtype(tensor) for _, tensor in self.tensors())
        return (given or "no tensors") + (f"; not given to the model: {', '.join(self.left_out)}" if self.left_out else "")


def first_call(model: nn.Module, data: Any, forward: Forward | None = None, *, targets: int = 0) -> Call:
    """The forward pass on the first batch of ``data``: see `Calls`."""
    return Calls(model, data, forward, targets=targets).first


class Calls:
    """The forward passes on the first ``count`` batches of ``data``, the same ones at every iteration.

    - A tensor is the only argument; a tuple the positional, a mapping the keyword arguments.
    - A DataLoader, a list, or any other iterable gives its items as batches. A list of nothing but tensors (what a
      DataLoader yields) is a batch itself if the model needs two of them or more.
    - Labels: a batch of a loader may hold more than the model takes. Of a tuple or list as many items are passed as
      ``model.forward`` has positional parameters without a default (one at least; all for ``*args``), of a mapping
      those that it has parameters for. A tuple passed as ``data`` itself is cut only where it would not fit: then likewise.
    - Where a loss needs ``targets`` items, ``data`` itself is treated as a loader's batch, and of it at least those are left out.
    - With ``forward``, ``forward(model, data)`` is called with each batch of a DataLoader; all else is handed on as it is, or
      item by item if there are to be several batches.

    Tensors are moved to the model's device. Nothing is changed in dtype. Taking batches leaves no trace in what loads them (see
    `goodinit.loaders`); what can be iterated but once is kept.

    Raises:
        DataError: there is no batch, nothing in it is a tensor, or it holds NaN or infinity.
        OptionError: several batches are asked for, and ``data`` is one.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        forward: Forward | None = None,
        count: int = 1,
        device: torch.device | None = None,
        *,
        targets: int = 0,
    ) -> None:
        """``device``: where the batches are moved; by default where the model is. ``targets``: see `first_call`."""
        if forward is not None and not callable(forward):
            raise OptionError(f"forward must be a function of the model and the batch, lambda model, batch: …; got {forward!r}")
        self._count = count
        self._targets = targets
        self._device = device or _device(model)
        self._signature = None if forward is not None else _Signature(model)
        self._forward = forward
        self._data = data
        self._kept: list[Any] | None = [data] if self._is_batch(data) else None
        if self._kept is not None and count > 1:
            raise OptionError(
                f"batches={count} needs a DataLoader or another iterable of batches; got one batch, {_describe(data)}"
            )
        if self._kept is None:
            _check_iterable(data)
            self._loading = Loading(data)
            if isinstance(data, Iterator):
                with self._loading.begin():
                    self._kept = list(islice(data, count))
        self.first = next(self._items(1), None) or _refuse_empty(data)

    @property
    def are_samples(self) -> bool:
        """Whether what it took for a batch looks like a single sample: an item of a list, say, whose numbers have one axis."""
        if self._kept is not None or isinstance(self._data, (DataLoader, Batches)):
            return False
        data = [x for _, x in self.first.tensors()]
        return any(x.is_floating_point() for x in data) and all(x.dim() == 1 for x in data)

    def _is_batch(self, data: Any) -> bool:
        """Whether it is a batch, not an iterable of batches."""
        if self._signature is None:
            return self._count == 1 and not isinstance(data, (DataLoader, Batches))
        several = isinstance(data, list) and all(isinstance(x, Tensor) for x in data)
        return isinstance(data, (Tensor, tuple, Mapping)) or (several and 2 <= self._signature.required <= len(data))

    def __iter__(self) -> Iterator[Call]:
        return self._items(self._count)

    def _items(self, count: int) -> Iterator[Call]:
        if self._kept is not None:
            batches: Iterator[Any] = iter(self._kept)
        else:
            batches = self._loading.batches()
        for batch in islice(batches, count):
            call = self._call(batch, whole=self._data is batch)
            given = (*call.args, *call.kwargs.values())
            if self._forward is None and all(type(x).__module__ in ("builtins", "numpy") for x in given):
                _refuse_no_tensor(call, self._data)
            _refuse_non_finite(call)
            yield call

    def _call(self, batch: Any, *, whole: bool) -> Call:
        """``whole``: it is what the caller passed, not an item of it."""
        if self._device is not None and self._device.type != "meta":
            _refuse_meta(batch)
        batch, signature = _to(batch, self._device), self._signature
        if signature is None:
            return Call((batch,), {}, forward=self._forward, rest=(batch,))
        whole = whole and not self._targets
        if whole and isinstance(batch, Mapping):
            return Call((), dict(batch))
        if isinstance(batch, PackedSequence):  # a tuple for Python, one tensor for a recurrent layer
            return Call((batch,), {})
        if isinstance(batch, tuple) and whole and signature.fits(len(batch)):
            return Call(batch, {})
        if isinstance(batch, (tuple, list)):
            return signature.positional(tuple(batch), self._targets)
        if isinstance(batch, Mapping):
            return signature.keyword(dict(batch))
        return Call((batch,), {})


class _Signature:
    """What ``model.forward`` takes; a wrapper's (DataParallel, a compiled module) is that of the module inside."""

    def __init__(self, model: nn.Module) -> None:
        while True:
            parameters = inspect.signature(model.forward).parameters.values()
            kinds = {p.kind for p in parameters}
            inside = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
            if inspect.Parameter.VAR_POSITIONAL not in kinds or not isinstance(inside, nn.Module):
                break
            model = inside
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.required = sum(p.default is p.empty for p in positional)
        self.most = len(positional)
        self.any_positional = inspect.Parameter.VAR_POSITIONAL in kinds
        self.any_keyword = inspect.Parameter.VAR_KEYWORD in kinds
        self.keywords = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}

    def fits(self, count: int) -> bool:
        return self.any_positional or count <= self.most

    def positional(self, batch: tuple[Any, ...], targets: int) -> Call:
        count = max(1, len(batch) - targets if self.any_positional else self.required)
        left_out = tuple(f"item {i}" for i in range(count, len(batch)))
        return Call(batch[:count], {}, left_out, rest=batch[count:])

    def keyword(self, batch: dict[str, Any]) -> Call:
        if self.any_keyword:
            return Call((), batch)
        taken = {key: value for key, value in batch.items() if key in self.keywords}
        if not taken:
            raise DataError(
                f"the batch is a mapping with the keys {sorted(map(str, batch))}, the model's forward takes "
                f"{sorted(self.keywords)}; pass forward=lambda model, batch: model(batch[…])"
            )
        rest = {repr(key): value for key, value in batch.items() if key not in taken}
        return Call((), taken, tuple(rest), rest=tuple(rest.values()))


def _check_iterable(data: Any) -> None:
    if data is None:
        raise DataError("no data: pass a batch (tensor, tuple, mapping), a DataLoader, or another iterable of batches")
    of_samples = (Dataset, *_datasets_of_hugging_face())
    if isinstance(data, of_samples) and not isinstance(data, IterableDataset):
        raise DataError(
            f"{type(data).__name__} is a Dataset of single samples; pass DataLoader(dataset, batch_size=64, shuffle=True)"
        )
    if type(data).__module__ == "numpy":
        raise DataError(f"cannot take a batch from {_describe(data)}; pass a tensor: torch.from_numpy(data)")
    if isinstance(data, (str, bytes)) or hasattr(data, "__array__") or not isinstance(data, Iterable):
        raise DataError(
            f"cannot take a batch from {_describe(data)}; pass a tensor, a tuple, a mapping, a DataLoader, or "
            "forward=lambda model, data: …"
        )


def _datasets_of_hugging_face() -> tuple[type, ...]:
    """Its class, if the library is in use; a module of that name may be the caller's own."""
    found = getattr(sys.modules.get("datasets"), "Dataset", None)
    return (found,) if isinstance(found, type) and found.__module__ == "datasets.arrow_dataset" else ()


def _refuse_empty(data: Any) -> NoReturn:
    raise DataError(f"{_describe(data)} is empty: it yielded no batch")


def _refuse_no_tensor(call: Call, data: Any) -> None:
    if next(call.tensors(), None) is None:
        raise DataError(
            f"the batch holds no tensor; got {_describe(data)}. Pass tensors (torch.as_tensor converts arrays), "
            "or forward=lambda model, data: … for anything else"
        )


def _refuse_meta(batch: Any) -> None:
    for _, tensor in _tensors(batch, "data"):
        if tensor.is_meta:
            raise DataError(
                f"the data, of shape {tuple(tensor.shape)}, is on the meta device and holds no numbers; pass real data"
            )


def _is_mask(name: str, values: Tensor) -> bool:
    """Whether -inf stands in it where an attention is not to look: PyTorch's convention, all else being 0 mostly."""
    finite = torch.isfinite(values)
    return bool((finite | (values == -torch.inf)).all()) and ("mask" in name or not values[finite].any())


def shape_and_dtype(tensor: Tensor) -> str:
    """``"(4, 6) int64"``."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _refuse_non_finite(call: Call) -> None:
    for name, tensor in call.tensors():
        if tensor.is_nested and tensor.layout is torch.strided:
            raise DataError(f"{name} is a nested tensor, whose outputs cannot be measured; give it padded (to_padded_tensor)")
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
            continue
        values = _stored(tensor)
        bad = values.numel() - int(torch.isfinite(values).sum())
        if bad and not (tensor.is_floating_point() and _is_mask(name, values)):
            raise DataError(
                f"the data holds NaN or infinity: {bad} of the {values.numel()} values of {name}, shape "
                f"{tuple(tensor.shape)}; look for a division by a zero std or for missing values in the preprocessing"
            )


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two batches' tensors are equal; of those that cannot be compared by their shapes alone."""
    if a.layout is not torch.strided or a.is_nested or a.is_meta:
        return a.shape == b.shape
    return torch.equal(a, b)


def _is_one_sample(x: Tensor) -> bool:
    if len(x) == 1:
        return x.dim() == 2 and x.is_floating_point()
    return torch.equal(x[0], x[1]) and bool((x == x[:1]).all())  # mostly it does not come to reading all of it


def _stored(tensor: Tensor) -> Tensor:
    """The numbers that a tensor holds: of a sparse one those that are not left out."""
    if tensor.is_nested:
        return tensor.values()
    if tensor.layout is torch.sparse_coo:
        return tensor._values()  # values() asks for a coalesced tensor
    return tensor if tensor.layout is torch.strided else tensor.values()


def _device(model: nn.Module) -> torch.device | None:
    """The one device of all parameters; None (leave tensors where they are) if there are several or none."""
    devices = {p.device for p in model.parameters()}
    return devices.pop() if len(devices) == 1 else None


def _to(value: Any, device: torch.device | None) -> Any:
    """``value`` with the tensors in it, in containers at any depth, moved."""
    if device is None or device.type == "meta":
        return value
    if isinstance(value, Tensor):
        value = value.to(device)
        with torch.inference_mode(False):  # of a tensor that was made in it no gradient can be taken
            return value.clone() if value.is_inference() else value
    if isinstance(value, PackedSequence):
        return value.to(device)  # type: ignore[arg-type]  # its stubs know a dtype alone
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*(_to(v, device) for v in value))
    if type(value) in (tuple, list):
        return type(value)(_to(v, device) for v in value)
    # Of a batch class of the caller's or of a library's: a graph, transformers' BatchEncoding.
    move = getattr(type(value), "to", None)
    if isinstance(value, UserDict) and callable(move):
        own: Any = copy.copy(value)  # whose to() would change the caller's
        return own.to(device)
    if isinstance(value, Mapping):
        return _with_items(value, {key: _to(v, device) for key, v in value.items()})
    if isinstance(value, list):
        return _with_items(value, dict(enumerate(_to(v, device) for v in value)))
    return value.to(device) if callable(move) and not isinstance(value, nn.Module) else value


def _with_items(value: Any, items: dict[Any, Any]) -> Any:
    """A mapping or list, of the same class, with other items; itself if they are what it has."""
    if all(value[key] is item for key, item in items.items()):
        return value
    plain = list(items.values()) if isinstance(value, list) else items
    if type(value) is dict or not isinstance(value, (dict, list)):  # of others a copy may share the items with the caller's
        return plain
    try:
        own = copy.copy(value)
        attributes = getattr(own, "__dict__", {})
        for key, item in items.items():
            if attributes.get(key) is value[key]:  # a class whose items are its attributes
                attributes[key] = item
            own[key] = item
    except Exception:  # noqa: BLE001 - of the caller's class: it cannot be changed, or not be copied
        return plain
    return own


def _targets(batch: Any) -> Any:
    """Of a whole batch, by custom; None if nothing says."""
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[-1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _tensors(v, name)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v, name)


def _describe(data: Any) -> str:
    if isinstance(data, type):
        return f"the class {data.__module__}.{data.__qualname__}"
    try:
        length = f" of length {len(data)}"
    except (TypeError, NotImplementedError):  # it has none, or the data behind a loader have none
        length = ""
    return f"{type(data).__module__}.{type(data).__qualname__}{length}".removeprefix("builtins.")
