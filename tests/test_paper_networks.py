"""The paper's networks: as published, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodinit import OptionError, init_, lsuv_
from goodinit.paper.blocks import ACTIVATIONS, NORMS, Highway, Maxout, Residual, largest, prepare_
from goodinit.paper.networks import NETWORKS, Shape, make_network


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


CONVOLUTIONAL = [name for name, network in NETWORKS.items() if isinstance(network, Shape) and not name.startswith("teacher")]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_network_runs(name, activation, norm):
    shape = NETWORKS[name]
    assert isinstance(shape, Shape)
    if name.startswith("fixup") and activation == "maxout":
        with pytest.raises(OptionError, match="Fixup's blocks need a non-linearity that keeps the number of channels"):
            make_network(name)
        return
    net = make_network(name, activation=activation, norm=norm, classes=7)
    x = torch.randn(2, shape.channels, shape.pixels, shape.pixels)
    assert net(x).shape == (2, 7)
    kinds = {"relu": nn.ReLU, "vlrelu": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "maxout": Maxout}
    convolutions = sum(isinstance(width, int) for width in shape.body)
    layers, maxout = convolutions + bool(shape.hidden), activation == "maxout"
    gates = sum(isinstance(m, Highway) for m in net.modules())
    assert sum(isinstance(m, kinds[activation]) for m in net.modules()) == layers
    assert (
        sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
        == {
            "none": 0,
            "before": 2 * convolutions + 5 * bool(shape.hidden) if maxout else layers,
            "after": layers,
        }[norm]
    )
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == (2 if maxout else 1) * convolutions + gates


def test_vlrelu_is_very_leaky():
    slopes = {m.negative_slope for m in make_network("fitnet1", activation="vlrelu").modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {1 / 3}


def test_where_the_normalization_is():
    before = [type(m) for m in make_network("fitnet4", activation="maxout", norm="before").hidden]
    after = [type(m) for m in make_network("fitnet4", activation="maxout", norm="after").hidden]
    assert before == [Maxout]
    assert after == [Maxout, nn.BatchNorm1d]
    pieces = make_network("fitnet4", norm="before").hidden.maxout.pieces
    assert [[type(m) for m in piece] for piece in pieces] == [[nn.Linear, nn.BatchNorm1d]] * 5
    relu = [type(m) for m in make_network("fitnet4", activation="relu", norm="before").hidden]
    assert relu == [nn.Linear, nn.BatchNorm1d, nn.ReLU]


def test_fitnet4_s_dropout_and_poolings_are_where_the_recipe_has_them():
    names = [name for name in dict(make_network("fitnet4").named_children()) if not name.startswith("conv")]
    tail = ["global_pool", "dropout_global_pool", "flatten", "hidden", "dropout_last", "classifier"]
    assert names == ["dropout_input", "pool1", "dropout_pool1", "pool2", "dropout_pool2", *tail]
    rates = [m.p for m in make_network("fitnet4").modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.2] * 5  # the global pooling is one, too
    mnist = [m for m in make_network("fitnet-mnist").modules() if isinstance(m, (nn.Dropout, nn.MaxPool2d))]
    assert [m.kernel_size if isinstance(m, nn.MaxPool2d) else m.p for m in mnist] == [4, 4, 2, 0.3]


@pytest.mark.parametrize("pieces", [2, 5])
def test_maxout_is_the_maximum_over_pieces(pieces):
    x = torch.randn(pieces, 6, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    y, expected = largest(x), x.amax(0)
    assert torch.allclose(y, expected, rtol=1e-14)
    g = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, g, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, x, g)
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_maxout_of_narrow_numbers_is_exact():
    x = torch.randn(2, 1000).bfloat16()
    assert torch.equal(largest(x), x.amax(0))


def test_maxout_passes_nan_on():
    assert largest([torch.tensor([1.0]), torch.tensor([float("nan")])]).isnan().all()


def test_every_piece_of_maxout_is_a_layer_that_is_initialized_by_itself():
    net, x = make_network("fitnet4"), torch.randn(64, 3, 32, 32)
    first, second = (piece.conv.weight.flatten(1) for piece in net.conv1_1.maxout.pieces)
    init_(net, "orthonormal")
    for weight in (first, second):  # 32 rows of 27: the columns are orthonormal
        assert torch.allclose(weight.mT @ weight, torch.eye(27), atol=1e-5)
    assert {r.status for r in lsuv_(net, x)} == {"scaled"}
    assert [r.std_after for r in lsuv_(net, x)] == [1] * (2 * 17 + 5 + 1)


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


def test_highways_carry_what_their_gates_leave():
    """y = H(x) T(x) + x (1 - T(x))."""
    block = Highway(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(5, 4)
    t = torch.sigmoid(block.gate(x))
    assert torch.allclose(block(x), block.transform(x) * t + x * (1 - t), atol=1e-6)
    net = make_network("highway19", activation="relu")
    prepare_(net, gate_bias=-3.0)
    gates = [m.gate for m in net.modules() if isinstance(m, Highway)]
    assert len(gates) == 2 + 1 + 5 + 5  # where the width stays
    assert all(gate.bias.eq(-3).all() for gate in gates)


def test_fixup_s_first_weights():
    net = make_network("fixup4", activation="relu")
    init_(net, "he")
    before = net.conv2_2.first.weight.clone()
    x = torch.randn(2, 3, 32, 32)
    prepare_(net, gate_bias=0.0)
    assert torch.allclose(net.conv2_2.first.weight, before * 5**-0.5)
    assert not net.conv2_2.second.weight.any()
    assert not net(x).any()  # the classifier too begins at 0
    h = torch.randn(2, 80, 4, 4)
    assert torch.equal(net.conv2_2(h), h.relu())


def test_fixup_s_block_is_its_formula():
    """f(x + s conv(f(conv(x + b1) + b2) + b3) + b4)."""
    block = make_network("fixup4", activation="relu").conv2_2
    with torch.no_grad():
        block.biases.copy_(torch.tensor([0.3, -0.2, 0.5, 0.7]))
        block.scale.fill_(1.7)
    x = torch.randn(2, 80, 5, 5)
    h = (block.first(x + 0.3) - 0.2).relu()
    assert torch.allclose(block(x), (x + 1.7 * block.second(h + 0.5) + 0.7).relu(), atol=1e-5)


def test_caffe_s_constants():
    responses = [m for m in make_network("caffenet", activation="relu").modules() if isinstance(m, nn.LocalResponseNorm)]
    assert {(m.size, m.alpha, m.beta) for m in responses} == {(5, 1e-4, 0.75)}
    rates = {m.p for m in make_network("googlenet", activation="relu").auxiliary.modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.7}


def test_responses_are_normalized_as_by_caffe():
    """x / (1 + alpha / n sum x^2)^(3/4), the sum over n = 5 channels."""
    (norm, _) = [m for m in make_network("caffenet", activation="relu").modules() if isinstance(m, nn.LocalResponseNorm)]
    x = 100 * torch.randn(2, 9, 3, 3)
    near = torch.stack([x[:, max(c - 2, 0) : c + 3].square().sum(1) for c in range(9)], 1)
    assert torch.allclose(norm(x), x / (1 + 1e-4 / 5 * near) ** 0.75, rtol=1e-5)


@pytest.mark.parametrize("name", ["caffenet", "googlenet"])
def test_poolings_overlap_and_round_up(name):
    pools = [m for m in make_network(name, activation="relu").modules() if isinstance(m, nn.MaxPool2d) and m.stride != 1]
    assert len(pools) == 3  # GoogLeNet has one module for its last two
    assert {(m.kernel_size, m.stride, m.ceil_mode) for m in pools} == {(3, 2, True)}


@pytest.mark.parametrize(("name", "layers"), [("highway11", 11), ("highway19", 19), ("highway32", 32), ("highway-mnist", 10)])
def test_layers_of_highways(name, layers):
    """Gates are no layers of their own."""
    named = make_network(name, activation="relu").named_modules()
    found = [key for key, m in named if isinstance(m, (nn.Conv2d, nn.Linear)) and not key.endswith("gate")]
    assert len(found) == layers


def test_skipinit_begins_as_the_identity():
    net = make_network("skipinit4")
    prepare_(net, gate_bias=0.0)
    h = torch.randn(2, 80, 4, 4)
    assert torch.equal(net.conv2_2(h), h)


@pytest.mark.parametrize(("name", "depth", "width"), [("mlp", 10, 71), ("highway-mlp", 10, 50), ("mlp", 200, 71)])
def test_perceptrons(name, depth, width):
    net = make_network(name, activation="tanh", depth=depth)
    linear = [m for n, m in net.named_modules() if isinstance(m, nn.Linear) and not n.endswith("gate")]
    assert [m.out_features for m in linear] == [width] * (depth - 1) + [10]
    assert linear[0].in_features == 784
    assert sum(isinstance(m, Highway) for m in net.modules()) == (depth - 2 if name == "highway-mlp" else 0)
    assert net(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    with pytest.raises(OptionError, match="a perceptron needs depth=, its number of layers, of 2 or more; got 0"):
        make_network(name)


@pytest.mark.parametrize(("name", "count"), [("highway-mnist", 39_000), ("highway19", 2_300_000), ("highway32", 1_250_000)])
def test_highways_are_about_as_large_as_published(name, count):
    assert parameters(make_network(name, activation="relu")) == pytest.approx(count, rel=0.03)


def test_caffenet():
    """bvlc_reference_caffenet.caffemodel holds 60,965,224 numbers."""
    net = make_network("caffenet", activation="relu", classes=1000)
    assert parameters(net) == 60_965_224
    assert [m.groups for m in net.children() if isinstance(m, nn.Conv2d)] == [1, 2, 1, 2, 2]
    assert net(torch.randn(1, 3, 227, 227)).shape == (1, 1000)


def test_googlenet():
    """bvlc_googlenet.caffemodel holds 13,378,280 numbers, 6,998,552 of them not in the auxiliary classifiers."""
    net = make_network("googlenet", activation="relu", classes=1000)
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


def test_vgg16():
    """138,357,544 numbers, as in Simonyan & Zisserman 2015 (138 million)."""
    with torch.device("meta"):
        assert parameters(make_network("vgg16", activation="relu", classes=1000)) == 138_357_544


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["caffenet", "googlenet", "vgg16"])
def test_imagenet_networks_on_small_images(name, norm):
    net = make_network(name, activation="relu", norm=norm, classes=5, pixels=64)
    scores = net(torch.randn(2, 3, 64, 64))
    assert (scores[0] if isinstance(scores, tuple) else scores).shape == (2, 5)
    normalized = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    responses = sum(isinstance(m, nn.LocalResponseNorm) for m in net.modules())
    layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in net.modules())
    assert normalized == (0 if norm == "none" else {"caffenet": 7, "vgg16": 15, "googlenet": 57 + 2}[name])
    assert responses == ({"caffenet": 2, "vgg16": 0, "googlenet": 2}[name] if norm == "none" else 0)
    assert layers == {"caffenet": 8, "vgg16": 16, "googlenet": 58 + 2 * 3}[name]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("caffenet", {"pixels": 38}, "caffenet takes images of 39x39 pixels or more; got 38x38"),
        ("vgg16", {"pixels": 31}, "vgg16 takes images of 32x32 pixels or more; got 31x31"),
        ("googlenet", {"pixels": 16}, "googlenet takes images of 31x31 pixels or more; got 16x16"),
        ("fitnet1", {"pixels": 28}, "fitnet1 takes images of 32x32 pixels; got 28x28"),
    ],
)
def test_images_of_a_size_that_does_not_do(name, options, message):
    with pytest.raises(OptionError, match=message):
        make_network(name, activation="relu", **options)


@pytest.mark.parametrize(("name", "least"), [("caffenet", 39), ("vgg16", 32), ("googlenet", 31)])
def test_the_smallest_images_do(name, least):
    make_network(name, activation="relu", classes=3, pixels=least).eval()(torch.randn(1, 3, least, least))
    with pytest.raises(OptionError, match="or more; got"):
        make_network(name, activation="relu", classes=3, pixels=least - 1)


def test_imagenet_networks_are_published_with_relu():
    with pytest.raises(OptionError, match="the ImageNet networks are published with activation='relu'; got 'maxout'"):
        make_network("caffenet")
