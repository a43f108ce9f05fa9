"""Beyond the std over everything: std by channel or between samples, and every channel's mean moved into the bias.

An operator's output z is linear in its weight, and its bias adds to every channel. So in the middle of a forward pass channels
can be scaled one by one, through the rows of the weight, and centred, through the bias; everything downstream sees what a second
pass would show it. The factor comes from the statistics of groups of elements: of a channel, or of a feature (a channel at a
position) over the samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from goodinit.interception.covered import Covered
from goodinit.interception.operation import Channels, Operation, Part
from goodinit.interception.transforms import is_wrapped
from goodinit.interception.weights import Weight
from goodinit.ledger import Outcome
from goodinit.moments import widest
from goodinit.options import Options
from goodinit.outputs import Statistic, merged, statistic

# Elements read at once, and copied less their mean.
_CHUNK = 1 << 17
_CHUNK_GPU = 1 << 24


@dataclass(frozen=True)
class Shift:
    """The mean that a bias gave every channel."""

    bias: Tensor
    by: Tensor

    @torch.no_grad()
    def undo_(self) -> None:
        """Bring it to 0."""
        self.bias.sub_(self.by)
        torch.clear_autocast_cache()


@dataclass(frozen=True)
class Rule:
    """How one output is measured and scaled."""

    groups: Literal["channels", "samples"] | None
    """A group of elements is a channel, or a feature over all samples. None: all elements are one group."""
    channels: Channels | None
    by_channel: bool = False
    """Whether each channel gets a factor of its own."""
    bias: Weight | None = None
    """Where the means go; None: nowhere."""
    mean: float = 0.0
    """What they become, in units of the target std."""
    note: str = ""
    """What could not be done as it was asked for."""
    samples: int | None = None
    """The axis of the output that counts the samples; None if there is none."""

    def measured(self, part: Part) -> Statistic:
        """The statistics of an output; mean and M2 have an element a group."""
        if self.groups is None:
            return statistic(part)
        z = part.z
        if self.groups == "samples":
            found = grouped(z, () if self.samples is None else (self.samples,))
            if self.samples is None:
                return found
            # With the axis, so that channels lie where they do in the output.
            return found._replace(mean=found.mean.unsqueeze(self.samples), m2=found.m2.unsqueeze(self.samples))
        assert self.channels is not None
        kept = z.dim() + self.channels.output_axis
        return grouped(z, tuple(axis for axis in range(z.dim()) if axis != kept))

    def std(self, found: Statistic) -> Tensor:
        """One number: the root of the variances averaged."""
        return found.std if self.groups is None else found.var.mean().sqrt()

    def channel_means(self, found: Statistic) -> Tensor:
        """The mean of every channel."""
        if self.groups != "samples":
            return found.mean
        assert self.channels is not None
        others = [axis for axis in range(-found.mean.dim(), 0) if axis != self.channels.output_axis]
        return found.mean.mean(others) if others else found.mean

    @torch.no_grad()
    def apply_(self, part: Part, found: Statistic, target: float) -> tuple[Outcome, Shift | None]:
        """Scale the weight and the output, and move the means into the bias, which is still to be added to the output."""
        assert self.groups is not None
        info, largest = torch.finfo(part.z.dtype), torch.finfo(part.weight.tensor.dtype).max ** 0.5
        smallest = (found.mean.abs().max() * (4 if info.bits >= 32 else 1) * info.eps).clamp_min(target / largest)
        stds, before = found.var.sqrt(), self.std(found)
        std = stds if self.by_channel else before
        alive = std > smallest
        factor = torch.where(alive, target / std, 1.0)
        if self.by_channel:
            assert self.channels is not None
            part.weight.scale_(self.channels.of_weight(factor, part.weight.tensor))
            part.z.mul_(self.channels.of_output(factor).to(part.z.real.dtype))
        else:
            part.weight.scale_(factor)
            part.z.mul_(factor)
        shift: Shift | None = None
        if self.bias is not None:
            assert part.bias is not None
            shape, mean = part.bias.shape, self.mean * target
            means = (mean - factor * self.channel_means(found)).view(shape)
            moved = alive.view(shape) if self.by_channel else alive
            part.bias.copy_(torch.where(moved, means, part.bias))
            torch.clear_autocast_cache()
            shift = Shift(part.bias, moved * mean)
        any_alive = alive.any()
        outcome = Outcome(
            before,
            factor.mean(),
            alive=any_alive,
            scaled=any_alive,
            seen=found.seen,
            dead=(~alive).sum() if self.by_channel else None,
            note=self.note,
        )
        return outcome, shift


class Rules:
    """Finds the rule of every output, from what the caller asked for and what the operator allows."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._variance = options.variance
        self._center = options.center
        self._biases = Covered()

    @property
    def plain(self) -> bool:
        """Whether all outputs are measured as the paper does."""
        return self._options.plain

    def hold(self, bias: Weight) -> bool:
        """Whether an output's means are in a bias, or in a part of it."""
        return bias in self._biases

    def of(self, operation: Operation, part: Part, *, changed: bool) -> Rule:
        """The rule of an output. ``changed``: whether its weight and bias may be."""
        if self.plain:
            return Rule(None, None)
        notes: list[str] = []
        channels = (
            operation.channels if operation.channels is not None and -operation.channels.output_axis <= part.z.dim() else None
        )
        bias = self._bias(operation, part, channels, notes) if self._center and changed else None
        by_channel = self._variance == "channels" and channels is not None
        if self._variance == "channels" and channels is None:
            notes.append("no axis of channels: scaled as a whole")
        elif by_channel and not part.weight.divisible:
            by_channel = False
            notes.append("computed from parameters: scaled as a whole")
        groups: Literal["channels", "samples"] | None = "channels" if by_channel or bias is not None else None
        if self._variance == "samples":
            groups = "samples"
        samples = _samples(operation, part.z)
        return Rule(groups, channels, by_channel and changed, bias, self._options.target_mean, "; ".join(notes), samples)

    def _bias(self, operation: Operation, part: Part, channels: Channels | None, notes: list[str]) -> Weight | None:
        """The bias that the means can be moved into; None if there is none, and why."""
        bias = operation.bias_weight
        if bias is None or part.bias is None:
            notes.append("not centred: no bias")
        elif not bias.parameter.requires_grad or self._options.skips(bias.name):
            notes.append("not centred: its bias is to stay as it is")
        elif not bias.divisible or is_wrapped(part.bias):
            notes.append("not centred: its bias is computed from parameters")
        elif bias.part(part.bias) in self._biases:
            notes.append("not centred: its bias was used before")
        elif channels is None or part.bias.numel() != part.z.shape[channels.output_axis] or not _along(part.bias, channels):
            notes.append("not centred: its bias is not one number a channel")
        else:
            self._biases.add(bias.part(part.bias))
            return bias
        return None


def _samples(operation: Operation, z: Tensor) -> int | None:
    """The first axis of an output that counts neither matrices side by side (experts) nor channels."""
    apart = {z.dim() + cut.output_axis for cut in operation.cuts if cut.sizes is None}
    channel = None if operation.channels is None else z.dim() + operation.channels.output_axis
    if channel == 0 and operation.kind.startswith("conv"):  # one image without a batch: what follows are its positions
        return None
    return next((axis for axis in range(z.dim()) if axis not in apart and axis != channel), None)


def _along(bias: Tensor, channels: Channels) -> bool:
    """Whether a bias lies along the axis of the channels."""
    return bias.dim() >= -channels.output_axis and bias.shape[channels.output_axis] == bias.numel()


def grouped(z: Tensor, over: tuple[int, ...]) -> Statistic:
    """Statistics over some axes of ``z``, (n, mean, M2) in float64, the latter two with the other axes; in chunks."""
    z, n = z.detach(), 1  # as in `moments`
    for axis in over:
        n *= z.shape[axis]
    kept = [size for axis, size in enumerate(z.shape) if axis not in over]
    wide = widest(z.device)
    if not over or not z.numel():
        mean = z.reshape(kept) if z.numel() else z.new_zeros(kept)
        mean = mean.to(torch.promote_types(z.dtype, wide))
        return Statistic(n if z.numel() else 0, mean, torch.zeros_like(mean.real))
    longest = max(over, key=lambda axis: z.shape[axis])
    size = _CHUNK if z.device.type == "cpu" else _CHUNK_GPU
    found: Statistic | None = None
    for chunk in z.detach().split(max(1, size * z.shape[longest] // z.numel()), longest):
        part = _of_chunk(chunk, over, wide)
        found = part if found is None else merged(found, part)
    assert found is not None
    return found


def _of_chunk(chunk: Tensor, over: tuple[int, ...], wide: torch.dtype) -> Statistic:
    work = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
    mean = work.mean(over, keepdim=True)
    away = work - mean
    square = away.abs().square_() if away.is_complex() else away.square_()
    n = chunk.numel() // max(1, mean.numel())
    shape = [size for axis, size in enumerate(chunk.shape) if axis not in over]
    mean = mean.reshape(shape)
    return Statistic(n, mean.to(torch.promote_types(mean.dtype, wide)), square.sum(over).to(wide))
