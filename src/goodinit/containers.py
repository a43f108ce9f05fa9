"""Python's containers that can be changed: what they hold can be kept, and given back to them."""

from __future__ import annotations

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
    base, now = _base(container), items_of(container)
    if issubclass(base, dict):
        if len(now) == len(held) and all(a[0] is b[0] and a[1] is b[1] for a, b in zip(now, held, strict=True)):
            return
        base.clear(container)
        for key, value in held:
            base.__setitem__(container, key, value)
        return
    if len(now) == len(held) and all(a is b for a, b in zip(now, held, strict=True)):
        return
    base.clear(container)
    (base.update if base is set else base.extend)(container, held)


def _base(container: Any) -> Any:
    """Python's own class, whose methods do as they should: a subclass may refuse to be changed, and be half changed then."""
    own = type(container)
    return own if own in _OWN else next(base for base in (OrderedDict, *CONTAINERS) if isinstance(container, base))
