"""Python's containers that can be changed: what they hold can be kept, and given back to them."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

CONTAINERS = (list, dict, set, deque)
_OWN = frozenset({OrderedDict, *CONTAINERS})


def items_of(container: Any) -> list[Any]:
    """What one of them holds, a dict's as pairs; `refill` gives it back."""
    base = _base(container)
    return list(base.items(container)) if issubclass(base, dict) else list(base.__iter__(container))


def refill(container: Any, held: Sequence[Any]) -> None:
    """Let a container hold what `items_of` found in it, and nothing else. Nothing is done to one that has not changed."""
    if not (held or container):  # as most that a module has
        return
    if _holds(container, held):
        return
    base = _base(container)
    if type(container) is not base:  # it may keep more than its items: a list of its keys, attributes of their names
        with contextlib.suppress(Exception):
            container.clear()
            _fill(type(container), container, held)
        if _holds(container, held):
            return
    base.clear(container)
    _fill(base, container, held)


def _holds(container: Any, held: Sequence[Any]) -> bool:
    now = items_of(container)
    if len(now) != len(held):
        return False
    if isinstance(container, dict):
        return all(a[0] is b[0] and a[1] is b[1] for a, b in zip(now, held, strict=True))
    if isinstance(container, set):  # in another order, maybe
        return {id(item) for item in now} == {id(item) for item in held}
    return all(a is b for a, b in zip(now, held, strict=True))


def _fill(own: Any, container: Any, held: Sequence[Any]) -> None:
    """By the methods of a class: its own, or those of Python's class."""
    if issubclass(own, dict):
        for key, value in held:
            own.__setitem__(container, key, value)
    else:
        (own.update if issubclass(own, set) else own.extend)(container, held)


def _base(container: Any) -> Any:
    """Python's own class, whose methods do as they should: one derived from it may refuse to be changed, when half of it is."""
    own = type(container)
    return own if own in _OWN else next(base for base in (OrderedDict, *CONTAINERS) if isinstance(container, base))
