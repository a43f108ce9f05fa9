"""Loops with Accelerate, by one process and by two."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

from accelerate import Accelerator, DistributedType

import integration_jobs as jobs
from goodinit import ModelError, OptionError, Report
from goodinit.integrations.accelerate import lsuv_
from processes import Processes

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # torch's, of a machine without a GPU

X = jobs.IMAGES.train[: jobs.SAMPLES]


@pytest.fixture(autouse=True)
def own_state():
    with jobs.own_state():
        yield


@pytest.fixture(scope="module")
def two():
    with Processes(2, timeout=120, limit=300) as processes:  # which import the package first
        yield processes


MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAGRAD = partial(torch.optim.Adagrad, lr=0.1)  # which keeps sums from the beginning


def prepared(make_optimizer=MOMENTUM, model=None, **options):
    """An accelerator, and what it makes of a model, its optimizer and a loader."""
    accelerator, model = Accelerator(cpu=True, **options), model or jobs.net()
    loader = DataLoader(TensorDataset(X, jobs.IMAGES.train_labels[: len(X)]), batch_size=64, shuffle=True)
    return accelerator, *accelerator.prepare(model, make_optimizer(model.parameters()), loader)


def step(accelerator, model, optimizer, loader):
    x, y = next(iter(loader))
    accelerator.backward(F.cross_entropy(model(x), y))
    optimizer.step()


@torch.no_grad()
def stds(model):
    """Of the outputs of the linear layers."""
    x, found = X, []
    for layer in model.eval():
        x = layer(x)
        found += [x.std().item()] if isinstance(layer, nn.Linear) else []
    return found


def test_outputs_of_all_layers_have_unit_std():
    accelerator, model, _, loader = prepared()
    report = lsuv_(accelerator, model, loader, batches=4)
    assert [(r.name, r.status) for r in report] == [(f"{i}.weight", "scaled") for i in (1, 4, 6)]
    assert stds(model) == pytest.approx([1] * 3, abs=0.02)


def test_a_loop_sees_what_it_would_have_seen():
    """Batches, random numbers, and where Accelerate believes to be."""
    weights, report, *expected = jobs.accelerated(0, with_lsuv=False)
    others, report, *got = jobs.accelerated(0)
    assert len(expected[0]) == 16
    assert got == expected
    assert report is not None
    assert not torch.equal(weights["1.weight"], others["1.weight"])


@pytest.mark.parametrize(
    "options", [{"mixed_precision": "bf16"}, {"dynamo_backend": "eager"}], ids=["half precision", "compiled"]
)
def test_prepared_models(options):
    accelerator, model, _, loader = prepared(**options)
    report = lsuv_(accelerator, model, loader, batches=4)
    assert [r.name for r in report] == ["1.weight", "4.weight", "6.weight"]
    assert report.ok
    inside = getattr(model, "_orig_mod", model)
    assert (inside is model) == ("dynamo_backend" not in options)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert stds(inside) == pytest.approx([1] * 3, abs=0.03)


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.blocks = nn.Linear(8, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        return self.blocks[1](self.blocks[0](self.first(x)).tanh())


def test_a_model_compiled_by_regions():
    from accelerate.utils import TorchDynamoPlugin

    plugin = TorchDynamoPlugin(backend="eager", use_regional_compilation=True)
    accelerator, prepared_, *_ = prepared(model=(model := Repeated()), dynamo_plugin=plugin)
    assert prepared_ is not model
    report = lsuv_(accelerator, prepared_, torch.randn(64, 8))
    assert [(r.name, r.status) for r in report] == [
        ("first.weight", "scaled"),
        ("blocks.0.weight", "scaled"),
        ("blocks.1.weight", "scaled"),
    ]


@pytest.mark.parametrize("optimizer", [MOMENTUM, torch.optim.AdamW, ADAGRAD], ids=["momentum", "AdamW", "Adagrad"])
def test_not_when_training_goes_on(optimizer, tmp_path):
    accelerator, model, *rest = prepared(optimizer)
    lsuv_(accelerator, model, rest[1])
    step(accelerator, model, *rest)
    accelerator.save_state(tmp_path)
    trained = jobs.whole(model)
    with pytest.raises(ModelError, match="the training of this Sequential has begun: its optimizer has taken steps"):
        lsuv_(accelerator, model, rest[1])

    with jobs.own_state():
        accelerator, model, _, loader = prepared(optimizer)
        lsuv_(accelerator, model, loader)  # in vain
        accelerator.load_state(tmp_path)
        with pytest.raises(ModelError, match="here or before a checkpoint was loaded"):
            lsuv_(accelerator, model, loader)
        assert all(torch.equal(p, trained[name]) for name, p in jobs.whole(model).items())
        lsuv_(accelerator, accelerator.prepare(jobs.net()), loader)  # another one


def test_what_cannot_be_meant():
    accelerator, model, _, loader = prepared()
    with pytest.raises(OptionError, match=r"lsuv_ has no option 'target' \(did you mean 'target_"):
        lsuv_(accelerator, model, loader, target=1)
    other = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(ModelError, match=r"DEEPSPEED keeps the weights in a form of its own.*fsdp_version=2"):
        lsuv_(other, model, loader)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"sharded": True}, {"dynamo_backend": "eager"}],
    ids=["DistributedDataParallel", "FSDP2", "compiled"],
)
def test_two_processes_end_with_the_weights_of_one(options, two):
    expected = jobs.as_one_would(jobs.net(), X)
    (first, report, *_), (second, other, *_) = two.run(partial(jobs.accelerated, **options))
    assert first.keys() == second.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], weight, rtol=1e-4, atol=1e-6), name
    assert [(r.name, r.status) for r in Report.from_json(report)] == [(f"{i}.weight", "scaled") for i in (1, 4, 6)]
    assert Report.from_json(report).records == Report.from_json(other).records


@pytest.mark.slow
def test_loops_of_two_processes_see_what_they_would_have_seen(two):
    expected = two.run(partial(jobs.accelerated, with_lsuv=False))
    got = two.run(jobs.accelerated)
    for rank in (0, 1):
        assert len(expected[rank][2]) == 8
        assert got[rank][2:] == expected[rank][2:]
    assert got[0][2] != got[1][2]
