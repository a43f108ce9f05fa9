"""Whether the processes hold the same model: compared before a pass."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def table(model: nn.Module) -> list[str]:
    """A line for every parameter: name, shape, dtype, and whether it has numbers."""
    return [f"{name!r} {_described(parameter)}" for name, parameter in model.named_parameters()]


def _described(parameter: Tensor) -> str:
    if is_lazy(parameter):
        return "without a shape yet"
    return f"of shape {tuple(parameter.shape)}, {parameter.dtype}{', on the meta device' if parameter.is_meta else ''}"


def checksums(model: nn.Module) -> dict[str, int]:
    """Of the parameters that every process holds whole. The bits are added up: the same in any order, on any device."""
    sums: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        here = type(p) in (nn.Parameter, Tensor) and p.layout is torch.strided and not p.is_meta
        if here and p.element_size() in (*_INTEGERS, 16):
            bits = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
            sums[name] = bits.view(_INTEGERS[bits.element_size()]).sum()
    values: dict[str, int] = {}
    for device in {total.device for total in sums.values()}:  # one transfer from each
        own = [name for name, total in sums.items() if total.device == device]
        values.update(zip(own, torch.stack([sums[name] for name in own]).tolist(), strict=True))
    return values


def digest(value: object) -> str:
    """Of anything whose repr says all of it."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def difference_of_tables(tables: Sequence[Sequence[str]]) -> str | None:
    """Where the parameters of some process are not those of the first."""
    first = tables[0]
    for rank, other in enumerate(tables):
        if len(other) != len(first):
            return f"process 0 has {len(first)} parameters, process {rank} {len(other)}"
        for a, b in zip(first, other, strict=True):
            if a != b:
                return f"process 0 has {a}, process {rank} {b}"
    return None


def difference_of_checksums(sums: Sequence[dict[str, int]]) -> tuple[str, int] | None:
    """The first parameter that holds other numbers in some process than in the first; and the process."""
    for rank, other in enumerate(sums):
        for name, value in other.items():
            if value != sums[0].get(name):
                return name, rank
    return None
