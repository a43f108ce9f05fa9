"""Which tensors a call writes into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# torch names all other functions that change their first argument with an underscore at the end. `weight *= 2` is __imul__.
_WRITING = frozenset({"__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"))})
_NO_VALUES = frozenset({"requires_grad_", "share_memory_", "rename_"})  # change no number


@lru_cache(1024)  # asked of every call of a forward
def _is_in_place(function: Callable[..., Any]) -> bool:
    name = getattr(function, "__name__", "")
    if isinstance(function, torch._ops.OpOverload):
        name = str(function).split(".")[1]  # "mul_" of aten.mul_.Tensor
    is_data = function == Tensor.data.__set__  # type: ignore[attr-defined]  # a property
    return (name.endswith("_") and not name.endswith("__") and name not in _NO_VALUES) or name in _WRITING or is_data


def written_by(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What a call changes: ``out=``, and the first argument of what works in place; of a list (torch._foreach_mul_) all of it."""
    written = [kwargs["out"]] if "out" in kwargs else []
    if _is_in_place(function) or kwargs.get("inplace"):
        first = args[0] if args else next(iter(kwargs.values()), None)
        written += first if isinstance(first, (list, tuple)) else [first]
    return written
