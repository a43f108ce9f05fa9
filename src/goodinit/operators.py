"""Which operators are linear in a weight, and how to stand in for them in the order in which they run.

`intercept` sees every call of torch's API while it is active. A call that is linear in one of the model's
weights is handed over as an `Operation`; the handler's result is what the model gets to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from goodinit import transforms
from goodinit.computed import Sources
from goodinit.orthonormal import orthonormal_
from goodinit.recurrent import RECURRENT, GatedWeight, gates_of_call, gates_of_module, without_dropout
from goodinit.weights import Weight

Function = Callable[..., Any]
Handler = Callable[["Operation"], Tensor]
Prepare = Callable[["Operation", str], None]


class Layout(NamedTuple):
    """How the axes of a weight make up matrices: which count them, which are rows (out), which columns (in)."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    batch: tuple[int, ...] = ()
    groups: int = 1

    def draw_(self, weight: Tensor, generator: torch.Generator | None) -> None:
        """Fill the weight with orthonormal matrices of this layout."""
        ordered = weight.permute(*self.batch, *self.rows, *self.columns)
        if len(self.rows) == 1 and self.columns:
            orthonormal_(ordered, groups=self.groups, batch_dims=len(self.batch), generator=generator)
            return
        count, rows, columns = (math.prod(weight.shape[i] for i in axes) for axes in (self.batch, self.rows, self.columns))
        fresh = torch.empty(count, rows, columns, dtype=weight.dtype, device=weight.device)
        ordered.copy_(orthonormal_(fresh, groups=self.groups, batch_dims=1, generator=generator).view(ordered.shape))

    def matrices(self, weight: Tensor) -> Iterator[Tensor]:
        """The weight's matrices as views of shape (out, in…), the convention of torch.nn.init; groups are not told apart."""
        ordered = weight.permute(*self.batch, *self.rows, *self.columns)
        if not self.rows:
            ordered = ordered.unsqueeze(len(self.batch))
        if not self.columns:
            ordered = ordered.unsqueeze(-1)
        stack = [ordered]
        for _ in self.batch:
            stack = [matrix for part in stack for matrix in part.unbind()]
        yield from stack

    def without(self, axis: int) -> Layout:
        """The layout of a weight without one of its axes."""
        rows, columns, batch = (_renumbered(axes, axis) for axes in (self.rows, self.columns, self.batch))
        return Layout(rows, columns, batch, 1 if axis in self.rows else self.groups)


def _renumbered(axes: Iterable[int], removed: int) -> tuple[int, ...]:
    return tuple(i - (i > removed) for i in axes if i != removed)


class Cut(NamedTuple):
    """Matrices side by side in one weight that are scaled apart: the weight's axis, the output's axis, how many."""

    weight_axis: int
    output_axis: int
    parts: int
    sizes: tuple[int, ...] | None = None
    """Of the parts along the output's axis where they differ; what lies behind them belongs to none."""


class Part(NamedTuple):
    """Weight, output without bias, and bias of one of the matrices that are scaled apart."""

    weight: Weight
    z: Tensor
    bias: Tensor | None


@dataclass
class Operation:
    """One call of an operator that is linear in a weight: output = z(weight) + bias + rest."""

    kind: str
    """The operator: ``"linear"``, ``"conv2d"``, ``"matmul"``, …"""
    weight: Weight
    layout: Layout
    linear_part: Callable[[], Tensor]
    """Computes z with the weight as it is when called."""
    data_shapes: tuple[tuple[int, ...], ...] = ()
    """Shapes of the operands that are not weights."""
    bias: Tensor | None = None
    """Added to z; broadcasts against it."""
    bias_weight: Weight | None = None
    """The parameter behind the bias."""
    rest: Tensor | None = None
    """Data that the operator adds (the ``input`` of addmm)."""
    cuts: Sequence[Cut] = ()
    out: Tensor | None = None
    """Where the caller wants the output to be written (``out=``, ``addmm_``)."""
    kept_gate: int | None = None
    """The gate of a recurrent layer whose bias is left as it is."""

    def __str__(self) -> str:
        given = " and ".join(map(str, self.data_shapes))
        weight = f"the weight {self.weight.name!r} of shape {tuple(self.weight.tensor.shape)}"
        return f"{self.kind} with {weight} on input of shape {given}"

    def complete(self, z: Tensor) -> Tensor:
        """The operator's output from its part z, which may be overwritten unless autograd needs it."""
        for term in (self.bias, self.rest):
            if term is not None:
                in_place = not torch.is_grad_enabled() and torch.result_type(z, term) == z.dtype and _fits(term, z)
                z = z.add_(term) if in_place else z + term
        return z if self.out is None else _written(self.out, z)

    def zero_bias_(self, bias: Tensor) -> None:
        """Fill the parameter behind the bias with zeros, but for the gate that is kept."""
        for gate, part in enumerate([bias] if self.kept_gate is None else bias.chunk(self.layout.groups)):
            if gate != self.kept_gate:
                part.zero_()

    def parts(self, z: Tensor) -> list[Part]:
        """The weight, its output z and its bias in the parts that are scaled apart, as views; mostly one."""
        if not self.cuts or not self.weight.divisible:
            return [Part(self.weight, z, self.bias)]
        pieces = [(self.weight.tensor, z, self.bias)]
        for cut in self.cuts:
            pieces = [piece for whole in pieces for piece in _split(*whole, cut)]
        return [Part(self.weight.part(w), y, b) for w, y, b in pieces]


def _written(out: Tensor, result: Tensor) -> Tensor:
    """``out=`` with the result in it."""
    return out.resize_(result.shape).copy_(result)


def _fits(term: Tensor, z: Tensor) -> bool:
    """Whether ``term`` broadcasts to z's shape; torch.broadcast_shapes would load half a second of modules."""
    sizes = zip(reversed(term.shape), reversed(z.shape), strict=False)
    return term.dim() <= z.dim() and all(own in (1, full) for own, full in sizes)


def _split(w: Tensor, z: Tensor, bias: Tensor | None, cut: Cut) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """One cut through a weight, its output and its bias, which lines up with the output from the right."""
    biases: Sequence[Tensor | None] = [bias] * cut.parts
    if bias is not None and -cut.output_axis <= bias.dim() and bias.shape[cut.output_axis] > 1:
        biases = bias.tensor_split(cut.parts, cut.output_axis)
    ws = w.tensor_split(cut.parts, cut.weight_axis)
    if cut.sizes is None:
        zs: Sequence[Tensor] = z.tensor_split(cut.parts, cut.output_axis)
    else:
        zs = z.split([*cut.sizes, z.shape[cut.output_axis] - sum(cut.sizes)], cut.output_axis)[: cut.parts]
    return list(zip(ws, zs, biases, strict=True))


Arguments = dict[str, Any]
Parser = Callable[[Function, Arguments, Sources], "Operation | None"]


def _name(function: Function) -> str:
    return str(getattr(function, "__name__", function)).partition(".")[0].strip("_")


def _shapes(*operands: object) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(x.shape) for x in operands if isinstance(x, Tensor))


def _linear(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """linear(x, W (out, in), b), bilinear(x1, x2, W (out, in1, in2), b)."""
    weight, bias = weights.find(a["weight"]), a.get("bias")
    if weight is None:
        return None
    data = [v for k, v in a.items() if k.startswith("input")]
    columns = tuple(range(1, weight.tensor.dim()))
    stacked = weights.stacked(weight)
    layout = Layout(rows=(0,), columns=columns, groups=stacked) if columns else Layout(rows=(), columns=(0,))
    return Operation(
        _name(function),
        weight,
        layout,
        lambda: function(*data, weight.tensor, None),
        _shapes(*data),
        bias=bias,
        bias_weight=weights.find(bias),
        cuts=(Cut(0, -1, stacked),) if stacked > 1 else (),
    )


def _convolution(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """conv(x, W (out, in / groups, k…), b) and conv_transpose(x, W (in, out / groups, k…), b)."""
    weight, bias = weights.find(a["weight"]), a.get("bias")
    if weight is None:
        return None
    dims = weight.tensor.dim()
    if bias is not None:
        bias = bias.view(-1, *[1] * (dims - 2))
    return Operation(
        _name(function),
        weight,
        Layout(rows=(0,), columns=tuple(range(1, dims)), groups=a.get("groups", 1)),
        lambda: function(**{**a, "bias": None}),
        _shapes(a["input"]),
        bias=bias,
        bias_weight=weights.find(bias),
    )


def _product(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """matmul, mm, bmm, mv, sparse.mm: the weight on either side of the data."""
    left, right = a.pop("input"), a.pop("other")
    if a.get("reduce", "sum") not in ("sum", "mean"):
        return None
    return _one_sided(_name(function), left, right, lambda: function(left, right, **a), weights)


def _grouped_product(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """grouped_mm(x (rows, in), W (experts, in, out), offs): the i-th expert takes the rows from offs[i - 1] to offs[i].

    Likewise W (experts, out, in) on the left of x (in, columns), and plain batches without offs.
    """
    left, right, offs = a.pop("input"), a.pop("other"), a.get("offs")
    if a.get("bias") is not None or left.dim() + right.dim() == 4:  # the latter is what the weight's gradient needs
        return None
    operation = _one_sided(_name(function), left, right, lambda: function(left, right, **a), weights)
    if operation is not None and offs is not None:
        # The host must know which rows are whose, so a GPU is waited for, once an operator. Without: sums by segments of rows.
        ends = offs.tolist()
        sizes = tuple(stop - start for start, stop in zip([0, *ends], ends, strict=False))
        operation.cuts = (Cut(0, -2 if left.dim() == 2 else -1, len(sizes), sizes),)
    return operation


def _contraction(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """tensordot(x, W, dims), and inner(x, W), which sums over the last axis of both."""
    left, right, dims = a["input"], a["other"], a.get("dims", [[-1], [-1]])
    found = weights.find(left), weights.find(right)
    weight = found[0] or found[1]
    if weight is None or None not in found or not left.dim() or not right.dim():
        return None
    if weights.constant(right if found[1] is None else left):
        return None
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        dims = [list(range(-dims, 0)), list(range(dims))]
    n = weight.tensor.dim()
    columns = tuple(i % n for i in dims[0 if found[1] is None else 1])
    layout = Layout(rows=tuple(i for i in range(n) if i not in columns), columns=columns)
    data = right if found[1] is None else left
    given = {"dims": dims} if "dims" in a else {}
    return Operation(_name(function), weight, layout, lambda: function(left, right, **given), _shapes(data))


def _added_product(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """addmm, baddbmm, addmv: beta * input + alpha * left @ right."""
    left, right, alpha, beta = a["left"], a["right"], a.get("alpha", 1), a.get("beta", 1)

    def linear_part() -> Tensor:
        z = torch.matmul(left, right)
        return z if alpha == 1 else z.mul_(alpha)

    operation = _one_sided(_name(function), left, right, linear_part, weights)
    if operation is None:
        return None
    added = a["input"] if beta == 1 else beta * a["input"]
    is_bias = beta == 1 and (a["input"].dim() == 1 or a["input"].shape[-2] == 1)
    operation.bias_weight = weights.find(a["input"]) if is_bias else None
    if operation.bias_weight is not None:
        operation.bias = added
    elif beta != 0:
        operation.rest = added
    return operation


def _one_sided(kind: str, left: Tensor, right: Tensor, linear_part: Callable[[], Tensor], weights: Sources) -> Operation | None:
    """A matrix product of which one operand is a weight and the other has data in it (spectral_norm's W v has none)."""
    found = weights.find(left), weights.find(right)
    weight = found[0] or found[1]
    if weight is None or (found[0] is not None and found[1] is not None):
        return None
    if weights.constant(right if found[1] is None else left):
        return None
    w, on_the_right = weight.tensor, found[1] is not None
    n = w.dim()
    if n == 1:
        layout = Layout(rows=(), columns=(0,))
    else:
        rows, columns = (n - 1, n - 2) if on_the_right else (n - 2, n - 1)
        layout = Layout(rows=(rows,), columns=(columns,), batch=tuple(range(n - 2)))
    # The k-th batch axis from the right is the same in the weight and the output; a vector operand has dropped one axis.
    dropped = 1 if (left if on_the_right else right).dim() == 1 else 0
    cuts = tuple(Cut(i, i - n + dropped, w.shape[i]) for i in layout.batch if w.shape[i] > 1)
    return Operation(kind, weight, layout, linear_part, _shapes(left if on_the_right else right), cuts=cuts)


def _einsum(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """einsum("…,…->…", …) with one weight among its operands, every operand's axes by letters."""
    equation, operands = a["equation"], a["operands"]
    if not isinstance(equation, str):  # the form with lists of axis numbers: torch rewrites it and calls einsum again
        return None
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    found = [weights.find(x) for x in operands]
    if sum(w is not None for w in found) != 1 or len(operands) < 2:
        return None
    index = next(i for i, w in enumerate(found) if w is not None)
    weight = found[index]
    assert weight is not None
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:  # the implicit form: letters that occur once, in alphabetical order
        output = "..." * ("..." in inputs) + "".join(sorted(c for c in set(inputs) - set(".,") if inputs.count(c) == 1))
    letters = terms[index]
    if "..." in letters or len(set(letters)) != len(letters):
        return None
    others = set("".join(t for i, t in enumerate(terms) if i != index))
    batch = tuple(i for i, c in enumerate(letters) if c in others and c in output)
    rows = tuple(i for i, c in enumerate(letters) if c not in others and c in output)
    columns = tuple(i for i, c in enumerate(letters) if c in others and c not in output)
    data = [x for i, x in enumerate(operands) if i != index]
    alone = len(letters) - len(batch) - len(rows) - len(columns)  # axes summed over in the weight alone
    if not columns or alone or all(map(weights.constant, data)):  # a gain, not a matrix; or no data
        return None

    def axis(letter: str) -> int:
        """Place of a letter in the output, from the right unless an ellipsis stands behind it."""
        head, _, tail = output.rpartition("...")
        return tail.index(letter) - len(tail) if letter in tail else head.index(letter)

    cuts = tuple(Cut(i, axis(letters[i]), weight.tensor.shape[i]) for i in batch if weight.tensor.shape[i] > 1)
    return Operation(
        "einsum", weight, Layout(rows, columns, batch), lambda: function(equation, *operands), _shapes(*data), cuts=cuts
    )


# Operator -> the names of its positional arguments, as in torch's documentation, and how to read them.
_OPERATORS: dict[Function, tuple[tuple[str, ...], Parser]] = {}


def _register(functions: Iterable[Function], names: str, parser: Parser) -> None:
    _OPERATORS.update((f, (tuple(names.split()), parser)) for f in functions)


_CONV = "input weight bias stride padding dilation groups"
_CONV_TRANSPOSE = "input weight bias stride padding output_padding groups dilation"
_register([F.linear], "input weight bias", _linear)
_register([F.bilinear], "input1 input2 weight bias", _linear)
_register([F.conv1d, F.conv2d, F.conv3d], _CONV, _convolution)
_register([F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d], _CONV_TRANSPOSE, _convolution)
_register([torch.matmul, torch.linalg.matmul, Tensor.matmul, Tensor.__matmul__], "input other", _product)
_register([torch.mm, Tensor.mm, torch.bmm, Tensor.bmm], "input other out_dtype", _product)
_register([torch.sparse.mm], "input other reduce", _product)
_register([torch._grouped_mm] if hasattr(torch, "_grouped_mm") else [], "input other offs bias out_dtype", _grouped_product)
_register([torch.inner, Tensor.inner], "input other", _contraction)
_register([torch.tensordot], "input other dims", _contraction)
_register([torch.mv, Tensor.mv], "input other", _product)
_register([torch.addmm, Tensor.addmm], "input left right", _added_product)
_register([torch.baddbmm, Tensor.baddbmm], "input left right", _added_product)
_register([torch.addmv, Tensor.addmv], "input left right", _added_product)

# torch.ops.aten.linear is F.linear by another name. Custom operators exist only once their library is loaded.
_BY_NAME = {f"aten.{f.__name__}": known for f, known in _OPERATORS.items() if f is not torch.tensordot}
_BY_NAME["transformers.grouped_mm_fallback"] = (("input", "other", "offs"), _grouped_product)


def _full_name(function: Function) -> str:
    """``"aten.linear"`` of ``torch.ops.aten.linear`` and of ``torch.ops.aten.linear.default``; empty for all other functions."""
    if not isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return ""
    return ".".join(str(function).split(".")[:2])


# The names that torch gives the operands of its products, to ours.
_OPERANDS = {
    **dict.fromkeys(("tensor1", "self", "a"), "input"),
    **dict.fromkeys(("mat2", "tensor2", "vec2", "b"), "other"),
    **dict.fromkeys(("mat1", "batch1", "mat"), "left"),
    **dict.fromkeys(("batch2", "vec"), "right"),
}
# mm's mat2 and mv's vec are their second operand, addmm's and addmv's the third;
# sparse.mm's mat1 is the first, addmm's the second.
_ELSEWHERE = {"other": "right", "right": "other", "left": "input"}


def _bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    """Arguments by name, those not given left out."""
    bound = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        ours = key if key in names else _OPERANDS.get(key, key)
        bound[ours if ours in names else _ELSEWHERE.get(ours, ours)] = value
    return bound


def find_operation(function: Function, args: Sequence[Any], kwargs: Mapping[str, Any], weights: Sources) -> Operation | None:
    """The call as an operation on one of the weights, or None if it is not linear in exactly one of them."""
    if function is torch.einsum:
        return _einsum(function, {"equation": args[0], "operands": args[1:]}, weights)
    known = _OPERATORS.get(function) or _BY_NAME.get(_full_name(function))
    if known is None:
        return None
    names, parser = known
    given = _bind(names, args, kwargs)
    out = given.pop("out", None)
    operation = parser(function, given, weights)
    if operation is None or not _is_dense_float(operation.weight.tensor):
        return None
    operation.out = out
    return _without_repeats(operation)


def _is_dense_float(weight: Tensor) -> bool:
    return weight.layout is torch.strided and (weight.is_floating_point() or weight.is_complex())


def _without_repeats(operation: Operation) -> Operation | None:
    """The operation as one on a weight without the axes along which it is expanded: they repeat it, in place of a loop."""
    w = operation.weight.tensor
    for axis in reversed(range(w.dim())):
        if w.stride(axis) == 0 and w.shape[axis] > 1:
            operation.weight = operation.weight.at_first(axis)
            operation.layout = operation.layout.without(axis)
            kept = [cut for cut in operation.cuts if cut.weight_axis != axis]
            operation.cuts = [cut._replace(weight_axis=cut.weight_axis - (cut.weight_axis > axis)) for cut in kept]
    return operation if operation.layout.rows or operation.layout.columns else None


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
}


_EMBEDDINGS = frozenset({F.embedding, F.embedding_bag})
_MULTI_HEAD = F.multi_head_attention_forward.__code__.co_varnames


def _without_noise(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    name, position, value = _NOISE[function]
    if len(args) > position:
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}


def _unchecked(function: Any) -> FunctionType:
    """A copy of a Python function of torch's that does not ask whether it is overridden.

    While a mode is active that question is answered by calling the mode again, so that the original
    can never be entered with the mode on, which it must be for the operators inside to be seen.
    """
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_CHAINS = frozenset({torch.linalg.multi_dot, torch.chain_matmul})


def _chain(args: Sequence[Any], weights: Sources) -> Callable[[], Tensor] | None:
    """multi_dot([A, x, B, …]) or chain_matmul(A, x, B, …) as one product after the other, from the data outward.

    So every weight meets data. None if there is no data among the factors, or no weight.
    """
    factors = args[0] if isinstance(args[0], (list, tuple)) else args
    is_weight = [weights.find(factor) is not None for factor in factors]
    if all(is_weight) or not any(is_weight):
        return None
    start = is_weight.index(False)

    def product() -> Tensor:
        behind: Tensor = reduce(torch.matmul, factors[start:])
        return reduce(lambda right, left: torch.matmul(left, right), reversed(factors[:start]), behind)

    return product


class intercept(TorchFunctionMode):  # noqa: N801 - used as `with intercept(…):`, like torch.no_grad
    """While active, hands every operation on the model's weights to ``handle`` and returns what that returns.

    Functional dropout is off. Inside ``handle`` nothing is intercepted. Weights whose operator's output says nothing of
    their scale are handed to ``prepare`` before it runs, with the status that they have for that: ``"recurrent"``,
    ``"unsupported"``.
    """

    def __init__(self, model: nn.Module, handle: Handler, prepare: Prepare | None = None) -> None:
        super().__init__()
        self.weights = Sources(model)
        self._handle = handle
        self._prepare = prepare or _ignore

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NOISE:
            args, kwargs = _without_noise(func, args, kwargs)
        if func is F.multi_head_attention_forward:
            bound = dict(zip(_MULTI_HEAD, args, strict=False)) | kwargs
            self.weights.stack(bound["in_proj_weight"], rows=bound["embed_dim_to_check"])
            with self:
                return _unchecked(F.multi_head_attention_forward)(*args, **kwargs)
        if func in _EMBEDDINGS:
            self.weights.read_by_embedding(kwargs["weight"] if "weight" in kwargs else args[1])
        if func in RECURRENT:
            args = without_dropout(func, args)
            self._prepare_recurrent(func, args, kwargs)
        if func in _CHAINS and (chain := _chain(args, self.weights)) is not None:
            with self:
                product = chain()
            return product if kwargs.get("out") is None else _written(kwargs["out"], product)
        operation = find_operation(func, args, kwargs, self.weights)
        if operation is not None:
            return self._handle_outside(operation) if transforms.active() else self._handle(operation)
        if func in _OPERATORS and transforms.active():
            self._note_unsupported(func, args)
        out = func(*args, **kwargs)
        self.weights.note(func, args, kwargs, out)
        return out

    def _handle_outside(self, operation: Operation) -> Tensor:
        """In a transform of torch.func the handler gets the output of all samples, and the model what the final weight gives."""
        with transforms.left() as inside, torch.no_grad():

            def linear_part() -> Tensor:
                with inside():
                    return transforms.unwrapped(operation.linear_part())

            bias = operation.bias if operation.bias_weight is not None else None
            self._handle(replace(operation, linear_part=linear_part, bias=bias, rest=None, out=None))
        return operation.complete(operation.linear_part())

    def _prepare_recurrent(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        with transforms.left():
            for given in gates_of_call(function, args, kwargs):
                if (operation := _recurrent(_name(function), given, self.weights)) is not None:
                    self._prepare(operation, "recurrent")

    def _note_unsupported(self, function: Function, args: Sequence[Any]) -> None:
        """Weights over which vmap runs (an ensemble's, stacked)."""
        for operand in args:
            if isinstance(operand, Tensor) and transforms.is_wrapped(operand):
                weight = self.weights.find(transforms.unwrapped(operand))
                if weight is not None:
                    self._prepare(Operation(_name(function), weight, Layout((), ()), _never), "unsupported")


def _recurrent(kind: str, given: GatedWeight, weights: Sources) -> Operation | None:
    """A recurrent operator and one of its weights. It is not linear in it, so there is no output to scale."""
    weight = weights.find(given.weight)
    if weight is None:
        return None
    layout = Layout((0,), (1,), groups=given.gates)
    return Operation(kind, weight, layout, _never, bias_weight=weights.find(given.bias), kept_gate=given.kept)


def module_operations(model: nn.Module, weights: Sources) -> Iterator[Operation]:
    """The operations that torch's own modules would do if they ran; for weights that the forward did not use."""
    for module in model.modules():
        for operation in _module_operations(module, weights):
            weight = operation.weight.parameter
            if not isinstance(weight, UninitializedParameter) and weight.numel() and _is_dense_float(weight):
                yield operation


def _module_operations(module: nn.Module, weights: Sources) -> Iterator[Operation]:
    kind = type(module).__name__
    for given in gates_of_module(module):
        if (recurrent := _recurrent(kind, given, weights)) is not None:
            yield recurrent
    for name, layout in _module_layouts(module):
        weight = weights.find(getattr(module, name))
        if weight is not None:
            bias = weights.find(getattr(module, name.replace("weight", "bias"), None)) if name != "in_proj_weight" else None
            yield Operation(kind, weight, layout, _never, bias_weight=bias)


def _module_layouts(module: nn.Module) -> list[tuple[str, Layout]]:
    if isinstance(module, nn.modules.conv._ConvNd):
        return [("weight", Layout((0,), tuple(range(1, module.weight.dim())), groups=module.groups))]
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
