"""The std pooled over many batches: exactly, in few sweeps, by an independent recorder; and what is said of it."""

from __future__ import annotations

import math
import random
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from goodinit import DataError, GoodinitWarning, OptionError, lsuv_
from goodinit.batches import Calls
from goodinit.interception.operation import Part
from goodinit.interception.weights import Weight
from goodinit.moments import moments
from goodinit.outputs import fingerprint, merged, statistic
from goodinit.progress import progress
from nets import Residual, assert_same, mlp, surroundings
from recorder import record
from zoo import Entry, all_entries


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def varied(count, *shape, spread=0.3):
    """Batches of different scales and means."""
    generator = seeded(7)
    batches = [torch.randn(*shape, generator=generator) for _ in range(count)]
    return [(1 + spread * math.sin(3 * i)) * x + spread * math.cos(5 * i) for i, x in enumerate(batches)]


def pooled_stds(model, batches, run=lambda model, batch: model(batch)):
    """Of every weight's output at its first use, over all batches: {name: std}, from an independent recorder."""
    uses: dict[str, list[tuple[int, complex, float]]] = {}
    for batch in batches:
        for use in record(model, lambda batch=batch: run(model, batch)).uses:
            uses.setdefault(use.name, []).append((use.count, use.mean, use.std))
    stds = {}
    for name, found in uses.items():
        n = sum(count for count, _, _ in found)
        mean = sum(count * mean for count, mean, _ in found) / n
        square = sum(count * (std**2 + abs(m) ** 2) for count, m, std in found) / n
        stds[name] = max(0.0, square - abs(mean) ** 2) ** 0.5
    return stds


def plain(depth, activation, width=64):
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width, bias=False), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 10, bias=False))


def residual(depth, width=64):
    def block():
        return Residual(nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False))

    return nn.Sequential(*[block() for _ in range(depth)], nn.Linear(width, 10, bias=False))


@pytest.mark.parametrize(
    ("make", "sweeps"),
    [
        (lambda: plain(12, nn.ReLU), 1),
        (lambda: plain(200, nn.ReLU), 1),
        (lambda: residual(10), 1),
        (lambda: plain(12, nn.Tanh), 3),
        (lambda: plain(12, nn.GELU), 3),
        (lambda: plain(100, nn.Tanh), 6),
        pytest.param(lambda: plain(200, nn.Tanh), 20, marks=pytest.mark.slow),
    ],
)
def test_every_std_over_all_batches_is_at_its_target(make, sweeps):
    model, batches = make(), varied(8, 32, 64)
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    report = lsuv_(model, batches, batches=8, generator=seeded())
    handle.remove()
    assert report.sweeps <= sweeps
    assert len(passes) == report.forward_passes <= 1 + report.sweeps * 9
    assert report.batches == 8
    stds = pooled_stds(model, batches)
    assert stds.keys() == {r.name for r in report}
    for name, std in stds.items():
        assert std == pytest.approx(1, abs=0.0101), name
        assert report[name].std_after == pytest.approx(std, abs=0.0101), name


def test_one_batch_would_have_been_off():
    """The test before is not true of any initialization."""
    model, batches = plain(12, nn.ReLU), varied(8, 32, 64)
    lsuv_(model, batches, generator=seeded())
    assert max(abs(std - 1) for std in pooled_stds(model, batches).values()) > 0.05


def test_a_tighter_tolerance_takes_more_sweeps():
    reports = {}
    for tol in (0.05, 1e-4):
        model, batches = plain(12, nn.Tanh), varied(8, 32, 64)
        reports[tol] = lsuv_(model, batches, batches=8, tol=tol, generator=seeded())
        assert all(std == pytest.approx(1, abs=1.01 * tol) for std in pooled_stds(model, batches).values())
    assert reports[1e-4].sweeps > reports[0.05].sweeps


def test_batches_that_are_alike_take_no_correction():
    model, batch = plain(5, nn.Tanh), torch.randn(512, 64)
    report = lsuv_(model, [batch] * 3, batches=3)
    assert (report.sweeps, report.forward_passes) == (1, 4)
    assert all(r.spread == pytest.approx(0, abs=1e-6) for r in report)
    assert all(r.std_after == pytest.approx(1, abs=1e-4) for r in report)


def test_factors_and_spreads_are_those_of_the_whole():
    model, batches = plain(3, nn.ReLU), varied(6, 32, 64)
    report = lsuv_(model, batches, batches=6, generator=seeded())
    for name, p in model.named_parameters():
        assert torch.linalg.svdvals(p.detach()).max().item() == pytest.approx(report[name].factor, rel=1e-4)
    first = model[0].weight.detach()
    stds = torch.stack([(batch @ first.T).std(correction=0) for batch in batches])
    assert report["0.weight"].spread == pytest.approx((stds.std(correction=0)).item(), rel=1e-2)
    shown = report.summary()
    assert f"6 batches pooled in {report.sweeps} sweep" in shown
    assert f"stds of single batches {max(r.spread or 0 for r in report):.1%} apart at most" in shown


def test_targets_and_biases_and_weights_left_alone():
    model, batches = mlp(64, 32, 32, 8), varied(5, 32, 64)
    nn.init.normal_(model[0].bias, std=0.3)
    model[2].requires_grad_(False)
    kept = model[2].weight.clone()
    report = lsuv_(model, batches, batches=5, pre_init=None, target_std={"0": 2.0, "4": 0.5})
    assert torch.equal(model[2].weight, kept)
    assert report["2.weight"].status == "frozen"
    assert report["2.weight"].spread is None
    outputs = [torch.cat([model[: i + 1](x) for x in batches]).std(correction=0).item() for i in (0, 4)]
    assert outputs == [pytest.approx(2, abs=0.02), pytest.approx(0.5, abs=0.005)]


def test_nothing_but_weights_changes():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Tanh(), nn.Linear(8, 8)).eval()
    before = surroundings(model)
    lsuv_(model, varied(4, 16, 8), batches=4, generator=seeded())
    assert_same(surroundings(model), before)


def test_a_failure_in_a_later_batch_changes_nothing():
    model, batches = plain(3, nn.ReLU), varied(4, 16, 64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for broken in (torch.randn(16, 63), torch.full((16, 64), float("nan"))):
        with pytest.raises((RuntimeError, ValueError)):
            lsuv_(model, [*batches[:3], broken], batches=4)
        assert_same(dict(model.named_parameters()), {n: nn.Parameter(p) for n, p in before.items()})


def test_a_loader_with_fewer_batches_says_so():
    model = plain(3, nn.ReLU)
    with pytest.warns(GoodinitWarning, match=r"lsuv_: batches=64 was asked for, the data had 3"):
        report = lsuv_(model, varied(3, 16, 64), batches=64)
    assert report.batches == 3


def test_sweeps_without_end_are_a_warning(monkeypatch):
    from goodinit import sweeps

    monkeypatch.setattr(sweeps, "MOST_SWEEPS", 1)
    with pytest.warns(GoodinitWarning, match=r"after 1 sweeps '\d+.weight' has the std .* over all batches, its target is 1"):
        lsuv_(plain(60, nn.Tanh), varied(4, 16, 64), batches=4, tol=1e-5)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            torch.randn(4, 64),
            {"batches": 3},
            r"batches=3 needs a DataLoader or another iterable of batches; got one batch, torch\.Tensor",
        ),
        ((torch.randn(4, 64),), {"batches": 3}, "got one batch, tuple of length 1"),
        ([torch.randn(4, 64)], {"batches": 0}, "batches must be an integer, 1 or more; got 0"),
        ([torch.randn(4, 64)], {"batches": 2.0}, "batches must be an integer, 1 or more; got 2.0"),
        ([torch.randn(4, 64)], {"tol": 0}, "tol must be between 0 and 1; got 0"),
    ],
)
def test_bad_options(data, options, message):
    with pytest.raises(OptionError, match=message):
        lsuv_(plain(2, nn.ReLU), data, **options)


# The batches are the same ones in every sweep.


class Noisy(Dataset):
    """Draws its samples from every generator that there is."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        noise = torch.randn(8) + random.random() + torch.from_numpy(np.random.rand(8)).float()
        return noise * i, i


def seen_by(data, count, between=lambda: None):
    calls = Calls(nn.Linear(8, 8), data, None, count)
    rounds: list[list[torch.Tensor]] = []
    for _ in range(3):
        rounds.append([])
        for call in calls:
            between()
            rounds[-1].append(call.args[0].clone())
    return calls.first.args[0], rounds


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffling_loader_with_noise_gives_the_same_batches_again(own, workers):
    loader = DataLoader(
        Noisy(), batch_size=16, shuffle=True, generator=seeded() if own else None, num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    state = loader.generator.get_state() if own else None

    def between():
        torch.randn(3)
        random.random()
        np.random.rand()

    first, rounds = seen_by(loader, 3, between)
    for other in rounds:
        assert len(other) == 3
        if not workers:  # noise of worker processes follows from a seed that torch draws, but numpy's and Python's do not
            assert torch.equal(other[0], first)
            assert all(torch.equal(a, b) for a, b in zip(other, rounds[0], strict=True))
    assert not torch.equal(rounds[0][0], rounds[0][1])
    if own:
        assert torch.equal(loader.generator.get_state(), state)


def test_a_generator_is_kept_and_taken_from_no_further():
    taken = []

    def batches():
        for i in range(10):
            taken.append(i)
            yield torch.full((4, 8), float(i))

    first, rounds = seen_by(batches(), 3)
    assert taken == [0, 1, 2]
    assert [[int(x[0, 0]) for x in other] for other in rounds] == [[0, 1, 2]] * 3
    assert first[0, 0] == 0


def test_labels_are_left_out_of_every_batch():
    data = DataLoader(TensorDataset(torch.randn(40, 64), torch.arange(40)), batch_size=8)
    report = lsuv_(plain(2, nn.ReLU), data, batches=5)
    assert report.batches == 5
    assert "not given to the model: item 1" in report.batch


def test_a_forward_of_the_caller_s_gets_batch_after_batch():
    model, seen = plain(2, nn.ReLU), []

    def forward(model, batch):
        seen.append(batch["i"])
        return model(batch["x"])

    batches = [{"x": x, "i": i} for i, x in enumerate(varied(3, 16, 64))]
    lsuv_(model, batches, batches=3, forward=forward)
    assert seen[:4] == [0, 0, 1, 2]


# The parts.


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("bias", [False, True])
def test_statistics_merge_to_those_of_the_whole(dtype, bias):
    z = torch.randn(30, 6, dtype=dtype, generator=seeded()) + 5
    b = torch.randn(6, dtype=dtype, generator=seeded(1)) if bias else None
    weight = Weight("w", z, z)
    whole = statistic(Part(weight, z, b))
    for cuts in ([10, 20], [1, 29], [0, 30], [30, 0], [7, 8, 15]):
        first, *rest = (statistic(Part(weight, part, b)) for part in z.split(cuts))
        for other in rest:
            first = merged(first, other)
        assert int(first.n) == 180
        assert torch.allclose(first.mean, whole.mean, rtol=1e-6)
        assert first.std.item() == pytest.approx(whole.std.item(), rel=1e-5)
    exact = (z + b if bias else z).to(torch.complex128)
    assert whole.std.item() == pytest.approx((exact - exact.mean()).abs().square().mean().sqrt().item(), rel=1e-5)
    assert moments(z).n == 180


@pytest.mark.parametrize("shape", [(4096,), (4, 2000), (3, 5, 7, 9), (2, 3), (1, 8192), (7, 1, 1), ()])
def test_fingerprints_change_with_the_direction_alone(shape):
    z = torch.randn(shape, generator=seeded())
    print_ = fingerprint(z)
    assert print_.numel() <= 1024
    assert print_.numel() == min(1024, z.numel()) or z.dim() > 1
    assert torch.allclose(fingerprint(3 * z), print_, atol=1e-6)
    assert not fingerprint(torch.zeros(shape)).any()
    if z.numel() > 4:
        assert not torch.allclose(fingerprint(z + torch.randn(shape)), print_, atol=1e-2)


def test_progress_is_shown_on_a_terminal_alone(monkeypatch, capsys):
    assert list(progress(iter("abc"), 3, "x")) == list("abc")
    assert capsys.readouterr() == ("", "")
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress(iter("abc"), 3, "batches")) == list("abc")
    shown = capsys.readouterr()
    assert "batches" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""
    lsuv_(plain(2, nn.ReLU), varied(3, 16, 64), batches=3)
    assert "goodinit: batches" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert list(progress(iter("abc"), 3, "batches")) == list("abc")


# The zoo.


def other_batches(entry: Entry, count: int) -> list[object]:
    batches = []
    for seed in range(1, count + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            batches.append(entry.batch())
    return batches


# One in twelve of those that are quick, all others by `make test-slow`.
ZOO = all_entries()
QUICK = {e.name for e in [e for e in ZOO if not e.slow][::12]}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name, marks=() if e.name in QUICK else pytest.mark.slow) for e in ZOO])
def test_three_sweeps_do_for_the_zoo(entry: Entry) -> None:
    for package in entry.needs:
        pytest.importorskip(package)
    model, batches = entry.build(), other_batches(entry, 4)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GoodinitWarning)  # of weights without signal; those of sweeps are seen below
        report = lsuv_(model, batches, batches=4, forward=entry.forward or entry.run)
    assert report.sweeps <= 3
    swept = [r for r in report if r.spread is not None]
    assert all(abs(r.std_after / r.target - 1) <= 0.0101 for r in swept)
    assert {r.name for r in swept} >= {r.name for r in report if r.status == "scaled"}


class Once(IterableDataset):
    """Can be read but once."""

    def __init__(self, count):
        self.left = iter(torch.randn(count, 6, generator=torch.Generator().manual_seed(0)))

    def __iter__(self):
        return self.left


@pytest.mark.parametrize(("count", "message"), [(32, "gave a batch once, and none when it was read again: batches= reads it")])
def test_data_that_are_used_up(count, message):
    model = mlp(6, 20, 4)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(DataError, match=message):
        lsuv_(model, DataLoader(Once(count), batch_size=32), batches=2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:lsuv_. batches=3 was asked for, the data had 0")
def test_other_batches_when_data_are_read_again():
    with (
        pytest.warns(GoodinitWarning, match=r"the data gave other batches when it was read again: .* list\(itertools.islice"),
        pytest.raises(DataError, match="none when it was read again"),
    ):
        lsuv_(mlp(6, 20, 4), DataLoader(Once(96), batch_size=32), batches=3, tol=1e-9)
