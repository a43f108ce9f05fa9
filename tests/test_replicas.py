"""Whether models are the same, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodinit.processes.replicas import checksums, difference_of_checksums, difference_of_tables, digest, table
from nets import mlp


def test_tables():
    model = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(4))
    assert table(model) == [
        "'0.weight' of shape (2, 3), torch.float32",
        "'0.bias' of shape (2,), torch.float32",
        "'1.weight' without a shape yet",
        "'1.bias' without a shape yet",
    ]
    assert difference_of_tables([["a"], ["a"], ["a", "b"]]) == "process 0 has 1 parameters, process 2 2"
    assert difference_of_tables([["a", "b"], ["a", "c"]]) == "process 0 has b, process 1 c"
    assert difference_of_tables([["a"], ["a"]]) is None


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
def test_checksums_see_every_bit(dtype):
    holder = nn.Module()
    values = torch.randn(7, 5, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    holder.w = nn.Parameter(values, requires_grad=False)
    before = checksums(holder)
    assert before == checksums(holder)
    raw = holder.w.detach().view(torch.uint8) if not dtype.is_complex else torch.view_as_real(holder.w.detach()).view(torch.uint8)
    raw.view(-1)[11] ^= 1
    assert checksums(holder) != before


def test_checksums_do_not_depend_on_layout_and_take_nan():
    one, other = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        one.weight[0, 0, 0, 0] = float("nan")
    other.load_state_dict(one.state_dict())
    other = other.to(memory_format=torch.channels_last)
    assert checksums(one) == checksums(other)
    assert set(checksums(one)) == {"weight", "bias"}


def test_lazy_parameters_have_no_checksum():
    assert checksums(nn.LazyLinear(3)) == {}


def test_differences():
    a, b = checksums(mlp(3, 4, 2)), checksums(mlp(3, 4, 2))
    assert difference_of_checksums([a, a, b]) == ("0.weight", 2)
    assert difference_of_checksums([a, a]) is None
    assert digest((a, "x")) != digest((a, "y"))
    assert digest((a, "x")) == digest((dict(a), "x"))
