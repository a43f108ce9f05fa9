"""Elementwise non-linearities: which functions they are, where they are flat, and which operator's output they are given.

An output is followed by its identity through functions that keep its units apart: normalization, dropout, pooling, reshaping,
casts, the addition of a bias, a non-linearity. Through a sum of two branches or a product it is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Function = Callable[..., Any]
T = TypeVar("T")

# Slopes below these shares of the steepest one: a step of training moves hardly anything; nothing at all.
_SATURATED, _DEAD = 0.05, 0.001
# Inputs at which slopes are looked at: evenly spread, and on both sides of zero, where many of them bend.
_REACH, _PER_UNIT, _TINY = 20, 100, 1e-12


class Flat(NamedTuple):
    """Below ``low`` and above ``high`` a non-linearity is flat; infinite where it is not."""

    low: float
    high: float

    @property
    def at_both_ends(self) -> bool:
        """As tanh and sigmoid are, and ReLU is not."""
        return self.low > -torch.inf and self.high < torch.inf

    @property
    def around_zero(self) -> bool:
        """Whether it is flat on both sides of zero: ReLU6 is not, which saturates above 6, and below 0 is as ReLU."""
        return self.at_both_ends and self.low < 0 < self.high


class Shape(NamedTuple):
    """A non-linearity's flat parts: where it saturates, and where units in it are dead."""

    saturated: Flat
    dead: Flat


def _all_of(names: str, *holders: Any) -> set[Function]:
    """Functions by name, of those that have them, in place or not."""
    found = (getattr(holder, name + end, None) for name in names.split() for end in ("", "_") for holder in holders)
    return {function for function in found if callable(function)}


NON_LINEARITIES: frozenset[Function] = frozenset(
    _all_of(
        "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus hardtanh hardswish hardsigmoid sigmoid "
        "logsigmoid tanh softsign threshold",
        F,
    )
    | _all_of("relu tanh sigmoid prelu clamp clamp_min sin selu celu rrelu threshold hardsigmoid", torch, Tensor)
)

NORMALIZATIONS: frozenset[Function] = frozenset(_all_of("batch_norm layer_norm group_norm instance_norm rms_norm normalize", F))
_KEEP_UNITS: frozenset[Function] = frozenset(
    NORMALIZATIONS
    | {F.local_response_norm}
    | _all_of("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout", F, torch)
    | _all_of("max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", F)
    | _all_of("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", F)
    | _all_of("view reshape flatten unflatten transpose permute contiguous squeeze unsqueeze movedim to float half type", Tensor)
    | _all_of("bfloat16 double", Tensor)
    | _all_of("reshape flatten unflatten transpose permute squeeze unsqueeze movedim", torch)
)
_ADD: frozenset[Function] = frozenset({torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__})


def shape_of(function: Function, args: Iterable[Any], kwargs: dict[str, Any]) -> Shape:
    """The flat parts of a non-linearity as it is called, but for the input; none where a tensor takes part (PReLU)."""
    others = {key: value for key, value in kwargs.items() if key not in ("input", "inplace", "out")}
    given = (*args, *others.values())
    if not all(isinstance(value, Hashable) for value in given) or any(isinstance(value, Tensor) for value in given):
        return Shape(Flat(-torch.inf, torch.inf), Flat(-torch.inf, torch.inf))
    return _shape(function, tuple(args), tuple(others.items()))


@cache
def _shape(function: Function, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> Shape:
    with torch.inference_mode(False), torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):  # not a checkpoint's
        even = torch.arange(-_REACH * _PER_UNIT, _REACH * _PER_UNIT + 1, dtype=torch.float64, device="cpu") / _PER_UNIT
        x = torch.cat([even, torch.tensor([-_TINY, _TINY], dtype=torch.float64, device="cpu")]).sort().values.requires_grad_()
        y = function(x * 1, *args, **dict(kwargs))  # a copy: it may be overwritten
        (slope,) = torch.autograd.grad(y.sum(), x)
    share = slope.abs() / slope.abs().max()
    return Shape(_flat(x.detach(), share < _SATURATED), _flat(x.detach(), share < _DEAD))


def _flat(x: Tensor, is_flat: Tensor) -> Flat:
    """How far from either end it is flat without a break."""
    steep = x[~is_flat]
    low = -torch.inf if not is_flat[0] else x[x < steep[0]].max().item()
    high = torch.inf if not is_flat[-1] else x[x > steep[-1]].min().item()
    return Flat(low, high)


class Trail(Generic[T]):
    """Which tensors are outputs that are followed; holds none of them."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, T]] = {}

    def begin(self, tensor: Tensor, what: T) -> None:
        """Follow a tensor as it is now."""
        self._seen[id(tensor)] = weakref.ref(tensor), _version(tensor), what

    def find(self, tensor: object) -> T | None:
        """What a tensor is, unless it was overwritten since."""
        reference, version, what = self._seen.get(id(tensor), (None, 0, None))
        if not isinstance(tensor, Tensor) or reference is None or reference() is not tensor:
            return None
        return what if _version(tensor) == version else None

    def follow(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Make a call that may hand on a tensor that is followed."""
        what = None
        if function in _KEEP_UNITS or function in NON_LINEARITIES:
            what = self.find(input_of(args, kwargs))
        elif function in _ADD and len(args) > 1:
            a, b = args[:2]
            what = self.find(a) if isinstance(b, nn.Parameter) else self.find(b) if isinstance(a, nn.Parameter) else None
        out = call()
        if what is not None and isinstance(out, Tensor):
            self.begin(out, what)
        return out


def _version(tensor: Tensor) -> int:
    """How often it was overwritten; tensors made in inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument that such functions have first."""
    return args[0] if args else kwargs.get("input")
