"""Weights that a model reads, shares, computes or changes in ways of its own: what the report says of the outputs holds.

Outputs are measured here by running the model again, not by what the report says.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit import GoodinitWarning, OptionError, guard, init_, lsuv_, measure
from goodinit.interception.weights import Weights


@pytest.fixture
def x() -> Tensor:
    return torch.randn(256, 16, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """Parameters by name, and a forward that is given the module and the data."""

    def __init__(self, forward, **parameters):
        super().__init__()
        self.function = forward
        for name, value in parameters.items():
            setattr(self, name, value if isinstance(value, nn.Module) else nn.Parameter(value))

    def forward(self, x):
        return self.function(self, x)


def std(output: Tensor) -> float:
    return output.detach().double().std(correction=0).item()


# Autocast keeps casts of weights, and does not see that they change.


def tanh_net(depth: int = 6) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(16, 16), nn.Tanh())), nn.Linear(16, 4))


def test_several_batches_under_autocast(x):
    model = tanh_net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = lsuv_(model, [x, 2 * x, 0.5 * x], target_std=0.3, batches=3)
        here = std(model(torch.cat([x, 2 * x, 0.5 * x])))
    assert all(p.isfinite().all() for p in model.parameters())
    assert report.sweeps < 5
    assert here == pytest.approx(0.3, rel=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # with casts of its own
        assert std(model(torch.cat([x, 2 * x, 0.5 * x]))) == pytest.approx(here, rel=1e-3)


@pytest.mark.parametrize("grad", [False, True])
def test_a_layer_used_again_under_autocast(x, grad):
    seen = []

    def forward(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(grad or torch.is_grad_enabled()):
            for _ in range(4):
                x = torch.tanh(m.a(x))
                seen.append(std(x))
            return m.b(x)

    model = Model(forward, a=nn.Linear(16, 16), b=nn.Linear(16, 16))
    lsuv_(model, x, target_std=0.2)
    during = seen[:4]
    seen.clear()
    assert std(model(x)) == pytest.approx(0.2, rel=0.02)
    assert seen == pytest.approx(during, rel=0.02)


def test_auto_under_autocast_tells_its_trials_apart(x):
    model = tanh_net(30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        choice = lsuv_(model, x, target_std="auto").choice
    assert choice is not None
    stds = [trial.decades for trial in choice.trials]
    assert len(stds) > 1
    assert len({round(value, 3) for value in stds}) == len(stds)


def test_a_failure_under_autocast_leaves_no_cast_behind(x):
    def forward(m, x):
        for _ in range(3):
            x = torch.tanh(m.layer(x))
        return x

    def failing(m, x):
        with torch.enable_grad():
            return {}[m(x)]

    model = Model(forward, layer=nn.Linear(16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(x)
        with pytest.raises(KeyError):
            lsuv_(model, x, forward=failing)
        assert torch.equal(model(x), before)


# Parameters that are not one object, and have memory in common.


class Autoencoder(nn.Module):
    def __init__(self, tie):
        super().__init__()
        self.enc, self.dec = nn.Linear(16, 12), nn.Linear(12, 16)
        tie(self)

    def forward(self, x):
        return self.dec(torch.relu(self.enc(x)))


def transposed(model):
    model.dec.weight = nn.Parameter(model.enc.weight.data.t())


def in_part(model):
    model.wide = nn.Parameter(torch.randn(16, 16))
    model.enc.weight = nn.Parameter(model.wide.data[2:14])
    model.dec.weight = nn.Parameter(model.wide.data[:, 4:])


@pytest.mark.parametrize("tie", [transposed, in_part])
def test_memory_in_common_is_drawn_and_scaled_once(x, tie):
    model = Autoencoder(tie)
    report = lsuv_(model, x)
    assert [report[name].status for name in ("enc.weight", "dec.weight")] == ["scaled", "shared"]
    assert std(model.enc(x)) == pytest.approx(1)
    assert std(model(x)) == pytest.approx(report["dec.weight"].std_after)


@pytest.mark.parametrize("tie", [transposed, in_part])
def test_memory_in_common_is_put_back(x, tie):
    model = Autoencoder(tie)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyError):
        lsuv_(model, x, forward=lambda m, data: {}[m(data)])
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_memory_in_common_that_a_forward_changes_through_another_name_is_put_back(x):
    model = Autoencoder(transposed)
    before = model.enc.weight.clone()

    def forward(m, data):
        hidden = m.enc(data)
        m.dec.weight.mul_(0.5)
        return {}[m.dec(hidden)]

    with pytest.raises(KeyError):
        lsuv_(model, x, forward=forward)
    assert torch.equal(model.enc.weight, before)


def test_memory_in_common_with_an_embedding_is_tied():
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data)
    table = model[0].weight.clone()
    assert lsuv_(model, torch.arange(50))["1.weight"].status == "tied"
    assert torch.equal(model[0].weight, table)


def test_neighbours_in_one_memory_are_no_twins(x):
    flat = torch.randn(2 * 16 * 16)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model[0].weight, model[2].weight = (nn.Parameter(part.view(16, 16)) for part in flat.chunk(2))
    assert [record.status for record in lsuv_(model, x)] == ["scaled", "scaled"]
    assert std(model(x)) == pytest.approx(1)


# Weights that data meets in another way than a linear operator's.


def product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(x, weight.t())


with warnings.catch_warnings():  # torch deprecates it, and people use it
    warnings.simplefilter("ignore")
    scripted = torch.jit.script(product)


class Own(nn.Linear):
    """A layer of torch's with a forward of its own."""

    def __init__(self, use):
        super().__init__(16, 16)
        self.use = use
        self.mask = torch.tril(torch.ones(16, 16))

    def forward(self, x):
        return self.use(self, x)


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: F.linear(x, m.weight * torch.tril(torch.ones(16, 16)), m.bias),
        lambda m, x: F.linear(x, m.weight * m.mask, m.bias),
        lambda m, x: torch.einsum("bi,boi->bo", x, m.weight[None] * (1 + x[:, :1, None])),
        lambda m, x: scripted(x, m.weight),
    ],
    ids=["mask made in the forward", "mask in an attribute", "modulated", "TorchScript"],
)
def test_a_weight_that_meets_data_before_its_operator_is_left_as_it_is(x, use):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), Own(use), nn.ReLU(), nn.Linear(16, 4))
    before = model[2].weight.clone()
    report = lsuv_(model, x)
    assert report["2.weight"].status == "unsupported"
    assert torch.equal(model[2].weight, before)
    assert std(model(x)) == pytest.approx(1)


def test_a_layer_that_is_called_in_a_thread_is_left_as_it_is(x):
    def in_a_thread(m, x):
        with ThreadPoolExecutor(1) as pool:
            return m.last(pool.submit(m.inner, x.detach()).result())

    model = Model(in_a_thread, inner=nn.Linear(16, 16), last=nn.Linear(16, 4))
    before = model.inner.weight.clone()
    assert lsuv_(model, x)["inner.weight"].status == "unsupported"
    assert torch.equal(model.inner.weight, before)
    assert std(model(x)) == pytest.approx(1)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.einsum("...i,...io->...o", x, m.w[None].expand(256, -1, -1)),
        lambda m, x: F.linear(m.w, x).t(),
        lambda m, x: torch.zeros(256, 16).addmm_(x, m.w),
        lambda m, x: torch.addbmm(torch.zeros(256, 16), x[None], m.w[None]),
        lambda m, x: torch.convolution(x[..., None], m.w[..., None], None, [1], [0], [1], False, [0], 1)[..., 0],
        lambda m, x: torch.linalg.vecdot(x[:, None], m.w),
    ],
    ids=["einsum", "weight as data", "addmm_", "addbmm", "convolution", "vecdot"],
)
def test_products_that_are_not_followed_have_a_line(x, forward):
    model = Model(lambda m, x: m.layer(torch.relu(forward(m, x))), w=torch.randn(16, 16), layer=nn.Linear(16, 4))
    before = model.w.clone()
    report = lsuv_(model, x)
    assert {record.name: record.status for record in report} == {"w": "unsupported", "layer.weight": "scaled"}
    assert torch.equal(model.w, before)
    assert std(model(x)) == pytest.approx(1)


def test_what_is_no_product_has_no_line(x):
    def forward(m, x):
        return m.layer(torch.einsum("bi,i->bi", x * m.scale + m.shift, m.gain) @ (m.left @ m.right))

    ones = {"scale": torch.ones(16), "shift": torch.zeros(256, 16), "gain": torch.ones(16)}
    factors = {"left": torch.randn(16, 4), "right": torch.randn(4, 16)}
    report = lsuv_(Model(forward, layer=nn.Linear(16, 4), **ones, **factors), x)
    assert [record.status for record in report] == ["scaled", "scaled"]


def indexed(m, i):
    return torch.relu(m.layer(m.table[i])) @ m.table.t()


def selected(m, i):
    return torch.relu(m.layer(m.table.index_select(0, i))) @ m.table.t()


def added(m, i):
    return m.layer(F.one_hot(i, 16).float() + m.table) @ m.table.t()


def its_size(m, i):
    return F.linear(torch.relu(m.layer(F.one_hot(i, 16) * m.table.norm())), m.table)


@pytest.mark.parametrize("forward", [indexed, selected, added, its_size])
def test_a_weight_that_was_read_before_its_operator_is_tied(forward):
    model = Model(forward, table=torch.randn(16, 16), layer=nn.Linear(16, 16))
    table, i = model.table.clone(), torch.arange(16)
    report = lsuv_(model, i)
    assert report["table"].status == "tied"
    assert torch.equal(model.table, table)
    assert std(model(i)) == pytest.approx(report["table"].std_after)
    assert report["layer.weight"].status == "scaled"
    assert lsuv_(model, i, target_std={"table": 0.5})["table"].status == "scaled"  # who asks for it gets it


def test_asking_for_shape_and_dtype_reads_no_weight(x):
    def forward(m, x):
        return m.layer(x.double().to(m.layer.weight).type_as(m.layer.weight) + torch.zeros_like(m.layer.weight)[0])

    model = Model(forward, layer=nn.Linear(16, 16))
    assert [record.status for record in lsuv_(model, x)] == ["scaled"]


def test_a_penalty_on_a_weight_that_was_scaled_reads_nothing_too_early(x):
    model = Model(lambda m, x: (y := m.layer(x)) + 0 * y.sum() * m.layer.weight.norm(), layer=nn.Linear(16, 16))
    assert [record.status for record in lsuv_(model, x)] == ["scaled"]


def test_a_vector_that_is_a_weight_first_is_no_bias_to_be_zeroed(x):
    model = Model(lambda m, x: (x @ m.v)[:, None] + F.linear(x, m.w, m.v), v=torch.randn(16), w=torch.randn(16, 16))
    report = lsuv_(model, x)
    assert std(x @ model.v) == pytest.approx(report["v"].std_after) == pytest.approx(1)


def test_a_gain_shared_by_several_weights_is_left_and_all_are_scaled(x):
    def forward(m, x):
        for w in m.w:
            x = F.linear(x, w * m.gain)
        return x

    model = Model(forward, gain=torch.tensor(2.0), w=nn.ParameterList([torch.randn(16, 16) for _ in range(3)]))
    report = lsuv_(model, x)
    assert [record.status for record in report] == ["scaled"] * 3
    assert std(model(x)) == pytest.approx(1)
    assert model.gain.item() == 2


# Names.


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 50, bias=False)
        self.norm = nn.LayerNorm(16)
        self.head.weight = self.embed.weight

    def forward(self, i):
        return self.head(self.body(self.norm(self.embed(i))))


def test_a_pattern_means_a_weight_by_each_of_its_names(x):
    model, i = Tied(), torch.arange(50)
    report = lsuv_(model, i, target_std={"head*": 0.1})
    assert std(model(i)) == pytest.approx(0.1, rel=0.1)  # what the embedding puts out is normalized
    assert report["embed.weight"].note == "what read it before has changed with it"
    twice = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    twice[2].weight = twice[0].weight
    before = twice[0].weight.clone()
    for initialize in (lsuv_, lambda m, x, skip: init_(m, "he", skip=skip)):
        assert initialize(twice, x, skip="2")["0.weight"].status == "skipped"
        assert torch.equal(twice[0].weight, before)
    assert lsuv_(twice, x, target_std={"2": 0.5})["0.weight"].target == 0.5


def test_brackets_in_names(x):
    model = nn.ModuleDict({"conv[3]": nn.Linear(16, 8)})
    run = {"forward": lambda m, x: m["conv[3]"](x)}
    assert lsuv_(model, x, target_std={"conv[3].weight": 0.5}, **run)["conv[3].weight"].std_after == 0.5
    assert measure(model, x, **run)["conv[3].weight"].std == pytest.approx(0.5)
    assert init_(model, "he", skip="conv[3]")["conv[3].weight"].status == "skipped"


def test_a_part_of_a_parameter_by_the_name_that_the_report_has():
    attention, x = nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(8, 10, 32)
    report = lsuv_(attention, (x, x, x), target_std={"in_proj_weight[0:32]": 0.5})
    assert [record.std_after for record in report] == [0.5, 1, 1, 1]
    with pytest.warns(GoodinitWarning, match=r"no part of 'in_proj_weight' that was used \(did you mean 'in_proj_weight\[0:32"):
        lsuv_(attention, (x, x, x), target_std={"in_proj_weight[0:31]": 0.5})
    with pytest.raises(OptionError, match="matches no parameter"):  # parts are drawn together
        lsuv_(attention, (x, x, x), skip="in_proj_weight[0:32]")


def test_default_leaves_a_tied_table():
    model = Tied()
    table = model.embed.weight.clone()
    assert init_(model, "default")["embed.weight"].status == "tied"
    assert torch.equal(model.embed.weight, table)


# What is a sample, and what a bias.


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    ("forward", "weights"),
    [
        (lambda m, x: x @ m.w, (16,)),
        (lambda m, x: torch.bmm(x.expand(3, -1, -1), m.w).transpose(0, 1), (3, 16, 8)),
        (lambda m, x: (m.w @ x.t()).t(), (8, 16)),
        (lambda m, x: torch.addmm(m.b, m.w, x.t()).t(), (8, 16)),
    ],
    ids=["vector", "experts", "weight on the left", "addmm"],
)
def test_the_std_between_samples(x, forward, weights, center):
    model = Model(forward, w=torch.randn(weights), b=torch.zeros(8, 1))
    report = lsuv_(model, x + 2, variance="samples", center=center)
    assert {record.status for record in report} == {"scaled"}
    assert model(x + 2).detach().double().var(0, correction=0).mean().sqrt().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.filterwarnings("ignore::goodinit.GoodinitWarning")
def test_one_image_without_a_batch_has_no_samples():
    report = lsuv_(nn.Conv2d(4, 6, 3), torch.randn(4, 11, 11), variance="samples", center=True)
    assert report["weight"].status == "no-signal"


@pytest.mark.parametrize("options", [{}, {"pre_init": None}, {"center": True}, {"variance": "channels", "center": True}])
@pytest.mark.parametrize(
    ("forward", "bias"),
    [
        (lambda m, x: torch.addmm(m.b, m.w.t(), x.t()).t(), (8, 1)),
        (lambda m, x: torch.addmm(m.b, x, m.w, beta=2), (8,)),
        (lambda m, x: torch.addmm(m.b, x, m.w), (8,)),
    ],
    ids=["column", "beta", "row"],
)
def test_biases_of_addmm(x, forward, bias, options):
    model = Model(forward, w=torch.randn(16, 8), b=torch.randn(bias) / 4)
    record = lsuv_(model, x + 1, **options)["w"]
    if record.note:
        assert record.note == "not centred: no bias"
        return
    assert record.status == "scaled"
    assert std(model(x + 1)) == pytest.approx(1, rel=1e-4)
    if "center" in options:
        assert model(x + 1).mean(0).abs().max().item() < 1e-5


# What a forward changes itself.


def exchanges_memory(m, x):
    m.w.data = torch.renorm(m.w.data, 2, 0, 0.5)
    return x @ m.w


def halves(m, x):
    m.w.data.mul_(0.5)
    return x @ m.w


def halves_by_operator(m, x):
    with torch.no_grad():
        m.w *= 0.5
        m.w[0] = 0
    return x @ m.w


def writes_out(m, x):
    torch.mul(m.w.detach(), 0.5, out=m.w.detach())
    return x @ m.w


def exchanges_parameter(m, x):
    m.w = nn.Parameter(m.w.detach() * 2)
    return x @ m.w


def of_a_list(m, x):
    torch._foreach_mul_([m.w.detach()], 0.5)
    return x @ m.w


def initializes(m, x):
    with torch.no_grad():
        nn.init.normal_(m.w)
    return x @ m.w


def by_overload(m, x):
    torch.ops.aten.mul_.Tensor(m.w.detach(), torch.tensor(0.5))
    return x @ m.w


def clips(m, x):
    F.relu(m.w.detach(), inplace=True)
    return x @ m.w


CHANGES = [
    *(exchanges_memory, halves, halves_by_operator, writes_out, exchanges_parameter, of_a_list, initializes, by_overload, clips),
]


@pytest.mark.parametrize("forward", CHANGES)
@pytest.mark.parametrize("failing", [False, True])
def test_what_a_forward_does_to_its_weights_is_undone(x, forward, failing):
    model = Model(forward, w=torch.randn(16, 16))
    parameter, before, place = model.w, model.w.detach().clone(), model.w.data_ptr()
    if failing:
        with pytest.raises(KeyError):
            lsuv_(model, x, forward=lambda m, data: {}[m(data)])
    else:
        measure(model, x)
    assert model.w is parameter
    assert model.w.data_ptr() == place
    assert torch.equal(model.w, before)


@pytest.mark.parametrize("table", [nn.Embedding(20, 16, max_norm=1.0), nn.EmbeddingBag(20, 16, max_norm=1.0)])
def test_an_embedding_that_limits_its_rows(table):
    model = nn.Sequential(table, nn.Linear(16, 4))
    before, i = table.weight.clone(), torch.arange(20).view(5, 4)
    measure(model, i)
    assert torch.equal(table.weight, before)
    with pytest.raises(KeyError):
        lsuv_(model, i, forward=lambda m, data: {}[m(data)])
    assert torch.equal(table.weight, before)


class Stateful(nn.Module):
    """Buffers and gradients that cannot simply be copied back into."""

    def __init__(self, fails: bool = False):
        super().__init__()
        self.layer, self.norm, self.fails = nn.Linear(16, 16), nn.BatchNorm1d(16), fails
        self.register_buffer("queue", torch.zeros(0))
        self.register_buffer("other", torch.zeros(3))
        self.register_buffer("spread", torch.full((1,), torch.nan).expand(4))
        with torch.inference_mode():
            self.register_buffer("made_in_inference", torch.zeros(4))
        self.layer.bias.grad = torch.ones(1).expand(16)

    def forward(self, x):
        y = self.norm(self.layer(x))
        self.queue.resize_(16).copy_(y.detach().mean(0))
        self.other.data = torch.ones(5)
        with torch.inference_mode():
            self.get_buffer("made_in_inference").add_(1)
        if self.fails:
            raise KeyError("of the model's own")
        return y


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_are_put_back_however_they_were_changed(x, fails):
    model = Stateful(fails)
    weight = model.layer.weight.clone()
    if fails:
        with pytest.raises(KeyError, match="of the model's own"):
            lsuv_(model, x)
        assert torch.equal(model.layer.weight, weight)
    else:
        lsuv_(model, x)
        assert not torch.equal(model.layer.weight, weight)
    assert model.queue.shape == (0,)
    assert model.other.tolist() == [0, 0, 0]
    assert model.spread.isnan().all()
    assert model.made_in_inference.tolist() == [0, 0, 0, 0]
    assert model.norm.num_batches_tracked == 0
    assert model.norm.running_mean.tolist() == [0] * 16
    assert model.layer.bias.grad.stride() == (0,)
    assert model.training


def test_one_thing_that_cannot_be_put_back_hinders_nothing_else(x, monkeypatch):
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    put_back = guard._Kept.put_back

    def fail_for_the_first(kept):
        put_back(kept)
        if kept._tensor is model[1].running_mean:
            raise RuntimeError("no more")

    monkeypatch.setattr(guard._Kept, "put_back", fail_for_the_first)
    with pytest.raises(RuntimeError, match="no more"):
        lsuv_(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags


def test_what_a_later_batch_changes_is_undone_too(x):
    def forward(m, data):
        if data is not x:
            m[0].bias.detach().mul_(0.5)
            return {}[m(data)]
        return m(data)

    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    before = model[0].bias.clone()
    with pytest.raises(KeyError):
        lsuv_(model, [x, 2 * x], batches=2, forward=forward)
    assert torch.equal(model[0].bias, before)


def test_asking_for_gradients_copies_no_weight(x, monkeypatch):
    model, asked = nn.Sequential(nn.Linear(16, 16)), []
    monkeypatch.setattr(guard.Undo, "remember", lambda _, p: asked.append(p))

    def forward(m, x):
        for p in m.parameters():
            p.requires_grad_(True)
        return m(x)

    measure(model, x, forward=forward)
    assert not asked


# What is left in the model.


class Target(nn.Module):
    """Copies a part of itself at its first forward (BYOL)."""

    def __init__(self):
        super().__init__()
        self.online, self.target = nn.Linear(16, 16), None

    def forward(self, x):
        if self.target is None:
            self.target = copy.deepcopy(self.online)
            self.written = pickle.dumps(self.online)
        return self.online(x) + self.target(x).detach()


def test_copies_that_a_forward_makes_have_no_hooks(x):
    model = Target()
    lsuv_(model, x)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert pickle.loads(pickle.dumps(model)).online.weight.shape == (16, 16)
    assert pickle.loads(model.written)(x).shape == (256, 16)


def test_attention_in_a_thread_is_left_as_it_is_as_a_whole():
    def in_a_thread(m, x):
        with ThreadPoolExecutor(1) as pool:
            return m.last(pool.submit(m.attention, x, x, x).result()[0].detach())

    model, x = Model(in_a_thread, attention=nn.MultiheadAttention(16, 4), last=nn.Linear(16, 4)), torch.randn(5, 3, 16)
    before = {name: p.clone() for name, p in model.attention.named_parameters()}
    report = lsuv_(model, x)
    assert {r.status for r in report if "attention" in r.name} == {"unsupported"}
    assert all(torch.equal(p, before[name]) for name, p in model.attention.named_parameters())


@pytest.mark.parametrize(
    "look",
    [
        lambda m: sum(p.square().sum() for p in m.parameters()) * torch.tensor(0.1),
        lambda m: m[0].weight.norm() / torch.tensor(4.0),
        lambda m: torch.clamp(m[0].weight.norm(), max=torch.tensor(1.0)),
        lambda m: torch.quantile(m[0].weight, torch.tensor([0.5])),
        lambda m: m[0].weight.isnan().any() & torch.tensor(True),
    ],
)
def test_looking_at_weights_first_ties_none(x, look):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    report = lsuv_(model, x, forward=lambda m, data: (look(m), m(data))[1])
    assert [record.status for record in report] == ["scaled", "scaled"]


def test_a_number_that_data_is_added_to_is_data(x):
    def forward(m, x):
        size = torch.zeros(1)
        size += x.square().mean()
        return m.last(torch.relu(F.linear(x, m.w * size)))

    model = Model(forward, w=torch.randn(16, 16), last=nn.Linear(16, 4))
    assert {record.name: record.status for record in lsuv_(model, x)} == {"w": "unsupported", "last.weight": "scaled"}


def test_many_parameters_side_by_side_in_one_memory():
    flat = torch.randn(400, 16, 16)
    model = nn.ParameterList([nn.Parameter(part) for part in flat] + [nn.Parameter(flat[7, 4:])])
    weights = Weights(model)
    found = [weights.find(p) for p in model]
    assert [i for i, weight in enumerate(found) if weight is not None and weight.start is not None] == [7, 400]
