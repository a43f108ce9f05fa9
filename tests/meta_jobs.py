"""What the processes of the tests do with models that were built on the meta device."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from goodinit import lsuv_
from goodinit.processes import sharded
from rank_jobs import (
    Experts,
    entry_named,
    held_weights,
    largest_difference,
    seeded,
    share,
    starting_careless,
    tokens,
    whole_weights,
    world,
    wrapped,
)


class Rotation(nn.Module):
    """Has a buffer, and no weight."""

    angles: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("angles", torch.empty(16), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.angles.copy_(torch.linspace(0, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.angles.cos()


class Block(nn.Module):
    def __init__(self, inside: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down, self.turn = nn.Linear(16, inside), nn.Linear(inside, 16), Rotation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.turn(self.down(self.up(x).relu()))


class Decoder(nn.Module):
    """Embeddings, one of them tied to the head; blocks; and a layer that nothing uses. Of 13 channels two processes cannot have
    equal parts; tensor parallelism asks for that.
    """

    def __init__(self, inside: int = 13) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(30, 16), nn.Embedding(5, 16)
        self.blocks, self.aside = nn.ModuleList(Block(inside) for _ in range(2)), nn.Linear(3, 4)
        self.norm, self.out, self.head = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 30, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.out(self.norm(x)))


def decoder(form: str, device: str = "meta") -> Decoder:
    with torch.device(device):
        return Decoder(12 if form in ("tp", "2d") else 13)


def in_form(model: Any, form: str) -> Any:
    """A `Decoder` as distributed trainings have it; 2d: tensor parallelism inside of FSDP2, on two by two processes."""
    meshes = None if form != "2d" else init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    if form in ("tp", "2d"):
        styles = {
            "blocks.*.up": ColwiseParallel(),
            "blocks.*.down": RowwiseParallel(),
            "out": ColwiseParallel(output_layouts=torch.distributed.tensor.Replicate()),
        }
        model = parallelize_module(model, world() if meshes is None else meshes["tensor"], styles)
    if form in ("fsdp", "2d"):
        for part in (*model.blocks, model):
            fully_shard(part, mesh=world() if meshes is None else meshes["data"])
    return model


def own_part(data: Tensor, form: str, rank: int) -> Tensor:
    """A process's part of a batch."""
    size = torch.distributed.get_world_size()
    return data if form == "tp" else share(data, rank // 2, 2) if form == "2d" else share(data, rank, size)


def given_memory(rank: int, form: str, options: dict[str, Any]) -> tuple[float, float]:
    """How far a model from the meta device is from what one process makes of one, and of a model in memory; it can be trained."""
    count = options.get("batches", 1)
    data = [torch.randint(30, (16, 5), generator=seeded(i)) for i in range(count)]
    own = [own_part(batch, form, rank) for batch in data]
    one, real, several = decoder(form), decoder(form, "cpu"), in_form(decoder(form), form)
    parameters = dict(several.named_parameters())
    parameters["blocks.0.norm.weight"].mark = "kept"
    report = lsuv_(several, own, device="cpu", generator=seeded(), **options)
    assert report.ok
    assert {name: id(p) for name, p in parameters.items()} == {name: id(p) for name, p in several.named_parameters()}
    assert parameters["blocks.0.norm.weight"].mark == "kept"
    whole = whole_weights(several)
    lsuv_(one, data, device="cpu", generator=seeded(), distributed=False, **options)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), several.buffers(), strict=True))
    real.load_state_dict(whole, strict=False)  # its embeddings; all else is drawn anew
    lsuv_(real, data, generator=seeded(), distributed=False, **options)
    found = largest_difference(whole_weights(one), whole), largest_difference(whole_weights(real), whole)
    several(own[0]).square().mean().backward()
    torch.optim.SGD(several.parameters(), lr=0.1).step()
    assert largest_difference(whole, whole_weights(several)) > 1e-3
    return found


def mixed_precision(rank: int) -> bool:
    """Computed in bfloat16, kept in float32: near to what one process has, and whether the parts have more digits."""
    with torch.device("meta"):
        one, several = (nn.Sequential(nn.Linear(16, 13), nn.LayerNorm(13), nn.Linear(13, 5)) for _ in range(2))
    fully_shard(several, mesh=world(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    data = torch.randn(40, 16, generator=seeded())
    lsuv_(one, data, device="cpu", generator=seeded(), distributed=False)
    assert lsuv_(several, own_part(data, "fsdp", rank), device="cpu", generator=seeded()).ok
    a, b = whole_weights(one), whole_weights(several)
    assert torch.allclose(a["0.weight"], b["0.weight"], rtol=0.02)
    return bool((b["0.weight"].bfloat16().float() != b["0.weight"]).any())


def as_one_from_meta(rank: int, names: list[str], form: str) -> dict[str, float]:
    """For models of the zoo the largest difference of weights to those that one process gets from the meta device."""
    found = {}
    for name in names:
        entry = entry_named(name)
        with torch.device("meta"):
            one, several = entry.build(), wrapped(entry.build(), form, name)
        data = entry.data() if form == "tp" else share(entry.data(), rank, torch.distributed.get_world_size())
        a = lsuv_(one, entry.data(), device="cpu", forward=entry.forward, generator=seeded(), distributed=False)
        b = lsuv_(several, data, device="cpu", forward=entry.forward, generator=seeded())
        assert [(r.name, r.status) for r in a] == [(r.name, r.status) for r in b]
        assert all(torch.equal(p, q) for p, q in zip(one.buffers(), several.buffers(), strict=True))
        found[name] = largest_difference(whole_weights(one), whole_weights(several))
    return found


def experts_from_meta(rank: int, form: str, careless: bool) -> float:
    """Experts that some processes reach and others do not; of the careless pass, which is done again, too."""
    size = torch.distributed.get_world_size()
    with torch.device("meta"):
        one, several = Experts(), Experts()
    if form == "fsdp":
        fully_shard(several.head, mesh=world())
        fully_shard(several, mesh=world())
    lsuv_(one, tokens(size), device="cpu", generator=seeded(), distributed=False)
    with starting_careless(careless):
        lsuv_(several, share(tokens(size), rank, size), device="cpu", generator=seeded())
    return largest_difference(whole_weights(one), whole_weights(several))


def only_parts_have_memory(rank: int) -> tuple[int, int]:
    """Bytes that a process holds of a model in its forward, but for what FSDP2 gathers; and those of the whole model."""
    model = in_form(decoder("fsdp"), "fsdp")
    seen: list[int] = []

    def look(*_: object) -> None:
        parts = (p for block in (*model.blocks, model) for p in sharded._fsdp_parameters(block))
        seen.append(sum(p._sharded_param_data.nbytes for p in parts))

    model.register_forward_pre_hook(look)
    lsuv_(model, torch.randint(30, (4, 5), generator=seeded()), device="cpu", generator=seeded())
    assert len(seen) == 1
    return seen[0], sum(p.nbytes for p in decoder("fsdp").parameters())


# What goes wrong.


class Failing(nn.Module):
    """Fails behind its first layer, if it is to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fails = nn.Linear(16, 13), nn.Linear(13, 5), False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise ValueError("the cat sat on the keyboard")
        return self.b(self.a(x))


def failure(rank: int, form: str, how: str) -> dict[str, Any]:
    """The second process fails: on all of them the model is on the meta device as before, and can be initialized then."""
    with torch.device("meta"):
        model = Failing()
    if form == "fsdp":
        for part in (model.a, model.b, model):
            fully_shard(part, mesh=world())
    x, tensors, text = torch.randn(12, 16, generator=seeded(rank)), list(model.parameters()), ""

    def reset(module: nn.Module) -> None:
        if how == "reset" and rank == 1 and module is model.b:
            raise ValueError("the cat sat on the keyboard")

    model.fails = how == "forward" and rank == 1
    try:
        lsuv_(model, x, device="cpu", reset=reset)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
        text = f"{type(error).__name__}: {error}"
    gc.collect()
    shards = [
        p._sharded_param_data for part in model.modules() if isinstance(part, FSDPModule) for p in sharded._fsdp_parameters(part)
    ]
    found = {
        "text": text,
        "on meta": all(p.is_meta and p is q for p, q in zip(model.parameters(), tensors, strict=True)),
        "parts on meta": all(shard.is_meta for shard in (*shards, *held_weights(model).values())),
    }
    model.fails, how = False, ""
    lsuv_(model, x, device="cpu", generator=seeded(), reset=reset)
    with torch.device("meta"):
        one = Failing()
    all_x = torch.cat([torch.randn(12, 16, generator=seeded(i)) for i in range(torch.distributed.get_world_size())])
    lsuv_(one, all_x, device="cpu", generator=seeded(), distributed=False)
    found["afterwards"] = largest_difference(whole_weights(one), whole_weights(model)) < 1e-5
    found["used"] = torch.allclose(one(x), model(x), atol=1e-4)
    return found


def without_first_values(rank: int, form: str) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(16))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(16, 16), Scale())
    if form == "fsdp":
        fully_shard(model, mesh=world())
    lsuv_(model, torch.randn(12, 16), device="cpu")


def only_one_on_meta(rank: int) -> None:
    lsuv_(nn.Linear(3, 3, device="cpu" if rank else "meta"), torch.randn(4, 3), device="cpu")


def on_another_device(rank: int) -> None:
    model = nn.Linear(3, 3, device="meta")
    fully_shard(model, mesh=world())
    lsuv_(model, torch.randn(4, 3), device="cuda")


def checkpoint(rank: int, folder: str, form: str) -> None:
    model = nn.Linear(3, 3, device="meta")
    lsuv_(wrapped(model, form), torch.randn(4, 3), device="cpu", checkpoint=folder)


def checkpoint_of_one(rank: int, folder: str) -> float:
    """What the message about checkpoints says: the first process writes, the others load."""
    from safetensors.torch import load_model

    torch.manual_seed(0)
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    x = torch.randn(20, 8, generator=seeded(1))
    if rank == 0:
        lsuv_(model, x, device="cpu", checkpoint=folder, generator=seeded(), distributed=False)
    torch.distributed.barrier()
    if rank:
        model.to_empty(device="cpu")
        load_model(model, next(Path(folder).glob("*.safetensors")))
    fully_shard(model, mesh=world())
    one = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    lsuv_(one, x, generator=seeded(), distributed=False)
    return largest_difference(whole_weights(one), whole_weights(model))
