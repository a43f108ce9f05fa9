"""From samples to the batches that a model takes: which tensor is which argument, of which type, in which rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from goodinit.batches import shape_and_dtype
from goodinit.command.samples import ROWS, Samples, Wanted
from goodinit.command.sources import read_samples
from goodinit.errors import DataError, OptionError

Batch = tuple[Tensor, ...] | dict[str, Tensor]
# What tensors are called that hold what a model should say.
_LABELS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Inputs:
    """Batches for a model."""

    batches: tuple[Batch, ...]
    labels: Tensor | None
    """Of the first batch, if the samples hold any that the model does not take itself."""
    text: str
    """What was read, and what became of it."""

    @property
    def data(self) -> Any:
        """As `goodinit.lsuv_` takes it."""
        return self.batches[0] if len(self.batches) == 1 else list(self.batches)

    @property
    def hints(self) -> tuple[str, ...]:
        """What may be the matter where the model cannot take them."""
        batch = self.batches[0]
        if any(tensor.dtype == torch.uint8 for tensor in (batch.values() if isinstance(batch, dict) else batch)):
            return ("uint8 are pixels as they lie in a file; a model takes them as floats: save (x - x.mean()) / x.std()",)
        return ()


def read_inputs(
    source: str, model: nn.Module, *, batches: int, batch_size: int | None, seed: int, image_size: int | None = None
) -> Inputs:
    """Read samples, and make them batches that the model takes.

    Of a file without a batch size every row is used; all other rows are drawn at random.

    Args:
        source: see `goodinit.command.sources.read_samples`.
        model: whose forward's parameters and floating-point type count.
        batches: how many.
        batch_size: rows in each; by default all rows of a file, and 64 of all else.
        seed: of what is drawn.
        image_size: height and width to bring images to.

    Raises:
        OptionError: there is no such thing, or of a kind that is not read; numbers that cannot be meant.
        DataError: it cannot be read; it has not what the model's forward needs; NaN or infinity in it.
    """
    for option, value in {"--batches": batches, "--batch-size": batch_size, "--image-size": image_size}.items():
        if value is not None and value < 1:
            raise OptionError(f"{option} must be 1 or more; got {value}")
    samples = read_samples(source, Wanted(batches * (batch_size or ROWS), seed, image_size), model)
    names = _arguments(samples, model)
    rest = [name for name in samples.tensors if name not in names.values()]
    labels = next((name for name in rest if name in _LABELS or (samples.ordered and len(rest) == 1)), None)
    used = {name: samples.tensors[name] for name in [*names.values(), *([labels] if labels else [])]}
    for name, tensor in used.items():
        _refuse_non_finite(source, name, tensor)
    typed, note = _typed(used, model)
    parts = _parts(typed, batches, batch_size, seed)
    made = tuple(_batch(names, part) for part in parts)
    drawn = _drawn(typed, parts, batches, batch_size)
    told = [f"{name} (the labels)" if name == labels and name not in _LABELS else name for name in rest]
    left_out = f"; not given to the model: {', '.join(told)}" if rest else ""
    return Inputs(made, parts[0][labels] if labels else None, f"{samples.text}{note}{drawn}{left_out}")


def _arguments(samples: Samples, model: nn.Module) -> Mapping[str | int, str]:
    """The names of the tensors to pass, by the name or the position of the argument."""
    parameters = inspect.signature(model.forward).parameters.values()
    variable = {p.kind for p in parameters} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    fixed = [p for p in parameters if p.kind not in variable]
    required = [p.name for p in fixed if p.default is p.empty]
    tensors = list(samples.tensors)
    inputs = [name for name in tensors if name not in _LABELS]
    matching: dict[str | int, str] = {p.name: p.name for p in fixed if p.name in tensors and p.kind is not p.POSITIONAL_ONLY}
    if matching and matching.keys() >= set(required):
        return matching
    if samples.ordered and not matching and len(tensors) >= len(required):
        return dict(enumerate(tensors[: max(1, len(required))]))
    if len(inputs) == 1 and not matching and len(required) <= 1:
        return {0: inputs[0]}
    if inspect.Parameter.VAR_KEYWORD in variable and not required:
        return {name: name for name in tensors}
    takes = ", ".join(required or [p.name for p in fixed]) or "no argument"
    raise DataError(
        f"{samples.text} holds {_described(samples.tensors)}; the forward of {type(model).__name__} takes {takes}: give the "
        f"tensors these names, as in numpy.savez('batch.npz', {(required or ['x'])[0]}=…)"
    )


def _described(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {shape_and_dtype(t)}" for name, t in tensors.items())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _typed(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Floating-point tensors in the one floating-point type of the model, and a note on what was changed."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    others = {t.dtype for t in tensors.values() if t.is_floating_point()} - types
    if len(types) != 1 or not others:
        return dict(tensors), ""
    (wanted,) = types
    typed = {name: t.to(wanted) if t.is_floating_point() else t for name, t in tensors.items()}
    return typed, f", {' and '.join(sorted(map(_name, others)))} made {_name(wanted)} as the weights"


def _refuse_non_finite(source: str, name: str, tensor: Tensor) -> None:
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise DataError(
            f"{source}: {bad} of the {tensor.numel()} values of {name!r}, shape {tuple(tensor.shape)}, are NaN or infinity; look "
            "for a division by a zero std or for missing values in what made it"
        )


def _parts(tensors: dict[str, Tensor], batches: int, batch_size: int | None, seed: int) -> list[dict[str, Tensor]]:
    """The rows of each batch; all of them for one batch of no size. Fewer batches than asked for if the rows do not suffice."""
    if batch_size is None and batches == 1:
        return [tensors]
    counts = {name: len(t) if t.dim() else 0 for name, t in tensors.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"--batches and --batch-size take rows of every tensor, so all must have equally many; got {_described(tensors)}"
        )
    count = next(iter(counts.values()))
    size = min(count, batch_size or max(1, count // batches))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [{name: t[rows] for name, t in tensors.items()} for rows in order.split(size)[: min(batches, count // size)]]


def _drawn(tensors: Mapping[str, Tensor], parts: list[dict[str, Tensor]], batches: int, batch_size: int | None) -> str:
    """How many batches of how many rows, where it is not one batch of all rows as asked for."""
    counts = {part: len(t) if t.dim() else 1 for part, t in parts[0].items()}
    size, rows = next(iter(counts.values())), len(next(iter(tensors.values()))) if batch_size or batches > 1 else 0
    if not rows or (len(parts) == batches == 1 and size == rows == batch_size):
        return ""
    wanted = [f"--batches {batches}"] if len(parts) < batches else []
    wanted += [f"--batch-size {batch_size}"] if batch_size is not None and size < batch_size else []
    few = f", too few for {' and '.join(wanted)}" if wanted else ""
    return f"; {len(parts)} batch{'' if len(parts) == 1 else 'es'} of {size} of {rows} rows{few}"


def _batch(names: Mapping[str | int, str], part: Mapping[str, Tensor]) -> Batch:
    if all(isinstance(key, int) for key in names):
        return tuple(part[name] for name in names.values())
    return {str(key): part[name] for key, name in names.items()}
