"""The initializations that the paper compares, for whole models: `init_`.

Each of them but LSUV follows from the shape of a weight alone. torch.nn.init does the drawing where it has the scheme.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from goodinit import gradients, guard
from goodinit.batches import Forward, first_call
from goodinit.errors import ModelError, OptionError, did_you_mean
from goodinit.interception.computed import Sources
from goodinit.interception.intercept import intercept, layers, module_operations
from goodinit.interception.operation import Layout, Operation
from goodinit.lsuv import lsuv_
from goodinit.meta import whole
from goodinit.options import Options, check_model
from goodinit.orthonormal import orthonormal_
from goodinit.processes import sharded
from goodinit.processes.ranks import Ranks
from goodinit.report import Report
from goodinit.scaling import Scaling

Scheme = Literal[
    "default",
    "lecun",
    "glorot",
    "he",
    "orthonormal",
    "orthonormal-he",
    "delta-orthogonal",
    "lsuv",
    "lsuv-gaussian",
    "random-walk",
]
Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "selu"]
# Fills a matrix given as (out, in…), with random numbers of torch's global generator.
Fill = Callable[[Tensor], object]

LSUV: dict[str, Literal["orthonormal"] | Fill] = {"lsuv": "orthonormal", "lsuv-gaussian": nn.init.normal_}
SCHEMES: tuple[str, ...] = get_args(Scheme)

# Names that torch.nn.init and other libraries have for them.
_ELSEWHERE = {"kaiming": "he", "xavier": "glorot", "orthogonal": "orthonormal"}


@gradients.if_needed
def init_(
    model: nn.Module,
    scheme: Scheme,
    data: Any = None,
    *,
    nonlinearity: Nonlinearity = "relu",
    gain: float = 1.0,
    forward: Forward | None = None,
    skip: str | Iterable[str] = (),
    generator: torch.Generator | None = None,
    distributed: bool = True,
) -> Report:
    """Initialize all weights of ``model`` in place by one of the schemes that the paper compares; biases become 0.

    With n_in and n_out the numbers of a weight's inputs and outputs (of a convolution: channels of its group times positions
    of the kernel), Q an orthonormal matrix drawn uniformly, N(0, s^2) a Gaussian and U(-a, a) a uniform distribution:

    ======================  =================================================================  ======================
    scheme                  weight                                                             source
    ======================  =================================================================  ======================
    ``"default"``           what PyTorch's own layers start with, biases too: U(-a, a),        ``reset_parameters``
                            a = 1 / sqrt(n_in) for linear layers and convolutions
    ``"lecun"``             U(-a, a), a = sqrt(3 / n_in): Caffe's filler "xavier"              LeCun et al. 1998
    ``"glorot"``            U(-a, a), a = sqrt(6 / (n_in + n_out))                             Glorot & Bengio 2010
    ``"he"``                N(0, g^2 / n_in), g = sqrt(2) for ReLU                             He et al. 2015
    ``"orthonormal"``       Q                                                                  Saxe et al. 2014
    ``"orthonormal-he"``    Q times the factor that gives its elements the variance of He's    Mishkin & Matas 2016
    ``"delta-orthogonal"``  Q at the middle of a convolution's kernel, 0 elsewhere; Q for      Xiao et al. 2018
                            other weights
    ``"lsuv"``              `goodinit.lsuv_`: Q, then unit std of every output on ``data``     Mishkin & Matas 2016
    ``"lsuv-gaussian"``     the same with N(0, 1) for Q                                        Mishkin & Matas 2016
    ``"random-walk"``       N(0, g^2 / n_in), g = exp(1 / (2 n_in)) for linear layers,         Sussillo & Abbott 2014
                            sqrt(2) exp(1.2 / (max(n_in, 6) - 2.4)) for ReLU
    ======================  =================================================================  ======================

    The paper's "Xavier" was Caffe's filler of that name, ``"lecun"`` here; it is ``"glorot"`` where n_in = n_out.

    Args:
        model: any module.
        scheme: its name.
        data: a batch, or where to get one, as for `goodinit.lsuv_`; LSUV needs it. The other schemes do without: they find
            the weights of torch's layers (Linear, Bilinear, convolutions, MultiheadAttention, LSTM, GRU, RNN). With data a
            forward pass finds those of operators too (``x @ self.w``, GPT-2's ``Conv1D``).
        nonlinearity: what follows the layers, for the schemes that depend on it: ``"linear"``, ``"sigmoid"``, ``"tanh"``,
            ``"relu"`` or ``"selu"``, with the gain of torch.nn.init.calculate_gain; for ``"random-walk"`` ``"relu"`` or
            ``"linear"``. The paper has ReLU's factor for all non-linearities.
        gain: factor on the drawn weights; not for ``"default"`` and LSUV.
        forward: as for `goodinit.lsuv_`.
        skip: shell-style patterns of weights to leave as they are, as for `goodinit.lsuv_`.
        generator: source of the random numbers; torch's global one by default.
        distributed: whether all processes of torch.distributed take part, if there are any: all of them call this, and draw
            the same weights, whatever their seeds are. LSUV measures over the data of all of them.

    Returns:
        A `Report` with one record a weight, status ``drawn`` if the scheme filled it; for LSUV that of `goodinit.lsuv_`.

    Raises:
        OptionError: an unknown scheme, a pattern without a match, a gain or nonlinearity that the scheme does not have.
        DataError: no data for LSUV; otherwise see `goodinit.lsuv_`.
        ModelError: not a module; no layer of torch's in it and no data to find operators with; a layer whose weight is not to be
            reached without a forward pass.
        Exception: whatever the model's forward raises.
        BaseException: whatever it is, the model is exactly as before.

    Source:
        Mishkin & Matas, "All you need is a good init", ICLR 2016, arXiv 1511.06422, section 4.

    >>> net = nn.Sequential(nn.Linear(500, 100), nn.ReLU(), nn.Linear(100, 10))
    >>> print(init_(net, "he")["0.weight"].status, round(net[0].weight.std().item() * 500**0.5, 1))
    drawn 1.4
    """
    check_model(model)
    _check(scheme, nonlinearity, gain)
    if scheme in LSUV:
        return lsuv_(model, data, pre_init=LSUV[scheme], forward=forward, skip=skip, generator=generator, distributed=distributed)
    start = time.perf_counter()
    ranks = Ranks(model, distributed=distributed)
    with ranks.together():
        options = Options.checked(model, 1.0, _fill(scheme, nonlinearity, gain), skip)
        undo, randomness, alone = guard.Undo(), guard.Randomness(generator), Ranks(model, distributed=False)
    randomness.follow(ranks.gathered(randomness.number())[0])  # whatever their seeds are
    with guard.all_or_nothing(undo), randomness.preserved(model), guard.restored(model):
        drawing = (_Default if scheme == "default" else _Drawing)(options, undo, randomness, alone)
        with torch.inference_mode(False), torch.set_grad_enabled(gradients.are_on()):
            passes = drawing.run(model, data, forward)
        return Report(drawing.ledger.records(), passes, time.perf_counter() - start, drawing.sampling_seconds)


def _check(scheme: str, nonlinearity: str, gain: float) -> None:
    if scheme not in SCHEMES:
        here = _ELSEWHERE.get(str(scheme).lower().partition("_")[0])
        hint = f", which is called {here!r} here" if here else did_you_mean(str(scheme).lower(), SCHEMES)
        raise OptionError(f"scheme must be one of {', '.join(SCHEMES)}; got {scheme!r}{hint}")
    if isinstance(gain, bool) or not isinstance(gain, (int, float)) or not 0 < gain < float("inf"):
        raise OptionError(f"gain must be a positive number; got {gain!r}")
    if gain != 1 and scheme in LSUV:
        raise OptionError(f"{scheme} measures the scale of the weights; got gain={gain}. lsuv_ has target_std=")
    if gain != 1 and scheme == "default":
        raise OptionError(f"default lets PyTorch's layers draw their weights, which know no gain; got gain={gain}")
    known = ("linear", "relu") if scheme == "random-walk" else ("linear", "sigmoid", "tanh", "relu", "selu")
    if nonlinearity not in known:
        raise OptionError(f"nonlinearity must be one of {', '.join(known)} for {scheme}; got {nonlinearity!r}")


def _fill(scheme: str, nonlinearity: Nonlinearity, gain: float) -> Fill:
    """The function that fills a matrix, with the gain applied."""
    he = nn.init.calculate_gain(nonlinearity)
    draws: dict[str, Fill] = {
        "lecun": lambda w: nn.init.uniform_(w, -math.sqrt(3 / _n_in(w)), math.sqrt(3 / _n_in(w))),
        "glorot": nn.init.xavier_uniform_,
        "he": lambda w: nn.init.kaiming_normal_(w, nonlinearity=nonlinearity),
        "orthonormal": orthonormal_,
        # Q's elements have the variance 1 / max(n_out, n_in), since Q has min(n_out, n_in) rows or columns of norm 1.
        "orthonormal-he": lambda w: orthonormal_(w, gain=he * math.sqrt(max(len(w), _n_in(w)) / _n_in(w))),
        "delta-orthogonal": _delta_orthogonal_,
        "random-walk": lambda w: nn.init.normal_(w, std=random_walk_gain(_n_in(w), nonlinearity) / math.sqrt(_n_in(w))),
        "default": lambda w: w,  # see `_Default`
    }
    draw = draws[scheme]

    def fill(weight: Tensor) -> None:
        draw(weight)
        if gain != 1:
            weight.mul_(gain)

    return fill


def _delta_orthogonal_(weight: Tensor) -> None:
    """Only the middle of the kernel is not 0: the convolution is one orthonormal matrix at every position."""
    if weight.dim() == 2:
        orthonormal_(weight)
        return
    middle = weight.zero_()
    for size in weight.shape[2:]:
        middle = middle.select(2, size // 2)
    middle.copy_(orthonormal_(torch.empty_like(middle, memory_format=torch.contiguous_format)))


def random_walk_gain(width: int, nonlinearity: str) -> float:
    """The factor g for which the log-norm of back-propagated errors is an unbiased random walk through the layers.

    Args:
        width: N, the number of a layer's inputs.
        nonlinearity: ``"linear"`` or ``"relu"``.

    Source:
        Sussillo & Abbott 2014, arXiv 1412.6558.
    """
    if nonlinearity == "linear":
        return math.exp(1 / (2 * width))
    return math.sqrt(2) * math.exp(1.2 / (max(width, 6) - 2.4))


def _n_in(weight: Tensor) -> int:
    return math.prod(weight.shape[1:])


class _Drawing(Scaling):
    """Stands in for every operator on a weight: draws the weight at its first use, and runs the operator as it is."""

    function = "goodinit.init_"

    def run(self, model: nn.Module, data: Any, forward: Forward | None) -> int:
        """Draw all weights; returns the number of forward passes."""
        call = None if data is None and forward is None else first_call(model, data, forward)
        with (
            guard.forward_mode(model, "train"),
            guard.batch_kept(() if call is None else call.tensors()) as about_to_write,
            intercept(model, self, self.prepare, remember=self.remember, about_to_write=about_to_write) as seen,
        ):
            self.begin(seen.weights)
            if call is not None:
                with self.explained(call):
                    call(model)
            # Inside of intercept, so that weights which torch.nn.utils.parametrizations computes are seen being computed.
            others = list(module_operations(model, seen.weights))
            self._refuse_what_was_not_found(model, seen.weights, len(self.ledger) + len(others), passed=call is not None)
        for operation in (*self._idle, *others):
            self.prepare(operation, "drawn")
        return int(call is not None)

    def _run(self, operation: Operation) -> Tensor:
        if operation.weight in self._covered:
            operation.weight.refresh()
        else:
            self.prepare(operation, "drawn")
        return operation.linear_part()

    def prepare(self, operation: Operation, status: str) -> None:
        """Draw a weight unless it is to be left alone; a recurrent one like any other."""
        super().prepare(operation, status if status == "unsupported" else "drawn")

    def _fill(self, pre_init: Any, layout: Layout, weight: Tensor, place: object) -> None:
        """Every matrix by itself: of a convolution's groups, of the gates of an LSTM, of query, key and value."""
        with self._randomness.as_global(place, weight.device):
            for matrix in layout.matrices(weight):
                for one in matrix.chunk(layout.groups):
                    pre_init(one)

    def _refuse_what_was_not_found(self, model: nn.Module, weights: Sources, found: int, *, passed: bool) -> None:
        for name, layer in layers(model):
            weight = getattr(layer, "weight", None)
            if isinstance(weight, UninitializedParameter) and not self._options.skips(f"{name}.weight"):
                raise ModelError(
                    f"the weight of {name!r} has no shape yet (it is lazy); "
                    + (f"the forward does not use it: skip={name!r} leaves it out" if passed else "data=, a batch, gives it one")
                )
            if isinstance(weight, Tensor) and weights.find(weight) is None and not self._options.skips(f"{name}.weight"):
                raise ModelError(
                    f"the weight of {name!r} is no parameter (torch.nn.utils.weight_norm makes such); "
                    + (
                        f"the forward does not use it, so it was not seen what it is computed from: skip={name!r} leaves it out"
                        if passed
                        else "with data=, a batch, a forward pass shows what it is computed from"
                    )
                )
        if not found:
            raise ModelError(
                f"{type(model).__name__} has no layer of torch's with a weight; with data=, a batch, the operators of "
                "its forward are found too"
            )


class _Default(_Drawing):
    """Lets torch's layers fill themselves, biases too."""

    def run(self, model: nn.Module, data: Any, forward: Forward | None) -> int:
        """Reset all layers; returns the number of forward passes."""
        passes = 0
        if data is not None or forward is not None:  # gives lazy layers their form
            call = first_call(model, data, forward)
            with (
                guard.forward_mode(model, "train"),
                guard.batch_kept(call.tensors()) as about_to_write,
                intercept(model, Operation.output, remember=self.remember, about_to_write=about_to_write),
                self.explained(call),
            ):
                call(model)
            passes = 1
        super().run(model, None, None)
        weights = Sources(model)
        for number, (name, layer) in reversed(
            list(enumerate(layers(model)))
        ):  # a MultiheadAttention after its out_proj, whose bias it zeroes
            if nn.utils.parametrize.is_parametrized(layer):
                raise ModelError(f"default cannot reset {name!r}, whose weight is parametrized; use another scheme")
            self._reset(number, name, layer, weights)
        return passes

    def _draw(self, operation: Operation) -> None:
        """Nothing here: layers are reset as a whole."""

    def _reset(self, number: int, name: str, layer: nn.Module, weights: Sources) -> None:
        parameters = {f"{name}.{key}".lstrip("."): p for key, p in layer.named_parameters()}
        if any(isinstance(p, UninitializedParameter) for p in parameters.values()):  # skipped; others are refused
            return
        own = {key: weights.find(p) for key, p in parameters.items()}
        left_alone = {key for key, weight in own.items() if weight is not None and self._options.left_alone(weight)}
        kept = [(p, p.clone()) for key, p in parameters.items() if key in left_alone]
        if len(kept) == len(parameters):
            return
        for parameter in parameters.values():
            self._undo.remember(parameter)
        reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters")  # noqa: B009 - no attribute of Module's
        held = dict(layer._parameters)
        with self._randomness.as_global(("layer", number), next(iter(parameters.values())).device), whole(layer):
            reset()
            now = dict(layer._parameters)
        for key, own_part in held.items():
            if own_part is not None and (drawn := now[key]) is not None and drawn is not own_part:  # sharded
                sharded.assign_(own_part, drawn)
        for parameter, copy in kept:
            parameter.copy_(copy)
        torch.clear_autocast_cache()
