"""The std of every linear operator's output, measured without goodinit: the independent check of what `lsuv_` reports.

A TorchDispatchMode sits below autograd and below torch's Python functions. It sees what is really computed (aten.mm, addmm, bmm,
convolution, …) and knows weights by their memory and by descent: a tensor computed from parameters alone (a weight_norm'd matrix,
a copy in another dtype) is a weight too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


@dataclass(frozen=True)
class Use:
    """The first use of a parameter, or of a part of one, by an operator that is linear in it.

    The numbers are those of its first output that is not zero.
    """

    parameters: tuple[str, ...]
    """One name for the parameter itself or a view of it; for a computed weight all those that it was computed from."""
    part: str
    """Indices of the part as one would write them, ``"[2]"`` or ``"[0:64]"``; empty for all of it and for computed weights."""
    operator: str
    shape: tuple[int, ...]
    std: float
    computed: bool
    """The weight was computed from parameters, and is not one or a view of one."""
    looked_up: bool
    """The weight was gathered from a parameter by index (an expert of a stack, a table of relative positions)."""
    sixteen_bit: bool
    """The output is of a 16-bit dtype."""
    again: bool
    """Some elements of it were used before, in a part of another shape."""
    count: int = 0
    """Number of the output's elements."""
    mean: complex = 0.0
    """Of the output."""

    @property
    def name(self) -> str:
        return "+".join(self.parameters) + self.part


@dataclass(frozen=True)
class Origin:
    """What a tensor was computed from, data apart: parameters, or (none) constants."""

    parameters: frozenset[str] = frozenset()
    looked_up: bool = False


DATA = None
_CONSTANT = Origin()


class Recorder(TorchDispatchMode):
    """Collects `uses`, in call order, of a model's weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.embedded: set[str] = set()
        """Parameters that an embedding reads."""
        self._parameters: dict[int, list[tuple[str, Tensor]]] = {}
        self._origins: dict[int, tuple[Tensor, Origin]] = {}  # by storage; the tensor keeps it alive, and so its address its own
        self._seen: set[object] = set()
        self._zero_so_far: dict[object, int] = {}
        self._used: dict[str, Tensor] = {}  # parameter -> which elements of its storage
        for name, parameter in model.named_parameters():
            self._parameters.setdefault(_address(parameter), []).append((name, parameter))
        for buffer in model.buffers():
            self._origins[_address(buffer)] = (buffer, _CONSTANT)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = (
            func.overloadpacket.__name__ if func.namespace == "aten" else f"{func.namespace}.{func.overloadpacket.__name__}"
        )
        if operator == "embedding":
            self.embedded |= self._roots(args[0])
        origin = self._measure(operator, args, kwargs, out) if operator in _OPERANDS else self._descent(operator, args, kwargs)
        self._note(func, args, kwargs, out, origin)
        return out

    def _roots(self, tensor: Tensor) -> frozenset[str]:
        found = self._origin(tensor)
        return found.parameters if found is not None else frozenset()

    def _direct(self, tensor: Tensor) -> str | None:
        """The parameter that ``tensor`` is or is a view of."""
        inside = [name for name, p in self._parameters.get(_address(tensor), ()) if _overlaps(tensor, p)]
        return inside[0] if inside else None

    def _origin(self, tensor: Tensor) -> Origin | None:
        name = self._direct(tensor)
        if name is not None:
            return Origin(frozenset({name}))
        known = self._origins.get(_address(tensor))
        return known[1] if known is not None else DATA

    def _descent(self, operator: str, args: Any, kwargs: Any) -> Origin | None:
        """Of an operator's result, from that of its operands."""
        tensors = _tensors((args, kwargs))
        if operator in _SHAPE_ONLY or not tensors:
            return _CONSTANT
        origins = [self._origin(t) for t in tensors]
        first = origins[0]
        if operator in _LOOK_UP and first is not None and first.parameters:
            return Origin(first.parameters, looked_up=True)
        if operator == "embedding":
            return DATA
        return _merged(origins)

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any, origin: Origin | None) -> None:
        """Remember the descent of new tensors and of overwritten ones; views have that of their memory."""
        given = {_address(t) for t in _tensors((args, kwargs))}
        written = _written(func, args, kwargs)
        fresh = [t for t in _tensors(out) if _address(t) not in given]
        for tensor in (*written, *fresh):
            if origin is DATA:
                self._origins.pop(_address(tensor), None)
            else:
                self._origins[_address(tensor)] = (tensor, origin)

    def _measure(self, operator: str, args: Any, kwargs: Any, out: Any) -> Origin | None:
        """Record the use of a weight, if exactly one operand is one. What it gives is data: an activation.

        But a matrix times a vector of constants may be on the way to a computed weight (the power iteration of spectral
        norm), and the product of two parameters is one.
        """
        places = _OPERANDS[operator]
        operands = [args[i] for i in places]
        origins = [self._origin(t) for t in operands]
        direct = [self._direct(t) for t in operands]
        weights = [i for i, o in enumerate(origins) if o is not None and o.parameters]
        index = _only([i for i in weights if direct[i] is not None])
        if index is None and DATA in origins:
            index = _only(weights)
        if index is None and all(direct) and _is_transposed(operands[-1]):
            index = (
                len(operands) - 1
            )  # as torch.nn.functional.linear hands its weight on; the data is a parameter too (learned queries)
        if index is None:
            return _merged(origins)
        origin = origins[index]
        assert origin is not None
        z = _without_data(operator, args, kwargs, out, self._origin)
        if z.numel():
            self._record(operator, operands[index], direct[index], origin, z, args)
        return _merged(origins) if operator == "mv" else DATA

    def _record(self, operator: str, weight: Tensor, direct: str | None, origin: Origin, z: Tensor, args: Any) -> None:
        names = (direct,) if direct is not None else tuple(sorted(origin.parameters))
        parameter = next((p for n, p in self._parameters.get(_address(weight), ()) if n == direct), None)
        for w, y in _parts(operator, weight, direct, z, args):
            key = (names, _region(w) if direct is not None else tuple(w.shape))
            if key in self._seen:
                if self._zero_so_far.get(key) is not None and y.any():  # what was zero before says nothing of the scale
                    place, mean = self._zero_so_far.pop(key), y.to(torch.complex128).mean().item()
                    self.uses[place] = replace(self.uses[place], std=std(y), count=y.numel(), mean=mean)
                continue
            self._seen.add(key)
            if direct is not None and not y.any():
                self._zero_so_far[key] = len(self.uses)
            label = _indices(w, parameter) if parameter is not None else ""
            again = direct is not None and self._use(direct, w)
            size = y.element_size() // (2 if y.is_complex() else 1)
            mean = y.to(torch.complex128).mean().item()
            computed, looked_up = direct is None, origin.looked_up
            use = Use(names, label, operator, tuple(w.shape), std(y), computed, looked_up, size == 2, again, y.numel(), mean)
            self.uses.append(use)

    def _use(self, name: str, w: Tensor) -> bool:
        """Mark the elements of a weight as used; whether any was."""
        storage = w.untyped_storage()
        mask = self._used.setdefault(name, torch.zeros(storage.nbytes() // w.element_size(), dtype=torch.bool))
        view = mask.as_strided(
            [n for n, s in zip(w.shape, w.stride(), strict=True) if s], [s for s in w.stride() if s], w.storage_offset()
        )
        before = bool(view.any())
        view.fill_(True)
        return before


# Operator -> places of the operands that may be the weight.
_OPERANDS = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "_sparse_mm"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "_sparse_addmm"), (1, 2)),
    **dict.fromkeys(("linear", "convolution", "convolution_overrideable", "_convolution"), (0, 1)),
    **dict.fromkeys(("mkldnn_linear", "_grouped_mm", "transformers.grouped_mm_fallback"), (0, 1)),
    "_trilinear": (0, 1, 2),
}
_ADDED: dict[str, Callable[..., Tensor]] = {"addmm": torch.mm, "baddbmm": torch.bmm, "addmv": torch.mv}
_GROUPED = ("_grouped_mm", "transformers.grouped_mm_fallback")
_LOOK_UP = ("index", "index_select", "gather", "take")
_SHAPE_ONLY = (
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "lift_fresh"),
)


def _without_data(operator: str, args: Any, kwargs: Any, out: Tensor, origin: Callable[[Tensor], Origin | None]) -> Tensor:
    """The output, without what the operator adds to the product unless that is a bias."""
    if operator not in _ADDED or origin(args[0]) is not DATA:
        return out
    z: Tensor = _ADDED[operator](args[1], args[2]) * kwargs.get("alpha", 1)
    return z


def _parts(operator: str, w: Tensor, direct: str | None, z: Tensor, args: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Matrices that stand in one operand, each with its output."""
    if operator in _GROUPED:
        offsets = args[2].tolist()
        for i, (start, stop) in enumerate(zip([0, *offsets], offsets, strict=False)):
            if stop > start:
                yield w[i], z[start:stop]
    elif operator in ("bmm", "baddbmm") and w.stride(0) != 0 and w.shape[0] > 1 and direct is not None:
        yield from zip(w, z, strict=True)
    elif (
        direct is not None
        and direct.endswith("in_proj_weight")
        and w.dim() == 2
        and w.numel() == 3 * min(w.shape) ** 2
        and z.shape[-1] == max(w.shape)
    ):
        axis = w.shape.index(max(w.shape))
        yield from zip(w.chunk(3, axis), z.chunk(3, -1), strict=True)
    else:
        yield w, z


def std(z: Tensor) -> float:
    """Over all elements, in float64; for complex ones the root of the mean squared distance from the mean."""
    z = z.detach().to(torch.complex128 if z.is_complex() else torch.float64)
    return (z - z.mean()).abs().square().mean().sqrt().item()


def _merged(origins: list[Origin | None]) -> Origin | None:
    known = [o for o in origins if o is not None]
    if len(known) < len(origins):
        return DATA
    return Origin(frozenset().union(*(o.parameters for o in known)), any(o.looked_up for o in known))


def _only(indices: list[int]) -> int | None:
    return indices[0] if len(indices) == 1 else None


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Operands that the operator writes to."""
    arguments = func._schema.arguments
    given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
    return [t for a, value in given if a.alias_info is not None and a.alias_info.is_write for t in _tensors(value)]


def _address(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:
        return id(tensor)
    return tensor.untyped_storage().data_ptr()


def _overlaps(tensor: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor lies inside of a parameter that has the same storage."""
    start, low = tensor.storage_offset() * tensor.element_size(), parameter.storage_offset() * parameter.element_size()
    return tensor.numel() > 0 and low <= start < low + parameter.numel() * parameter.element_size()


def _is_transposed(w: Tensor) -> bool:
    return w.dim() == 2 and w.mT.is_contiguous() and not w.is_contiguous()


def _region(w: Tensor) -> tuple[int, tuple[tuple[int, int], ...]]:
    axes = sorted((stride, size) for stride, size in zip(w.stride(), w.shape, strict=True) if size > 1 and stride > 0)
    return int(w.storage_offset()), tuple(axes)


def _indices(w: Tensor, parameter: Tensor) -> str:
    """``"[a]"`` or ``"[a:b]"`` along the parameter's first axis, ``""`` for all of it, else its offset and shape."""
    held = 1
    for stride, size in _region(w)[1]:
        held *= size if stride else 1
    if held == parameter.numel() or parameter.dim() == 0:
        return ""
    row = parameter.stride(0)
    start, inside = divmod(int(w.storage_offset() - parameter.storage_offset()), row)
    if inside or held % row:
        return f"[offset {w.storage_offset()}, shape {tuple(w.shape)}]"
    return f"[{start}]" if held == row else f"[{start}:{start + held // row}]"


class _WithoutDropout(TorchFunctionMode):
    """Functional dropout, wherever it is called, passes its input on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        place = _PROBABILITY.get(func)
        if place is not None and len(args) > place:
            args = (*args[:place], 0.0, *args[place + 1 :])
        elif place is not None:
            kwargs = {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)
# Where attention takes the probability of its dropout.
_PROBABILITY = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10}


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """As in training but for noise: modules that hold nothing (dropout, stochastic depth) in eval, functional dropout off.

    BatchNorm uses the statistics of the batch, unless it was set to eval. Flags and buffers are put back.
    """
    flags = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    for module in flags:
        if not (module._parameters or module._buffers or module._modules):
            module.training = False
    try:
        with _WithoutDropout():
            yield
    finally:
        for module, training in flags.items():
            module.training = training
        for buffer, value in buffers.items():
            buffer.copy_(value)


def record(model: nn.Module, run: Callable[[], object]) -> Recorder:
    """What ``run()``, a forward of the model, does with the model's weights."""
    recorder = Recorder(model)
    with torch.no_grad(), quiet(model), recorder:
        run()
    return recorder
