"""What the processes of the tests on several ranks do: functions that a process can be told to run, by name."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import goodinit.lsuv
from goodinit import GoodinitWarning, Report, init_, lsuv_, measure
from goodinit.ahead import Ahead
from goodinit.integrations.shared import refuse
from goodinit.processes import group, sharded
from goodinit.processes.ranks import Ranks
from nets import mlp
from zoo import Entry, all_entries

# Of models of the zoo, the layers that tensor parallelism splits: by output, then by input; and by output and put together again.
# fmt: off
TENSOR_PARALLEL: dict[str, tuple[str, str, str]] = {
    "reversed": ("a c", "b head", ""),
    "layer_scale": ("blocks.*.0", "blocks.*.2", "blocks.*.4"),
    "nested_outputs": ("body.0", "body.2", "body.4 a b"),
    "checkpointed": ("blocks.*.0", "blocks.*.2", "blocks.*.4"),
    "shared": ("", "", "layer head"),
    "unrolled": ("", "", "into back out"),
    "differentiating": ("energy.0", "energy.2", ""),
    "transformer_encoder": ("layers.*.linear1", "layers.*.linear2", ""),
    "transformer": ("*.linear1", "*.linear2", ""),
    "lstm": ("", "", "head"),
    "BertForMaskedLM": ("*.query *.key *.value *.intermediate.dense", "*.output.dense", ""),
    "LlamaForCausalLM": ("*.gate_proj *.up_proj", "*.down_proj", "*.q_proj lm_head"),
    "MixtralForCausalLM": ("", "", "*.q_proj *.v_proj *.o_proj lm_head"),
    "ViTForImageClassification": ("*.q_proj *.k_proj *.v_proj *.fc1", "*.o_proj *.fc2", "classifier"),
    "BartForConditionalGeneration": ("*.q_proj *.k_proj *.v_proj *.fc1", "*.out_proj *.fc2", ""),
    "T5ForConditionalGeneration": ("*.wi", "*.wo", ""),
    "WhisperModel": ("*.fc1", "*.fc2", ""),
}
# fmt: on


# Models in the forms in which distributed trainings have them.


def entry_named(name: str) -> Entry:
    """Of the zoo."""
    return next(entry for entry in all_entries() if entry.name == name)


def world() -> Any:
    return init_device_mesh("cpu", (torch.distributed.get_world_size(),))


def tensor_parallel(model: nn.Module, name: str) -> nn.Module:
    """Some linear layers split as `TENSOR_PARALLEL` says."""
    styles: list[Callable[[], Any]] = [ColwiseParallel, RowwiseParallel, lambda: ColwiseParallel(output_layouts=Replicate())]
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    for style, patterns in zip(styles, TENSOR_PARALLEL[name], strict=True):
        paths = [path for path in linear if any(fnmatchcase(path, pattern) for pattern in patterns.split())]
        assert bool(paths) == bool(patterns)
        for path in paths:  # in one plan torch 2.6 mistakes paths of several numbers
            parallelize_module(model.get_submodule(path), world(), style())
    return model


def wrapped(model: nn.Module, form: str, name: str = "") -> nn.Module:
    """``name``: in the zoo, for tensor parallelism."""
    if form == "tp":
        return tensor_parallel(model, name)
    if form == "ddp":
        return DistributedDataParallel(model)
    if form == "fsdp":
        for part in fsdp_parts(model):
            fully_shard(part, mesh=world())
        fully_shard(model, mesh=world())
        return model
    assert form == "plain"
    return model


def fsdp_parts(model: nn.Module) -> list[nn.Module]:
    """Blocks that are gathered one by one: where none of them shares a parameter with another, as FSDP2 asks for."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(names) > len(list(model.parameters())):
        return []
    lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential))][:1]
    return [part for several in lists for part in several if any(True for _ in part.parameters())]


def share(data: Any, rank: int, size: int, cuts: Sequence[int] | None = None) -> Any:
    """A process's part of a batch: as even as may be, or cut there."""
    if isinstance(data, Tensor):
        return data.tensor_split(size if cuts is None else tuple(cuts))[rank]
    if isinstance(data, Mapping):
        return {key: share(value, rank, size, cuts) for key, value in data.items()}
    return tuple(share(value, rank, size, cuts) for value in data)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """By the names that they have without wrappers."""
    return {
        name.removeprefix("module."): (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def held_weights(model: nn.Module) -> dict[str, Tensor]:
    """What this process holds of them."""
    return {n: (p.to_local() if isinstance(p, DTensor) else p).detach().clone() for n, p in model.named_parameters()}


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() if a[name].numel() else 0.0 for name in a)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded_model(make: Callable[..., nn.Module], *args: Any) -> nn.Module:
    """The same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make(*args)


@contextmanager
def starting_careless(yes: bool) -> Iterator[None]:
    """The first pass as on a GPU, where no process looks whether all are at the same operator."""

    class Careless(Ranks):
        def __init__(self, model: object, *, distributed: bool = True, device: object = None) -> None:
            super().__init__(model, distributed=distributed, device=device)
            self.careful = False

    before = goodinit.lsuv.Ranks
    if yes:
        goodinit.lsuv.Ranks = Careless
    try:
        yield
    finally:
        goodinit.lsuv.Ranks = before


# The same weights as one process with all the data.


def as_one(rank: int, names: Sequence[str], form: str) -> dict[str, float]:
    """For models of the zoo the largest difference of weights to those of one process with all the data."""
    size, found = torch.distributed.get_world_size(), {}
    for name in names:
        entry = entry_named(name)
        one, several = entry.build(), wrapped(entry.build(), form, name)
        data = entry.data() if form == "tp" else share(entry.data(), rank, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reentrant checkpoints, about gradients that nobody wants
            report = lsuv_(one, entry.data(), forward=entry.forward, generator=seeded(), distributed=False)
            other = lsuv_(several, data, forward=entry.forward, generator=seeded())
        found[name] = largest_difference(whole_weights(one), whole_weights(several))
        assert [(r.status, r.target) for r in report] == [(r.status, r.target) for r in other]
        assert all(abs(a.factor / b.factor - 1) < 1e-4 for a, b in zip(report, other, strict=True))
    return found


def draws(
    rank: int, form: str, seeds: Sequence[int], generators: Sequence[int] | None, scheme: Any = "lsuv"
) -> tuple[float, bool]:
    """With torch's generators seeded by process, or those given; returns the difference to one process with the first seed,
    and whether the generator ends as it would there.
    """
    x = torch.ones(30, 16) * torch.linspace(-1, 1, 30)[:, None] + torch.eye(30, 16)
    states, weights = [], []
    for distributed, seed in ((False, 0), (True, rank)):
        model = seeded_model(mlp, 16, 20, 12, 8)
        if distributed:
            model = wrapped(model, form)
        generator = None if generators is None else seeded(generators[seed])
        torch.manual_seed(seeds[seed])
        init_(model, scheme, x if scheme == "lsuv" else None, generator=generator, distributed=distributed)
        states.append(torch.get_rng_state() if generator is None else generator.get_state())
        weights.append(whole_weights(model))
    return largest_difference(*weights), torch.equal(*states)


class Block(nn.Module):
    """A linear layer split by output, one by input, and a norm, all of a sequence that is split along its second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def sequence_parallel(rank: int) -> float:
    model, one = seeded_model(Block), seeded_model(Block)
    x = torch.randn(4, 8, 16, generator=seeded(1))
    plan = {
        "norm": SequenceParallel(use_local_output=False),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    }
    root = nn.Sequential(model)
    parallelize_module(model, world(), plan)
    whole = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(1), use_local_output=False)
    parallelize_module(model, world(), whole)
    lsuv_(one, x, generator=seeded(), distributed=False)
    lsuv_(root, (x,), generator=seeded())
    return largest_difference(whole_weights(one), {n.removeprefix("0."): w for n, w in whole_weights(root).items()})


def two_dimensional(rank: int) -> float:
    """Tensor parallelism inside of FSDP2, on two by two processes."""
    model, one = seeded_model(mlp, 16, 20, 12, 8), seeded_model(mlp, 16, 20, 12, 8)
    x = torch.randn(30, 16, generator=seeded(1))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh["data"])
    lsuv_(one, x, generator=seeded(), distributed=False)
    lsuv_(model, share(x, rank // 2, 2), generator=seeded())
    return largest_difference(whole_weights(one), whole_weights(model))


def kept_biases(rank: int, form: str) -> float:
    """Of biases that are kept, which every process may hold a part of."""
    weights = []
    for distributed in (False, True):
        model = seeded_model(mlp, 16, 20, 12, 8)
        x = torch.randn(30, 16, generator=seeded(1))
        if distributed and form == "tp":
            parallelize_module(model, world(), {"0": ColwiseParallel(), "2": RowwiseParallel()})
        elif distributed:
            model, x = wrapped(model, form), share(x, rank, torch.distributed.get_world_size())
        lsuv_(model, x, pre_init=None, distributed=distributed)
        weights.append(whole_weights(model))
    return largest_difference(*weights)


def mixed_precision(rank: int) -> tuple[float, bool]:
    """FSDP2 that computes in bfloat16: how far stds are from 1, and whether the shards have more digits than bfloat16."""
    model = seeded_model(mlp, 64, 64, 64, 64)
    for part in (*model, model):
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=world(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    report = lsuv_(model, torch.randn(200, 64, generator=seeded(rank)), generator=seeded())
    weight = whole_weights(model)["0.weight"]
    gram = weight @ weight.T / report["0.weight"].factor ** 2
    return (gram - torch.eye(64)).abs().max().item(), bool((weight.bfloat16().float() != weight).any())


class Odd(nn.Module):
    """Weights used as no operator uses them, transposed ones twice, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.elementwise, self.twice, self.unused = nn.Linear(16, 16), Transposed(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(x).tanh()
        x = (x.unsqueeze(1) * (2 * self.elementwise.weight)).sum(-1)
        return self.twice(x)


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(12, 16)[:, :16])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.t() @ self.w


def odd_weights(rank: int) -> float:
    """As one process, what the report says of them too."""
    one, several, size = seeded_model(Odd), seeded_model(Odd), torch.distributed.get_world_size()
    x = torch.randn(20, 16, generator=seeded(1))
    fully_shard(several.twice, mesh=world())
    fully_shard(several, mesh=world())
    reports = [
        lsuv_(one, x, generator=seeded(), distributed=False),
        lsuv_(several, share(x, rank, size), generator=seeded()),
    ]
    told = [{r.name: (r.status, len(r.uses)) for r in report} for report in reports]
    assert (
        told[0] == told[1] == {"twice.w": ("shared", 4), "elementwise.weight": ("unsupported", 0), "unused.weight": ("unused", 0)}
    )
    return largest_difference(whole_weights(one), whole_weights(several))


# Experts.


class Experts(nn.Module):
    """Tokens go through the expert that their last feature names, those without tokens are not called. Registered from last to
    first, unless they are to be ``in_order``; experts are layers, or matrices in one parameter.
    """

    def __init__(self, *, in_order: bool = False, stacked: bool = False) -> None:
        super().__init__()
        layers = {"stem": nn.Linear(16, 16), "router": nn.Linear(16, 1), "shared": nn.Linear(16, 16), "head": nn.Linear(16, 4)}
        experts = {"experts": nn.ModuleList(nn.Linear(16, 16) for _ in range(4))}
        for name, module in layers.items() if in_order else {**experts, **dict(reversed(layers.items()))}.items():
            self.add_module(name, module)
        if in_order:
            self.add_module("experts", experts["experts"])
        self.stack = nn.Parameter(torch.randn(4, 16, 16)) if stacked else None

    def forward(self, x: Tensor) -> Tensor:
        expert = x[:, -1].long()
        x = self.stem(x).tanh()
        x = x * self.router(x).sigmoid()
        out = torch.zeros_like(x)
        for e in range(4):
            if bool((expert == e).any()):
                inside = x[expert == e]
                out[expert == e] = self.experts[e](inside) if self.stack is None else inside @ self.stack[e]
        return self.head(self.shared(x + out.tanh()).relu())


def tokens(size: int) -> Tensor:
    """The first process has tokens for experts 0 and 2, the second for 1, the third for 1 and 2, the fourth for 0; none for 3."""
    x = torch.randn(size * 10, 16, generator=seeded(1))
    wanted = [0.0, 0, 2, 2, 2, 0, 0, 0, 2, 0, *[1] * 10, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, *[0] * 10]
    x[:, -1] = torch.tensor(wanted[: len(x)])
    return x


def experts(rank: int, form: str, careless: bool, options: dict[str, Any], cuts: Sequence[int] | None = None) -> float:
    """Experts that some processes reach and others do not."""
    weights, stati = [], []
    size = torch.distributed.get_world_size()
    lsuv_options = {"pre_init": None} if options.pop("keep", False) else {}
    for distributed in (False, True):
        model = seeded_model(lambda: Experts(**options))
        x = tokens(size)
        if distributed:
            x = share(x, rank, size, cuts)
            if form == "fsdp":
                fully_shard(model.head, mesh=world())
                fully_shard(model, mesh=world())
            else:
                model = wrapped(model, form)
        with starting_careless(careless and distributed):
            report = lsuv_(model, x, generator=seeded(), distributed=distributed, **lsuv_options)
        weights.append(whole_weights(model))
        stati.append({r.name.removeprefix("module."): r.status for r in report})
    assert stati[0] == stati[1]
    return largest_difference(*weights)


class Units(nn.Module):
    """Blocks of experts that FSDP2 gathers one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Experts() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.cat([block(x).repeat(1, 4)[:, :15], x[:, 15:]], 1)
        return x


def experts_in_units(rank: int, careless: bool) -> float:
    """A process is at the next unit, whose gathering needs all processes, while another is at an expert."""
    size = torch.distributed.get_world_size()
    one, model = seeded_model(Units), seeded_model(Units)
    for block in model.blocks:
        fully_shard(block, mesh=world())
    fully_shard(model, mesh=world())
    lsuv_(one, tokens(size), generator=seeded(), distributed=False)
    with starting_careless(careless):
        lsuv_(model, share(tokens(size), rank, size), generator=seeded())
    return largest_difference(whole_weights(one), whole_weights(model))


class Conditional(nn.Module):
    """A computed weight that only some data use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) if bool(x[0, -1] > 0) else self.a(x)


def computed_on_one(rank: int) -> None:
    lsuv_(seeded_model(Conditional), tokens(2)[rank * 10 :][:10])


class Noisy(nn.Module):
    """Draws noise and counts in a buffer, and has experts: a pass done again must see the same."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = Experts()
        self.register_buffer("count", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        noisy = x[:, :-1] * self.count + torch.randn(1)
        return self.inner(torch.cat([noisy, x[:, -1:]], 1))


def done_again(rank: int) -> float:
    one, model, size = seeded_model(Noisy), seeded_model(Noisy), torch.distributed.get_world_size()
    torch.manual_seed(0)
    lsuv_(one, tokens(size), generator=seeded(), distributed=False)
    torch.manual_seed(0)
    with starting_careless(True):
        lsuv_(model, share(tokens(size), rank, size), generator=seeded())
    assert model.count == 1
    return largest_difference(whole_weights(one), whole_weights(model))


# Uneven and empty batches, and many of them.


def uneven(rank: int, form: str, cuts: Sequence[int]) -> float:
    size = torch.distributed.get_world_size()
    one, several = seeded_model(mlp, 16, 20, 12, 8), wrapped(seeded_model(mlp, 16, 20, 12, 8), form)
    x = torch.randn(30, 16, generator=seeded(1))
    lsuv_(one, x, generator=seeded(), distributed=False)
    lsuv_(several, share(x, rank, size, cuts), generator=seeded())
    return largest_difference(whole_weights(one), whole_weights(several))


def batches_of(size: int, counts: Sequence[int]) -> list[list[Tensor]]:
    """Of every process, of different scales."""
    generator = seeded(4)
    return [[torch.randn(10, 16, generator=generator) * (1 + 0.2 * i + 0.1 * j) for j in range(counts[i])] for i in range(size)]


def many_batches(rank: int, form: str, counts: Sequence[int], options: dict[str, Any]) -> tuple[float, Report, list[str]]:
    """Loaders of different length: the largest difference to one process with all of it, the report, and warnings."""
    size = torch.distributed.get_world_size()
    batches = batches_of(size, counts)
    make = lambda: seeded_model(lambda: mlp(16, 20, 12, 8))
    one, several = make(), make()
    if form == "tp":
        parallelize_module(several, world(), {"0": ColwiseParallel(), "2": RowwiseParallel()})
        batches = [batches[0]] * size
    else:
        several = wrapped(several, form)
    length = min(counts) if form == "fsdp" else max(counts)
    joined = [torch.cat([own[i] for own in batches if i < len(own)]) for i in range(length)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GoodinitWarning)
        report = lsuv_(several, batches[rank], batches=max(counts), generator=seeded(), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GoodinitWarning)
        lsuv_(one, joined, batches=max(2, length), generator=seeded(), distributed=False, **options)
    return largest_difference(whole_weights(one), whole_weights(several)), report, [str(w.message) for w in caught]


def many_batches_of_experts(rank: int, careless: bool) -> float:
    """Experts that a process reaches in some batches only; complex numbers beside real ones."""
    size = torch.distributed.get_world_size()
    batches = [torch.roll(tokens(size), 10 * i, 0) * (1 + 0.1 * i) for i in range(3)]
    for batch in batches:
        batch[:, -1] = batch[:, -1].round().clamp_max(3)
    one, several = seeded_model(Experts), seeded_model(Experts)
    lsuv_(one, batches, batches=3, generator=seeded(), distributed=False, tol=1e-4)
    with starting_careless(careless):
        lsuv_(several, [share(batch, rank, size) for batch in batches], batches=3, generator=seeded(), tol=1e-4)
    return largest_difference(whole_weights(one), whole_weights(several))


# What is sent.


class Collectives(TorchDispatchMode):
    """Counts what processes send each other, by kind and bytes; in forwards of a model, and elsewhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside: Counter[tuple[str, int]] = Counter()
        self.outside: Counter[tuple[str, int]] = Counter()
        self._forwards = 0
        self._model = model

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__ and "wrap" not in func.__name__:
            kind = func.__name__.partition(".")[0].strip("_")
            sizes = [t.numel() * t.element_size() for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Tensor)]
            (self.inside if self._forwards else self.outside)[kind, min(sizes, default=0)] += 1
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Any:
        def begin(*_: object) -> None:
            self._forwards += 1

        def end(*_: object) -> None:
            self._forwards -= 1

        self._handles = [
            self._model.register_forward_pre_hook(begin, prepend=True),
            self._model.register_forward_hook(end, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *args: object) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*args)


def communication(rank: int, form: str, depth: int, batches: int, *, meta: bool = False) -> dict[str, Any]:
    """What `lsuv_` sends, and what a plain forward of the model does; ``meta``: of a model from the meta device."""

    def make() -> nn.Module:
        model = seeded_model(lambda: mlp(*[16] * (depth + 1)))
        if form != "tp":
            return wrapped(model, form)
        styles = (ColwiseParallel, RowwiseParallel)
        return parallelize_module(model, world(), {str(2 * i): styles[i % 2]() for i in range(depth)})

    x = [torch.randn(8, 16, generator=seeded(0 if form == "tp" else 10 * rank + i)) * (1 + 0.3 * i) for i in range(batches)]
    model = make()
    with torch.no_grad(), Collectives(model) as plain:
        model(x[0])
    if isinstance(model, FSDPModule):
        sharded.reshard(model)
    if meta:
        with torch.device("meta"):
            model = make()
    with Collectives(model) as ours:
        report = lsuv_(model, x, batches=batches, generator=seeded(), device="cpu")
    return {
        "forward": dict(plain.inside),
        "inside": dict(ours.inside),
        "outside": dict(ours.outside),
        "sweeps": report.sweeps,
        "passes": report.forward_passes,
    }


# What goes wrong.


class Failing(nn.Module):
    """Fails behind its first layer, in the way asked for, at the forward of a number."""

    how: str
    when: int

    def __init__(self, *, buffers: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        if buffers:
            self.register_buffer("some", torch.zeros(3))
        self.how, self.when, self.forwards = "", 1, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        x = self.a(x).tanh()
        if self.how and self.forwards == self.when:
            x = self.fail(x)
        return self.c(self.b(x).relu())

    def fail(self, x: Tensor) -> Tensor:
        if self.how == "raise":
            raise ValueError("the cat sat on the keyboard")
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "sleep":
            time.sleep(9)
        assert self.how == "nan"
        return (x - 2).log()


def failure(rank: int, form: str, how: str, who: int, options: dict[str, Any]) -> dict[str, Any]:
    """One process fails: what each raises, how long it takes, whether all is as before, and whether all can go on."""
    careless, when = options.pop("careless", False), options.pop("when", 1)
    inner: Any = seeded_model(lambda: Failing(buffers=form == "ddp"))
    model: Any = inner
    if form == "tp":
        parallelize_module(
            model, world(), {"a": ColwiseParallel(output_layouts=Replicate()), "b": ColwiseParallel(), "c": RowwiseParallel()}
        )
    elif form == "fsdp":
        for part in (model.a, model.b, model.c, model):
            fully_shard(part, mesh=world())
    else:
        model = wrapped(model, form)
    x = torch.randn(12, 16, generator=seeded(1 + rank * (form != "tp")))
    data = [x * (1 + i) for i in range(options.get("batches", 1))]
    usable = model
    if rank == who:
        inner.how, inner.when = how, when
        if how == "data":
            data = []
        if how == "option":
            options["skip"] = "nothing"
        if how == "model":
            model = None
        if how == "exit":
            inner.how = "raise"
    before, state, start = held_weights(inner), torch.get_rng_state(), time.monotonic()
    error: BaseException | None = None
    try:
        with starting_careless(careless):
            lsuv_(model, data, **options)
    except BaseException as caught:  # noqa: BLE001 - KeyboardInterrupt is one of them
        error = caught
    if how == "exit" and rank == who:
        os._exit(1)
    found = {
        "kind": type(error).__name__,
        "text": str(error),
        "seconds": time.monotonic() - start,
        "same": all(torch.equal(a, b) for a, b in zip(before.values(), held_weights(inner).values(), strict=True)),
        "random": torch.equal(state, torch.get_rng_state()),
    }
    if options.pop("go_on", True) and how not in ("kill", "sleep", "exit"):
        options.pop("skip", None)
        inner.how = ""
        found["afterwards"] = lsuv_(usable, [x] * options.get("batches", 1), **options).ok
    return found


class Gathering(nn.Module):
    """Communicates in its forward, as a contrastive loss over all processes does."""

    def __init__(self, who: int) -> None:
        super().__init__()
        self.first, self.last, self.who = nn.Linear(8, 8), nn.Linear(8, 4), who

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.who == torch.distributed.get_rank():
            raise ValueError("the cat sat on the keyboard")
        everyone = [torch.empty_like(h) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(everyone, h)
        return self.last(torch.cat(everyone))


class Dispatched:
    """Batches that the first process reads and hands to all, and cannot read."""

    def __iter__(self) -> Iterator[Tensor]:
        if torch.distributed.get_rank() == 0:
            raise ValueError("the cat sat on the keyboard")
        x = torch.empty(12, 8)
        torch.distributed.broadcast(x, 0)
        yield x


def failing_where_others_wait(rank: int, what: str, file: str) -> str:
    """What the one process raised is left in a file, and it ends, as under torchrun it does; gives what the other raised."""
    group._PATIENCE = 1.0
    who = 1 if what == "forward" else 0
    model, data = (Gathering(who), torch.randn(12, 8)) if what == "forward" else (mlp(8, 4), Dispatched())
    before = held_weights(model)
    try:
        lsuv_(model, data, distributed=True)
    except (RuntimeError, ValueError) as error:
        assert all(torch.equal(a, b) for a, b in zip(before.values(), held_weights(model).values(), strict=True))
        if rank != who:
            return f"{type(error).__name__}: {error}"
        Path(file).write_text(f"{type(error).__name__}: {error}")
    os._exit(1)


def different(rank: int, what: str) -> None:
    """Models, or options, that are not the same everywhere."""
    options: dict[str, Any] = {}
    torch.manual_seed(0)
    model = mlp(6, 8, 4)
    if rank == 1:
        if what == "shape":
            model = mlp(6, 9, 4)
        elif what == "name":
            model = nn.Sequential(*mlp(6, 8)).append(nn.Identity()).append(nn.Identity()).append(nn.Linear(8, 4))
        elif what == "number":
            model = mlp(6, 8, 4, 4)
        elif what == "dtype":
            model = model.double()
        elif what == "value":
            with torch.no_grad():
                model[2].weight[1, 2] += 1e-6
        elif what == "option":
            options["target_std"] = 2.0
        elif what == "function":
            options["pre_init"] = nn.init.xavier_normal_
    if what == "same function":
        options["pre_init"] = lambda w: nn.init.normal_(w, std=0.1)
    x = torch.randn(10, 6)
    lsuv_(model, x.double() if rank == 1 and what == "dtype" else x, **options)


def lazy(rank: int) -> float:
    """Parameters that get their shape in the forward."""
    size = torch.distributed.get_world_size()
    make = lambda: nn.Sequential(nn.LazyLinear(12), nn.ReLU(), nn.Linear(12, 4))
    one, several, x = make(), make(), torch.randn(30, 16, generator=seeded(1))
    several.load_state_dict(one.state_dict())
    torch.manual_seed(5)
    for p, q in zip(one[2].parameters(), several[2].parameters(), strict=True):
        nn.init.ones_(p), nn.init.ones_(q)
    lsuv_(one, x, generator=seeded(), distributed=False)
    lsuv_(several, share(x, rank, size), generator=seeded())
    return largest_difference(whole_weights(one), whole_weights(several))


def kept_gathered(rank: int) -> float:
    """FSDP2 keeps the root's whole tensors after a forward without a backward."""
    one, model = seeded_model(mlp, 16, 20, 8), seeded_model(mlp, 16, 20, 8)
    fully_shard(model, mesh=world())
    x = torch.randn(30, 16, generator=seeded(1))
    with torch.no_grad():
        model(x)
    lsuv_(one, x, generator=seeded(), distributed=False)
    lsuv_(model, share(x, rank, torch.distributed.get_world_size()), generator=seeded())
    found = largest_difference(whole_weights(one), whole_weights(model))
    with torch.no_grad():
        assert torch.allclose(model(x), one(x), atol=1e-5)
    return found


# Sharded tensors.


def layouts() -> list[tuple[Any, list[Any]]]:
    """Meshes, and how a tensor of four axes may lie on them."""
    size, one = torch.distributed.get_world_size(), world()
    found: list[tuple[Any, list[Any]]] = [(one, [Shard(0)]), (one, [Shard(1)]), (one, [Replicate()])]
    if size == 4:
        two = init_device_mesh("cpu", (2, 2))
        found += [
            (two, [Shard(0), Shard(0)]),
            (two, [Shard(0), Shard(1)]),
            (two, [Replicate(), Shard(0)]),
            (two, [Shard(1), Shard(0)]),
        ]
    return found


def parts_of(whole: Tensor) -> list[Tensor]:
    """Of a tensor of shape (5, 4, 3, 2): all of it, in other orders and shapes, rows, columns, and what interlocks."""
    return [
        whole,
        whole.permute(3, 1, 0, 2),
        whole[2],
        whole[2].mT,
        whole[1:4],
        whole[4:],
        whole[:, 1],
        whole[1:, 2:, 0],
        whole[..., 1],
        whole.view(20, 6)[3:11],
        whole.view(20, 6)[:, ::2],
        whole[0, 0, 0, :1],
    ]


def parts_are_written(rank: int) -> int:
    """Writing, multiplying and zeroing parts is the same as doing so to the whole tensor and sharding that."""
    checked = 0
    for mesh, placements in layouts():
        for i in range(12):
            original = torch.randn(5, 4, 3, 2, generator=seeded(1))
            home = distribute_tensor(original.clone(), mesh, placements)
            whole = original.clone()
            part = parts_of(whole)[i]
            place = sharded.Place(tuple(part.shape), tuple(part.stride()), part.storage_offset())
            values = torch.randn(part.shape, generator=seeded(2))
            assert torch.equal(sharded.write_(home, place, lambda part, values=values: part.copy_(values)), values)
            part.copy_(values)
            assert torch.equal(home.full_tensor(), whole), (placements, i)
            sharded.multiply_(home, place, torch.tensor(1.7, dtype=torch.float64))
            part.mul_(torch.tensor(1.7, dtype=torch.float64))
            assert torch.equal(home.full_tensor(), whole), (placements, i)
            sharded.write_(home, place, lambda part: part[:1].zero_(), start=1.0)
            part[:1].zero_()
            assert torch.equal(home.full_tensor(), whole), (placements, i)
            sharded.assign_(home, original)
            assert torch.equal(home.full_tensor(), original)
            checked += 1
    return checked


def sums_and_wholes(rank: int) -> None:
    mesh, size = world(), torch.distributed.get_world_size()
    z = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    assert torch.equal(sharded.local(sharded.added_up(z)), size * torch.ones(3))
    split = distribute_tensor(torch.arange(10.0), mesh, [Shard(0)])
    assert sharded.added_up(split) is split
    assert torch.equal(sharded.whole(split), torch.arange(10.0))
    assert sharded.local(split).numel() < 10
    sharded.local(split).zero_()
    assert not split.full_tensor().any()


def measured_then_trained(rank: int) -> None:
    """DistributedDataParallel trains after `measure` as before."""
    model = DistributedDataParallel(seeded_model(nn.Linear, 4, 2))
    signal = measure(model, torch.randn(8, 4), lambda y: y.mean())
    assert signal[0].weight_grad_norm
    x = torch.full((8, 4), float(rank))
    for _ in range(2):
        model.zero_grad()
        model(x).mean().backward()
    mean = sum(range(torch.distributed.get_world_size())) / torch.distributed.get_world_size()
    assert torch.allclose(model.module.weight.grad, torch.full((2, 4), mean / 2))


def fsdp1(rank: int) -> None:
    """The integrations refuse it."""
    refuse(nn.Sequential(FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))), instead="use FSDP2")


def kinds_of_models(rank: int) -> None:
    """Which models need all processes in their forward."""
    plain, ddp = mlp(8, 8, 8), DistributedDataParallel(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
    fsdp: Any = fully_shard(mlp(8, 8, 8), mesh=world())
    tensor = parallelize_module(mlp(8, 8, 8), world(), {"0": ColwiseParallel()})
    assert [sharded.communicates(m) for m in (plain, ddp, fsdp, tensor)] == [False, False, True, True]
    assert [sharded.is_tensor_parallel(m) for m in (plain, ddp, fsdp, tensor, None)] == [False, False, False, True, False]
    assert sharded.meeting_points(nn.Sequential(fsdp, nn.SyncBatchNorm(8))) != []
    assert [len(sharded.meeting_points(m)) for m in (plain, ddp, fsdp, tensor)] == [0, 0, 1, 0]
    assert ddp.require_forward_param_sync
    with sharded.without_broadcasts(ddp), Collectives(ddp) as sent:
        ddp(torch.randn(4, 8))
    assert not sent.inside
    assert ddp.require_forward_param_sync
    with Collectives(ddp) as sent:
        ddp(torch.randn(4, 8))
    assert sent.inside


def gathered_again(rank: int) -> None:
    model = mlp(8, 8, 8)
    fully_shard(model, mesh=world())
    with torch.no_grad():
        model(torch.randn(2, 8))
    assert not any(sharded.is_sharded(p) for p in model.parameters())
    sharded.reshard(model)
    assert all(sharded.is_sharded(p) for p in model.parameters())


def sharded_after_a_forward(rank: int, kind: str) -> None:
    """A root stays gathered after a forward without a backward; what is put back must be the parts, not what FSDP2 frees."""
    model: Any = mlp(8, 8, 8)
    x = torch.randn(20, 8)
    fully_shard(model, mesh=world())
    before = {name: p.full_tensor().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model(x)
    if kind == "measure":
        measure(model, x)
    else:
        with contextlib.suppress(KeyError):
            lsuv_(model, x, forward=lambda m, data: {}[m(data)])
    assert all(sharded.is_sharded(p) for p in model.parameters())
    for name, p in model.named_parameters():
        assert torch.equal(p.full_tensor(), before[name])


def gradients_of_parts(rank: int) -> list[bool]:
    """What is put back in the end asks no other process: only the first one initializes anything (a stage of a pipeline)."""
    model: Any = mlp(8, 8, 8)
    x = torch.randn(20, 8)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(), 1), mesh_dim_names=("stages", "data"))["data"]
    fully_shard(model, mesh=mesh)
    model(x).square().mean().backward()
    before = [p.grad.full_tensor().clone() for p in model.parameters()]
    if rank == 0:
        lsuv_(model, x, distributed=False)
    return [torch.equal(p.grad.full_tensor(), g) for p, g in zip(model.parameters(), before, strict=True)]


def with_flat_parameters(rank: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    lsuv_(FullyShardedDataParallel(mlp(6, 8, 4), device_id=torch.device("cpu")), torch.randn(10, 6))


def backend_without_device(rank: int) -> None:
    lsuv_(mlp(6, 8, 4), torch.randn(10, 6))


def alone_in_a_group(rank: int) -> bool:
    """Each by itself: nothing is sent, so they may differ."""
    torch.manual_seed(rank)
    return lsuv_(mlp(6, 8 + rank, 4), torch.randn(10, 6), distributed=False).ok


def alone(rank: int) -> dict[str, Tensor]:
    """Each by itself, with data of its own."""
    model = seeded_model(mlp, 16, 20, 12, 8)
    lsuv_(model, torch.randn(20, 16, generator=seeded(rank)), generator=seeded(), distributed=False)
    return whole_weights(model)


# On a GPU, which both processes share.


def on_gpu(rank: int) -> float:
    one, several = (seeded_model(mlp, 16, 20, 12, 8).cuda() for _ in range(2))
    x = torch.randn(30, 16, generator=seeded(1)).cuda()
    lsuv_(one, x, generator=seeded(), distributed=False)
    lsuv_(several, share(x, rank, 2), generator=seeded())
    return largest_difference(whole_weights(one), whole_weights(several))


def experts_on_gpu(rank: int) -> float:
    one, several = (seeded_model(Experts).cuda() for _ in range(2))
    lsuv_(one, tokens(2).cuda(), generator=seeded(), distributed=False)
    lsuv_(several, share(tokens(2), rank, 2).cuda(), generator=seeded())
    return largest_difference(whole_weights(one), whole_weights(several))


def drawn_ahead(rank: int) -> int:
    """How many of four weights were drawn while the other process answered."""
    taken, take = [], Ahead.take

    def counting(self: Ahead, *args: Any) -> bool:
        taken.append(take(self, *args))
        return taken[-1]

    torch.manual_seed(0)
    model = mlp(*[6] * 5)
    torch.manual_seed(rank)
    with patch.object(Ahead, "take", counting):
        lsuv_(model, torch.randn(20, 6), generator=torch.Generator().manual_seed(1))
    return sum(taken)
