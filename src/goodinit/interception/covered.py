"""Which elements of the parameters a pass has used already."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from goodinit.interception.weights import Region, Weight


class Covered:
    """Which elements of the parameters have been used: a part may be scaled only if none of it was."""

    def __init__(self) -> None:
        self._regions: dict[int, set[Region]] = {}
        self._masks: dict[int, Tensor] = {}

    def __contains__(self, weight: Weight) -> bool:
        """Whether any element that is changed with the weight was added before."""
        known = [self._contains(root) for root in weight.roots()]
        return any(known) and (all(known) or any(self._contains(root) for root in weight.changed))

    def _contains(self, weight: Weight) -> bool:
        key, region = weight.memory
        seen = self._regions.get(key, set())
        if not seen or region in seen:
            return bool(seen)
        near = [known for known in seen if _meet(known, region)]
        if any(_fills(known, region) or _fills(region, known) for known in near):
            return True
        return bool(near) and bool(self._view(weight).any())

    def add(self, weight: Weight) -> None:
        """Note all elements of the weight as used."""
        for root in weight.roots():
            self._add(root)

    def _add(self, weight: Weight) -> None:
        key, region = weight.memory
        self._regions.setdefault(key, set()).add(region)
        if key in self._masks:
            self._view(weight).fill_(True)

    def _view(self, weight: Weight) -> Tensor:
        """The weight's elements in a mask over its memory, which is as large, so made only for regions that interlock.

        On the CPU, so that reading it waits for no device.
        """
        key, region = weight.memory
        if key not in self._masks:
            p = weight.parameter
            extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
            if weight.start is not None:
                extent = p.untyped_storage().nbytes() // p.element_size()
            self._masks[key] = torch.zeros(extent, dtype=torch.bool, device="cpu")
            for known in self._regions.get(key, ()):
                _elements(self._masks[key], known).fill_(True)
        return _elements(self._masks[key], region)


def _elements(mask: Tensor, region: Region) -> Tensor:
    offset, axes = region
    return mask.as_strided([n for _, n in axes], [s for s, _ in axes], offset)


def _ends(region: Region) -> tuple[int, int]:
    """Places of its first and last elements."""
    offset, axes = region
    return offset, offset + sum((size - 1) * stride for stride, size in axes)


def _meet(a: Region, b: Region) -> bool:
    """Whether the spans of two regions meet; their elements need not."""
    (first, last), (start, stop) = _ends(a), _ends(b)
    return first <= stop and start <= last


def _fills(a: Region, b: Region) -> bool:
    """Whether region a leaves no gap between its ends, and one end of b lies there: they have an element in common."""
    first, last = _ends(a)
    dense = math.prod(size for _, size in a[1]) == last - first + 1
    return dense and any(first <= end <= last for end in _ends(b))
