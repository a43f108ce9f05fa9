"""Inside the transforms of torch.func (vmap, grad, jvp, …), where tensors are wrapped: axes hidden, derivatives attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

_functorch = torch._C._functorch


def active() -> bool:
    """Whether code runs inside a transform now."""
    return _functorch.peek_interpreter_stack() is not None


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor is one of a transform's, which has no memory of its own."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def without_derivative(tensor: Tensor) -> Tensor:
    """The tensor inside of those that ``grad`` or ``jvp`` made of it in order to differentiate; vmap's stay as they are."""
    while _functorch.is_gradtrackingtensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor of all samples inside of a wrapped one, the axes that vmap hides in front. To be called inside the transform."""
    while is_wrapped(tensor):
        axis = _functorch.maybe_get_bdim(tensor)
        tensor = _functorch.get_unwrapped(tensor)
        if axis > 0:
            tensor = tensor.movedim(axis, 0)
    return tensor


@contextmanager
def left() -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """Be outside of all transforms: random numbers may be drawn and weights changed. Gives what enters them again."""
    if not active():
        yield nullcontext
        return
    from torch._functorch import pyfunctorch  # noqa: PLC0415 - loaded by the transform; not otherwise, for it takes its time

    with pyfunctorch.temporarily_clear_interpreter_stack() as stack:
        yield lambda: pyfunctorch.temporarily_restore_interpreter_stack(stack)
