"""Samples from random numbers, and where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodinit.command.samples import Wanted
from goodinit.command.sources import read_samples
from goodinit.errors import OptionError

NET = nn.Sequential(nn.Embedding(11, 3), nn.Linear(3, 2))


def test_noise_has_unit_variance_and_follows_from_the_seed():
    noise = [read_samples("noise:3x20,10", Wanted(50, seed), NET) for seed in (0, 0, 1)]
    (a, again, other) = (samples.tensors["noise"] for samples in noise)
    assert a.shape == (50, 3, 20, 10)
    assert a.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(a, again)
    assert not torch.equal(a, other)
    assert noise[0].text == "50 samples of noise of unit variance, 3x20x10; no real data"


def test_tokens_are_those_of_the_model():
    samples = read_samples("tokens:7", Wanted(200, 0), NET)
    ids = samples.tensors["input_ids"]
    assert ids.shape == (200, 7)
    assert sorted(ids.unique().tolist()) == list(range(11))
    assert samples.text == "200 sequences of 7 of the 11 tokens of 0, drawn at random; no real data"


def test_a_model_that_knows_its_tokens_is_asked():
    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions, self.words = nn.Embedding(500, 4), nn.Embedding(7, 4)

        def get_input_embeddings(self):
            return self.words

    samples = read_samples("tokens:30", Wanted(20, 0), Ours())
    assert samples.tensors["input_ids"].max() == 6
    assert samples.text == "20 sequences of 30 of the 7 tokens of words, drawn at random; no real data"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("noise:", "^--data noise: expected the shape of one sample, such as noise:3x224x224"),
        ("noise:3x0", "--data noise:3x0: expected the shape"),
        ("noise:3*4", "expected the shape"),
        ("tokens:x", "--data tokens:x: expected the shape of one sample, such as tokens:128"),
        ("tokens:3x4", "--data tokens:3x4: expected the length of a sequence, such as tokens:128"),
        ("nosie:3", "there is no file or folder 'nosie:3'; other than these, --data takes hub:NAME, noise:3x224x224 and tokens"),
        ("hub:", "--data hub: expected the name of a set, such as hub:ylecun/mnist"),
        ("nothere.npz", "there is no file or folder 'nothere.npz'; other than"),
        ("batch.np", r"there is no file or folder 'batch.np' \(did you mean 'batch.npz'\?\)"),
    ],
)
def test_sources_that_cannot_be_meant(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch.npz").touch()
    with pytest.raises(OptionError, match=message):
        read_samples(source, Wanted(2, 0), NET)


def test_tokens_for_a_model_without_an_embedding():
    with pytest.raises(OptionError, match=r"--data tokens:3: Linear has no nn.Embedding to know its tokens from"):
        read_samples("tokens:3", Wanted(2, 0), nn.Linear(2, 2))
