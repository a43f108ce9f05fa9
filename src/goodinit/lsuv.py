"""Layer-sequential unit-variance initialization (Mishkin & Matas, ICLR 2016) in one forward pass.

A linear operator's output z is linear in its weight: z(s W) = s z(W). So in the middle of a forward pass, when an
operator has just produced z, its weight can be multiplied by s = target / std(z) and s z passed on instead of z:
everything downstream sees exactly what a second pass would show it. One pass is Algorithm 1 of the paper with as many
trials as it takes, to rounding error; `goodinit.reference` is that algorithm as printed.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from goodinit import auto, gradients, guard
from goodinit.batches import Call, Calls, Forward
from goodinit.choice import Choice
from goodinit.errors import DataError, GoodinitWarning, ModelError, OptionError
from goodinit.interception.intercept import intercept, noted_calls
from goodinit.interception.weights import Key
from goodinit.lazy import shapeless
from goodinit.meta import Materializer, target_device
from goodinit.options import Options, PreInit, Reset, Targets, Variance, check_model
from goodinit.processes import sharded
from goodinit.processes.ranks import MismatchError, Ranks
from goodinit.progress import progress
from goodinit.report import STATUSES, Record, Report
from goodinit.scaling import Scaling
from goodinit.shards import Shards, purpose_of
from goodinit.sweeps import Sweeper, Swept

_MOST_ATTEMPTS = 4


@gradients.if_needed
def lsuv_(
    model: nn.Module,
    data: Any,
    *,
    target_std: Targets | Literal["auto"] = 1.0,
    variance: Variance = "all",
    center: bool = False,
    target_mean: float = 0.0,
    pre_init: PreInit = "orthonormal",
    forward: Forward | None = None,
    skip: str | Iterable[str] = (),
    generator: torch.Generator | None = None,
    mode: Literal["train", "eval"] = "train",
    batches: int = 1,
    tol: float = 0.01,
    distributed: bool = True,
    device: torch.device | str | None = None,
    reset: Reset | None = None,
    checkpoint: str | Path | None = None,
) -> Report:
    """Initialize ``model`` in place so that the output of every linear operator has unit std on ``data``.

    When the forward pass first reaches a weight that an operator is linear in (Linear, Conv, Bilinear, ``@``, einsum,
    addmm, …, wherever it is called), the weight is filled with an orthonormal matrix and the operator's bias with zeros;
    then the weight is multiplied by ``target_std`` / std(output), the std taken over all elements of the output (samples,
    channels, positions: the paper's Var(B_L)). The pass runs as in training, but without dropout and gradients.
    Afterwards nothing but weights and biases has changed; of ``generator`` one number is drawn.

    Args:
        model: any module whose forward runs; its weights on one device or several.
        data: a batch, or where to get one: a tensor, a tuple (positional arguments), a mapping (keyword arguments), a
            DataLoader or other iterable of batches (the first is used). Of a loader's tuple or list as many items are
            passed as the model's forward requires, so that labels are left out; the report's ``batch`` says so. Inputs
            should have a variance of about 1.
        target_std: the std to reach, or a mapping from patterns to std, ``{"head*": 0.1}``: the first match counts, 1
            where none does. ``"auto"``: the target, and whether to centre, are chosen by what forward and backward passes
            show (13 and 6 at most), and the output of the model gets 0.1 at most, unless ``data`` has targets for a loss that
            are classes: see `goodinit.auto` and the report's ``choice``.
        variance: which variance is brought to the target's square: that over ``"all"`` elements of the output (the paper's);
            between ``"samples"``, averaged over all else, which the same output for every sample does not pass; or of each of the
            ``"channels"`` by itself, by scaling the rows of the weight.
        center: whether each channel's mean over the batch is removed, in the same pass, through the operator's bias; an operator
            without one is left as it is, and the report says so. The std is that of what is left.
        target_mean: what ``center=True`` brings the means to, in units of the target std. At 1 to 2 a ReLU is nearly linear. The
            last operator's, which makes the model's output, becomes 0.
        pre_init: ``"orthonormal"``: drawn uniformly; ``"structured"``: orthonormal too, nearly uniform, and for large matrices
            many times faster, see `goodinit.structured`; None to keep weights and biases and only scale the weights, so that the
            output with its bias has the target std; or a function that fills a weight given as (out, in…), such as those of
            torch.nn.init, biases zeroed.
        forward: called as ``forward(model, batch)`` in place of ``model(batch)``, with each batch of a DataLoader; all other
            data are handed on as they are, or item by item with several ``batches``.
        skip: shell-style patterns of weights to leave as they are. Here and in ``target_std`` a pattern means a weight if
            it matches the name of the parameter (``"layers.*.weight"``) or of a module around it (``"head"``).
        generator: source of the matrices' random numbers; torch's global one by default.
        mode: ``"train"``: as in training, but without dropout: BatchNorm uses the batch's statistics unless it was
            frozen (in eval mode inside a model in train mode). ``"eval"``: the whole model in eval mode.

        batches: how many batches of ``data`` to pool the std over, exactly, as if they were one: see `goodinit.sweeps`. It takes
            1 + sweeps * (batches + 1) forward passes at most, one sweep mostly; the report says how far the batches' own stds
            lie apart, so whether one would have done.
        tol: of several batches, the largest relative deviation of a std from its target.
        distributed: where torch.distributed is initialized, whether all processes initialize the model together, each with data
            of its own: they end with the weights that one process would have from all the data, see
            `goodinit.processes.ranks`. False: this process by itself.
        device: where the tensors of a model that was built on the meta device get memory, each module when the forward reaches
            it: see `goodinit.meta`. Embeddings, normalization layers and all else that is not drawn begin as their modules'
            ``reset_parameters()``, or transformers' ``_init_weights``, has it. A model that is sharded already needs no
            ``to_empty``: every process gives memory to its parts, before the forward.
        reset: called with every such module, to set what these do not. While it runs, tensors that are otherwise sharded are
            whole.
        checkpoint: folder that finished weights are written to on the way, as safetensors, by one process; if the call is
            interrupted, the same call goes on where it was, and ends with the same weights to rounding: see `goodinit.shards`.

    Returns:
        A `Report` with one record a weight.

    Raises:
        DataError: no batch, or NaN or infinity in it.
        ModelError: not a module, no linear operator reached, weights on the meta device without ``device``, or with it but
            without first values; TorchScript.
        OptionError: a target that is not a positive number, a pattern without a match, an unknown ``pre_init``, several batches
            of data that is one, a ``checkpoint`` of another initialization, or of several processes; options that do not go
            together: ``target_mean`` without ``center``; ``center``, ``variance`` or ``"auto"`` with several batches, with
            ``device``, with ``checkpoint`` or with sharded weights; ``"auto"`` with ``center``, or in several processes;
            ``checkpoint`` with several batches.
        SaveError: the disk is full; what the checkpoint held is still there.
        ShardsError: the folder of the checkpoint is broken.
        MissingExtraError: safetensors is not installed, which ``checkpoint`` needs: the extra ``checkpoint``.
        NonFiniteError: NaN or infinity in an operator's output.
        RankError: another process failed, died, or has another model, other numbers in it, or other options.
        Exception: whatever the model's forward raises, with a note on how far it got.
        BaseException: whatever it is, KeyboardInterrupt included, the model is exactly as before.

    Warns:
        GoodinitWarning: a weight could not be scaled, because its output is constant or its bias too large; data that are one
            sample; fewer batches than asked for; sweeps that did not come to an end.

    Source:
        Mishkin & Matas, "All you need is a good init", ICLR 2016, arXiv 1511.06422, Algorithm 1.

    >>> net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    >>> report = lsuv_(net, torch.randn(1000, 8))
    >>> round(net(torch.randn(100_000, 8)).std().item(), 1)
    1.0
    """
    start = time.perf_counter()
    automatic = isinstance(target_std, str)
    targets: Targets = 1.0 if isinstance(target_std, str) else target_std
    undo, ranks = guard.Undo(), Ranks(model, distributed=distributed, device=device)
    with ranks.together():
        _check_given(distributed, checkpoint, reset)
        randomness = guard.Randomness(generator)
        target = target_device(model, device)
        check_model(model, meta=target is not None)
        options = Options.checked(
            model,
            targets,
            pre_init,
            skip,
            mode,
            batches=batches,
            tol=tol,
            variance=variance,
            center=center,
            target_mean=target_mean,
        )
        if automatic:
            auto.check(target_std, ranks, center=center, batches=batches)
        _check_together(model, ranks, batches, device=target, checkpoint=checkpoint, whole=automatic or not options.plain)
    ranks.careful = ranks.careful or not options.plain
    randomness.follow(ranks.compare(model, f"{options}, batches={batches}, tol={tol}, mode={mode!r}", randomness.number()))
    choice: Choice | None = None
    done: list[tuple[Scaling, Call]] = []
    with guard.all_or_nothing(undo), randomness.preserved(model, target), guard.restored(model, stays=_no_state_of(done)):
        with ranks.together():
            calls = Calls(model, data, forward, batches, target)
        swept = Swept(batches=1, converged=True)
        shards = (
            Shards(
                checkpoint,
                model,
                purpose_of(model, options, mode, calls.first),
                None if generator is None else randomness.followed,
            )
            if checkpoint is not None
            else None
        )
        at_once = ranks.size > 1 or _is_sharded(model)
        memory = Materializer(model, target, undo, randomness, reset=reset, shards=shards, at_once=at_once)
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(gradients.are_on()),
            guard.forward_mode(model, mode),
            sharded.without_broadcasts(model),
        ):
            make = partial(Scaling, options, undo, randomness, ranks, prints=batches > 1, shards=shards)
            run = partial(_run, model, ranks)
            if automatic:
                scaling, choice = auto.choose_(
                    model,
                    calls.first,
                    options,
                    run=lambda call, scaling_: run(call, None, scaling_),
                    make=lambda tried, drawn: Scaling(tried, undo, randomness, ranks, drawn=drawn),
                    begin=randomness.begin_forward,
                )
            else:
                starting_again = partial(_starting_again, model, undo, randomness)
                scaling = _first_pass(make, partial(run, calls.first, memory), ranks, starting_again)
            with ranks.together():
                scaling.finish()
                memory.rest()
                scaling.draw_unused(model)
                done.append((scaling, calls.first))
                memory.check()
                records = scaling.ledger.records()
                _refuse_nothing_reached(model, records, calls.first)
            if batches > 1:
                swept = Sweeper(
                    model,
                    calls,
                    ranks,
                    run=lambda call, scaling_: run(call, None, scaling_),
                    again=lambda goals: make(goals=goals, zeroed=scaling.zeroed),
                    tol=tol,
                    begin=randomness.begin_forward,
                    watch=lambda calls_: progress(calls_, batches, "goodinit: batches") if ranks.rank == 0 else calls_,
                ).sweep_(scaling)
                records = tuple(_pooled(r, swept, key) for r, key in zip(records, scaling.ledger.keys(), strict=True))
        passes = 1 + swept.passes if choice is None else choice.passes
        memory.finish()
        seconds = time.perf_counter() - start, scaling.sampling_seconds
        pooled = swept.batches, swept.sweeps
        report = Report(records, passes, *seconds, str(calls.first), *pooled, choice, options.pre_init is not None)
        _warn(
            report,
            batches,
            swept,
            one_sample=ranks.size == 1 and batches == 1 and calls.first.samples_are_same,
            of_samples=calls.are_samples,
            unknown=options.unknown_parts([record.name for record in records]),
        )
    return report


def _check_given(distributed: object, checkpoint: object, reset: object) -> None:
    """Refuse arguments of another kind.

    Raises:
        OptionError: there are such.
    """
    if not isinstance(distributed, bool):
        raise OptionError(f"distributed must be True or False; got {distributed!r}")
    if checkpoint is not None and not (isinstance(checkpoint, (str, os.PathLike)) and str(checkpoint)):
        raise OptionError(f"checkpoint must be the path of a folder; got {checkpoint!r}")
    if reset is not None and not callable(reset):
        raise OptionError(f"reset must be a function that is given a module; got {reset!r}")


def _check_together(model: nn.Module, ranks: Ranks, batches: int, *, device: object, checkpoint: object, whole: bool) -> None:
    """Refuse arguments that do not go together. ``whole``: whether the pass needs all of the model in memory."""
    if checkpoint is not None:
        _check_alone(model, ranks, batches)
    if whole:
        _refuse_parts(model, device=device, checkpoint=checkpoint)


def _refuse_parts(model: nn.Module, *, device: object, checkpoint: object) -> None:
    """What looks at single channels, or at a model again, needs all of it in memory.

    Raises:
        OptionError: a process holds but a part of the weights, or they are written as they are finished.
    """
    if _is_sharded(model):
        raise OptionError(
            "center=, variance= and target_std='auto' need weights that every process holds whole; these are sharded (FSDP2, "
            "tensor parallelism). Initialize before fully_shard or parallelize_module"
        )
    if device is not None or checkpoint is not None:
        raise OptionError(
            "center=, variance= and target_std='auto' need a model in memory, and write no checkpoint: give it memory first "
            "(model.to_empty(device=…)), and leave device= and checkpoint= out"
        )


def _is_sharded(model: nn.Module) -> bool:
    return any(sharded.is_sharded(p) for p in model.parameters())


def _check_alone(model: nn.Module, ranks: Ranks, batches: int) -> None:
    """A checkpoint is written by one process, which holds all of the model.

    Raises:
        OptionError: there are several, or a sharded model, or several batches.
        ModelError: a weight has no shape yet.
    """
    if (name := shapeless(model)) is not None:
        raise ModelError(
            f"{name!r} is lazy, it has no shape yet, by which an interrupted call would know its model again: run a batch "
            "through the model first, or leave checkpoint= out"
        )
    if ranks.size > 1 or _is_sharded(model):
        raise OptionError(
            f"a checkpoint is for one process and a model that is not sharded; there {'is' if ranks.size == 1 else 'are'} "
            f"{ranks.size}: leave checkpoint= out, or let process 0 initialize the model with distributed=False before it is "
            "sharded, and the others load the folder"
        )
    if batches > 1:
        raise OptionError(f"a checkpoint is for an initialization by one batch; got batches={batches}")


def _first_pass(
    make: Callable[[], Scaling],
    run: Callable[[Scaling], None],
    ranks: Ranks,
    starting_again: Callable[[], AbstractContextManager[None]],
) -> Scaling:
    """The pass that draws and scales; once more from the start if the processes did not come to operators in one order."""
    for attempt in range(_MOST_ATTEMPTS):
        scaling, careful = make(), ranks.careful
        try:
            with starting_again() if ranks.size > 1 else nullcontext():
                run(scaling)
        except MismatchError:
            if careful and attempt == _MOST_ATTEMPTS - 1:
                break  # the weights are the same everywhere, if some are not of all data
        else:
            break
    return scaling


@contextmanager
def _starting_again(model: nn.Module, undo: guard.Undo, randomness: guard.Randomness) -> Iterator[None]:
    """Begin as a first attempt does."""
    undo.restore()
    randomness.begin_forward()
    with guard.restored(model):
        yield


def _run(model: nn.Module, ranks: Ranks, call: Call, memory: Materializer | None, scaling: Scaling) -> None:
    """One forward pass, in which weights are scaled: with all other processes, whatever becomes of it in this one."""
    sharded.reshard(model)
    failure: BaseException | None = None
    try:
        with (
            guard.batch_kept(call.tensors()) as about_to_write,
            guard.gradients_aside(model.parameters()),
        ):
            seen = intercept(
                model, scaling, scaling.prepare, memory or None, remember=scaling.remember, about_to_write=about_to_write
            )
            scaling.begin(seen.weights)
            if memory is not None:
                memory.begin(scaling, seen.weights)
            with (
                noted_calls(model, scaling.called),
                scaling.explained(call),
                ranks.explained(),
                ranks.meeting(scaling.adopt),
                seen,
            ):
                call(model)
    except BaseException as error:
        failure = error
        raise
    finally:
        sharded.reshard(model)
        ranks.end(failure, scaling.adopt)


def _no_state_of(passes: Sequence[tuple[Scaling, Call]]) -> Callable[[Tensor], bool]:
    """Whether a tensor has no axis of the samples of the last of these passes, or was computed from parameters alone in it."""

    def stays(tensor: Tensor) -> bool:
        if not passes:
            return True
        scaling, call = passes[-1]
        samples = {len(x) for _, x in call.tensors() if x.dim()}
        return not samples & set(tensor.shape) or scaling.weights is None or scaling.weights.constant(tensor)

    return stays


def _refuse_nothing_reached(model: nn.Module, records: Sequence[Record], call: Call) -> None:
    if all(record.status == "unused" for record in records):
        if call.is_empty:
            raise DataError(f"the batch is empty: {call}")
        raise ModelError(
            f"no linear operator was reached: the forward of {type(model).__name__} called none of linear, conv, bilinear, "
            f"matmul, einsum, addmm with one of its parameters (it was given {call})"
        )


def _pooled(record: Record, swept: Swept, key: Key) -> Record:
    """A record with what sweeps added to it."""
    if key not in swept.stds:
        return record
    std, factor = swept.stds[key], record.factor * swept.factors[key]
    return replace(record, std_after=std, factor=factor, uses=(std, *record.uses[1:]), spread=swept.spreads[key])


def _warn(report: Report, batches: int, swept: Swept, *, one_sample: bool, of_samples: bool, unknown: Iterable[str]) -> None:
    """Of patterns that mean nothing, of weights that should be at their target and are not, of data that were not there."""
    for text in unknown:
        warnings.warn(f"lsuv_: {text}", GoodinitWarning, stacklevel=4)
    failed = [record for record in report if not record.ok]
    if failed:
        shown = "; ".join(f"{r.name!r} is {r.status} ({STATUSES[r.status]})" for r in failed[:5])
        more = f"; and {len(failed) - 5} more, see the report" if len(failed) > 5 else ""
        warnings.warn(f"lsuv_: {shown}{more}", GoodinitWarning, stacklevel=4)
    elif of_samples:
        text = f"lsuv_: the batch was one item of the data, {report.batch}, which looks like a single sample"
        warnings.warn(f"{text}. Pass DataLoader(data, batch_size=64), or torch.stack(data)", GoodinitWarning, stacklevel=4)
    elif one_sample:
        text = (
            f"lsuv_: the batch is one sample, or the same one several times ({report.batch}); stds are those of its outputs alone"
        )
        warnings.warn(f"{text}. Give it different samples, some dozens at best", GoodinitWarning, stacklevel=4)
    if swept.sweeps and swept.fewest < batches:
        had = f"{swept.fewest}" if swept.fewest == swept.batches else f"{swept.fewest} to {swept.batches} in the processes"
        warnings.warn(f"lsuv_: batches={batches} was asked for, the data had {had}", GoodinitWarning, stacklevel=4)
    if not swept.converged:
        stds = {r.name: (r.std_after, r.target) for r in report if r.spread is not None and r.std_after is not None}
        worst = max(stds, key=lambda name: abs(stds[name][0] / stds[name][1] - 1))
        std, target = stds[worst]
        warnings.warn(
            f"lsuv_: after {swept.sweeps} sweeps {worst!r} has the std {std:.4g} over all batches, its target is {target:.4g}; a "
            "larger tol, or larger batches, would do",
            GoodinitWarning,
            stacklevel=4,
        )
