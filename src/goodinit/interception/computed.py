"""Weights that a model computes from its parameters at every use: weight_norm, casts, LoRA, weight standardization.

What a model does with nothing but its own parameters and buffers is noted as it happens, so that it can be done again with other
values. A trial with larger parameters tells which of them to multiply in order to multiply the weight (weight_norm's g;
W and B in W + B A), or that there are none.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from goodinit.interception.weights import Fill, Key, Weight, Weights, is_zero, storage_of, to_be_written, versions_kept
from goodinit.interception.writes import written_by
from goodinit.processes.turns import Position

# What parameters are multiplied by on trial. torch's Householder map of orthogonal weights takes the whole part of what is 1 or
# -1 in its parameter, so a whole number will not do; and such a weight is unmoved by the smaller one.
_TRIAL, _SMALL_TRIAL = 2.5, 1.5
# With more parameters than this in one weight they are tried one by one and all together, not in every combination.
_MOST_COMBINED = 4


@dataclass(frozen=True, eq=False)
class Node:
    """A tensor that a call returned. The arguments hold `Node` and `Weight` in place of what was made from parameters.

    What a loop computes step by step is a chain of thousands of them, and where a step uses the one before several times there
    are exponentially many ways through it. So every node is met once, without recursion.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    place: int | None
    """Index in the returned tuple; None if the call returned the tensor itself."""
    versions: tuple[tuple[Tensor, int], ...] = ()
    """Buffers among the arguments, and the versions that they had."""

    @property
    def repeats(self) -> bool:
        """Whether the call would give the same again: nothing was written into what it was given."""
        return all(tensor._version == version for tensor, version in self.versions)

    def roots(self) -> dict[Key, Weight]:
        """The parameters, or parts of them, that it is made from."""
        return self._origin()[0]

    def is_unknown(self) -> bool:
        """Whether it cannot be computed again: something was written into the tensor through another one."""
        return self._origin()[1]

    def _origin(self) -> tuple[dict[Key, Weight], bool]:
        for node in self._in_order(lambda node: "_own_origin" not in vars(node)):
            _ = node._own_origin
        return self._own_origin

    @cached_property
    def _own_origin(self) -> tuple[dict[Key, Weight], bool]:
        """Roots, and whether it is unknown; from those before it, which have theirs: see `_in_order`."""
        roots: dict[Key, Weight] = {}
        unknown = self.function is _no_longer
        for leaf in self._leaves():
            if isinstance(leaf, Node):
                roots |= leaf._own_origin[0]
                unknown |= leaf._own_origin[1]
            elif isinstance(leaf, Weight):
                roots[leaf.key] = leaf
        return roots, unknown

    def evaluate(self, change: Callable[[Weight], Tensor]) -> Tensor:
        """Compute it again, with ``change(weight)`` in place of every part of a parameter."""
        values: dict[Node, Tensor] = {}
        for node in self._in_order(lambda node: node not in values):
            values[node] = node._made(values, change)
        return values[self]

    def _in_order(self, wanted: Callable[[Node], bool]) -> Iterator[Node]:
        """The wanted ones of it and those that it is made from, which are wanted no more once they have been met; it last."""
        waiting = [self]
        while waiting:
            node = waiting[-1]
            before = [leaf for leaf in node._leaves() if isinstance(leaf, Node) and wanted(leaf)] if wanted(node) else []
            waiting += before
            if not before:
                waiting.pop()
                if wanted(node):
                    yield node

    def _leaves(self) -> Iterator[Any]:
        return _leaves((self.args, tuple(self.kwargs.values())))

    def _made(self, values: Mapping[Node, Tensor], change: Callable[[Weight], Tensor]) -> Tensor:
        """From the values of those before it."""

        def value(x: Any) -> Any:
            if isinstance(x, Node):
                return values[x]
            return change(x) if isinstance(x, Weight) else x

        args, kwargs = _mapped(self.args, value), {k: _mapped(v, value) for k, v in self.kwargs.items()}
        written = {id(x) for x in written_by(self.function, args, kwargs)}
        if written:  # others may need what it was

            def copied(x: Any) -> Any:
                return x.clone() if id(x) in written and isinstance(x, Tensor) else x

            args, kwargs = _mapped(args, copied), {k: _mapped(v, copied) for k, v in kwargs.items()}
        out = self.function(*args, **kwargs)
        made: Tensor = out if self.place is None else out[self.place]
        return made


@dataclass(frozen=True, eq=False)
class Computed(Weight):
    """A weight that is computed from parameters, its roots. It has the name of the largest of them."""

    node: Node = field(kw_only=True)
    sources: tuple[Weight, ...] = field(kw_only=True)
    kept: frozenset[Key] = field(default=frozenset(), kw_only=True)
    """The roots that are to stay as they are."""

    divisible: ClassVar[bool] = False

    def roots(self) -> tuple[Weight, ...]:
        """The parameters that it is computed from."""
        return self.sources

    @property
    def position(self) -> Position:
        """Before all parts of its largest root."""
        return self.number, -1, tuple(root.position for root in self.sources)

    @cached_property
    def key(self) -> Key:
        """The same whenever it is computed from the same parameters."""
        return tuple(root.key for root in self.sources)

    @property
    def is_read(self) -> bool:
        """Whether something else reads a root that would be changed."""
        return any(root.is_read for root in self.sources) and any(root.is_read for root in self.changed)

    @cached_property
    def changed(self) -> tuple[Weight, ...]:
        """The roots that are changed in order to draw it and to scale it."""
        return *self._drawn, *(root for root in self.factors if root not in self._drawn)

    @property
    def _free(self) -> list[Weight]:
        """The roots that may be changed."""
        return [root for root in self.sources if root.key not in self.kept and not self.node.is_unknown()]

    @property
    def _drawn(self) -> tuple[Weight, ...]:
        """The root that looks like the weight itself, or else all that have as many axes, but for gains (``g[:, None] * v``)."""
        free = self._free
        alike = tuple(root for root in free if root.tensor.shape == self.tensor.shape)[:1]
        others = tuple(root for root in free if root.tensor.dim() == self.tensor.dim())
        return alike or tuple(root for root in others if not _is_gain(root)) or others

    @cached_property
    def factors(self) -> tuple[Weight, ...]:
        """Roots that multiply the weight by s if they are multiplied by s together; none if there are no such."""
        return next((roots for roots in _subsets(self._free) if self._times(roots, _TRIAL, equals=_TRIAL)), ())

    @cached_property
    def obstacle(self) -> str | None:
        """Status if no root multiplies it: scale-invariant if none has any effect."""
        if self.node.is_unknown():
            return "unsupported"
        if self.factors:
            return None
        unmoved = all(self._times((root,), _SMALL_TRIAL, equals=1.0) for root in self._drawn or self.sources)
        return "scale-invariant" if unmoved else "unsupported"

    def _times(self, roots: Sequence[Weight], factor: float, *, equals: float) -> bool:
        """Whether multiplying the roots by ``factor`` multiplies the weight by ``equals``."""
        keys, shown = {root.key for root in roots}, self._stand_ins

        def value(w: Weight) -> Tensor:
            return shown.get(w.key, w.tensor)

        now = self.node.evaluate(value) if shown else self.tensor
        trial = self.node.evaluate(lambda w: value(w).detach() * factor if w.key in keys else value(w))
        error = (trial - equals * now).abs().max()
        return bool(error <= 8 * torch.finfo(self.tensor.dtype).eps ** 0.75 * now.abs().max())

    @cached_property
    def _stand_ins(self) -> dict[Key, Tensor]:
        """For roots that are zero now, of which a factor would show nothing, but not when they have been drawn, or trained."""
        judged = self._drawn or self.sources
        return {root.key: torch.ones_like(root.tensor.detach()).cumsum(-1) for root in judged if is_zero(root.tensor)}

    def scale_(self, factor: Tensor) -> None:
        """Multiply the roots that multiply it, and it."""
        for root in self.factors:
            root.scale_(factor)
        _without_repeats(to_be_written(self.tensor), self.tensor).mul_(factor)

    def draw_(self, fill: Fill) -> None:
        """Fill the root that looks like the weight itself, or else all that have as many axes, and compute the weight from them.

        Roots of the form of g in g v / |v| then get the values that give the weight its drawn rows.
        """
        drawn = self._drawn
        for root in drawn:
            root.draw_(fill)
        (one, *more) = self.factors
        alike = bool(drawn) and drawn[0].tensor.shape == self.tensor.shape
        if alike and not more and one is not drawn[0] and one.tensor.dim() == self.tensor.dim():
            _fit_gain_(one, drawn[0].tensor.detach(), self.node)
        self.refresh()

    def at_first(self, axis: int) -> Computed:
        """The weight at the first place of an axis along which it repeats itself."""
        selected = Node(torch.select, (self.node, axis, 0), {}, None)
        return replace(self, tensor=self.tensor.select(axis, 0), node=selected)

    def refresh(self) -> None:
        """Compute it again, if it can be."""
        if not self.node.is_unknown():
            value = self.node.evaluate(lambda w: w.tensor)
            _without_repeats(to_be_written(self.tensor), self.tensor).copy_(_without_repeats(value, self.tensor))

    def without(self, zeros: Container[Key]) -> Tensor:
        """What it would be if these of its roots were zero."""
        if self.node.is_unknown():
            return self.tensor
        return self.node.evaluate(lambda w: torch.zeros_like(w.tensor) if w.key in zeros else w.tensor)


def _without_repeats(tensor: Tensor, like: Tensor) -> Tensor:
    """Without the axes along which ``like`` is expanded: one element stands for many there, and cannot be written as many."""
    for axis, (size, stride) in enumerate(zip(like.shape, like.stride(), strict=True)):
        if size > 1 and not stride:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _is_gain(root: Weight) -> bool:
    """Whether a root is a vector that was given more axes."""
    return root.parameter.dim() < root.tensor.dim() and 1 in root.tensor.shape


def _fit_gain_(gain: Weight, wanted: Tensor, node: Node) -> None:
    """Give g, of shape (out, 1, …), the values for which g u is nearest to the wanted weight, u being the weight for g = 1."""
    u = node.evaluate(lambda w: torch.ones_like(w.tensor) if w.key == gain.key else w.tensor)
    axes = [i for i, size in enumerate(gain.tensor.shape) if size == 1]
    gain.assign_((wanted * u).sum(axes, keepdim=True) / (u * u).sum(axes, keepdim=True))


def _subsets(roots: Sequence[Weight]) -> Iterator[tuple[Weight, ...]]:
    """Single ones first, then all, then what lies between."""
    n = len(roots)
    sizes = range(2, n) if n <= _MOST_COMBINED else ()
    return chain(combinations(roots, 1), [tuple(roots)] if n > 1 else [], *(combinations(roots, k) for k in sizes))


class Sources(Weights):
    """The parameters of a model, and what it computes from them and its buffers alone."""

    def __init__(self, model: nn.Module) -> None:
        self._nodes: dict[int, tuple[Tensor, Node]] = {}  # holds the tensors, so that their ids stay theirs
        self._constants: dict[int, tuple[Tensor, Tensor]] = {}
        """Single numbers that the forward wrote as tensors, ``torch.tensor(0.1)``, identity matrices, and what it computed from
        such; with copies, since it may add to them.
        """
        self._made_from: dict[int, list[int]] = {}
        """Ids of the tensors with nodes, by the ids of the parameters that they were computed from."""
        self._id_of: dict[Node, int] = {}
        """Of the tensors that nodes made."""
        self.outdated: set[int] = set()
        """Of these the ones whose parameters have had other values since: see `bring_up_to_date`."""
        self.mixed: dict[int, tuple[weakref.ref[Tensor], Weight]] = {}
        """What was made of a weight and data, of the weight's shape: a weight itself maybe, masked by what the forward made."""
        self.set_aside: dict[Key, tuple[str, Weight]] = {}
        """Weights that operators multiplied by nothing but parameters and buffers; mostly the product meets data later."""
        super().__init__(model)
        self._buffers = {storage_of(b) for b in model.buffers()} - {0}
        self.keeps: Callable[[Weight], bool] = _is_frozen
        """Whether a parameter is to stay as it is: of what is computed from it and others, the others may be changed."""

    def arrived(self, tensor: Tensor) -> None:
        """Note that a tensor of the model's, which was on the meta device, has memory."""
        super().arrived(tensor)
        if not isinstance(tensor, nn.Parameter):
            self._buffers.add(storage_of(tensor))

    def find(self, tensor: object) -> Weight | None:
        """The weight that ``tensor`` is, shares memory with, or was computed as."""
        if not isinstance(tensor, Tensor):
            return None
        if (made := self._nodes.get(id(tensor))) is not None:
            node = made[1]
            # As they are now: data may have met them since.
            roots = sorted(map(self.as_now, node.roots().values()), key=lambda root: -root.tensor.numel())
            if not roots:
                return None
            name, parameter = roots[0].name, roots[0].parameter
            embedded = any(r.embedded for r in roots)
            kept = frozenset(root.key for root in roots if self.keeps(root))
            number = roots[0].number
            return Computed(name, parameter, tensor, embedded, number=number, node=node, sources=tuple(roots), kept=kept)
        return super().find(tensor)

    def parameter(self, tensor: object) -> Weight | None:
        """The parameter, or the part of one, that ``tensor`` is or shares memory with."""
        return super().find(tensor)

    def constant(self, tensor: object) -> bool:
        """Whether a tensor is a buffer or was made from parameters and buffers alone: no data is in it."""
        return isinstance(tensor, Tensor) and (id(tensor) in self._nodes or storage_of(tensor) in self._buffers)

    def changed(self, weights: Iterable[Weight]) -> None:
        """Note that parameters have other values now: what was computed from them has, too."""
        for weight in weights:
            for root in weight.roots():
                self.outdated.update(key for key in self._made_from.get(id(root.held), ()) if key in self._nodes)

    def bring_up_to_date(self, given: Iterable[object]) -> None:
        """Compute again what was computed from parameters that have changed since: a weight's norm, taken before its product."""
        for x in _leaves(given):
            if id(x) in self.outdated and self._nodes[id(x)][0] is x:
                self._bring_up_to_date(self._nodes[id(x)][1])

    def _bring_up_to_date(self, node: Node) -> None:
        """What it was made from too, so that each of a chain is computed once."""
        values = _Values(self._tensor_of)
        with torch.no_grad(), versions_kept():
            for each in node._in_order(lambda n: n not in values and self._is_outdated(n)):
                tensor = self._tensor_of(each)
                if tensor is None:
                    values[each] = each._made(values, _tensor)
                    continue
                self.outdated.discard(id(tensor))
                if not each.repeats or each.is_unknown():
                    continue
                value = each._made(values, _tensor)
                if value.shape == tensor.shape and value.layout is tensor.layout is torch.strided:  # as large as before
                    _without_repeats(to_be_written(tensor), tensor).copy_(_without_repeats(value, tensor))

    def _tensor_of(self, node: Node) -> Tensor | None:
        """The tensor that a node made, unless it was changed in place since."""
        tensor, now = self._nodes.get(self._id_of.get(node, 0), (None, None))
        return tensor if now is node else None

    def _is_outdated(self, node: Node) -> bool:
        tensor = self._tensor_of(node)
        return tensor is None or id(tensor) in self.outdated

    def mixture(self, tensor: object) -> Weight | None:
        """The weight that a tensor was made of, together with data, if it has the weight's shape."""
        known = self.mixed.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def touched(self) -> set[int]:
        """Ids of the parameters that something was computed from, or that data met otherwise."""
        computed = {id(root.held) for _, node in self._nodes.values() for root in node.roots().values()}
        return computed | self._read - self._embedded

    def note(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Remember how a call made its result, if it was given parameters and buffers alone; and which buffers data went into."""
        outputs: list[tuple[int | None, Any]] = [(None, out)]
        if isinstance(out, (tuple, list)):
            outputs = list(enumerate(out))
        made = [(place, tensor) for place, tensor in outputs if isinstance(tensor, Tensor)]
        into = written_by(function, args, kwargs)
        written, numbers = [x for x in into if self.constant(x)], [x for x in into if id(x) in self._constants]
        if not made and not written and not numbers:
            return
        if self._are_numbers(function, args, kwargs):
            for tensor in (*numbers, *(tensor for _, tensor in made)):
                if tensor.numel() == 1 or self._is_identity(function, args, kwargs):
                    self._constants[id(tensor)] = tensor, tensor.detach().clone()
            return
        # Matrices gathered from a stack (experts) are weights; rows gathered from a table (an embedding) are data.
        gathers = function in _GATHERING and bool(args) and args[0].dim() > 2
        sources, met = self._sources(function, args, kwargs, indices=gathers)
        for tensor in numbers:  # which they are no more; what they were is among the sources
            del self._constants[id(tensor)]
        if sources is not None and function in _SHAPE_ONLY:
            sources = args, kwargs
        for tensor in written:
            self._note_written(tensor, function, sources, {id(each) for _, each in made})
        for place, tensor in made:
            if sources is None:
                self._forget(id(tensor))  # changed in place by data
                self._note_mixed(met, args, tensor)
            elif super().find(tensor) is None and storage_of(tensor) not in self._buffers:
                self._enter(tensor, function, *sources, place)

    def _enter(
        self, tensor: Tensor, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], place: int | None = None
    ) -> None:
        """Remember how a tensor was made."""
        buffers = (x for x in _leaves((args, tuple(kwargs.values()))) if isinstance(x, Tensor))
        node = Node(function, args, kwargs, place, tuple((x, x._version) for x in buffers if storage_of(x) in self._buffers))
        self._nodes[id(tensor)] = tensor, node
        self._id_of[node] = id(tensor)
        self.outdated.discard(id(tensor))
        for root in node.roots().values():
            self._made_from.setdefault(id(root.held), []).append(id(tensor))

    def _forget(self, key: int) -> None:
        self._nodes.pop(key, None)
        self._constants.pop(key, None)
        self.outdated.discard(key)

    def _are_numbers(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a call writes numbers as tensors, or computes with nothing but such."""
        if function in _NUMBERS:
            return not any(isinstance(x, Tensor) and id(x) not in self._constants for x in args)
        if not self._constants:
            return False
        given = [x for x in _leaves((args, tuple(kwargs.values()))) if isinstance(x, Tensor)]
        return bool(given) and all(id(x) in self._constants for x in given)

    def _is_identity(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether a call of `_are_numbers` makes an identity matrix, or computes with one (Cayley's orthogonal map)."""
        given = (x for x in _leaves((args, tuple(kwargs.values()))) if isinstance(x, Tensor))
        return function is torch.eye or any(x.numel() > 1 for x in given)

    def _note_mixed(self, met: Sequence[Weight], args: Sequence[Any], made: Tensor) -> None:
        """That a tensor was made of a weight and data, if it has the weight's shape."""
        for weight in met:
            # Not what one sample of a batch is added to, or multiplied by: positions, gains.
            if made.dim() > 1 and made.shape == weight.tensor.shape and made.shape[0] > 1:
                self.mixed[id(made)] = weakref.ref(made), weight
                return
        if self.mixed and args and (weight_ := self.mixture(args[0])) is not None and storage_of(made) == storage_of(args[0]):
            self.mixed[id(made)] = weakref.ref(made), weight_  # a view of it

    def _note_written(
        self, written: Tensor, function: Callable[..., Any], sources: tuple[Sequence[Any], dict[str, Any]] | None, made: set[int]
    ) -> None:
        """What a call changed in place is known no more, unless it is the tensor that the call was given."""
        if sources is None:
            self._buffers.discard(storage_of(written))
        if id(written) not in self._nodes:
            return
        storage = storage_of(written)
        for key, (tensor, node) in list(self._nodes.items()):
            if storage_of(tensor) != storage:
                continue
            if sources is None:
                self._forget(key)
            elif tensor is not written:
                self._enter(tensor, _no_longer, (node,), {})
            elif key not in made and sources[0] and sources[0][0] is node:
                self._enter(tensor, _written, (function, *sources[0]), sources[1])

    def _sources(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], *, indices: bool
    ) -> tuple[tuple[Sequence[Any], dict[str, Any]] | None, Sequence[Weight]]:
        """The arguments with nodes and weights for tensors, None if there is data among them, or no tensor at all; and the
        weights that met data.

        Integers are data too unless ``indices`` are allowed. Weights among the data are read.
        """
        found: list[Node | Weight] = []
        buffers = data = False

        def source(x: Any) -> Any:
            nonlocal buffers, data
            if not isinstance(x, Tensor) or (indices and not (x.is_floating_point() or x.is_complex())):
                return x
            if id(x) in self._constants:
                return self._constants[id(x)][1]
            if is_lazy(x):  # has no numbers yet
                data = True
                return x
            known = self._nodes.get(id(x))
            made: Node | Weight | None = known[1] if known is not None else super(Sources, self).find(x)
            if made is not None:
                found.append(made)
                return made
            if storage_of(x) in self._buffers:
                buffers = True
            else:
                data = True
            return x

        mapped = _mapped(args, source), {k: _mapped(v, source) for k, v in kwargs.items()}
        met = []
        if data and found and function not in _FORM_ONLY:
            met = [root for each in found for root in (each.roots().values() if isinstance(each, Node) else (each,))]
            for root in met:
                self.read(root)
        return mapped if (found or buffers) and not data else None, met


class _Values(dict[Node, Tensor]):
    """Values of nodes, those of their tensors where no others are there."""

    def __init__(self, tensor_of: Callable[[Node], Tensor | None]) -> None:
        super().__init__()
        self._tensor_of = tensor_of

    def __missing__(self, node: Node) -> Tensor:
        tensor = self._tensor_of(node)
        assert tensor is not None, "what comes before has a value"
        return tensor


def _tensor(weight: Weight) -> Tensor:
    return weight.tensor


def _written(function: Callable[..., Any], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a function that returns nothing makes of a tensor (``weight[mask] = 0``)."""
    copy = tensor.clone()
    function(copy, *args, **kwargs)
    return copy


def _no_longer(tensor: Tensor) -> Tensor:
    """A tensor that was written into through another one that shares its memory, as it was before."""
    return tensor


def _is_frozen(weight: Weight) -> bool:
    return not weight.parameter.requires_grad


_GATHERING = frozenset({Tensor.__getitem__, Tensor.index_select, torch.index_select})
# What these make has nothing of their argument but its shape, dtype and device.
_SHAPE_ONLY = frozenset(
    {Tensor.new_empty, Tensor.new_full, Tensor.new_ones, Tensor.new_tensor, Tensor.new_zeros}
    | {torch.empty_like, torch.full_like, torch.ones_like, torch.rand_like, torch.randn_like, torch.zeros_like}
)


# What these make of data has nothing of their other argument but its shape, dtype and device.
_FORM_ONLY = _SHAPE_ONLY | {
    *(Tensor.to, Tensor.type_as, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as),
    *(torch.result_type, torch.broadcast_tensors),
}
# What a forward writes numbers with.
_NUMBERS = frozenset({torch.tensor, torch.as_tensor, torch.full, torch.ones, torch.zeros, torch.scalar_tensor, torch.eye})


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """``value`` with every element, in lists and tuples at any depth, changed."""
    if type(value) in (tuple, list):
        return type(value)(_mapped(v, change) for v in value)
    return change(value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for v in value:
            yield from _leaves(v)
    else:
        yield value
