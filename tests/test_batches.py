"""What of the data the model is given."""

from __future__ import annotations

import copy
import random
from collections import UserDict, namedtuple
from collections.abc import MutableMapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from goodinit import DataError, GoodinitWarning, lsuv_, measure
from goodinit.batches import first_call

X, Y, Z = torch.randn(16, 4), torch.randint(3, (16,)), torch.randn(16, 4)


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)


class OneMasked(One):
    def forward(self, x, mask=None):
        assert mask is None or mask.dtype == torch.bool
        return self.fc(x)


class Two(One):
    def forward(self, a, b):
        return self.fc(a + b)


class TwoByKeyword(One):
    def forward(self, *, image, scale):
        return self.fc(image * scale)


class Any(One):
    def forward(self, *args, **kwargs):
        return self.fc(sum(args) + sum(kwargs.values()))


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


Pair = namedtuple("Pair", "inputs labels")


def loader(*tensors, **kwargs):
    return DataLoader(TensorDataset(*tensors), batch_size=8, **kwargs)


@pytest.mark.parametrize(
    ("model", "data", "given", "left_out"),
    [
        (One, X, [X], ()),
        (One, (X,), [X], ()),
        (One, (X, Y), [X], ("item 1",)),
        (One, [X, Y], [X], ()),
        (One, [(X, Y), (Z, Y)], [X], ("item 1",)),
        (One, [[X, Y]], [X], ("item 1",)),
        (One, [Pair(X, Y)], [X], ("item 1",)),
        (One, iter([(X, Y)]), [X], ("item 1",)),
        (One, loader(X, Y), [X[:8]], ("item 1",)),
        (One, loader(X), [X[:8]], ()),
        (OneMasked, (X, Y > 1), [X, Y > 1], ()),
        (OneMasked, loader(X, Y), [X[:8]], ("item 1",)),
        (Two, (X, Z), [X, Z], ()),
        (Two, [X, Z], [X, Z], ()),
        (Two, [X, Z, Y], [X, Z], ("item 2",)),
        (Two, loader(X, Z, Y), [X[:8], Z[:8]], ("item 2",)),
        (Any, loader(X, Z), [X[:8], Z[:8]], ()),
        (lambda: Wrapper(One()), loader(X, Y), [X[:8]], ("item 1",)),
        (lambda: nn.DataParallel(One()), loader(X, Y), [X[:8]], ("item 1",)),
    ],
)
def test_positional(model, data, given, left_out):
    model = model()
    call = first_call(model, data)
    assert [t.tolist() for t in call.args] == [t.tolist() for t in given]
    assert call.left_out == left_out
    model(*call.args)


@pytest.mark.parametrize(
    ("model", "data", "keys", "left_out"),
    [
        (TwoByKeyword, {"image": X, "scale": Z}, {"image", "scale"}, ()),
        (TwoByKeyword, [{"image": X, "scale": Z, "label": Y}], {"image", "scale"}, ("'label'",)),
        (One, [{"x": X, "label": Y}], {"x"}, ("'label'",)),
        (Any, [{"x": X, "z": Z}], {"x", "z"}, ()),
    ],
)
def test_keywords(model, data, keys, left_out):
    model = model()
    call = first_call(model, data)
    assert call.kwargs.keys() == keys
    assert call.left_out == left_out
    model(**call.kwargs)


def test_the_report_says_what_was_given():
    report = lsuv_(One(), loader(X, Y))
    assert report.batch == "(8, 4) float32; not given to the model: item 1"


def test_forward_gets_the_data_as_it_is_but_a_loaders_first_batch():
    seen = []

    def forward(model, data):
        seen.append(data)
        return model(X)

    data = {"anything": [1, 2]}
    for given in (data, [X, Y], None, loader(X, Y)):
        lsuv_(One(), given, forward=forward)
    assert seen[0] is not None
    assert seen[0] == data
    assert [t.shape for t in seen[1]] == [X.shape, Y.shape]
    assert seen[2] is None
    assert [t.shape for t in seen[3]] == [(8, 4), (8,)]


def test_batch_of_the_callers_own_class():
    @dataclass
    class Graph:
        x: torch.Tensor

    class Net(One):
        def forward(self, graph):
            return self.fc(graph.x)

    assert lsuv_(Net(), [Graph(X)]).ok


class Encoding(UserDict):
    """As transformers' BatchEncoding and BatchFeature: a mapping with attributes, that moves itself."""

    def __getattr__(self, name):
        return self.data[name]

    def to(self, device):
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


def test_mapping_that_moves_itself():
    batch = Encoding(x=X, label=Y)
    held = batch.data
    assert first_call(One(), [batch]).kwargs.keys() == {"x"}
    assert first_call(One(), batch, lambda model, batch: model(batch.x))(One()).shape == (16, 3)
    assert batch.data is held


class Record(dict):
    """Whose items can be asked for as attributes."""

    __getattr__ = dict.__getitem__


class Namespace(dict):
    """Whose items are its attributes."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__ = self


class Named(list):
    @property
    def x(self):
        return self[0]


@pytest.mark.parametrize("batch", [Record(x=X), Namespace(x=X), Named([X])], ids=lambda batch: type(batch).__name__)
def test_classes_of_mappings_and_lists_stay_what_they_are(batch):
    kept = batch.x

    def forward(model, batch):
        seen.append(batch)
        return model(batch.x)

    seen: list[dict | list] = []
    lsuv_(One(), batch, forward=forward)
    assert type(seen[0]) is type(batch)
    with torch.inference_mode():  # so that the tensor in it must be another one
        batch = copy.copy(batch)
        batch[0 if isinstance(batch, list) else "x"] = X.clone()
    lsuv_(One(), batch, forward=forward)
    assert (type(seen[1]), seen[1].x.is_inference()) == (type(batch), False)
    assert batch[0 if isinstance(batch, list) else "x"].is_inference()
    assert kept is X


def test_a_mapping_that_cannot_be_changed():
    with torch.inference_mode():
        batch = MappingProxyType({"x": X.clone()})
    assert not first_call(One(), [batch]).kwargs["x"].is_inference()


class Shuffling(Sampler):
    """An order that is shuffled in place at every iteration."""

    def __init__(self, order):
        self.order = copy.deepcopy(order)

    def __iter__(self):
        if isinstance(self.order, torch.Tensor):
            self.order[:] = self.order[torch.randperm(16)]
        else:
            (random if isinstance(self.order, list) else np.random).shuffle(self.order)
        return iter(self.order)

    def __len__(self):
        return 16


@pytest.mark.parametrize("order", [list(range(16)), np.arange(16), torch.arange(16)], ids=lambda order: type(order).__name__)
def test_a_sampler_that_shuffles_in_place_is_as_before(order):
    orders, model = [], One()
    for initialized in (False, True):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        sampler = Shuffling(order)
        data = DataLoader(TensorDataset(X, Y), batch_size=4, sampler=sampler)
        if initialized:
            lsuv_(model, data, batches=2, generator=torch.Generator())
        orders.append([label.tolist() for _, label in data])
    assert orders[0] == orders[1]


def test_a_mapping_with_items_elsewhere_is_not_written_into():
    with torch.inference_mode():
        held = {"x": X.clone()}
    assert not first_call(One(), [Elsewhere(held)]).kwargs["x"].is_inference()
    assert held["x"].is_inference()


class Elsewhere(MutableMapping):
    def __init__(self, held):
        self.held = held

    def __getitem__(self, key):
        return self.held[key]

    def __setitem__(self, key, value):
        self.held[key] = value

    def __delitem__(self, key):
        del self.held[key]

    def __iter__(self):
        return iter(self.held)

    def __len__(self):
        return len(self.held)


def test_a_list_of_batches_of_another_kind_is_not_pointed_out():
    class Timed(One):
        def forward(self, ids, t):
            return self.fc(ids.float()) * t[:, None]

    lsuv_(Timed(), [{"ids": torch.randint(9, (16, 4)), "t": torch.randn(16)}])


def test_single_samples_are_pointed_out():
    with pytest.warns(
        GoodinitWarning, match=r"one item of the data, \(4,\) float32, which looks like a single sample. Pass Data"
    ):
        lsuv_(One(), list(X)[:1] + list(X))


class Stream(IterableDataset):
    def __iter__(self):
        yield from (X, Z)


def test_iterable_dataset_and_loader_of_one():
    assert first_call(One(), Stream()).args[0] is X
    assert first_call(One(), DataLoader(Stream(), batch_size=None)).args[0] is X


def test_a_loaders_own_generator_goes_on_as_if_untouched():
    shuffling = loader(X, Y, shuffle=True, generator=torch.Generator().manual_seed(0))
    lsuv_(One(), shuffling)
    after = next(iter(shuffling))[0]
    fresh = next(iter(loader(X, Y, shuffle=True, generator=torch.Generator().manual_seed(0))))[0]
    assert torch.equal(after, fresh)


def test_shuffling_by_the_global_generator_leaves_no_trace():
    model = One()
    a, b = (next(iter(loader(X, shuffle=True)))[0] for _ in range(2))
    torch.manual_seed(0)
    lsuv_(model, loader(X, Y, shuffle=True), generator=torch.Generator().manual_seed(0))
    after = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(after, torch.get_rng_state())
    assert not torch.equal(a, b)


class Nothing(IterableDataset):
    """Has no length, and yields nothing: a process without a shard."""

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no data: pass a batch"),
        ([], r"list of length 0 is empty: it yielded no batch"),
        (DataLoader(Nothing(), batch_size=8), r"DataLoader is empty: it yielded no batch"),
        (DataLoader(TensorDataset(X[:0])), "DataLoader of length 0 is empty"),
        (iter(()), "tuple_iterator is empty"),
        (TensorDataset(X, Y), "TensorDataset is a Dataset of single samples; pass DataLoader"),
        ("images/", "cannot take a batch from str of length 7"),
        (3, "cannot take a batch from int"),
        (X.numpy(), "cannot take a batch from numpy.ndarray"),
        ([X.numpy()], "the batch holds no tensor"),
        (({"x": 1},), "the batch holds no tensor"),
        ([{"image": X, "label": Y}], r"keys \['image', 'label'\], the model's forward takes \['x'\]"),
        (torch.full((4, 4), torch.nan), r"NaN or infinity: 16 of the 16 values of argument 0, shape \(4, 4\)"),
        ({"x": torch.tensor([[1.0, 2, 3, torch.inf]])}, "1 of the 4 values of argument 'x'"),
        ([[torch.tensor([[1.0, 2, 3, -torch.inf]]), Y]], "1 of the 4 values of argument 0"),
        (X[:0], r"the batch is empty: \(0, 4\) float32"),
        (X.to("meta"), r"the data, of shape \(.*, 4\), is on the meta device and holds no numbers"),
        (Tensor, "cannot take a batch from the class torch.Tensor"),
    ],
)
def test_bad_data(data, message):
    model = One()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(DataError, match=message):
        lsuv_(model, data)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_too_many_or_too_few_arguments_are_the_models_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument") as caught:
        lsuv_(Two(), (X,))
    assert "the model was given (16, 4) float32" in str(getattr(caught.value, "__notes__", caught.value.args))


@pytest.mark.parametrize("loaded", [False, True])
def test_a_packed_sequence_is_one_argument(loaded):
    lengths = torch.tensor([5, 3, 2])
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(3, 5, 16), lengths, batch_first=True)
    seen = []

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 8), nn.Linear(8, 4)

        def forward(self, sequence):
            seen.append(sequence)
            return self.head(self.lstm(sequence)[0].data)

    report = lsuv_(Reader(), [packed] if loaded else packed)
    assert torch.equal(seen[0].batch_sizes, packed.batch_sizes)
    assert report["head.weight"].status == "scaled"


def test_minus_infinity_in_a_mask_is_no_missing_value():
    attention, x = nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(2, 5, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    for data in ({"query": x, "key": x, "value": x, "attn_mask": mask - mask.eq(0).float()}, (x, x, x, None, False, mask)):
        assert lsuv_(attention, data).ok
    with pytest.raises(DataError, match="of the 25 values of argument 'attn_mask'"):
        lsuv_(attention, {"query": x, "key": x, "value": x, "attn_mask": -mask})


def test_data_made_in_inference_mode():
    with torch.inference_mode():
        x = torch.randn(32, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert measure(model, (x, torch.zeros(32, dtype=torch.int64)), loss=nn.functional.cross_entropy).loss > 0
    assert lsuv_(model, x, target_std="auto").choice.trials[0].gradient_ratio is not None
