"""What containers hold is given back to them, whatever their class makes of it."""

from collections import Counter, OrderedDict, defaultdict, deque

import pytest
import torch
from torch import nn

from goodinit import lsuv_, measure
from goodinit.containers import items_of, refill


class Frozen(OrderedDict):
    """As diffusers' configurations are: they may be emptied, and not be filled again."""

    def __setitem__(self, key, value):
        raise TypeError("frozen")

    update = __setitem__  # type: ignore[assignment]  # whatever it is called with


def frozen(**items):
    made = Frozen()
    for key, value in items.items():
        OrderedDict.__setitem__(made, key, value)
    return made


CHANGES = {
    "list": ([1, 2], lambda x: x.append(3)),
    "dict": ({"a": 1}, lambda x: x.clear()),
    "set": ({1, 2}, lambda x: x.add(3)),
    "deque": (deque([1, 2, 3], maxlen=3), lambda x: x.append(4)),
    "defaultdict": (defaultdict(list, a=1), lambda x: x["b"]),
    "Counter": (Counter("aab"), lambda x: x.update("abc")),
    "OrderedDict": (OrderedDict(a=1, b=2), lambda x: x.move_to_end("a")),
    "frozen": (frozen(a=1, b=2), lambda x: x.popitem()),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_they_held(kind):
    container, change = CHANGES[kind]
    before, text = items_of(container), repr(container)
    refill(container, before)  # of what has not changed nothing is
    assert repr(container) == text
    change(container)
    assert repr(container) != text
    refill(container, before)
    assert repr(container) == text


class Mirrored(dict):
    """Whose items are attributes too, as EasyDict's."""

    n: int

    def __init__(self, **items):
        for key, value in items.items():
            setattr(self, key, value)

    def __setattr__(self, key, value):
        super().__setattr__(key, value)
        super().__setitem__(key, value)

    __setitem__ = __setattr__


class Sorted(dict):
    """Which keeps a list of its keys."""

    def __init__(self):
        self.order = []

    def __setitem__(self, key, value):
        if key not in self:
            self.order = sorted([*self.order, key])
        super().__setitem__(key, value)

    def clear(self):
        self.order = []
        super().clear()


def test_what_a_class_keeps_beside_its_items():
    mirrored, by_key = Mirrored(n=0), Sorted()
    by_key["a"] = 1
    before = items_of(mirrored), items_of(by_key)
    mirrored.n += 1
    by_key["b"] = 2
    refill(mirrored, before[0])
    refill(by_key, before[1])
    assert (mirrored.n, mirrored["n"]) == (0, 0)
    assert (by_key.order, dict(by_key)) == (["a"], {"a": 1})


class Recent(dict):
    """Which forgets its oldest item, and writes into a list of another owner."""

    def __init__(self, order):
        self.order = order

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.order.append(key)
        while len(self) > 2:
            super().__delitem__(self.order.pop(0))


def test_one_that_writes_into_another_one():
    class Net(nn.Linear):
        def __init__(self):
            super().__init__(8, 4)
            self.order: list[int] = []
            self.recent = Recent(self.order)
            self.recent[1] = self.recent[2] = 0

        def forward(self, x):
            self.recent[9] = 0
            return super().forward(x)

    net = Net()
    measure(net, torch.randn(64, 8))
    assert (dict(net.recent), net.order) == ({1: 0, 2: 0}, [1, 2])


def test_one_that_may_not_be_changed_stays_as_it_is():
    net = nn.Linear(8, 4)
    net.config = frozen(width=8)
    x = torch.randn(64, 8)
    measure(net, x)
    lsuv_(net, x)
    with pytest.raises(ZeroDivisionError):
        lsuv_(net, x, forward=lambda model, x: 1 / 0)
    assert dict(net.config) == {"width": 8}
