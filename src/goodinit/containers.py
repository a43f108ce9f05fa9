"""Python's containers that can be changed: what they hold can be copied, and given back to them."""

from __future__ import annotations

from collections import deque
from typing import Any

CONTAINERS = (list, dict, set, deque)


def refill(container: Any, items: Any) -> None:
    """Let a container hold what a copy of it holds, and nothing else."""
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(items)
