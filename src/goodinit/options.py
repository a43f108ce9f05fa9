"""What the caller asked for, checked before anything runs: targets, what to skip, how to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from goodinit.errors import ModelError, OptionError, did_you_mean, is_number
from goodinit.interception.weights import Weight, matches, parameter_name
from goodinit.processes import sharded

PreInit = Literal["orthonormal", "structured"] | Callable[[Tensor], object] | None
Targets = float | Mapping[str, float]
Variance = Literal["all", "samples", "channels"]
PRE_INITS = ("orthonormal", "structured")
VARIANCES = ("all", "samples", "channels")
Reset = Callable[[nn.Module], object]
"""Gives the tensors of a module, but not of those inside it, their first values."""


@dataclass(frozen=True)
class Options:
    """How to treat each weight."""

    target_std: Targets
    pre_init: PreInit
    skip: tuple[str, ...]
    variance: Variance = "all"
    center: bool = False
    target_mean: float = 0.0
    head: tuple[str, float] | None = None
    """The weight that makes the model's output, and the largest std that this is to have: what ``"auto"`` adds."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """All names of the parameters that have several (tied, or in a module that stands in two places), by the first of them."""

    @classmethod
    def checked(
        cls,
        model: nn.Module,
        target_std: Targets,
        pre_init: PreInit,
        skip: str | Iterable[str],
        mode: str = "train",
        *,
        batches: int = 1,
        tol: float = 0.01,
        variance: Variance = "all",
        center: bool = False,
        target_mean: float = 0.0,
    ) -> Options:
        """Options that can be meant.

        Raises:
            ModelError: it was made in inference mode.
            OptionError: a target that is not a positive number, an unknown ``pre_init``, ``mode`` or ``variance``, a pattern
                without a match, a number of batches or a tolerance that cannot be meant.
        """
        if mode not in ("train", "eval"):
            raise OptionError(f"mode must be 'train' or 'eval'; got {mode!r}")
        if not is_number(batches, Integral) or batches < 1:
            raise OptionError(f"batches must be an integer, 1 or more; got {batches!r}")
        if not is_number(tol) or not 0 < tol < 1:
            raise OptionError(f"tol must be between 0 and 1; got {tol!r}")
        _refuse_inference(model)
        _check_measure(variance, center, target_mean, batches)
        if not isinstance(skip, (str, Iterable)):
            raise OptionError(f"skip must be a pattern such as 'head*', or several: ['head*', 'embed']; got {skip!r}")
        skip = (skip,) if isinstance(skip, str) else tuple(skip)
        targets = target_std if isinstance(target_std, Mapping) else {"*": target_std}
        for value in targets.values():
            if not is_number(value) or not 0 < value < float("inf"):
                raise OptionError(
                    f"target_std must be a positive number or a mapping from patterns to such, or 'auto'; got {value!r}"
                )
        if not (pre_init is None or pre_init in PRE_INITS or callable(pre_init)):
            raise OptionError(
                f"pre_init must be {', '.join(map(repr, PRE_INITS))}, None or a function that fills a tensor, such as "
                f"torch.nn.init.normal_; got {pre_init!r}{did_you_mean(str(pre_init), PRE_INITS)}"
            )
        _check_patterns(model, "skip", skip)
        _check_patterns(model, "target_std", targets)
        return cls(target_std, pre_init, skip, variance, center, float(target_mean), names=_all_names(model))

    @property
    def plain(self) -> bool:
        """Whether outputs are measured as in the paper."""
        return self.variance == "all" and not self.center

    def __str__(self) -> str:
        """The same in every process."""
        pre_init = getattr(self.pre_init, "__qualname__", type(self.pre_init)) if callable(self.pre_init) else repr(self.pre_init)
        return f"target_std={self.target_std}, pre_init={pre_init}, skip={self.skip}"

    def target(self, name: str) -> float:
        """The std that the output of this weight should have."""
        target = next((float(v) for pattern, v in self._targets().items() if self._means(pattern, name)), 1.0)
        return min(target, self.head[1]) if self.head is not None and self.head[0] == name else target

    def skips(self, name: str) -> bool:
        """Whether a pattern of ``skip`` means this parameter."""
        return any(self._means(pattern, name) for pattern in self.skip)

    def _means(self, pattern: str, name: str) -> bool:
        """Whether a pattern means a weight, by any of its names."""
        whole = parameter_name(name)
        label = name[len(whole) :]
        return any(matches(each + label, pattern) for each in self.names.get(whole, (whole,)))

    def left_alone(self, weight: Weight) -> str | None:
        """The status of a weight that is not to be changed; None for one that is.

        A weight that an embedding reads too (a tied head) is changed only if a pattern of ``target_std`` asks for it.
        """
        if self.keeps(weight):
            return "skipped" if self.skips(weight.name) else "frozen"
        return "tied" if weight.embedded and not self.asks_for(weight) else None

    def keeps(self, weight: Weight) -> bool:
        """Whether a parameter is to stay as it is, a bias too: by the caller's wish, or because it is frozen."""
        return not weight.parameter.requires_grad or self.skips(weight.name)

    def asks_for(self, weight: Weight) -> bool:
        """Whether a pattern of ``target_std`` means this weight."""
        return isinstance(self.target_std, Mapping) and any(self._means(p, weight.name) for p in self.target_std)

    def unknown_parts(self, used: Sequence[str]) -> Iterator[str]:
        """Patterns of ``target_std`` that name a part where none that was used has this name: known when the pass is over."""
        for pattern in self._targets():
            whole = parameter_name(pattern)
            parts = [name for name in used if whole in self.names.get(parameter_name(name), (parameter_name(name),))]
            if pattern != whole and parts and not any(self._means(pattern, name) for name in used):
                near = did_you_mean(pattern, parts)
                yield (
                    f"target_std: the pattern {pattern!r} matches no part of {whole!r} that was used{near}; the report has "
                    f"{', '.join(parts[:8])}{', …' if len(parts) > 8 else ''}"
                )

    def _targets(self) -> Mapping[str, float]:
        return self.target_std if isinstance(self.target_std, Mapping) else {"*": self.target_std}


def _all_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = (*names.get(id(parameter), ()), name)
    return {known[0]: known for known in names.values() if len(known) > 1}


def _check_measure(variance: str, center: object, mean: float, batches: int) -> None:
    if variance not in VARIANCES:
        raise OptionError(
            f"variance must be 'all', 'samples' or 'channels'; got {variance!r}{did_you_mean(str(variance), VARIANCES)}"
        )
    if not isinstance(center, bool):
        raise OptionError(f"center must be True or False; got {center!r}. target_mean= takes a number")
    if not is_number(mean) or not math.isfinite(mean):
        raise OptionError(f"target_mean must be a number; got {mean!r}")
    if mean and not center:
        raise OptionError(f"target_mean={mean!r} is what center=True brings the channels' means to; got center=False")
    if batches > 1 and (center or variance != "all"):
        asked = "center=True" if center else f"variance={variance!r}"
        raise OptionError(f"{asked} measures one batch; got batches={batches}. A larger batch does the same")


def _refuse_inference(model: nn.Module) -> None:
    made = next((name for name, p in model.named_parameters() if not is_lazy(p) and p.is_inference()), None)
    if made is not None:
        raise ModelError(
            f"{made!r} was made inside torch.inference_mode(), so it can neither be initialized nor trained; "
            "make the model outside"
        )


def check_model(model: object, *, meta: bool = False) -> None:
    """Refuse what no forward pass could initialize; ``meta``: whether weights may be on the meta device.

    Raises:
        ModelError: not a module, no parameters, TorchScript, or weights on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    scripted = next((name or "the model" for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)), None)
    if scripted is not None:
        raise ModelError(
            f"{scripted} is TorchScript, whose operators cannot be reached from Python; initialize the module before "
            "torch.jit.script or torch.jit.trace"
        )
    if sharded.has_flat_parameters(model):
        raise ModelError(
            "FullyShardedDataParallel keeps weights as pieces of flat parameters, which cannot be initialized: do so before "
            "wrapping the model, or use torch.distributed.fsdp.fully_shard"
        )
    if next(model.parameters(), None) is None:
        raise ModelError(f"{type(model).__name__} has no parameters, so there is nothing to initialize")
    unformed = next((name for name, p in model.named_parameters() if p.is_meta and is_lazy(p)), None)
    if unformed is not None:
        raise ModelError(
            f"{unformed!r} is on the meta device, and lazy: it has neither memory nor a shape. Make the model on a real device, "
            "or with layers that are not lazy"
        )
    without = [name for name, p in model.named_parameters() if p.is_meta]
    if without and not meta:
        raise ModelError(
            f"{len(without)} parameters are on the meta device and hold no numbers, {without[0]!r} the first; lsuv_(model, data, "
            "device='cpu') gives them memory as it goes, model.to_empty(device='cpu') does at once"
        )


def _check_patterns(model: nn.Module, option: str, patterns: Iterable[str]) -> None:
    known = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise OptionError(f"{option}: patterns are strings such as 'head*'; got {pattern!r}")
        if option == "target_std" and pattern not in known and parameter_name(pattern) in known:
            continue  # a part of one: see `Options.refuse_unknown_parts`
        if not any(matches(name, pattern) for name in known):
            near = [*known, *(name for name, _ in model.named_modules() if name)]
            raise OptionError(
                f"{option}: the pattern {pattern!r} matches no parameter and no module of {type(model).__name__}"
                f"{did_you_mean(pattern, near)}. Patterns are shell-style: 'head', 'layers.*', '*.attn.*'"
            )
