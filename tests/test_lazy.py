"""Lazy modules after a call that failed: as if nothing had been called."""

import pytest
import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from goodinit import init_, lsuv_, measure
from goodinit.errors import GoodinitError, ModelError
from nets import assert_same, snapshot


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4, bias=False), nn.Linear(4, 2)
    )


def form(model):
    """What a first forward changes of modules beside tensors and hooks, which a `snapshot` has."""
    return [
        (type(m), {k: v for k, v in vars(m).items() if isinstance(v, (int, tuple))}, [*m._load_state_dict_pre_hooks])
        for m in model.modules()
    ]


CALLS = {
    "lsuv_": lambda model, x, forward: lsuv_(model, x, forward=forward),
    "auto": lambda model, x, forward: lsuv_(model, x, forward=forward, target_std="auto"),
    "init_": lambda model, x, forward: init_(model, "he", x, forward=forward),
    "measure": lambda model, x, forward: measure(model, x, forward=forward),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("last", [True, False], ids=["behind the forward", "amidst"])
def test_after_a_failure_they_have_no_form(call, last):
    model = net()
    before, form_before = snapshot(model), form(model)

    def forward(model, x):
        model(x) if last else model[:3](x)
        raise RuntimeError("it fails")

    with pytest.raises(RuntimeError, match="it fails"):
        call(model, torch.randn(16, 3, 8, 8), forward)
    assert_same(snapshot(model), before)
    assert form(model) == form_before

    # And take one from other data, train, and load.
    report = lsuv_(model, torch.randn(16, 1, 6, 6))
    assert [r.shape for r in report] == [(6, 1, 3, 3), (4, 96), (2, 4)]
    assert type(model[0]) is nn.Conv2d
    assert type(model[4]) is nn.Linear
    model(torch.randn(16, 1, 6, 6)).sum().backward()
    assert model[0].weight.grad.shape == (6, 1, 3, 3)
    again = net()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again[4].weight, model[4].weight)


def test_the_data_met_is_not_what_the_next_layer_takes():
    """What a user sees who gives images of the wrong size first."""
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 4), nn.Unflatten(1, (2, 2)), nn.Conv2d(3, 1, 1))
    with pytest.raises(RuntimeError):
        lsuv_(model, torch.randn(16, 5))
    assert type(model[0]) is nn.LazyLinear
    model[4] = nn.Flatten()
    assert len(lsuv_(model, torch.randn(16, 7))) == 2


class OwnLazy(LazyModuleMixin, nn.Module):
    """One of the user's, whose numbers come from where no operator is seen."""

    def __init__(self):
        super().__init__()
        self.weight = nn.parameter.UninitializedParameter()

    def initialize_parameters(self, x):
        if self.has_uninitialized_params():
            self.weight.materialize((4, x.shape[1]))
            self.weight.data.numpy()[:] = 0.1

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


def test_one_of_the_users_own():
    def forward(model, x):
        model(x)
        raise RuntimeError("it fails")

    model = OwnLazy()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="it fails"):
        lsuv_(model, torch.randn(16, 5), forward=forward)
    assert_same(snapshot(model), before)
    assert [r.shape for r in lsuv_(model, torch.randn(16, 7))] == [(4, 7)]


def test_what_has_a_form_keeps_it():
    model = net()
    model(torch.randn(4, 3, 8, 8))
    with pytest.raises(GoodinitError):
        lsuv_(model, torch.randn(16, 3, 8, 8) * float("nan"))
    assert type(model[0]) is nn.Conv2d
    assert model[0].weight.shape == (6, 3, 3, 3)


def test_where_a_shape_is_needed(tmp_path):
    model = net()
    before = form(model)
    with pytest.raises(ModelError, match=r"'0.weight' is lazy, it has no shape yet.* run a batch through the model first"):
        lsuv_(model, torch.randn(16, 3, 8, 8), checkpoint=tmp_path / "weights")
    assert form(model) == before
    with torch.device("meta"):
        nowhere = net()
    with pytest.raises(ModelError, match=r"'0.weight' is on the meta device, and lazy.* Make the model on a real device"):
        lsuv_(nowhere, torch.randn(16, 3, 8, 8), device="cpu")
