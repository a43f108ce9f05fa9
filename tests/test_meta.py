"""Models built on the meta device: they get memory as the forward reaches them, or are on the meta device as before."""

import gc
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import meta_jobs as jobs
from goodinit import ModelError, NonFiniteError, OptionError, lsuv_
from goodinit.meta import target_device
from processes import FSDP, FSDP_RUNS, Failure
from zoo import transformers_models


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Attention(nn.Module):
    """Tied embeddings, a layer called by its weight alone, one that is not called at all, buffers, an LSTM."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.by_weight = nn.Linear(16, 16)
        self.steps = nn.LSTM(16, 8)
        self.statistics = nn.BatchNorm1d(8)
        self.conv = nn.ConvTranspose1d(8, 6, 3, groups=2)
        self.aside = nn.Linear(3, 4)
        self.widen = nn.Linear(6, 16)
        self.head = nn.Linear(16, 50)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.mix(x, x, x)[0]
        x = F.linear(self.norm(x), self.by_weight.weight, self.by_weight.bias)
        x = self.conv(self.statistics(self.steps(x)[0].mT)).mT
        return self.head(self.widen(x))


def built(make, device="meta"):
    torch.manual_seed(7)
    with torch.device(device):
        return make()


IDS = torch.arange(48).view(4, 12)


def test_the_same_weights_as_of_a_model_with_memory():
    """All that is drawn depends on the seed and its place alone; the rest is as its modules begin."""
    real, meta = built(Attention, "cpu"), built(Attention)
    with torch.no_grad():
        real.embed.weight.copy_(torch.eye(50, 16))
    report = lsuv_(real, IDS, generator=seeded())
    of_meta = lsuv_(meta, IDS, device="cpu", generator=seeded())
    assert {r.name: r.status for r in of_meta} == {r.name: r.status for r in report}
    assert meta.embed.weight.std().item() == pytest.approx(1, abs=0.1)  # its reset_parameters: N(0, 1)
    for (name, a), b in zip(real.named_parameters(), meta.parameters(), strict=True):
        assert b.device.type == "cpu"
        cosine = F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() if b.any() else 1
        # Not drawn: tied weights and their biases, biases of the forget gate.
        begins = name in ("embed.weight", "head.bias") or "steps.bias" in name
        assert begins or cosine == pytest.approx(1, abs=1e-5), name
    assert meta.statistics.num_batches_tracked == 0
    assert torch.equal(meta.statistics.running_var, torch.ones(8))
    assert torch.equal(meta.aside.weight, real.aside.weight)


def test_tensors_stay_the_same_objects():
    model = built(Attention)
    model.mix.requires_grad_(False)
    model.embed.weight.mark = "kept"
    parameters, buffers = list(model.parameters()), list(model.buffers())
    lsuv_(model, IDS, device="cpu", generator=seeded())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.mark == "kept"
    assert not model.mix.in_proj_weight.requires_grad
    assert model.embed.weight.requires_grad
    assert all(type(p) is nn.Parameter and p.is_leaf for p in parameters)
    model(IDS).sum().backward()
    assert model.head.weight.grad is not None


def test_modules_get_memory_when_the_forward_reaches_them():
    """Nothing behind the module at work has any."""
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6)))
    having = []
    for layer in net:
        layer[1].register_forward_hook(lambda *_: having.append(sum(not p.is_meta for p in net.parameters())))
    lsuv_(net, torch.randn(20, 8), device="cpu")
    assert having == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertForMaskedLM", "GPT2LMHeadModel", "MixtralForCausalLM"])
def test_models_of_transformers(name):
    """Their own initialization sets what is not drawn: norms, embeddings, position ids, rotary frequencies."""
    entry = next(e for e in transformers_models.ENTRIES if e.name == name)
    real = entry.build()
    with torch.device("meta"):
        meta = entry.build()
    report = lsuv_(real, entry.data(), generator=seeded())
    of_meta = lsuv_(meta, entry.data(), device="cpu", generator=seeded())
    assert [(r.name, r.status) for r in report] == [(r.name, r.status) for r in of_meta]
    buffers = dict(real.named_buffers())
    assert all(torch.equal(buffers[key], b) for key, b in meta.named_buffers())
    assert all(p.isfinite().all() for p in meta.parameters())
    norms = [p for key, p in meta.named_parameters() if "norm" in key.lower() or "ln_" in key]
    assert norms
    assert all(set(p.unique().tolist()) <= {0.0, 1.0} for p in norms)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::goodinit.GoodinitWarning")  # small configs have outputs that are constant
@pytest.mark.parametrize("entry", transformers_models.ENTRIES, ids=lambda e: e.name)
def test_all_models_of_transformers(entry):
    """The same report, or an error that says which tensors their initialization leaves without values."""
    forward = {"forward": entry.forward} if entry.forward else {}
    with torch.device("meta"):
        meta = entry.build()
    before = [p.is_meta for p in meta.parameters()]  # torch.Tensor(…) has memory whatever the device
    assert any(before)
    try:
        of_meta = lsuv_(meta, entry.data(), device="cpu", generator=seeded(), **forward)
    except ModelError as error:
        assert "have no first values" in str(error)
        assert [p.is_meta for p in meta.parameters()] == before
        return
    report = lsuv_(entry.build(), entry.data(), generator=seeded(), **forward)
    assert {r.name: r.status for r in report} == {r.name: r.status for r in of_meta}


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        if self.error is None:
            return x / 0
        raise self.error


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), None], ids=["raises", "Ctrl-C", "NaN"])
def test_after_a_failure_it_is_on_the_meta_device_as_before(error):
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), Raises(error), nn.Linear(8, 8))
    tensors = [*net.parameters(), *net.buffers()]
    with pytest.raises(NonFiniteError if error is None else type(error)):
        lsuv_(net, torch.randn(20, 8), device="cpu")
    now = [*net.parameters(), *net.buffers()]
    assert all(a is b and b.is_meta for a, b in zip(tensors, now, strict=True))
    gc.collect()
    net[2] = nn.Identity()
    assert lsuv_(net, torch.randn(20, 8), device="cpu").ok


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.register_buffer("shift", torch.full((8,), 2.0), persistent=False)

    def forward(self, x):
        return x * self.scale + self.shift


def test_tensors_without_first_values():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(8, 8), Scale(), nn.Linear(8, 4))
    x = torch.randn(20, 8)
    lost = r"the buffer '1\.shift' was computed while .* on the meta device, so its numbers are lost, and Scale has no reset"
    with pytest.raises(ModelError, match=lost):
        lsuv_(net, x, device="cpu")

    def only_the_buffer(module):
        if isinstance(module, Scale):
            module.shift.fill_(2.0)

    unset = r"1 parameters have no first values, as they were not drawn: '1\.scale'; Scale has no reset_parameters\(\)"
    with pytest.raises(ModelError, match=unset):
        lsuv_(net, x, device="cpu", reset=only_the_buffer)
    assert all(p.is_meta for p in net.parameters())

    def both(module):
        if isinstance(module, Scale):
            module.scale.data.fill_(1.0)  # leaves no trace in the version of the tensor
            module.shift = torch.full((8,), 2.0)  # another tensor

    report = lsuv_(net, x, device="cpu", reset=both)
    assert report.ok
    assert torch.equal(net[1].scale, torch.ones(8))
    assert torch.equal(net[1].shift, torch.full((8,), 2.0))
    assert net(x).std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_weights_of_a_module_without_reset_parameters_may_be_drawn():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.empty(8, 5))

        def forward(self, x):
            return x @ self.w

    with torch.device("meta"):
        net = Product()
    x = torch.randn(20, 8)
    assert lsuv_(net, x, device="cpu")["w"].status == "scaled"
    assert net(x).std(correction=0).item() == pytest.approx(1, abs=1e-5)
    with torch.device("meta"):
        net = Product()
    with pytest.raises(ModelError, match="1 parameters have no first values, as they were not drawn: 'w'"):
        lsuv_(net, x, device="cpu", pre_init=None)


def test_what_has_memory_stays_as_it_is():
    """Of a model that is only partly on the meta device, and of a tied weight that another module's reset would set."""
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    net[1].bias = nn.Parameter(torch.full((8,), 3.0))
    net[1].weight = nn.Parameter(torch.empty(8, device="meta"))
    net.append(nn.Linear(8, 4, device="meta"))
    assert lsuv_(net, torch.randn(20, 8), device="cpu").ok
    assert torch.equal(net[1].bias, torch.full((8,), 3.0))
    assert torch.equal(net[1].weight, torch.ones(8))


def test_dtypes_and_random_numbers():
    def make():
        return nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 300), nn.ReLU(), nn.Linear(300, 300)).to(torch.bfloat16)

    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = []
    for _ in range(2):
        model = built(make)
        torch.set_rng_state(state)
        lsuv_(model, torch.arange(20), device="cpu", generator=seeded(1), pre_init="structured")
        assert torch.equal(torch.get_rng_state(), state)
        found.append(model)
    assert found[0][3].weight.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(found[0].parameters(), found[1].parameters(), strict=True))
    assert found[0][0].weight.float().std().item() == pytest.approx(1, abs=0.2)
    assert math.isclose(found[0](torch.arange(20)).float().std(correction=0).item(), 1, abs_tol=0.01)


def test_several_batches():
    batches = [torch.randn(30, 8) * scale for scale in (0.5, 1, 2)]
    model = built(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    assert lsuv_(model, batches, batches=3, device="cpu").batches == 3
    with torch.no_grad():
        assert torch.cat([model(x) for x in batches]).std(correction=0).item() == pytest.approx(1, abs=0.011)


def test_bad_input():
    with torch.device("meta"):
        net = nn.Linear(3, 3)
    x = torch.randn(5, 3)
    with pytest.raises(ModelError, match=r"2 parameters are on the meta device .* lsuv_\(model, data, device='cpu'\) gives them"):
        lsuv_(net, x)
    with pytest.raises(OptionError, match="device must be a device such as 'cpu' or 'cuda:0'; got 'gpu'"):
        lsuv_(net, x, device="gpu")
    with pytest.raises(OptionError, match="device='meta' has no memory"):
        lsuv_(net, x, device="meta")
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)) as torchs:
            torch.empty(0, device="cuda")
        reason = str(torchs.value).strip().splitlines()[0]
        with pytest.raises(OptionError, match=re.escape(f"device='cuda' cannot be used here: {reason}")):
            lsuv_(net, x, device="cuda")
    with pytest.raises(ModelError, match=r"model must be a torch.nn.Module; got NoneType"):
        lsuv_(None, x, device="cpu")
    real = nn.Linear(3, 3)
    assert target_device(real, "cpu") is None
    assert lsuv_(real, x, device="cpu").ok
    with pytest.raises(OptionError, match=r"the model has none; it is on 'cpu'. Move it first: model.to\('cuda'\)"):
        lsuv_(real, x, device="cuda")


# On several processes.

EXACT = 1e-5


@pytest.mark.parametrize("options", [{}, {"batches": 3}, {"pre_init": "structured"}], ids=str)
@pytest.mark.parametrize("form", ["plain", FSDP, "tp"])
def test_several_processes_get_the_weights_of_one(form, options, group):
    for to_meta, to_real in group.run(jobs.given_memory, form, options):
        assert to_meta < EXACT
        assert to_real < EXACT


@pytest.mark.slow
def test_tensor_parallel_inside_of_fsdp(four):
    assert max(map(max, four.run(jobs.given_memory, "2d", {}))) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", FSDP, "tp"])
def test_models_of_transformers_on_several_processes(form, group):
    names = ["LlamaForCausalLM", "BertForMaskedLM", "MixtralForCausalLM", "T5ForConditionalGeneration"]
    for differences in group.run(jobs.as_one_from_meta, names, form):
        assert max(differences.values()) < EXACT, differences


@FSDP_RUNS
def test_mixed_precision_keeps_the_parts_digits(two):
    assert two.run(jobs.mixed_precision) == [True, True]


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("form", ["plain", FSDP])
def test_experts_that_some_processes_reach(form, careless, group):
    assert max(group.run(jobs.experts_from_meta, form, careless)) < EXACT


@FSDP_RUNS
def test_a_process_gives_memory_to_its_parts_alone(two):
    held, sizes = zip(*two.run(jobs.only_parts_have_memory), strict=True)
    assert len({*sizes}) == 1
    assert all(sizes[0] / 2 <= own < 0.55 * sizes[0] for own in held)  # some parts are padded


CAT = "ValueError: the cat sat on the keyboard"


@pytest.mark.parametrize("how", ["forward", "reset"])
@pytest.mark.parametrize("form", ["plain", FSDP])
def test_a_process_that_fails_leaves_all_on_the_meta_device(form, how, group):
    for rank, found in enumerate(group.outcomes(jobs.failure, form, how)):
        assert not isinstance(found, Failure), found
        assert found.pop("text").startswith(CAT if rank == 1 else f"RankError: process 1 failed: {CAT}")
        assert found == {"on meta": True, "parts on meta": True, "afterwards": True, "used": True}


@pytest.mark.parametrize("form", ["plain", FSDP])
def test_tensors_without_first_values_on_several_processes(form, two):
    found = two.outcomes(jobs.without_first_values, form)
    assert {outcome.kind for outcome in found} == {"ModelError"}
    assert all(
        "1 parameters have no first values, as they were not drawn: '1.scale'; Scale has no reset" in f.text for f in found
    )


def test_bad_input_of_several_processes(two, tmp_path):
    for found in two.outcomes(jobs.only_one_on_meta):
        assert found.kind == "RankError"
        assert "process 0 has 'weight' of shape (3, 3), torch.float32, on the meta device, process 1 'weight' of" in found.text
    for found in two.outcomes(jobs.on_another_device):
        assert found.kind == "OptionError"
        assert found.text.startswith("device='cuda', but 'weight' is sharded over a mesh of cpu devices; pass device='cpu'")
    for form in ("plain", "fsdp"):
        for found in two.outcomes(jobs.checkpoint, str(tmp_path), form):
            assert found.kind == "OptionError"
            assert found.text.startswith("a checkpoint is for one process and a model that is not sharded; there are 2: leave")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_the_first_process_writes(two, tmp_path):
    """As the message says."""
    assert max(two.run(jobs.checkpoint_of_one, str(tmp_path))) < EXACT
