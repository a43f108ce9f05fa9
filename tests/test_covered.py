"""Which parts of parameters overlap."""

from __future__ import annotations

import torch
from torch import nn

from goodinit.interception.covered import Covered
from goodinit.interception.weights import Weights


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 4, 8))
        self.inner = nn.Linear(4, 6)


def test_covered():
    holder = Holder()
    weights, covered = Weights(holder), Covered()

    def find(t):
        return weights.find(t)

    w = holder.w
    assert find(w[1]) not in covered
    covered.add(find(w[1]))
    assert find(w[1].t()) in covered
    assert find(w[2]) not in covered
    assert find(w) in covered
    assert find(w[:, 0]) in covered
    assert find(w[2:, 0]) not in covered
    covered.add(find(holder.inner.weight))
    assert find(holder.inner.weight[2:3]) in covered
    assert find(holder.inner.weight) in covered


def test_parts_that_interlock_do_not_overlap():
    holder = Holder()
    weights, covered = Weights(holder), Covered()
    covered.add(weights.find(holder.w[:, :, ::2]))
    assert weights.find(holder.w[:, :, 1::2]) not in covered
    assert weights.find(holder.w[2]) in covered
    assert weights.find(holder.w[0, 0, 1:2]) not in covered
