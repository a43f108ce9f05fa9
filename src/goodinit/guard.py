"""Leaves no trace: what a forward pass changes in a model, and around it, is put back.

Put back always: train and eval flags, requires_grad, buffers, gradients, backend switches, and the random number generators
(but for the draws of the orthonormal matrices). Put back on failure: the weights too.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from goodinit.containers import CONTAINERS, items_of, refill
from goodinit.errors import OptionError
from goodinit.interception.weights import storage_of
from goodinit.lazy import unformed
from goodinit.processes import sharded
from goodinit.seeds import Seeds, number_from


class Undo:
    """Copies of the weights from before their first change."""

    def __init__(self) -> None:
        self._saved: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._more: list[Callable[[], object]] = []

    def also(self, undo: Callable[[], object]) -> None:
        """Something else to be done when the weights are put back. It may be run again if it was interrupted."""
        self._more.append(undo)

    def ignore(self, parameter: Tensor) -> None:
        """Of a weight that held no numbers before there is nothing to put back."""
        self._saved[id(parameter)] = (parameter, None)

    def remember(self, parameter: Tensor) -> None:
        """Copy a weight unless that has been done. Call it before every change."""
        if id(parameter) not in self._saved:
            self._saved[id(parameter)] = (parameter, None if is_lazy(parameter) else parameter.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Put all copies back. May be run again if it was interrupted."""
        # The last first: where parameters share memory, the first copy has what was there before any change.
        for parameter, saved in reversed(self._saved.values()):
            if saved is not None:
                parameter.copy_(saved)
        torch.clear_autocast_cache()
        for undo in self._more:
            undo()


@contextmanager
def all_or_nothing(undo: Undo) -> Iterator[None]:
    """On any exception, KeyboardInterrupt included, the weights are put back."""
    try:
        yield
    except BaseException:
        while True:
            try:
                undo.restore()
                break
            except KeyboardInterrupt:  # a second one, of an impatient user: the weights come first
                continue
        raise


@contextmanager
def undone() -> Iterator[Undo]:
    """Weights that are given to what comes out of it are put back at the end, whatever happened."""
    undo = Undo()
    try:
        yield undo
    finally:
        _all_done([undo.restore], quiet=sys.exc_info()[0] is not None)


@contextmanager
def batch_kept(named: Iterable[tuple[str, Tensor]]) -> Iterator[Callable[[Tensor], None]]:
    """The tensors of a batch are put back at the end, if the model writes into them (``nn.ReLU(inplace=True)`` comes first), or
    lets them require gradients, and have none inside.

    Gives what is to be called with every tensor before it is written into: only then is a copy made. ``named``: as
    `goodinit.batches.Call.tensors` has them.
    """
    by_memory: dict[int, list[Tensor]] = {}
    tensors = [tensor for _, tensor in named]
    idle = [tensor for tensor in tensors if not tensor.requires_grad]
    for tensor in tensors:
        if memory := storage_of(tensor):
            by_memory.setdefault(memory, []).append(tensor)
    with undone() as undo, gradients_aside(tensors):

        def about_to_write(tensor: Tensor) -> None:
            for each in by_memory.get(storage_of(tensor), ()):
                undo.remember(each)

        try:
            yield about_to_write
        finally:
            for tensor in idle:
                if tensor.requires_grad and tensor.is_leaf:
                    tensor.requires_grad_(False)
                elif tensor.requires_grad and not tensor._is_view():  # a view is in the graph of what it is a view of
                    tensor.detach_()


class Randomness:
    """The source of the orthonormal matrices' random numbers, kept apart from what the model draws in its forward.

    When a matrix is needed, one number is drawn from the ``generator`` of the caller's, and torch's global generators end as they
    were; or, without one, from torch's global generator of the CPU, which ends as if only this had been drawn from it. All
    matrices follow from that number.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise OptionError(
                f"generator must be a torch.Generator: generator=torch.Generator().manual_seed(0); got {generator!r}"
            )
        # What is drawn from torch's own by name would be taken back at the end, and so be the same in the next call.
        ours = torch.default_generator, *torch.cuda.default_generators
        self._given = None if any(generator is each for each in ours) else generator
        self._own = torch.Generator()
        self._noise: dict[torch.device, int] = {}
        self._seeds: Seeds | None = None
        self._drawn = False

    def number(self) -> int:
        """The number that is to be drawn; nothing is, yet."""
        return number_from(_copy(torch.default_generator if self._given is None else self._given))

    def follow(self, number: int) -> None:
        """Let all matrices follow from a number, that of another process perhaps, in place of the one that is drawn."""
        self._seeds = Seeds(number)

    def generator(self, place: object, device: torch.device) -> torch.Generator:
        """The generator of a weight at a place in the model, on a device: see `goodinit.seeds`."""
        assert self._seeds is not None, "inside of `preserved` only"
        if not self._drawn:
            source = self._own if self._given is None else self._given
            torch.randint(2**62, (), generator=source, device=source.device)
            self._drawn = True
        return self._seeds.generator(place, _drawn_on(device) if self._given is None else self._given.device)

    @property
    def followed(self) -> int:
        """The number that all matrices follow from."""
        assert self._seeds is not None, "inside of `preserved` only"
        return self._seeds.base

    @contextmanager
    def as_global(self, place: object, device: torch.device) -> Iterator[None]:
        """Let what runs inside draw from a weight's generator by torch's global one: for functions without ``generator=``."""
        source = self.generator(place, device)
        current = _global(source.device)
        kept = current.get_state()
        current.set_state(source.get_state())
        try:
            yield
        finally:
            current.set_state(kept)

    def begin_forward(self, batch: int = 0) -> None:
        """Give the forward on a batch its noise: independent of the matrices, from the same state, the same each time."""
        for device, seed in self._noise.items():
            _global(device).manual_seed((seed + batch) ^ 1)

    @contextmanager
    def preserved(self, model: nn.Module, target: torch.device | None = None) -> Iterator[None]:
        """Isolate what runs inside: its seed follows from the generators' state, and it leaves no trace in them.

        ``target``: where tensors on the meta device will get memory.
        """
        places = {p.device for p in model.parameters()} | {torch.device("cpu"), target or torch.device("cpu")}
        devices = {_drawn_on(place) for place in places}
        before = {device: _global(device).get_state() for device in devices}
        given = None if self._given is None else self._given.get_state()
        python, numpy_random = random.getstate(), sys.modules.get("numpy.random")
        numpy_state: Any = None if numpy_random is None else numpy_random.get_state()
        self._noise = {device: number_from(_copy(_global(device))) for device in devices}
        self._own = _copy(torch.default_generator)
        if self._seeds is None:
            self.follow(self.number())
        self.begin_forward()
        try:
            yield
        except BaseException:
            if self._given is not None and given is not None:
                self._given.set_state(given)
            raise
        else:
            before[torch.device("cpu")] = self._own.get_state()
        finally:
            for device, state in before.items():
                _global(device).set_state(state)
            random.setstate(python)
            if numpy_random is not None:
                numpy_random.set_state(numpy_state)


def _copy(generator: torch.Generator) -> torch.Generator:
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def _drawn_on(device: torch.device) -> torch.device:
    """Where random numbers for a device are drawn: there for CUDA, on the CPU for all others."""
    if device.type != "cuda":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _global(device: torch.device) -> torch.Generator:
    """torch's global generator of a device."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


@contextmanager
def gradients_aside(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Leaves have no gradients inside; afterwards they have those of before, untouched and never copied."""
    grads = [(tensor, tensor.grad) for tensor in tensors if tensor.is_leaf]
    try:
        for tensor, _ in grads:
            tensor.grad = None
        yield
    finally:
        for tensor, grad in grads:
            tensor.grad = grad


@contextmanager
def without_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    """What was to run when a gradient is complete (an optimizer's step, maybe) does not."""
    kept = [(hooks, dict(hooks)) for p in parameters if (hooks := p._post_accumulate_grad_hooks)]
    try:
        for hooks, _ in kept:
            hooks.clear()
        yield
    finally:
        for hooks, before in kept:
            hooks.update(before)


@contextmanager
def without_reduction(model: nn.Module) -> Iterator[None]:
    """DistributedDataParallel neither waits for gradients nor adds them up over the processes."""
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.parallel.DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


@contextmanager
def restored(model: nn.Module, *, attributes: bool = False, stays: Callable[[Tensor], bool] | None = None) -> Iterator[None]:
    """Put flags, buffers and gradients back at the end, whatever happened.

    ``attributes``: and tensors, numbers, texts, flags and containers that modules hold as plain attributes, modules and hooks
    that the forward added, parameters that it exchanged for others, or for other memory; and lazy modules have no form again.
    Otherwise on failure only. ``stays``: on success, whether a tensor that a module holds as an attribute now may stay; without,
    all may.
    """
    sharded.reshard(model)  # or what FSDP2 gathered for a forward, and will free, would be put back
    modules = list(model.modules())
    flags = [(module, module.training) for module in modules]
    buffers = [(module, items_of(module._buffers), items_of(module._non_persistent_buffers_set)) for module in modules]
    every = [(module, b) for module, held, _ in buffers for _, b in held if b is not None]
    values = [_Kept(b) for _, b in every if not isinstance(b, UninitializedBuffer)]
    lazy = {module for module, b in every if isinstance(b, UninitializedBuffer)}
    without_form = unformed(model)
    plain = [(module, dict(vars(module)), items_of(module._parameters)) for module in modules]
    containers = [
        (module, held, items_of(held))
        for module in modules
        for name, held in vars(module).items()
        if isinstance(held, CONTAINERS) and name not in OF_MODULES
    ]
    containers.sort(key=lambda each: type(each[1]) in CONTAINERS)  # others, when they are filled, may write into these
    own = ((module, getattr(module, name, None)) for module in modules for name in _PARTS)
    parts = [(module, held, items_of(held) if held else []) for module, held in own if held is not None]  # mostly empty
    places = [(p, p.detach()) for p in model.parameters() if not (is_lazy(p) or p.is_meta or sharded.is_sharded(p))]
    grads = [(p, p.grad, None if p.grad is None else _Kept(p.grad)) for p in model.parameters()]
    trainable = [(p, p.requires_grad) for p in model.parameters()]
    succeeded = False

    def undoing() -> Iterator[Callable[[], object]]:
        if attributes or not succeeded:
            yield from (partial(refill, held, before) for _, held, before in parts if held or before)
            yield from (partial(_put_back_values, module, before) for module, before, _ in plain)
            yield from (partial(refill, held, before) for _, held, before in containers)
        elif stays is not None:
            yield from (partial(_forget_state, module, before, stays) for module, before, _ in plain)
        if attributes or not succeeded:
            yield from (partial(_put_back_tensors, module, before) for module, before, _ in plain)
            yield from (partial(refill, module._parameters, before) for module, _, before in plain)
            yield from (partial(_put_into, parameter, memory) for parameter, memory in places)
        yield from (partial(setattr, module, "training", training) for module, training in flags)
        for module, held, transient in buffers:
            yield partial(refill, module._buffers, held)
            yield partial(refill, module._non_persistent_buffers_set, transient)
        yield from (kept.put_back for kept in values)
        for module in lazy:  # as if just made
            if isinstance(module, nn.modules.batchnorm._NormBase) and not any(map(is_lazy, module.buffers())):
                yield module.reset_running_stats
        for parameter, grad, kept_grad in grads:
            if kept_grad is not None:
                yield kept_grad.put_back
            yield partial(setattr, parameter, "grad", grad)
        yield from (partial(_put_flag, parameter, flag) for parameter, flag in trainable)
        if attributes or not succeeded:
            yield from (module.put_back for module in without_form)

    try:
        yield
        succeeded = True
    finally:
        _all_done(list(undoing()), quiet=not succeeded)


class _Kept:
    """A tensor's memory and values of now."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._memory, self._copy = tensor, tensor.detach(), tensor.detach().clone()

    def put_back(self) -> None:
        """Let the tensor have them again."""
        tensor = self._tensor
        _put_into(tensor, self._memory)
        # By value: batch_norm updates its statistics without counting up their version.
        # Sparse ones cannot be compared.
        # Of one that was on the meta device there is nothing to put back.
        if sharded.is_sharded(tensor):  # to compare them would ask all processes
            sharded.local(tensor).copy_(sharded.local(self._copy))
            return
        if self._copy.is_meta or (tensor.layout is torch.strided and torch.equal(tensor, self._copy)):
            return
        with torch.inference_mode(tensor.is_inference()):  # what was made in it may be changed in it alone
            repeated = [axis for axis, (n, step) in enumerate(_axes(tensor)) if n > 1 and not step]
            written, copy = tensor, self._copy
            for axis in repeated:  # which cannot be written as it is: one element stands for many
                written, copy = written.narrow(axis, 0, 1), copy.narrow(axis, 0, 1)
            written.copy_(copy)


def _axes(tensor: Tensor) -> list[tuple[int, int]]:
    return list(zip(tensor.shape, tensor.stride(), strict=True)) if tensor.layout is torch.strided else []


def _put_into(tensor: Tensor, memory: Tensor) -> None:
    """Let a tensor lie where it lay, with the shape that it had; nothing to do mostly."""
    if tensor.is_meta or memory.is_meta or tensor.layout is not torch.strided or memory.layout is not torch.strided:
        return
    if sharded.is_sharded(tensor):
        return
    try:
        same = tensor.data_ptr() == memory.data_ptr() and _axes(tensor) == _axes(memory) and tensor.dtype == memory.dtype
    except RuntimeError:  # a wrapper around other tensors has no memory of its own
        return
    if not same:
        tensor.data = memory


def _put_flag(parameter: Tensor, flag: bool) -> None:
    if parameter.requires_grad != flag:  # of what was made in inference mode it cannot be set, even to what it is
        parameter.requires_grad = flag


def _all_done(steps: Sequence[Callable[[], object]], *, quiet: bool) -> None:
    """All of the steps, even if one of them raises; then the first exception, unless another one is on its way.

    One that Ctrl-C ends is begun again.
    """
    first: BaseException | None = None
    with torch.no_grad():
        left = list(reversed(steps))
        while left:
            try:
                left[-1]()
                left.pop()
            except KeyboardInterrupt as error:  # noqa: PERF203 - as below
                first = first or error
            except BaseException as error:  # noqa: BLE001 - what is left must be put back, too
                first = first or error
                left.pop()
    if first is not None and not quiet:
        raise first


def _put_back_tensors(module: nn.Module, before: dict[str, Any]) -> None:
    """Attributes that are tensors now or were: what a hook computes (torch.nn.utils.weight_norm), what a forward keeps."""
    now = vars(module)
    for name, value in list(now.items()):
        if isinstance(value, Tensor) and before.get(name) is not value:
            if name in before:
                now[name] = before[name]
            else:
                del now[name]
    now.update((name, value) for name, value in before.items() if isinstance(value, Tensor))


# Of every module: what it is made of and what it calls, but for parameters and buffers; and the names of all that it has.
_PARTS = [name for name, held in vars(nn.Module()).items() if isinstance(held, dict) and name not in ("_parameters", "_buffers")]
OF_MODULES = frozenset(vars(nn.Module()))
# What torch.nn.utils' weight_norm, spectral_norm and prune call the parameters that they compute another one from.
_COMPUTED_FROM = ("_v", "_orig")
_VALUES = (bool, int, float, complex, str, bytes, type(None))


def _own_values(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if isinstance(value, _VALUES) and name not in OF_MODULES}


def _put_back_values(module: nn.Module, before: dict[str, Any]) -> None:
    """Attributes that are numbers, texts, flags or None now or were."""
    now = vars(module)
    for name in _own_values(now).keys() - before.keys():
        del now[name]
    for name, value in _own_values(before).items():
        now[name] = value


def _forget_state(module: nn.Module, before: dict[str, Any], stays: Callable[[Tensor], bool]) -> None:
    """What a forward keeps of data for the next one, a state of another batch's size. Not if a flag says that it is there."""
    now = vars(module)
    state = {
        name
        for name, value in before.items()
        if isinstance(value, (Tensor, type(None)))
        and isinstance(now.get(name), Tensor)
        and now[name] is not value
        and not (stays(now[name]) or any(f"{name}{ending}" in module._parameters for ending in _COMPUTED_FROM))
    }
    values, values_before = (
        {name: value for name, value in _own_values(each).items() if name not in state} for each in (now, before)
    )
    if values != values_before:
        return
    for name in state:
        now[name] = before[name]


@contextmanager
def forward_mode(model: nn.Module, mode: Literal["train", "eval"]) -> Iterator[None]:
    """Modules as in training, but for what is random there; or all in eval mode. Flags are not put back: see `restored`.

    In train mode a module that the caller set to eval inside a model in train mode (a frozen BatchNorm) stays in eval. A module
    without parameters, buffers and children (dropout, stochastic depth, added noise) is switched to eval: all that
    its flag can mean is noise. Functional dropout is switched off by `goodinit.interception.intercept`.
    """
    if mode == "eval" or not model.training:
        model.train(mode == "train")
    for module in model.modules():
        if not (module._parameters or module._buffers or module._modules):
            module.training = False
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # fused attention skips the operators that we look for
        with _eager():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled modules as the Python they were made from, from when on torch's compiler is loaded: it takes seconds."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
            return
        first = _AtImport("torch._dynamo", lambda: stack.enter_context(torch.compiler.set_stance("force_eager")))
        sys.meta_path.insert(0, first)  # flex_attention, torch.cond: what they do is compile and call at once
        try:
            yield
        finally:
            first.leave()


class _AtImport(MetaPathFinder):
    """Does something as soon as a module has been imported; it is found by those that would have found it anyway."""

    def __init__(self, module: str, do: Callable[[], object]) -> None:
        self._module, self._do = module, do

    def leave(self) -> None:
        """It is not to be done any more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - importlib's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Of the module, with a loader that does it."""
        if fullname != self._module:
            return None
        self.leave()
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load, do = spec.loader.exec_module, self._do

            def load_and_do(module: ModuleType) -> None:
                load(module)
                do()

            spec.loader.exec_module = load_and_do  # type: ignore[method-assign]  # this loader's alone
        return spec
