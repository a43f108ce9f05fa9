"""``target_std="auto"``: the target, and whether to centre, by what a forward and a backward pass show.

The std of outputs is half of the story. Where every layer's output has the std 1, gradients may still grow or vanish on their
way back, and samples may come to look alike on their way through, or all equally unlike (Poole et al. 2016, Schoenholz et al.
2017). Layers that are nearly linear on the data mend all of it (Pennington et al. 2017): smooth non-linearities are at a smaller
target, ReLU and GELU where their input's mean is one or two stds above 0. So settings are tried in turn, the paper's first, and
the first that is good enough is taken. Whichever it is, the model's output begins small, unless the targets are classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from goodinit import guard
from goodinit.batches import Call
from goodinit.choice import Choice, Trial
from goodinit.errors import OptionError
from goodinit.gradients import Way, gradients, nodes_behind
from goodinit.interception.intercept import intercept
from goodinit.interception.operation import Operation
from goodinit.interception.weights import Key
from goodinit.ledger import fetched
from goodinit.moments import widest
from goodinit.options import Options
from goodinit.processes.ranks import Ranks
from goodinit.scaling import Drawn, Scaling

CANDIDATES: tuple[tuple[float, float | None], ...] = (
    *((1.0, None), (0.3, None)),
    *((1.0, 0.0), (1.0, 1.0), (1.0, 2.0)),
    (0.1, None),
)
"""Targets, and the means to centre at (None: not centred), in the order in which they are tried."""
ENOUGH = 0.5
"""Decades that a setting may be off by to be taken at once."""
CLEARLY = 0.25
"""Decades by which another has to be better than one that is tried before it."""
BAD, BARELY = 1.0, 0.15
"""Over so many decades a setting is bad, and another need only be better by so many."""

HEAD_STD = 0.1
"""The largest std of the model's output: what an untrained network says should not weigh. Not where it tells classes apart: a
softmax hears little of it, and a small last layer hands down small gradients."""
_SAME = 0.01
# Samples whose pairs are compared; fewer than the first say nothing, more than the second cost more than they say.
_FEW, _MANY = 8, 32
# Cosines nearer together than this, in the first layer, are no order of pairs.
_EVEN = 1e-4
# Correlations below this are chance.
_FORGOTTEN = 0.1
_LEAST, _MOST = 1e-30, 1e30

Run = Callable[[Call, Scaling], object]
Make = Callable[[Options, Drawn], Scaling]


def check(automatic: object, ranks: Ranks, *, center: bool, batches: int) -> None:
    """Refuse what goes with no ``target_std="auto"``.

    Raises:
        OptionError: it is another text; ``center``, several batches or several processes.
    """
    if automatic != "auto":
        raise OptionError(
            f"target_std must be a positive number or a mapping from patterns to such, or 'auto'; got {automatic!r}"
        )
    if center:
        raise OptionError("target_std='auto' decides itself whether to centre; leave center= out")
    if batches > 1:
        raise OptionError(f"target_std='auto' measures one batch; got batches={batches}. A larger batch does the same")
    if ranks.size > 1:
        raise OptionError(
            f"target_std='auto' measures in one process; there are {ranks.size}. Let one process choose, "
            "lsuv_(…, target_std='auto', distributed=False).choice, and give all of them the target and center= that it chose"
        )


def choose_(
    model: nn.Module, call: Call, options: Options, *, run: Run, make: Make, begin: Callable[[], None]
) -> tuple[Scaling, Choice]:
    """Initialize by each setting in turn until one is good enough; the model is left with that, or what comes nearest to it.

    Args:
        model: its weights are drawn once.
        call: a forward pass.
        options: of the caller's; target and centring are replaced.
        run: runs the model once, with something standing in for its operators.
        make: what scales with given options.
        begin: called before every forward.

    Returns:
        What scaled in the pass that counts, and the choice.
    """
    drawn = Drawn(keeping=True)

    def scaled(tried: Options) -> Scaling:
        drawn.restore()
        begin()
        scaling = make(tried, drawn)
        run(call, scaling)
        scaling.finish()
        return scaling

    trials: list[Trial] = []
    head: str | None = None
    for target, mean in CANDIDATES:
        if mean is None and len(trials) > 2 and _alike(*trials[:2]):  # all targets are: ReLU
            continue
        tried = replace(options, target_std=target, center=mean is not None, target_mean=mean or 0.0)
        scaling = scaled(tried)
        begin()
        trial, head = _trial(model, call, tried, scaling, trials[0] if trials else None)
        trials.append(trial)
        if good(trials) and (target, mean) != CANDIDATES[-1]:  # which spares none
            best = trial
            break
    else:
        best = unbeaten(trials)
    chosen = replace(options, target_std=best.target_std, center=best.center, target_mean=best.target_mean)
    head_std = best.target_std if call.classes else min(HEAD_STD, best.target_std)
    scaling = scaled(chosen if head is None else replace(chosen, head=(head, head_std)))
    reason = _reason(best, trials)
    setting = best.target_std, best.center, best.target_mean, head, None if head is None else head_std
    return scaling, Choice(*setting, reason, tuple(trials), 2 * len(trials) + 1)


def _head(scaling: Scaling, probe: Probe) -> str | None:
    """The weight whose output is the model's, also where the forward calls a network several times, side by side."""
    last = scaling.last
    return None if last is None or (scaling.last_again and probe.feeds(last.key)) else last.name


def good(trials: Sequence[Trial]) -> bool:
    """Whether, with the last of these, no other needs to be tried."""
    papers, last = trials[0], trials[-1]
    return last.decades <= ENOUGH and (last is papers or last.decades <= papers.decades - CLEARLY)


def unbeaten(trials: Sequence[Trial]) -> Trial:
    """The first that none is clearly better than."""
    least = min(trial.decades for trial in trials)
    return next(trial for trial in trials if trial.decades <= least + (CLEARLY if trial.decades <= BAD else BARELY))


def _reason(best: Trial, trials: Sequence[Trial]) -> str:
    if best is trials[0] and len(trials) == 1:
        return "at the paper's target gradients and the differences between samples are kept well enough through the layers"
    if best is trials[0]:
        return f"at the paper's target {_trouble(best)}, and nothing that was tried is clearly better"
    if best.decades <= ENOUGH:
        return f"at the paper's target {_trouble(trials[0])}; here that is kept better"
    bad = ", which is not good" if best.decades > BAD else ""
    return f"at the paper's target {_trouble(trials[0])}; nothing that was tried is clearly better than this{bad}"


def _trouble(trial: Trial) -> str:
    parts = []
    if trial.gradient_ratio is not None and not 0.3 < trial.gradient_ratio < 3:
        parts.append(f"gradients are {trial.gradient_ratio:.2g} times as large in the first layers as in the last")
    if trial.distinct is not None and trial.distinct < 0.3:
        parts.append(f"the layers leave {trial.distinct:.1%} of the distance between samples")
    if trial.likeness is not None and trial.likeness < 0.3:
        parts.append(f"which samples are alike is forgotten (correlation {trial.likeness:.2f})")
    return " and ".join(parts) or "the signal is not kept well"


def _alike(one: Trial, other: Trial) -> bool:
    """Whether two targets make no difference."""
    return abs(one.decades - other.decades) < _SAME


def _trial(model: nn.Module, call: Call, tried: Options, scaling: Scaling, papers: Trial | None) -> tuple[Trial, str | None]:
    """Measure the model as ``scaling`` left it, by what could be measured of the paper's; which weight makes its output."""
    probe = Probe()
    with (
        torch.enable_grad(),
        guard.batch_kept(call.tensors()) as about_to_write,
        intercept(model, probe, remember=scaling.remember, about_to_write=about_to_write),
    ):
        result = call(model)
        probe.way.forward = False
        # Intercepted, too: a checkpoint runs its part of the forward again.
        differentiate(result, [p for p in model.parameters() if p.requires_grad], by_backward=probe.ran_without_grad)
    stds, similarities, gradients, likenesses = probe.numbers()
    ratio = _ratio(gradients[:-1] if len(gradients) > 2 else gradients)
    forward = _ratio(stds)
    alike = [1 - s for s in similarities]
    distinct = _ratio(alike)
    forward_ratio = None if forward is None else 1 / forward
    distinct = None if distinct is None else 1 / distinct
    likeness = _mean([max(c, 0.0) for c in likenesses if c == c])  # noqa: PLR0124 - NaN is not itself
    counts = (likeness if papers is None else papers.likeness) is not None
    lost = max(likeness or 0.0, _FORGOTTEN) if counts else None
    terms = [_decades(ratio), _decades(distinct), _decades(forward_ratio), _decades(lost)]
    assert isinstance(tried.target_std, float)
    measured = ratio, _mean(similarities[-_quarter(similarities) :]), distinct, forward_ratio, sum(terms), likeness
    return Trial(tried.target_std, tried.center, tried.target_mean, *measured), _head(scaling, probe)


def _quarter(values: Sequence[object]) -> int:
    return max(1, len(values) // 4)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(values: Sequence[float]) -> float | None:
    """Geometric mean of the first quarter over that of the last one; None of too few."""
    if len(values) < 2:
        return None
    if not all(map(math.isfinite, values)):
        return _MOST
    n = _quarter(values)
    kept = [min(max(v, _LEAST), _MOST) for v in values]
    first, last = (math.exp(sum(map(math.log, some)) / n) for some in (kept[:n], kept[-n:]))
    return first / last


def _decades(ratio: float | None) -> float:
    """Distance from 1; 0 of what was not measured."""
    return 0.0 if ratio is None else abs(math.log10(ratio))


class Probe:
    """Stands in for every operator on a weight: runs it, and measures output and gradient at the weight's first use."""

    def __init__(self) -> None:
        self._stds: list[Tensor] = []
        self._similarities: list[Tensor] = []
        self._products: list[tuple[int, Tensor | None]] = []
        self._gradients: dict[int, Tensor] = {}
        self._seen: set[Key] = set()
        self._places: dict[Key, int] = {}
        self.way = Way()
        self.ran_without_grad = False
        """Whether a part of the forward did: a checkpoint of the reentrant kind does."""
        self._nodes: list[tuple[Key, Node | None]] = []

    def __call__(self, operation: Operation) -> Tensor:
        """The operator's output."""
        output, key = operation.output(), operation.weight.key
        self.ran_without_grad |= not torch.is_grad_enabled()
        self._nodes.append((key, output.grad_fn))
        if key not in self._seen and output.numel():
            self._seen.add(key)
            self._places[key] = len(self._stds)
            self._stds.append(output.detach().std(correction=0))
            self._compare(operation, output.detach())
        if key in self._places and output.requires_grad:  # at its first use, or where a checkpoint runs it again
            # Before the output is overwritten in place. The hook does not hold the probe, which holds the graph that holds the
            # hook: Python cannot see that circle, and would keep it for ever.
            output.register_hook(partial(_note_norm, self.way, self._gradients, self._places.pop(key)))
        return output

    def _compare(self, operation: Operation, output: Tensor) -> None:
        samples = len(output) if output.dim() > (1 if operation.channels is None else -operation.channels.output_axis) else 0
        if samples < 2:
            self._products.append((0, None))
            return
        with torch.autocast(output.device.type, enabled=False):
            self._similarities.append(similarity(output))
            self._products.append((samples, products(output[:_MANY])))

    def numbers(self) -> tuple[list[float], ...]:
        """Stds, similarities and norms of gradients of all operators in their order, and correlations, over pairs, of the last
        ones with the first; only now is the device waited for.
        """
        gradients = [self._gradients[place] for place in sorted(self._gradients)]
        kinds = self._stds, self._similarities, gradients, self._correlations()
        values = iter(fetched([number for kind in kinds for number in kind]))
        return tuple(list(islice(values, len(kind))) for kind in kinds)

    def _correlations(self) -> list[Tensor]:
        """Of the last quarter of the operators that see samples as the first does, the last of all left out."""
        hidden = self._products[:-1]
        samples, first = hidden[0] if hidden else (0, None)
        later = [some for n, some in hidden[1:] if n == samples and some is not None]
        if first is None or samples < _FEW or not later:
            return []
        pairs = cosines(first)
        return [correlation(pairs, cosines(some.to(first.device))) for some in later[-_quarter(later) :]]

    def feeds(self, key: Key) -> bool:
        """Whether a later operator's output depends on that of the weight's first use; True if autograd does not know."""
        first = next((i for i, (each, _) in enumerate(self._nodes) if each == key), None)
        if first is None or self._nodes[first][1] is None:
            return True
        wanted = self._nodes[first][1]
        return any(node is wanted for node in nodes_behind(node for _, node in self._nodes[first + 1 :]))


def _note_norm(way: Way, norms: dict[int, Tensor], place: int, gradient: Tensor) -> None:
    if way.forward:  # the model differentiates
        return
    with torch._C.DisableTorchFunction():
        norms[place] = torch.linalg.vector_norm(gradient.detach())


def similarity(output: Tensor) -> Tensor:
    """Mean cosine between distinct samples, without a copy of the output."""
    flat = output.reshape(len(output), -1)
    sizes = torch.linalg.vector_norm(flat, dim=1)
    total = torch.linalg.vector_norm((1 / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)).to(flat.dtype) @ flat)
    n = len(flat)
    square: Tensor = total.to(widest(total.device)).square()
    return (square - n) / (n * (n - 1))


def products(output: Tensor) -> Tensor:
    """Of samples with one another, a square of real numbers."""
    flat = output.reshape(len(output), -1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))  # half would overflow
    return (flat @ flat.mH).real


def cosines(products: Tensor) -> Tensor:
    """Between distinct samples, a number a pair, from their products."""
    sizes = products.diagonal().clamp_min(torch.finfo(products.dtype).tiny).sqrt()
    one, other = torch.triu_indices(len(products), len(products), 1, device=products.device)
    return (products / sizes / sizes[:, None])[one, other]


def correlation(first: Tensor, later: Tensor) -> Tensor:
    """Of numbers of pairs; 0 if the later ones are all the same, NaN if the first are."""
    a, b = (values - values.mean() for values in (first.to(widest(first.device)), later.to(widest(first.device))))
    spread = torch.linalg.vector_norm(a)
    found = (a @ b / (spread * torch.linalg.vector_norm(b))).nan_to_num(0.0)
    return torch.where(spread > _EVEN * len(a) ** 0.5, found, torch.nan)


def differentiate(result: Any, parameters: Sequence[Tensor], *, by_backward: bool = False) -> None:
    """A backward pass from all outputs, with random cotangents; from a loss, that of the loss. No gradient is left anywhere.

    ``by_backward``: as in `goodinit.gradients.gradients`.
    """
    outputs = [t for t in tensors_in(result) if t.requires_grad and t.is_floating_point()]
    if not outputs or not parameters:
        return
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.ones_like(t)
        if t.numel() == 1
        else torch.randn(t.shape, generator=generator, device="cpu").to(device=t.device, dtype=t.dtype)
        for t in outputs
    ]
    gradients(outputs, cotangents, parameters, by_backward=by_backward)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors, in containers at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors_in(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors_in(v)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
