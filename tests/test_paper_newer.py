"""Initializations beside the paper's: what their sources say of the first weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodinit import GoodinitWarning, OptionError, init_
from goodinit.paper.config import Training
from goodinit.paper.networks import make_network
from goodinit.paper.newer import bvlc_, gradinit_, krahenbuhl_
from goodinit.paper.pixels import Augmentation, Batches, Preprocessing
from image_sets import images

CPU = torch.device("cpu")
RUN = Training(data="made", network="fitnet-mnist")


def batches(size=64):
    train = images(400, (1, 28, 28))
    return Batches(train, Preprocessing.fitted("standardized", train, CPU), Augmentation(), size=size, seed=0, device=CPU)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("activation", ["relu", "maxout", "tanh"])
def test_krahenbuhl_s_channels_have_mean_0_and_std_1(activation):
    net = make_network("fitnet-mnist", activation=activation)
    x, _ = batches()[0]
    report = krahenbuhl_(net, x, generator=seeded())
    assert report.ok
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())
    seen = []
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        layer.register_forward_hook(lambda _m, _x, z: seen.append(z.detach().clone()))
    net.eval()(x)  # without dropout
    assert len(seen) == len(report) == (13 if activation == "maxout" else 7)
    for z in seen:
        others = [axis for axis in range(z.dim()) if axis != 1]
        assert torch.allclose(z.mean(others), torch.zeros(z.shape[1]), atol=1e-3)
        assert torch.allclose(z.std(others, correction=0), torch.ones(z.shape[1]), atol=1e-3)


def test_delta_orthogonal_convolutions():
    for shape in ((40, 24, 3, 3), (24, 40, 5), (16, 16, 3, 3, 3)):
        kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
        net = nn.Sequential(kind(shape[1], shape[0], shape[2]))
        init_(net, "delta-orthogonal", generator=seeded())
        w = net[0].weight.detach()
        middle = w[(slice(None), slice(None), *(size // 2 for size in shape[2:]))]
        gram = middle @ middle.T if shape[0] <= shape[1] else middle.T @ middle
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)
        assert w.count_nonzero() == middle.count_nonzero()


def test_delta_orthogonal_keeps_norms():
    net = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    init_(net, "delta-orthogonal")
    x = torch.randn(4, 8, 9, 9)
    assert net(x).norm().item() == pytest.approx(x.norm().item(), rel=1e-5)
    linear = nn.Linear(20, 10)
    init_(linear, "delta-orthogonal")
    assert torch.allclose(linear.weight @ linear.weight.T, torch.eye(10), atol=1e-5)


def loss_after_a_step(net, x, y, rate=0.1):
    """What GradInit makes small."""
    net = copy.deepcopy(net).eval()
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in net.parameters()])).item()
    with torch.no_grad():
        for p in net.parameters():
            p.sub_(rate * p.grad)
    return F.cross_entropy(net(x), y).item(), norm


def test_gradinit_makes_a_first_step_lower_the_loss():
    torch.manual_seed(0)  # of dropout
    net = make_network("fitnet-mnist", activation="relu")
    init_(net, "he", generator=seeded())
    before = copy.deepcopy(net)
    report = gradinit_(net, batches(), F.cross_entropy, RUN, steps=60, generator=seeded())
    x, y = batches(size=200)[0]
    (ours, norm), (theirs, _) = loss_after_a_step(net, x, y), loss_after_a_step(before, x, y)
    assert ours < theirs - 0.01
    assert norm < 2  # the bound is 1, on other batches and with dropout
    for (name, p), q in zip(net.named_parameters(), before.parameters(), strict=True):
        if p.dim() > 1:
            factor = report[name].factor
            assert factor >= 0.01 - 1e-6
            assert torch.allclose(p, factor * q, rtol=1e-4, atol=1e-7)
    assert len({r.factor for r in report}) == 7
    assert net.training
    assert all(p.grad is None for p in net.parameters())


def test_gradinit_leaves_statistics_alone():
    net = make_network("fitnet-mnist", activation="relu", norm="before")
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    gradinit_(net, batches(), F.cross_entropy, RUN, steps=3)
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())


def test_the_reference_initialization_of_caffenet():
    net = make_network("caffenet", activation="relu", pixels=64)
    bvlc_(net, generator=seeded())
    for name, std, bias in (("conv1", 0.01, 0), ("conv2", 0.01, 1), ("fc6", 0.005, 1), ("fc7", 0.005, 1), ("fc8", 0.01, 0)):
        layer = net.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert layer.bias.eq(bias).all()


def test_the_reference_initialization_of_googlenet():
    net = make_network("googlenet", activation="relu", pixels=64)
    bvlc_(net, generator=seeded())
    for name, layer in net.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = (3 / layer.weight[0].numel()) ** 0.5
            assert 0.8 * bound < layer.weight.abs().max() <= bound
            last = isinstance(layer, nn.Linear) and layer.out_features == 10
            assert torch.allclose(layer.bias, torch.tensor(0.0 if last else 0.2)), name


def test_other_networks_have_no_reference_initialization():
    with pytest.raises(OptionError, match="the reference initialization is CaffeNet's or GoogLeNet's; got a Sequential"):
        bvlc_(make_network("fitnet1"))


def test_krahenbuhl_leaves_statistics_and_dead_channels_alone():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 3))
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    x = torch.randn(8, 1, 28, 28)
    report = krahenbuhl_(net, x)
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
    assert report.ok
    halved = nn.Sequential(nn.Linear(4, 4), Zero(), nn.Linear(4, 4))
    with pytest.warns(GoodinitWarning, match="no-signal"):
        halved_report = krahenbuhl_(halved, torch.randn(50, 4))
    assert not halved_report.ok
    assert halved[2].weight.abs().max() < 10


class Zero(nn.Module):
    def forward(self, x):
        return 0 * x


def test_gradinit_of_adaptive_solvers_takes_absolute_values(monkeypatch):
    orders = []
    norm = torch.linalg.vector_norm

    def record(*given, **named):
        orders.append(given[1] if len(given) > 1 else named.get("ord", 2))
        return norm(*given, **named)

    monkeypatch.setattr(torch.linalg, "vector_norm", record)
    for optimizer, order in (("sgd", 2), ("rmsprop", 1)):
        orders.clear()
        run = Training(data="made", network="fitnet-mnist", optimizer=optimizer)
        gradinit_(make_network("fitnet-mnist", activation="relu"), batches(), F.cross_entropy, run, steps=2)
        assert set(orders) == {order}


def test_delta_orthogonal_kernels_of_even_size():
    net = nn.Sequential(nn.Conv1d(4, 6, 4))
    init_(net, "delta-orthogonal")
    used = net[0].weight.detach().abs().sum((0, 1)).nonzero().flatten().tolist()
    assert used == [2]  # as dirac_ of torch.nn.init has it
    reference = nn.init.dirac_(torch.empty(6, 4, 4)).abs().sum((0, 1)).nonzero().flatten().tolist()
    assert used == reference
