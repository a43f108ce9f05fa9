"""Standing in for the operators on a model's weights, in the order in which they run.

`intercept` sees every call of torch's API while it is active. A call that is linear in one of the model's
weights is handed over as an `Operation`; the handler's result is what the model gets to see.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from goodinit.interception import transforms
from goodinit.interception.computed import Sources
from goodinit.interception.operation import Layout, Operation, written
from goodinit.interception.operators import (
    CHAINS,
    OPERATORS,
    Function,
    chain_of_products,
    factors_of,
    find_operation,
    is_dense_float,
    name_of,
    unfollowed_factors,
)
from goodinit.interception.recurrent import RECURRENT, GatedWeight, gates_of_call, gates_of_module, without_dropout
from goodinit.interception.weights import Weight
from goodinit.interception.writes import written_by
from goodinit.processes import sharded

Handler = Callable[[Operation], Tensor]
Prepare = Callable[[Operation, str], None]
Arrive = Callable[[Function, Iterable[object]], None]
Watch = Callable[[Function, tuple[Any, ...], dict[str, Any], Callable[[], Any]], Any]
"""Makes a call of anything else, and returns its result."""


# Noise that training adds and a measurement should not see: function -> (argument, its position, value that turns it off).
_NOISE: dict[Function, tuple[str, int, Any]] = {
    F.dropout: ("training", 2, False),
    F.dropout1d: ("training", 2, False),
    F.dropout2d: ("training", 2, False),
    F.dropout3d: ("training", 2, False),
    F.alpha_dropout: ("training", 2, False),
    F.feature_alpha_dropout: ("training", 2, False),
    F.rrelu: ("training", 3, False),
    F.scaled_dot_product_attention: ("dropout_p", 4, 0.0),
    F.multi_head_attention_forward: ("dropout_p", 10, 0.0),
    torch.dropout: ("train", 2, False),
    torch.ops.aten.dropout.default: ("train", 2, False),  # of what torch.export made
}


_EMBEDDINGS = frozenset({F.embedding, F.embedding_bag})
_MULTI_HEAD = F.multi_head_attention_forward.__code__.co_varnames


def _without_noise(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    name, position, value = _NOISE[function]
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}


def _apart(out: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Any:
    """What a function of `_NOISE` returned; a copy where that is what it was given, for with noise it would be another tensor.

    A weight above all: a module's attribute that is set to a parameter becomes one of its parameters (AWD-LSTM's dropout on
    weights). Outside of training it is the model that wants its input itself.
    """
    given = args[0] if args else kwargs.get("input")
    if out is not given or not (training or isinstance(out, nn.Parameter)):
        return out
    in_place = kwargs.get("inplace", len(args) > 3 and args[3])
    return out if in_place or not isinstance(out, Tensor) else out.clone()


def _data_of(operation: Operation, args: Iterable[object], kwargs: dict[str, Any]) -> weakref.ref[Tensor] | None:
    """The first tensor of a call's arguments that is neither the weight nor the bias."""
    others = operation.weight.tensor, operation.bias
    given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and not any(x is other for other in others))
    return next(map(weakref.ref, given), None)


def unchecked(function: Any) -> FunctionType:
    """A copy of a Python function of torch's that does not ask whether it is overridden.

    While a mode is active that question is answered by calling the mode again, so that the original
    can never be entered with the mode on, which it must be for the operators inside to be seen.
    """
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class intercept(TorchFunctionMode):  # noqa: N801 - used as `with intercept(…):`, like torch.no_grad
    """While active, hands every operation on the model's weights to ``handle`` and returns what that returns.

    Functional dropout is off. Inside ``handle`` nothing is intercepted. Weights whose operator's output says nothing of
    their scale are handed to ``prepare`` before it runs, with the status that they have for that: ``"recurrent"``,
    ``"unsupported"``. All other calls are made by ``watch``.
    """

    def __init__(
        self,
        model: nn.Module,
        handle: Handler,
        prepare: Prepare | None = None,
        arrive: Arrive | None = None,
        *,
        watch: Watch | None = None,
        remember: Callable[[Tensor], object] | None = None,
        about_to_write: Callable[[Tensor], object] | None = None,
    ) -> None:
        """``arrive``: sees the arguments of every call before it: tensors on the meta device may get memory now. ``remember``:
        is given a parameter that the model is about to change itself, ``about_to_write`` any other tensor.
        """
        super().__init__()
        self.weights = Sources(model)
        self._model = model
        self._handle = handle
        self._prepare = prepare or _ignore
        self._arrive = arrive
        self._watch = watch
        self._remember = remember
        self._about_to_write = about_to_write

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._arrive is not None:
            self._arrive(func, (*args, *kwargs.values()))
        if self._remember is not None:
            self._remember_changed(func, args, kwargs)
        if func in _NOISE:
            args, kwargs = _without_noise(func, args, kwargs)
        if func is F.multi_head_attention_forward:
            bound = dict(zip(_MULTI_HEAD, args, strict=False)) | kwargs
            self.weights.stack(bound["in_proj_weight"], rows=bound["embed_dim_to_check"])
            with self:
                return unchecked(F.multi_head_attention_forward)(*args, **kwargs)
        if func in _EMBEDDINGS:
            self.weights.read_by_embedding(kwargs["weight"] if "weight" in kwargs else args[1])
        if func in RECURRENT:
            args = without_dropout(func, args)
            self._prepare_recurrent(func, args, kwargs)
        if func in CHAINS and (chain := chain_of_products(args, self.weights)) is not None:
            with self:
                product = chain()
            return product if kwargs.get("out") is None else written(kwargs["out"], product)
        if func in OPERATORS:
            self.weights.look_again((*args, *kwargs.values()))
        if self.weights.outdated:
            self.weights.bring_up_to_date((*args, *kwargs.values()))
        operation = find_operation(func, args, kwargs, self.weights)
        if operation is not None:
            if self._watch is not None:  # who sees all other calls follows tensors
                operation.data = _data_of(operation, args, kwargs)
            return self._handle_outside(operation) if transforms.active() else self._handle(operation)
        if func in OPERATORS and transforms.active():
            self._note_unsupported(func, args, kwargs)
        else:
            factors, meets_data = unfollowed_factors(func, args, kwargs, self.weights)
            for weight in factors:
                if meets_data:
                    self._prepare(without_output(name_of(func), weight), "unsupported")
                else:
                    self.weights.set_aside.setdefault(weight.key, (name_of(func), weight))
            for operand in factors_of(func, args, kwargs) if self.weights.mixed and func in OPERATORS else ():
                if (masked := self.weights.mixture(operand)) is not None:
                    self.weights.set_aside.setdefault(masked.key, (name_of(func), masked))

        def call() -> Any:
            out = func(*args, **kwargs)
            return _apart(out, args, kwargs, training=self._model.training) if func in _NOISE else out

        out = call() if self._watch is None else self._watch(func, args, kwargs, call)
        self.weights.note(func, args, kwargs, out)
        return out

    def _remember_changed(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Parameters that a call writes into; an embedding with max_norm writes into its table."""
        assert self._remember is not None
        written = written_by(function, args, kwargs)
        if function in _EMBEDDINGS:
            limited = kwargs.get("max_norm") if "max_norm" in kwargs else args[3] if len(args) > 3 else None
            written += [] if limited is None else [kwargs["weight"] if "weight" in kwargs else args[1]]
        for tensor in written:
            if (weight := self.weights.parameter(tensor)) is not None:
                self._remember(weight.held)
            elif self._about_to_write is not None and isinstance(tensor, Tensor):
                self._about_to_write(tensor)

    def _handle_outside(self, operation: Operation) -> Tensor:
        """In a transform of torch.func the handler gets the output of all samples, and the model what the final weight gives."""
        with transforms.left() as inside, torch.no_grad():

            def linear_part() -> Tensor:
                with inside():
                    return transforms.unwrapped(operation.linear_part())

            bias = (
                None if operation.bias_weight is None or operation.bias is None else transforms.without_derivative(operation.bias)
            )
            self._handle(replace(operation, linear_part=linear_part, bias=bias, rest=None, out=None, call=None))
        return operation.output()  # by the arguments that were given, of which the model may want derivatives

    def _prepare_recurrent(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        with transforms.left():
            for given in gates_of_call(function, args, kwargs):
                if (operation := _recurrent(name_of(function), given, self.weights)) is not None:
                    self._prepare(operation, "recurrent")

    def _note_unsupported(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Weights over which vmap runs (an ensemble's, stacked)."""
        found = [
            self.weights.find(transforms.unwrapped(operand))
            for operand in factors_of(function, args, kwargs)
            if transforms.is_wrapped(operand)
        ]
        with transforms.left():  # whether a factor would multiply it is found by computing it again
            for weight in found:
                if weight is not None:
                    self._prepare(without_output(name_of(function), weight), "unsupported")


class noted_sources(TorchFunctionMode):  # noqa: N801 - as `intercept`
    """While active, what is computed from parameters alone is noted."""

    def __init__(self, weights: Sources) -> None:
        super().__init__()
        self._weights = weights

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **kwargs or {})
        self._weights.note(func, args, kwargs or {}, out)
        return out


class _Noting:
    """A hook of a layer that notes its calls. Copies of the layer, in memory or in a file, have one that does nothing."""

    def __init__(self, called: set[int], layer: nn.Module) -> None:
        self._called, self._id = called, id(layer)

    def __call__(self, _layer: nn.Module, _args: object) -> None:
        """Of the layer, or of a replica of it."""
        self._called.add(self._id)

    def __deepcopy__(self, _memo: object) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _no_hook, ()


def _nothing(*_args: object) -> None:
    """What is left of a hook in a copy."""


def _no_hook() -> Callable[..., None]:
    return _nothing


@contextmanager
def noted_calls(model: nn.Module, called: set[int]) -> Iterator[None]:
    """Collect the ids of torch's own layers that are called, in threads and around TorchScript's functions too.

    No mode sees what happens there. Layers have hooks of their own for it: torch.compile warns of global ones.
    """
    try:
        for _, layer in layers(model):
            layer.register_forward_pre_hook(_Noting(called, layer))
        yield
    finally:
        for module in model.modules():  # and copies that the forward made of them
            hooks = module._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Noting) or hook is _nothing]:
                del hooks[key]


def _recurrent(kind: str, given: GatedWeight, weights: Sources) -> Operation | None:
    """A recurrent operator and one of its weights. It is not linear in it, so there is no output to scale."""
    weight = weights.find(given.weight)
    if weight is None:
        return None
    layout = Layout((0,), (1,), groups=given.gates)
    return Operation(kind, weight, layout, _never, bias_weight=weights.find(given.bias), kept_gate=given.kept)


_LAYERS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """torch's own modules that hold weights of linear operators, with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, _LAYERS))


def without_output(kind: str, weight: Weight) -> Operation:
    """A use of a weight of which nothing is known but the operator."""
    return Operation(kind, weight, Layout((), ()), _never)


def module_operations(model: nn.Module, weights: Sources) -> Iterator[Operation]:
    """The operations that torch's own modules would do if they ran; for weights that the forward did not use."""
    for module in model.modules():
        for operation in _module_operations(module, weights):
            weight = operation.weight.parameter
            if not isinstance(weight, UninitializedParameter) and weight.numel() and is_dense_float(weight):
                yield operation


def _module_operations(module: nn.Module, weights: Sources) -> Iterator[Operation]:
    kind = type(module).__name__
    for given in gates_of_module(module):
        if (recurrent := _recurrent(kind, given, weights)) is not None:
            yield recurrent
    for name, layout in _module_layouts(module):
        weight = None if _is_computed_in_forward(module, name) else weights.find(getattr(module, name))
        if weight is not None:
            bias = weights.find(getattr(module, name.replace("weight", "bias"), None)) if name != "in_proj_weight" else None
            yield Operation(kind, weight, layout, _never, bias_weight=bias)


def _is_computed_in_forward(module: nn.Module, name: str) -> bool:
    """Whether a weight is computed from parameters of which only the forward has all."""
    return name not in module._parameters and any(sharded.is_sharded(p) for p in module.parameters())


def _module_layouts(module: nn.Module) -> list[tuple[str, Layout]]:
    if isinstance(module, nn.modules.conv._ConvNd):
        return [("weight", Layout((0,), tuple(range(1, len(module.kernel_size) + 2)), groups=module.groups))]
    if isinstance(module, nn.Linear):
        return [("weight", Layout((0,), (1,)))]
    if isinstance(module, nn.Bilinear):
        return [("weight", Layout((0,), (1, 2)))]
    if isinstance(module, nn.MultiheadAttention):
        apart = [(f"{x}_proj_weight", Layout((0,), (1,))) for x in "qkv"]
        return apart if module.in_proj_weight is None else [("in_proj_weight", Layout((0,), (1,), groups=3))]
    return []


def _ignore(_operation: Operation, _status: str) -> None:
    pass


def _never() -> Tensor:
    raise AssertionError("an unused operation has no data to run on")
