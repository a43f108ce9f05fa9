"""Which operators are linear in a weight: from a call's arguments to an `Operation`.

A new operator is one `_register` line and, where its weight has a layout of its own, one parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from goodinit.interception.computed import Sources
from goodinit.interception.operation import Channels, Cut, Layout, Operation
from goodinit.interception.weights import Weight

Function = Callable[..., Any]
Arguments = dict[str, Any]
Parser = Callable[[Function, Arguments, Sources], Operation | None]


def name_of(function: Function) -> str:
    """The short name of an operator: ``"linear"``, ``"conv2d"``."""
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
        name_of(function),
        weight,
        layout,
        lambda: function(*data, weight.tensor, None),
        _shapes(*data),
        bias=bias,
        bias_weight=weights.find(bias),
        cuts=(Cut(0, -1, stacked),) if stacked > 1 else (),
        channels=Channels(-1, 0) if columns else None,
    )


def _convolution(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """conv(x, W (out, in / groups, k…), b) and conv_transpose(x, W (in, out / groups, k…), b)."""
    weight, bias = weights.find(a["weight"]), a.get("bias")
    if weight is None:
        return None
    dims = weight.tensor.dim()
    if bias is not None:
        bias = bias.view(-1, *[1] * (dims - 2))
    transposed, groups = "transpose" in name_of(function), a.get("groups", 1)
    return Operation(
        name_of(function),
        weight,
        Layout(rows=(0,), columns=tuple(range(1, dims)), groups=groups),
        lambda: function(**{**a, "bias": None}),
        _shapes(a["input"]),
        bias=bias,
        bias_weight=weights.find(bias) or weights.find(a.get("bias")),  # a computed one is known by itself, not by a view
        channels=Channels(1 - dims, 1, groups) if transposed else Channels(1 - dims, 0),
    )


def _product(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """matmul, mm, bmm, mv, sparse.mm: the weight on either side of the data."""
    left, right = a.pop("input"), a.pop("other")
    if a.get("reduce", "sum") not in ("sum", "mean"):
        return None
    return _one_sided(name_of(function), left, right, lambda: function(left, right, **a), weights)


def _grouped_product(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """grouped_mm(x (rows, in), W (experts, in, out), offs): the i-th expert takes the rows from offs[i - 1] to offs[i].

    Likewise W (experts, out, in) on the left of x (in, columns), and plain batches without offs.
    """
    left, right, offs = a.pop("input"), a.pop("other"), a.get("offs")
    if a.get("bias") is not None or left.dim() + right.dim() == 4:  # the latter is what the weight's gradient needs
        return None
    operation = _one_sided(name_of(function), left, right, lambda: function(left, right, **a), weights)
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
    output_axis = -1 if found[1] is not None else len(columns) - data.dim() - 1
    channels = Channels(output_axis, layout.rows[0]) if len(layout.rows) == 1 else None
    return Operation(name_of(function), weight, layout, lambda: function(left, right, **given), _shapes(data), channels=channels)


def _added_product(function: Function, a: Arguments, weights: Sources) -> Operation | None:
    """addmm, baddbmm, addmv: beta * input + alpha * left @ right."""
    left, right, alpha, beta = a["left"], a["right"], a.get("alpha", 1), a.get("beta", 1)

    def linear_part() -> Tensor:
        z = torch.matmul(left, right)
        return z if alpha == 1 else z.mul_(alpha)

    operation = _one_sided(name_of(function), left, right, linear_part, weights)
    if operation is None:
        return None
    added = a["input"] if beta == 1 else beta * a["input"]
    operation.bias_weight = weights.find(a["input"])
    if operation.bias_weight is not None and _is_table(a["input"]):
        operation.bias_weight = None
    if operation.bias_weight is not None:
        operation.bias = added
    elif beta != 0:
        operation.rest = added
    return operation


def _is_table(added: Tensor) -> bool:
    """Whether what is added to a product is no bias, as it is or expanded."""
    sizes = [size if stride else 1 for size, stride in zip(added.shape, added.stride(), strict=True)]
    return len(sizes) > 1 and 1 not in sizes[-2:]


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
    channels = Channels(-1 if on_the_right or dropped else -2, layout.rows[0]) if n > 1 else None
    data = _shapes(left if on_the_right else right)
    return Operation(kind, weight, layout, linear_part, data, cuts=cuts, channels=channels)


def _equation_and_operands(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[object, Sequence[Any]]:
    """Of a call of einsum; the operands may be one list. aten.einsum's may have names."""
    return kwargs.get("equation", args[0] if args else None), args[1:] or (kwargs.get("tensors", ()),)


def _is_einsum(function: Function) -> bool:
    return function is torch.einsum or _full_name(function) == "aten.einsum"


def _einsum(equation: object, operands: Sequence[Any], weights: Sources) -> Operation | None:
    """einsum("…,…->…", …) with one weight among its operands, every operand's axes by letters."""
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
    letters = terms[index].replace("...", "")
    if len(letters) != weight.tensor.dim() or len(set(letters)) != len(letters):  # an ellipsis that stands for axes of the weight
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
    layout, one_row = Layout(rows, columns, batch), len(rows) == 1 and axis(letters[rows[0]]) < 0
    return Operation(
        "einsum",
        weight,
        layout,
        lambda: torch.einsum(equation, *operands),
        _shapes(*data),
        cuts=cuts,
        channels=Channels(axis(letters[rows[0]]), rows[0]) if one_row else None,
    )


# Operator -> the names of its positional arguments, as in torch's documentation, and how to read them.
OPERATORS: dict[Function, tuple[tuple[str, ...], Parser]] = {}


def _register(functions: Iterable[Function], names: str, parser: Parser) -> None:
    OPERATORS.update((f, (tuple(names.split()), parser)) for f in functions)


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
_BY_NAME = {f"aten.{f.__name__}": known for f, known in OPERATORS.items() if f is not torch.tensordot}
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
    operation = _operation(function, args, kwargs, weights)
    if operation is not None:
        operation.call = lambda: function(*args, **kwargs)
    return operation


def _operation(function: Function, args: Sequence[Any], kwargs: Mapping[str, Any], weights: Sources) -> Operation | None:
    if _is_einsum(function):
        return _einsum(*_equation_and_operands(args, kwargs), weights)
    known = OPERATORS.get(function) or _BY_NAME.get(_full_name(function))
    if known is None:
        return None
    names, parser = known
    given = _bind(names, args, kwargs)
    out = given.pop("out", None)
    operation = parser(function, given, weights)
    if operation is None or not is_dense_float(operation.weight.tensor):
        return None
    operation.out = out
    return _without_repeats(operation)


def is_dense_float(weight: Tensor) -> bool:
    """Whether it can be drawn and scaled: neither sparse nor quantized."""
    return weight.layout is torch.strided and (weight.is_floating_point() or weight.is_complex())


def _without_repeats(operation: Operation) -> Operation | None:
    """The operation as one on a weight without the axes along which it is expanded: they repeat it, in place of a loop."""
    w = operation.weight.tensor
    for axis in reversed(range(w.dim())):
        if w.stride(axis) == 0 and w.shape[axis] > 1:
            operation.weight = operation.weight.at_first(axis)
            operation.layout = operation.layout.without(axis)
            operation.channels = None if operation.channels is None else operation.channels.without(axis)
            kept = [cut for cut in operation.cuts if cut.weight_axis != axis]
            operation.cuts = [cut._replace(weight_axis=cut.weight_axis - (cut.weight_axis > axis)) for cut in kept]
    return operation if operation.layout.rows or operation.layout.columns else None


CHAINS = frozenset({torch.linalg.multi_dot, torch.chain_matmul})


def chain_of_products(args: Sequence[Any], weights: Sources) -> Callable[[], Tensor] | None:
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


# Products that are not followed. The first operand of those that add is not a factor.
_UNFOLLOWED: dict[Function, int] = {
    **dict.fromkeys((torch.addbmm, Tensor.addbmm, Tensor.addbmm_, Tensor.addmm_, Tensor.addmv_, Tensor.baddbmm_), 1),
    **dict.fromkeys((torch.dot, Tensor.dot, torch.linalg.vecdot, torch.convolution, torch.conv_tbc), 0),
}


def factors_of(function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What one of the `OPERATORS` multiplies: neither its bias nor what it adds."""
    names, parser = OPERATORS[function]
    no_factors = {"bias", "out"} | ({"input"} if parser is _added_product else set())
    return [x for name, x in _bind(names, args, kwargs).items() if name not in no_factors and isinstance(x, Tensor)]


def unfollowed_factors(
    function: Function, args: Sequence[Any], kwargs: Mapping[str, Any], weights: Sources
) -> tuple[list[Weight], bool]:
    """The weights that a product has as factors where it is none of those that `find_operation` knows; and whether of data."""
    if _is_einsum(function):
        operands, is_factor = _einsum_operands(*_equation_and_operands(args, kwargs))
    elif function in OPERATORS:
        operands = factors_of(function, args, kwargs)
        is_factor = [x.dim() > 1 for x in operands]  # what is left of vectors are no weights of layers
    elif function in _UNFOLLOWED:
        operands = [x for x in args[_UNFOLLOWED[function] :] if isinstance(x, Tensor)]
        is_factor = [True] * len(operands)
    else:
        return [], False
    found = [weights.find(x) for x in operands]
    meets_data = any(weight is None and not weights.constant(x) for x, weight in zip(operands, found, strict=True))
    return [weight for weight, counts in zip(found, is_factor, strict=True) if weight is not None and counts], meets_data


def _einsum_operands(equation: object, operands: Sequence[Any]) -> tuple[list[Tensor], list[bool]]:
    """The operands, and which of them are no mere gains: what is summed over is an axis of another one, too."""
    if not isinstance(equation, str):
        return [], []
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = [set(term) - {"."} for term in inputs.split(",")]
    others = [set().union(*terms[:i], *terms[i + 1 :]) for i in range(len(terms))]
    return list(operands), [bool(term & other - set(output)) for term, other in zip(terms, others, strict=True)]
