"""The paper's networks: as published, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodinit import OptionError
from goodinit.paper.imagenet import IMAGENET, GoogLeNet, caffenet
from goodinit.paper.networks import ACTIVATIONS, NETWORKS, NORMS, Maxout, Residual, make_network


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "activation", "count"),
    [
        ("fitnet4", "relu", 1_276_806),  # as published
        ("fitnet4", "maxout", 2_742_102),  # as published
        ("fitresnet4", "maxout", 2_742_102),  # shortcuts have no weights
        ("fitnet1", "maxout", 2 * 90_592 + 650),
        ("fitnet-mnist", "maxout", 2 * 10_168 + 12 * 9 * 10 + 10),
    ],
)
def test_parameters(name, activation, count):
    assert parameters(make_network(name, activation=activation)) == count


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs(name, activation, norm):
    shape = NETWORKS[name]
    net = make_network(name, activation=activation, norm=norm, classes=7)
    x = torch.randn(2, shape.channels, shape.pixels, shape.pixels)
    assert net(x).shape == (2, 7)
    kinds = {"relu": nn.ReLU, "vlrelu": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "maxout": Maxout}
    convolutions = sum(isinstance(width, int) for width in shape.body)
    layers = convolutions + bool(shape.hidden)
    assert sum(isinstance(m, kinds[activation]) for m in net.modules()) == layers
    assert sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()) == (layers if norm != "none" else 0)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == convolutions


def test_vlrelu_is_very_leaky():
    slopes = {m.negative_slope for m in make_network("fitnet1", activation="vlrelu").modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {1 / 3}


def test_where_the_normalization_is():
    before = [type(m) for m in make_network("fitnet4", activation="maxout", norm="before").hidden]
    after = [type(m) for m in make_network("fitnet4", activation="maxout", norm="after").hidden]
    assert before == [nn.Linear, nn.BatchNorm1d, Maxout]
    assert after == [nn.Linear, Maxout, nn.BatchNorm1d]
    assert make_network("fitnet4", norm="before").conv1_1.norm.num_features == 64  # of both pieces
    assert make_network("fitnet4", norm="after").conv1_1.norm.num_features == 32


def test_fitnet4_s_dropout_and_poolings_are_where_the_recipe_has_them():
    names = [name for name in dict(make_network("fitnet4").named_children()) if not name.startswith("conv")]
    tail = ["global_pool", "flatten", "hidden", "dropout_last", "classifier"]
    assert names == ["dropout_input", "pool1", "dropout_pool1", "pool2", "dropout_pool2", *tail]
    rates = [m.p for m in make_network("fitnet4").modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.2] * 4
    mnist = [m for m in make_network("fitnet-mnist").modules() if isinstance(m, (nn.Dropout, nn.MaxPool2d))]
    assert [m.kernel_size if isinstance(m, nn.MaxPool2d) else m.p for m in mnist] == [4, 4, 2, 0.3]


@pytest.mark.parametrize("pieces", [2, 5])
def test_maxout_is_the_maximum_over_pieces(pieces):
    x = torch.randn(6, 3 * pieces, 4, 4, dtype=torch.float64, requires_grad=True)
    y = Maxout(pieces)(x)
    expected = x.unflatten(1, (pieces, 3)).amax(1)
    assert torch.allclose(y, expected, rtol=1e-14)
    g = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, g, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, x, g)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    assert repr(Maxout(pieces)) == f"Maxout(pieces={pieces})"


def test_maxout_passes_nan_on():
    assert Maxout(2)(torch.tensor([[1.0, float("nan")]])).isnan().all()


def test_residual_networks_have_shortcuts_around_pairs_of_equal_width():
    net = make_network("fitresnet4", activation="relu")
    blocks = {name: m for name, m in net.named_children() if isinstance(m, Residual)}
    assert list(blocks) == ["conv1_2", "conv2_2", "conv2_4", "conv3_2", "conv3_4"]
    for block in blocks.values():
        convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 2
        assert len({c for m in convolutions for c in (m.in_channels, m.out_channels)}) == 1
        for m in convolutions:
            nn.init.zeros_(m.weight)
            nn.init.zeros_(m.bias)
        x = torch.randn(2, convolutions[0].in_channels, 4, 4)
        assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "fitnet5"}, r"network must be one of fitnet1, .*; got 'fitnet5' \(did you mean 'fitnet"),
        ({"name": "fitnet1", "activation": "gelu"}, "activation must be one of maxout, relu, vlrelu, tanh, sigmoid; got 'gelu'"),
        ({"name": "fitnet1", "norm": "behind"}, "norm must be one of none, before, after; got 'behind'"),
    ],
)
def test_unknown_names(options, message):
    with pytest.raises(OptionError, match=message):
        make_network(**options)


def test_caffenet():
    """bvlc_reference_caffenet.caffemodel holds 60,965,224 numbers."""
    net = caffenet()
    assert parameters(net) == 60_965_224
    assert [m.groups for m in net if isinstance(m, nn.Conv2d)] == [1, 2, 1, 2, 2]
    assert net(torch.randn(1, 3, 227, 227)).shape == (1, 1000)


def test_googlenet():
    """bvlc_googlenet.caffemodel holds 13,378,280 numbers, 6,998,552 of them not in the auxiliary classifiers."""
    net = GoogLeNet()
    assert parameters(net) == 13_378_280
    assert parameters(net) - parameters(net.auxiliary) == 6_998_552
    x = torch.randn(2, 3, 224, 224)
    assert [scores.shape for scores in net(x)] == [(2, 1000)] * 3
    assert net.eval()(x).shape == (2, 1000)
    positions = []
    for name in ("3a", "3b", "4a", "5b"):
        net.inception[name].register_forward_hook(lambda _m, _x, out: positions.append(tuple(out.shape[1:])))
    net(x)
    assert positions == [(256, 28, 28), (480, 28, 28), (512, 14, 14), (1024, 7, 7)]


def test_networks_by_name_for_timings():
    assert {name: pixels for name, (_, pixels) in IMAGENET.items()} == {"caffenet": 227, "googlenet": 224}
