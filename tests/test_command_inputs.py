"""From samples to batches: which tensor is which argument, of which type, in which rows."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from goodinit import DataError, OptionError, lsuv_, measure
from goodinit.command.inputs import read_inputs


class One(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, left, right=None, *, scale=None):
        total = left if right is None else left + right
        return self.fc(total if scale is None else total * scale)


class Both(Two):
    def forward(self, left, right):
        return super().forward(left, right)


class Words(nn.Module):
    """As models of transformers: every argument has a default, and there may be more."""

    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(9, 3), nn.Linear(3, 2)

    def forward(self, input_ids=None, labels=None, **more):
        return self.fc(self.table(input_ids))


X = np.random.default_rng(0).standard_normal((10, 3))
Y = np.arange(10)
IDS = np.arange(10).reshape(5, 2) % 9


def read(tmp_path, model, arrays=(), batches=1, batch_size=None, **named):
    np.savez(tmp_path / "batch.npz", *arrays, **named)
    return read_inputs(str(tmp_path / "batch.npz"), model, batches=batches, batch_size=batch_size, seed=0)


def shapes(batch):
    if isinstance(batch, dict):
        return {name: tuple(t.shape) for name, t in batch.items()}
    return tuple(tuple(t.shape) for t in batch)


@pytest.mark.parametrize(
    ("model", "arrays", "named", "expected", "labels", "left_out"),
    [
        (One(), [], {"input": X}, {"input": (10, 3)}, False, ""),
        (One(), [], {"x": X}, ((10, 3),), False, ""),
        (One(), [], {"x": X, "y": Y}, ((10, 3),), True, "y"),
        (One(), [], {"images": X, "labels": Y}, ((10, 3),), True, "labels"),
        (One(), [], {"input": X, "other": X, "target": Y}, {"input": (10, 3)}, True, "other, target"),
        (One(), [X], {}, ((10, 3),), False, ""),
        (One(), [X, Y], {}, ((10, 3),), True, "arr_1"),
        (Two(), [X, Y], {}, ((10, 3),), True, "arr_1"),
        (Two(), [], {"right": X, "left": X}, {"left": (10, 3), "right": (10, 3)}, False, ""),
        (Two(), [], {"left": X, "scale": X}, {"left": (10, 3), "scale": (10, 3)}, False, ""),
        (Both(), [X, X, Y], {}, ((10, 3), (10, 3)), True, "arr_2"),
        (Words(), [], {"input_ids": IDS}, {"input_ids": (5, 2)}, False, ""),
        (Words(), [], {"input_ids": IDS, "labels": IDS}, {"input_ids": (5, 2), "labels": (5, 2)}, False, ""),
        (Words(), [], {"ids": IDS}, ((5, 2),), False, ""),
    ],
)
def test_which_tensor_is_which_argument(tmp_path, model, arrays, named, expected, labels, left_out):
    inputs = read(tmp_path, model, arrays, **named)
    (batch,) = inputs.batches
    assert shapes(batch) == expected
    told = f"; not given to the model: {left_out}"
    assert inputs.text.removesuffix(" (the labels)").endswith(told) == bool(left_out)
    assert (inputs.labels is not None) == labels
    if labels:
        assert inputs.labels.tolist() == Y.tolist()
    assert len(measure(model, inputs.data)) == len(measure(model, inputs.batches[0])) > 0


@pytest.mark.parametrize(
    ("model", "arrays", "named", "message"),
    [
        (
            One(),
            [],
            {"a": X, "b": X},
            r"holds a \(10, 3\) float64, b \(10, 3\) float64; the forward of One takes input: give the ",
        ),
        (Both(), [], {"left": X}, r"the forward of Both takes left, right: .* numpy.savez\('batch.npz', left=…\)"),
        (Both(), [X], {}, r"holds arr_0 \(10, 3\) float64; the forward of Both takes left, right"),
    ],
)
def test_tensors_that_are_no_argument(tmp_path, model, arrays, named, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, model, arrays, **named)


def test_floating_point_numbers_get_the_type_of_the_weights(tmp_path):
    inputs = read(tmp_path, One().bfloat16(), x=X, y=Y)
    assert (inputs.batches[0][0].dtype, inputs.labels.dtype) == (torch.bfloat16, torch.int64)
    assert inputs.text == f"{tmp_path}/batch.npz, float64 made bfloat16 as the weights; not given to the model: y"
    mixed = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())
    assert read(tmp_path, mixed, x=X).batches[0][0].dtype == torch.float64


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_tensor_with_nan_or_infinity_is_named(tmp_path, bad):
    x = X.copy()
    x[2, 1] = x[3, 1] = bad
    message = r"batch.npz: 2 of the 30 values of 'right', shape \(10, 3\), are NaN or infinity; look for a division by a zero"
    with pytest.raises(DataError, match=message):
        read(tmp_path, Two(), left=X, right=x)
    assert read(tmp_path, Two(), left=X, other=x).text.endswith("other")  # which is not used


def test_all_rows_of_a_file_are_one_batch_in_their_order(tmp_path):
    (batch,) = read(tmp_path, One().double(), x=X).batches
    assert torch.equal(batch[0], torch.from_numpy(X))


@pytest.mark.parametrize(
    ("batches", "batch_size", "sizes", "said"),
    [
        (1, 4, [4], "; 1 batch of 4 of 10 rows"),
        (1, 10, [10], ""),
        (2, 4, [4, 4], "; 2 batches of 4 of 10 rows"),
        (3, 4, [4, 4], "; 2 batches of 4 of 10 rows, too few for --batches 3"),
        (2, None, [5, 5], "; 2 batches of 5 of 10 rows"),
        (3, None, [3, 3, 3], "; 3 batches of 3 of 10 rows"),
        (1, 50, [10], "; 1 batch of 10 of 10 rows, too few for --batch-size 50"),
        (20, None, [1] * 10, "; 10 batches of 1 of 10 rows, too few for --batches 20"),
    ],
)
def test_rows_are_drawn_without_repetition_and_stay_together(tmp_path, batches, batch_size, sizes, said):
    x = np.arange(30.0).reshape(10, 3)
    inputs = read(tmp_path, Two().double(), batches=batches, batch_size=batch_size, left=x, right=2 * x, y=x[:, 0])
    assert [len(batch["left"]) for batch in inputs.batches] == sizes
    assert re.sub(r".*batch.npz|; not given.*", "", inputs.text) == said
    rows = torch.cat([batch["left"] for batch in inputs.batches])
    assert len(rows.unique(dim=0)) == len(rows)
    assert all(torch.equal(2 * batch["left"], batch["right"]) for batch in inputs.batches)
    assert torch.equal(inputs.labels, inputs.batches[0]["left"][:, 0])


def test_several_batches_reach_lsuv(tmp_path):
    model = One()
    report = lsuv_(model, read(tmp_path, model, batches=2, x=X, y=Y).data, batches=2)
    assert report.batches == 2


def test_rows_that_do_not_belong_together(tmp_path):
    with pytest.raises(DataError, match=r"so all must have equally many; got left \(10, 3\) .*, scale \(1,\)"):
        read(tmp_path, Two(), batch_size=2, left=X, scale=np.ones(1))
    assert shapes(read(tmp_path, Two(), left=X, scale=np.ones(1)).batches[0]) == {"left": (10, 3), "scale": (1,)}


@pytest.mark.parametrize("option", ["batches", "batch_size", "image_size"])
def test_numbers_that_cannot_be_meant(option):
    name = option.replace("_", "-")
    with pytest.raises(OptionError, match=f"--{name} must be 1 or more; got 0"):
        read_inputs("noise:3", One(), **{"batches": 1, "batch_size": None, "seed": 0, option: 0})
