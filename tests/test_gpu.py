"""On a GPU: a pass waits for no device, matrices are drawn there; every dtype and format, compiled models, two processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rank_jobs as jobs
from goodinit import lsuv_
from nets import MODELS, Normalized, build, mlp
from processes import Processes
from recorder import record

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def on_gpu(name: str) -> tuple[nn.Module, Tensor]:
    model, x = build(name)
    return model.cuda(), x.cuda()


def assert_unit(model: nn.Module, x: Any, tolerance: float = 1e-3) -> None:
    uses = [use for use in record(model, lambda: model(x)).uses if not use.again]
    assert uses
    assert all(abs(use.std - 1) < tolerance for use in uses), [(use.name, use.std) for use in uses]


@contextmanager
def no_waiting_in(model: nn.Module) -> Iterator[list[int]]:
    """Any wait for the device is an error while the model's forward runs; gives the number of forwards."""
    forwards: list[int] = []

    def begin(*_: object) -> None:
        forwards.append(1)
        torch.cuda.set_sync_debug_mode("error")

    def end(*_: object) -> None:
        torch.cuda.set_sync_debug_mode("default")

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)]
    try:
        yield forwards
    finally:
        end()
        for handle in handles:
            handle.remove()


def test_a_wait_would_be_noticed():
    model = nn.Sequential(nn.Linear(4, 4)).cuda()
    model[0].register_forward_hook(lambda m, args, out: out.sum().item() * out)
    with no_waiting_in(model), pytest.raises(RuntimeError, match="synchroniz"):
        model(torch.randn(2, 4, device="cuda"))


@pytest.mark.parametrize("options", [{}, {"pre_init": None}, {"pre_init": nn.init.kaiming_normal_}, {"pre_init": "structured"}])
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_waits_for_no_device(name, options):
    model, x = on_gpu(name)
    lsuv_(model, x)  # loads libraries, which waits
    with no_waiting_in(model) as forwards:
        lsuv_(model, x, **options)
    assert len(forwards) == 1


def test_a_generator_of_the_gpu_does_not_wait_either():
    model, x = on_gpu("mlp")
    with no_waiting_in(model) as forwards:
        lsuv_(model, x, generator=torch.Generator("cuda").manual_seed(0))
    assert len(forwards) == 1


def test_sweeps_do_not_wait():
    model, x = on_gpu("mlp")
    lsuv_(model, x)
    with no_waiting_in(model) as forwards:
        report = lsuv_(model, [x * (1 + 0.3 * i) for i in range(4)], batches=4)
    assert len(forwards) == report.forward_passes > 4


@pytest.mark.parametrize("generator", [None, "cuda"])
def test_matrices_are_drawn_on_the_gpu(generator, monkeypatch):
    devices: list[str] = []
    randn = torch.randn

    def noting(*args: Any, **kwargs: Any) -> Tensor:
        drawn = randn(*args, **kwargs)
        devices.append(drawn.device.type)
        return drawn

    model, x = on_gpu("mlp")
    monkeypatch.setattr(torch, "randn", noting)
    report = lsuv_(model, x, generator=None if generator is None else torch.Generator(generator))
    assert set(devices) == {"cuda"}
    for r in report:
        weight = model.get_parameter(r.name).detach().double() / r.factor
        small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        assert (small - torch.eye(len(small), device="cuda")).abs().max() < 5e-6


def test_a_generator_of_the_cpu_gives_the_same_weights_everywhere():
    (model, x), (other, y) = build("mlp"), on_gpu("mlp")
    for net, batch in ((model, x), (other, y)):
        lsuv_(net, batch, generator=torch.Generator().manual_seed(3))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-3), (torch.float32, 1e-3), (torch.bfloat16, 3e-2), (torch.float16, 3e-2)]
)
def test_every_dtype(dtype, tolerance):
    model, x = mlp(64, 96, 96, 32).to("cuda", dtype), torch.randn(256, 64, device="cuda", dtype=dtype)
    assert lsuv_(model, x).ok
    assert_unit(model, x, tolerance)


def test_autocast():
    model, x = mlp(64, 96, 32).cuda(), torch.randn(256, 64, device="cuda")

    def forward(model: nn.Module, x: Tensor) -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            return model(x)

    assert lsuv_(model, x, forward=forward).ok
    assert all(p.dtype == torch.float32 for p in model.parameters())
    uses = record(model, lambda: forward(model, x)).uses
    assert all(abs(use.std - 1) < 3e-2 for use in uses)


def test_channels_last():
    model, other = Normalized().cuda(), Normalized().cuda()
    other.load_state_dict(model.state_dict())
    other = other.to(memory_format=torch.channels_last)
    x = torch.randn(16, 3, 4, 4, device="cuda")
    strides = [p.stride() for p in other.parameters()]
    for net, batch in ((model, x), (other, x.to(memory_format=torch.channels_last))):
        lsuv_(net, batch, generator=torch.Generator().manual_seed(3))
    assert [p.stride() for p in other.parameters()] == strides
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("before", [False, True])
def test_compiled_models(before):
    pytest.importorskip("triton")
    net, x = mlp(64, 96, 96, 32).cuda(), torch.randn(256, 64, device="cuda")
    model = torch.compile(net)
    if before:  # what was compiled for the old weights serves the new ones
        model(x)
    assert lsuv_(model, x).ok
    assert model(x).std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert_unit(net, x)


@pytest.mark.parametrize("job", [jobs.on_gpu, jobs.experts_on_gpu])
def test_two_processes(job: Callable[..., float]):
    """The first pass takes for granted that both are at the same operator; where they are not, it is done again."""
    with Processes(2) as two:
        assert max(two.run(job)) < 1e-5
