"""What processes tell each other: it adds up to the statistics of all, and shows who was not there."""

from __future__ import annotations

import pytest
import torch

from goodinit.interception.operation import Part
from goodinit.interception.weights import Weight
from goodinit.outputs import Statistic, statistic
from goodinit.processes.messages import (
    FAILED,
    MOST_OPERATORS,
    SIZE,
    N,
    as_numbers,
    message,
    of_numbers,
    statistic_of,
    strangers,
    waiting,
)


def outputs(dtype, bias):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(30, 6, dtype=dtype, generator=generator) + 1000
    return z, torch.randn(6, dtype=dtype, generator=generator) if bias else None


def of(z, b) -> Statistic:
    return statistic(Part(Weight("w", z, z), z, b))


def assert_same(a: Statistic, b: Statistic) -> None:
    assert int(a.n) == int(b.n)
    assert torch.allclose(a.mean, b.mean, rtol=1e-7)
    assert torch.allclose(a.m2, b.m2, rtol=1e-5)
    assert torch.allclose(a.std, b.std, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cuts", [[30], [10, 20], [1, 29], [0, 30], [7, 0, 8, 15]])
def test_messages_add_up_to_the_statistics_of_all(dtype, bias, cuts):
    z, b = outputs(dtype, bias)
    parts = [of(part, b) for part in z.split(cuts)]
    sums = torch.stack([message(part, 7) for part in parts]).sum(0)
    assert sums.dtype == torch.float64
    assert sums.numel() * sums.element_size() == 64
    for part in parts:
        pooled = statistic_of(sums, part)
        assert_same(pooled, of(z, b))
        assert pooled.seen
    assert not strangers(sums, 7, len(cuts))


def test_of_no_output_at_all():
    empty = of(torch.empty(0, 6), None)
    pooled = statistic_of(message(empty, 3) + message(empty, 3), empty)
    assert not pooled.seen
    assert (float(pooled.n), float(pooled.mean), float(pooled.std)) == (1, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("bias", [False, True])
def test_statistics_are_sent_as_numbers(dtype, bias):
    found = of(*outputs(dtype, bias))
    numbers = as_numbers(found)
    assert not any(isinstance(number, torch.Tensor) for number in numbers)
    again = of_numbers(numbers, torch.device("cpu"))
    assert_same(again, found)
    assert (again.cov_sum is None) == (found.cov_sum is None)


def at(*operators):
    """The sum of messages of processes that are there; 0: of one that waits."""
    found = of(torch.randn(4, 2), None)
    cpu = torch.device("cpu")
    return torch.stack([message(found, o) if o else waiting(cpu, failed=False) for o in operators]).sum(0)


@pytest.mark.parametrize(
    ("operators", "yes"),
    [
        ((5, 5), False),
        ((5, 5, 5, 5), False),
        ((5, 6), True),
        ((5, 0), True),
        ((4, 5, 6), True),  # on average the middle one is not alone
        ((1, 3, 2, 2), True),
        ((MOST_OPERATORS - 1, MOST_OPERATORS - 1), False),
        ((MOST_OPERATORS - 1, MOST_OPERATORS - 2), True),
    ],
)
def test_strangers_are_seen_by_all(operators, yes):
    sums = at(*operators)
    for operator in operators:
        assert bool(strangers(sums, operator, len(operators))) == yes
        assert strangers(sums.tolist(), operator, len(operators)) == yes


def test_none_is_at_an_operator():
    assert not strangers(at(0, 0, 0), 0, 3)


def test_words_of_those_who_wait():
    cpu = torch.device("cpu")
    sums = waiting(cpu, failed=True) + waiting(cpu, failed=False, noted=True) + waiting(cpu, failed=False)
    assert sums.numel() == SIZE
    assert (sums[FAILED], sums[N]) == (1, 1)
