"""Standing in for every operator on a weight: draw the weight, run the operator, scale the weight and its output."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from goodinit import gradients, guard
from goodinit.ahead import Ahead
from goodinit.batches import Call
from goodinit.centring import Rule, Rules, Shift
from goodinit.errors import ModelError, NonFiniteError, RankError, annotate
from goodinit.interception.computed import Sources
from goodinit.interception.covered import Covered
from goodinit.interception.intercept import module_operations, noted_sources, without_output
from goodinit.interception.operation import Layout, Operation, Part, described, rebuilt, refuse_nested
from goodinit.interception.weights import Key, Weight, is_zero, storage_of, versions_kept
from goodinit.ledger import Ledger, Outcome
from goodinit.options import Options, PreInit
from goodinit.orthonormal import Method
from goodinit.outputs import Statistic, fingerprint, scaling_of
from goodinit.processes import sharded
from goodinit.processes.ranks import Ranks
from goodinit.shards import Progress, Shards


class Drawn:
    """The weights that were drawn; and, for passes that begin with them anew, how they were then."""

    def __init__(self, *, keeping: bool = False) -> None:
        self.keys: set[Key] = set()
        self.seconds = 0.0
        self._keeping = keeping
        self._kept: dict[Key, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of what draws inside."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def keep(self, operation: Operation) -> None:
        """Weight and bias as they are now."""
        biases = () if operation.bias_weight is None else operation.bias_weight.roots()
        for root in (*operation.weight.roots(), *biases) if self._keeping else ():
            tensor = root.tensor.detach()
            self._kept.setdefault(root.key, (tensor, tensor.clone()))

    def restore(self) -> None:
        """All of them as they were when they were drawn."""
        for tensor, copy in self._kept.values():
            tensor.copy_(copy)
        torch.clear_autocast_cache()


class Scaling:
    """Stands in for every operator on a weight: draws the weight, runs the operator, scales weight and output."""

    function = "goodinit.lsuv_"
    """What the caller called."""

    def __init__(
        self,
        options: Options,
        undo: guard.Undo,
        randomness: guard.Randomness,
        ranks: Ranks,
        *,
        prints: bool = False,
        goals: Mapping[Key, float] | None = None,
        drawn: Drawn | None = None,
        shards: Shards | None = None,
        zeroed: Iterable[Key] = (),
    ) -> None:
        """``prints``: whether to keep them. ``goals``: the std to give the output of each weight in another pass, in which
        nothing is drawn any more; ``zeroed``: biases known to be zero in it. ``drawn``: what an earlier pass drew. ``shards``:
        where finished weights are written to, and what an interrupted call left there.
        """
        self.ledger = Ledger()
        self.prints: dict[Key, Tensor] = {}
        """Of several batches: some elements of the output of each weight that was scaled, apart from their scale."""
        self.zeroed: set[Key] = set(zeroed)
        """Biases that are zero now."""
        self._biases = Covered()
        """Of all operators up to now."""
        self._zero_so_far: dict[Key, tuple[Weight, Statistic]] = {}
        """Weights whose outputs may have been zero up to now, and the first of these."""
        self._prints_wanted = prints
        self._goals = goals
        self._shards = shards
        self._known = Progress() if shards is None or goals is not None else shards.known
        self._places_drawn = set(self._known.drawn)
        self.called: set[int] = set()
        """Ids of torch's own layers that ran."""
        self.weights: Sources | None = None
        """Of the model, once a pass has begun."""
        self._ranks = ranks
        self._drawn = Drawn() if drawn is None else drawn
        self._rules = Rules(options)
        self._shunned: list[str] = []
        self.last: Weight | None = None
        """That the last operator used, if it was scaled there or no other weight was since."""
        self.last_again = False
        """Whether `last` had been used before."""
        self._newest: Weight | None = None
        self._last_shift: Shift | None = None
        self._options = options
        self._undo = undo
        self.remember = undo.remember
        """Is to be called before a parameter is changed by anything else."""
        self._randomness = randomness
        self._covered = Covered()
        self._adopted: set[Key] = set()
        self._idle: list[Operation] = []
        self._ahead: Ahead | None = None
        self._current: Operation | None = None
        self._done: list[str] = []

    def begin(self, weights: Sources) -> None:
        """A pass begins, with the weights of this model."""
        self.weights = weights
        weights.keeps = self._options.keeps

    @property
    def sampling_seconds(self) -> float:
        """Spent in drawing weights, by this pass and those before it that drew for it."""
        return self._drawn.seconds

    def __call__(self, operation: Operation) -> Tensor:
        """The output that the operator would have with its final weight."""
        self._current = operation
        if self._ranks.size == 1 and any(0 in shape for shape in operation.data_shapes):  # an expert that no token reached
            self._idle.append(operation)
            output = operation.complete(operation.linear_part())
        elif torch.is_grad_enabled():
            # The model differentiates inside its forward: its graph must hold the final weight, so a second call makes it.
            bias = operation.bias
            with torch.no_grad(), versions_kept():
                self._run(operation)
            if operation.bias is None and operation.bias_weight is not None and bias is not None:  # a zero, but a leaf maybe
                operation.bias = bias if storage_of(bias) == storage_of(operation.bias_weight.tensor) else None
            if self._shards is not None:
                self._shards.wrote(operation)
            output = operation.complete(operation.linear_part())
        else:
            output = operation.complete(self._run(operation))
        self._done.append(operation.kind)
        self._current = None
        if self._shards is not None:
            self._shards.flush_if_full()
        return output

    def _run(self, operation: Operation) -> Tensor:
        """The output z with the final weight: measured, and at the weight's first use scaled."""
        weight = operation.weight
        again = weight in self._covered
        left_alone = self._options.left_alone(weight) if again else self._left_alone(weight) or self._tied_to_bias(operation)
        if again:
            weight.refresh()
        elif left_alone is None and weight.key not in self._drawn.keys:
            self._draw(operation)
        z = sharded.added_up(refuse_nested(operation, operation.linear_part()))
        self._last_shift = None
        for part in operation.parts(z):
            target = self._options.target(part.weight.name)
            alone = again or left_alone is not None or self._ranks.size == 1
            if not part.z.numel() and alone:  # an expert that no token reached
                self._idle.append(replace(operation, weight=part.weight, cuts=()))
                continue
            changed = not (again and part.weight in self._covered) and left_alone is None
            rule = self._rules.of(operation, part, changed=changed)
            found = rule.measured(part)
            if again and part.weight in self._covered:
                if part.weight.key in self._adopted:
                    self._adopted.remove(part.weight.key)
                    self._ranks.come_late(part.weight)
                if not self._scale_late(part, found):
                    self.ledger.use_again(part.weight, operation.kind, target, rule.std(found))
            elif left_alone is not None:
                self.ledger.enter(part.weight, operation.kind, target, left_alone, Outcome(rule.std(found)))
            elif self._goals is not None and part.weight.key not in self._goals:
                self.ledger.enter(part.weight, operation.kind, target, "skipped", Outcome(rule.std(found)))
            elif (numbers := self._known.scaled.get(str(part.weight.place))) is not None:
                self.ledger.enter(part.weight, operation.kind, target, "scaled", Outcome.of_numbers(numbers))
            else:
                pooled = self._ranks.pool(part.weight, found, partial(described, operation, part), self.adopt, self._draw_ahead)
                self._scale(operation.kind, part, pooled, found.m2 if self._ranks.size > 1 else None, rule)
                if self._prints_wanted:
                    self.prints[part.weight.key] = fingerprint(part.z)
            self._covered.add(part.weight)
            newest = changed or (self._newest is not None and part.weight.key == self._newest.key)
            alone = not (part.weight.embedded or part.weight.is_read)
            self.last, self.last_again = (part.weight if newest and alone else None), not changed
            self._newest = part.weight if changed else self._newest
        for root in () if operation.bias_weight is None else operation.bias_weight.roots():
            self._biases.add(root)
        return z

    def _left_alone(self, weight: Weight) -> str | None:
        """The status of a weight that is not to be changed at its first use; None for one that is."""
        status = self._options.left_alone(weight) or weight.obstacle
        if status is None and (weight.is_read or weight in self._biases) and not self._options.asks_for(weight):
            return "tied"  # what the model did with it before would not be what it does with other values
        return status

    def _tied_to_bias(self, operation: Operation) -> str | None:
        """The status of a weight whose bias changes with it, being computed from the same parameters; None if it does not."""
        weight, bias = operation.weight, operation.bias_weight
        if bias is None:
            return None
        drawing = self._options.pre_init is not None and self._goals is None
        changed = Covered()
        for root in weight.changed if drawing else weight.factors:
            changed.add(root)
        if not any(root in changed for root in bias.roots()):
            return None
        zeros = {root.key for root in self._own(bias, weight)} if drawing else set()
        return None if is_zero(bias.without(zeros)) else "unsupported"

    def _scale(self, kind: str, part: Part, found: Statistic, own: Tensor | None, rule: Rule | None = None) -> None:
        """Give an output its target std."""
        weight, target = part.weight, self._options.target(part.weight.name)
        if rule is not None and rule.groups is not None:
            for root in () if rule.bias is None else rule.bias.roots():
                self._undo.remember(root.held)
            outcome, self._last_shift = rule.apply_(part, found, target)
            self._changed(weight, rule.bias)
            self.ledger.enter(weight, kind, target, "scaled", _noted(outcome, weight))
            return
        factor, outcome = scaling_of(found, part, target if self._goals is None else self._goals[weight.key], own)
        outcome = replace(outcome, note=rule.note) if rule is not None and rule.note else outcome
        weight.scale_(factor)
        self._changed(weight)
        part.z.mul_(factor)
        self._note_zero(weight, found)
        self.ledger.enter(weight, kind, target, "scaled", _noted(outcome, weight))

    def _note_zero(self, weight: Weight, found: Statistic) -> None:
        """That the first output of a weight was zero, or may have been: of a GPU's nothing is asked for now."""
        later = self._ranks.size == 1 and self._goals is None and not self._prints_wanted
        if later and self._rules.plain and (found.m2.device.type != "cpu" or found.is_zero()):
            self._zero_so_far[weight.key] = weight, found

    def _scale_late(self, part: Part, found: Statistic) -> bool:
        """Scale a weight whose output was zero at all uses before (a state that begins as zero), if it is not at this one."""
        weight = part.weight
        if weight.key not in self._zero_so_far:
            if self._zero_so_far:
                used = Covered()
                used.add(weight)
                for key in [key for key, (other, _) in self._zero_so_far.items() if other in used]:
                    del self._zero_so_far[key]  # what it has in common with this one is zero no more
            return False
        if weight.is_read or weight in self._biases or not self._zero_so_far[weight.key][1].is_zero():
            del self._zero_so_far[weight.key]
            return False
        if found.is_zero():
            return False
        del self._zero_so_far[weight.key]
        factor, outcome = scaling_of(found, part, self._options.target(weight.name))
        weight.scale_(factor)
        self._changed(weight)
        part.z.mul_(factor)
        self.ledger.scale_late(weight, _noted(outcome, weight))
        return True

    def adopt(self, content: Any, found: Statistic) -> None:
        """Draw and scale a weight that other processes use and this one does not, or not yet."""
        assert self.weights is not None
        operation, part = rebuilt(content, self.weights)
        weight = part.weight
        if weight in self._covered or self._left_alone(weight):
            return
        if not self._rules.plain:
            self._shunned.append(weight.name)
            return
        if self._goals is not None and weight.key not in self._goals:
            return
        if operation.weight.key not in self._drawn.keys:
            self._draw(operation)
        self._scale(operation.kind, part, found, torch.zeros((), device=found.m2.device))
        self._covered.add(weight)
        self._adopted.add(weight.key)

    def _draw(self, operation: Operation) -> None:
        """Fill the weight and zero the bias, as ``pre_init`` says."""
        self._drawn.keys.add(operation.weight.key)
        place = str(operation.weight.place)
        if place in self._places_drawn:  # by an interrupted call
            return
        self._places_drawn.add(place)
        for root in operation.weight.roots():
            self._undo.remember(root.held)
        if self._options.pre_init is not None and self._goals is None:
            self._fill_both(operation, self._options.pre_init)
        self._drawn.keep(operation)
        bias, added = operation.bias_weight, operation.bias
        self._changed(operation.weight, bias)
        if bias is not None and bias.key in self.zeroed and added is not None:
            in_place = storage_of(added) == storage_of(bias.tensor)
            if self._rules.plain or not in_place:  # saves adding it; beta times what it was is no longer true
                operation.bias = None

    def _changed(self, weight: Weight, bias: Weight | None = None) -> None:
        """What the model computed from these before is to be computed again."""
        assert self.weights is not None
        self.weights.changed((*weight.changed, *(() if bias is None else bias.roots())))

    def _fill_both(self, operation: Operation, pre_init: PreInit) -> None:
        with self._drawn.timed():
            operation.weight.draw_(lambda weight, place: self._fill_now(pre_init, operation.layout, weight, place))
        bias = operation.bias_weight
        for root in () if bias is None else self._own(bias, operation.weight):
            assert bias is not None
            self._undo.remember(root.held)
            root.zero_(operation.zero_bias_)
            bias.refresh()
            if bias.divisible or is_zero(bias.tensor):
                self.zeroed.add(bias.key)
                break

    def _own(self, bias: Weight, weight: Weight) -> list[Weight]:
        """The parameters that a bias may be made zero by, one after the other until it is: those that look like it first.

        None that the caller wants to keep, nor any that something else uses: the weight (a gain on both), operators before.
        """
        if self._rules.hold(bias):
            return []
        used = Covered()
        used.add(weight)
        before = self._covered, self._biases, used
        own = [r for r in bias.roots() if not (self._options.keeps(r) or r.is_read or any(r in some for some in before))]
        return sorted(own, key=lambda root: root.tensor.shape != bias.tensor.shape)

    def _fill_now(self, pre_init: PreInit, layout: Layout, weight: Tensor, place: object) -> None:
        if self._ahead is None or not self._ahead.take(layout, weight, place):
            self._fill(pre_init, layout, weight, place)

    def _draw_ahead(self) -> None:
        """Do what is to be done soon, while other processes answer."""
        if callable(self._options.pre_init) or self._options.pre_init is None or self._goals is not None:
            return
        if self._ahead is None:
            assert self.weights is not None
            self._ahead = Ahead(self._likely(self.weights), partial(self._fill, self._options.pre_init))
        with self._drawn.timed():
            self._ahead.draw()

    def _likely(self, weights: Sources) -> Iterator[Operation]:
        """The operations still to come that draw a weight, if the model uses its modules in the order of registration."""
        assert isinstance(self._ranks.model, nn.Module)
        for operation in module_operations(self._ranks.model, weights):
            weight = operation.weight
            if weight.key not in self._drawn.keys and not (self._options.left_alone(weight) or weight.obstacle):
                yield operation

    def _fill(self, pre_init: PreInit, layout: Layout, weight: Tensor, place: object) -> None:
        if callable(pre_init):
            with self._randomness.as_global(place, weight.device):
                for matrix in layout.matrices(weight):
                    pre_init(matrix)
        else:
            method: Method = "structured" if pre_init == "structured" else "haar"
            layout.draw_(weight, self._randomness.generator(place, weight.device), method)

    def prepare(self, operation: Operation, status: str) -> None:
        """A weight whose operator's output says nothing of its scale: drawn, not scaled."""
        weight = operation.weight
        if weight in self._covered:
            return
        left_alone = self._options.left_alone(weight) or weight.obstacle
        if left_alone is None and status != "unsupported" and weight.key not in self._drawn.keys:
            self._draw(operation)
        self._covered.add(weight)
        self.ledger.enter(weight, operation.kind, self._options.target(weight.name), left_alone or status, Outcome())

    def finish(self) -> None:
        """The pass is over: its last operator made the model's output, which has the mean 0 whatever the others have.

        Refuse weights that this process does not use and others do, where more than one number is known of their outputs.

        Raises:
            ModelError: there are such.
        """
        if self._last_shift is not None:
            self._last_shift.undo_()
            self._last_shift = None
        if self._shunned:
            raise ModelError(
                f"this process's data does not use {self._shunned[0]!r} when that of another process does; center= and variance= "
                "need data that uses every weight, in the same order, in all processes"
            )

    def progress(self) -> Progress:
        """What has been finished by now; waits for the device."""
        scaled = {**self._known.scaled, **self.ledger.scaled()}
        for weight, found in self._zero_so_far.values():
            if found.is_zero():  # it may still be scaled
                scaled.pop(str(weight.place), None)
        return Progress(self._randomness.followed, sorted(self._places_drawn), scaled)

    def draw_unused(self, model: nn.Module) -> None:
        """Weights that the forward did not use: drawn, not scaled."""
        assert self.weights is not None
        touched = self.weights.touched()
        for operation in self._idle:
            self.prepare(operation, "unsupported" if id(operation.weight.held) in touched else "unused")
        touched |= {id(p) for module in model.modules() if id(module) in self.called for p in module.parameters()}
        with noted_sources(self.weights):  # what torch.nn.utils.parametrizations computes
            others = list(module_operations(model, self.weights))
        for operation in others:
            self.prepare(operation, "unsupported" if id(operation.weight.held) in touched else "unused")
        for kind, weight in self.weights.set_aside.values():  # of which the product met no data in any operator
            self.prepare(without_output(kind, weight), "unsupported")

    @contextmanager
    def explained(self, call: Call) -> Iterator[None]:
        """Say of an exception of the model's how far its forward got, and whether NaN led to it."""
        try:
            yield
        except RankError:
            raise
        except Exception as error:
            try:
                self.ledger.records()
            except NonFiniteError as non_finite:
                raise non_finite from error
            at = f"in {self._current}" if self._current else f"after {len(self._done)} operators on weights, outside of any"
            annotate(error, f"{self.function}: raised {at}; the model was given {call}. All weights are as before.")
            if gradients.are_needed(error) and not torch.is_grad_enabled():
                advice = "forward=torch.enable_grad()(lambda model, batch: model(batch))"
                annotate(error, f"The pass runs without gradients; if the forward needs them, pass {advice}")
            raise


def _noted(outcome: Outcome, weight: Weight) -> Outcome:
    """With a word on a weight that was read before, and is changed because the caller asked for it."""
    if not weight.is_read:
        return outcome
    return replace(outcome, note="; ".join(filter(None, (outcome.note, "what read it before has changed with it"))))
