"""Taking batches leaves no trace in what loads them."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler, TensorDataset

from goodinit import lsuv_
from goodinit.loaders import Batches, Loading
from nets import assert_same

DATA = TensorDataset(torch.arange(64.0)[:, None])


class Epochs(Sampler):
    """Another order in each iteration."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        return iter(torch.randperm(64, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self):
        return 64


def generator():
    return torch.Generator().manual_seed(0)


LOADERS = {
    "global generator": lambda: DataLoader(DATA, 8, shuffle=True),
    "own generator": lambda: DataLoader(DATA, 8, shuffle=True, generator=generator()),
    "sampler's generator": lambda: DataLoader(DATA, 8, sampler=RandomSampler(DATA, generator=generator())),
    "sampler that counts": lambda: DataLoader(DATA, 8, sampler=Epochs()),
    "workers that stay": lambda: DataLoader(
        DATA, 8, sampler=RandomSampler(DATA, generator=generator()), num_workers=1, persistent_workers=True
    ),
}


def epochs(loader, count=2):
    torch.manual_seed(1)
    return [[batch[0].flatten().tolist() for batch in loader] for _ in range(count)]


@pytest.mark.parametrize("taken", [2, 9])  # some batches, and all of them and the end
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_training_sees_the_same_batches(make, taken):
    expected, loader = epochs(make()), make()
    torch.manual_seed(1)
    loading = Loading(loader)
    first, second = ([b[0].flatten().tolist() for b in islice(loading.batches(), taken)] for _ in range(2))
    assert first == second
    assert len(first) == min(taken, 8)
    torch.manual_seed(1)
    assert epochs(loader) == expected


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_an_iteration_that_others_are_in_the_middle_of_goes_on(make):
    (expected,), loader = epochs(make(), 1), make()
    torch.manual_seed(1)
    training = iter(loader)
    seen = [next(training)[0].flatten().tolist()]
    lsuv_(nn.Linear(1, 4), loader, batches=3, generator=generator())
    seen += [batch[0].flatten().tolist() for batch in training]
    assert seen == expected


def test_nothing_is_held_back_when_the_model_fails():
    """What is put back is put back at once, not when the exception with its frames is forgotten."""
    loader = LOADERS["own generator"]()
    calls = []

    def forward(model, batch):
        calls.append(batch)
        if len(calls) > 2:
            raise ZeroDivisionError
        return model(batch[0])

    with pytest.raises(ZeroDivisionError) as caught:
        lsuv_(nn.Linear(1, 4), loader, batches=4, forward=forward)
    state = loader.generator.get_state()
    assert torch.equal(state, generator().get_state())
    del caught
    assert torch.equal(state, loader.generator.get_state())


def test_batches_of_a_trainer_are_taken_like_a_loaders():
    seen = []
    loader = DataLoader(DATA, 16, shuffle=True, generator=generator())
    batches = Batches(lambda: (batch[0] / 10 for batch in loader), (loader,))

    def forward(model, batch):
        seen.append(batch)
        return model(batch)

    assert lsuv_(nn.Linear(1, 4), batches, forward=forward).ok
    assert [batch.shape for batch in seen] == [(16, 1)]
    assert max(batch.max().item() for batch in seen) <= 6.3
    assert_same(loader.generator.get_state(), generator().get_state())
