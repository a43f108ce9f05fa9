"""The tree of a model's modules, from the names of its weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from goodinit.interception.weights import parameter_name
from goodinit.page.health import worst


@dataclass
class Branch:
    """One line of the tree: a module, or a weight."""

    label: str
    """What is shown: the last part of its path, or several where nothing branches off between them."""
    path: str
    """From the root, as in the names of the weights."""
    level: int
    """1 for the outermost."""
    row: int | None
    """Of a weight: its place among the names."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many weights of each health are in it."""

    @property
    def health(self) -> str:
        """The gravest among its weights."""
        return worst(self.counts)

    @property
    def size(self) -> int:
        """How many weights are in it."""
        return sum(self.counts.values())

    @property
    def ailing(self) -> int:
        """How many of them do not fare well."""
        return self.counts.get("fault", 0) + self.counts.get("affected", 0)


@dataclass
class _Node:
    row: int | None = None
    children: dict[str, _Node] = field(default_factory=dict)


def module_tree(names: Sequence[str], healths: Sequence[str]) -> list[Branch]:
    """The modules that hold the named weights, and the weights, each module before what is in it.

    A flat list with levels: there are models whose modules are nested a thousand deep.

    >>> [(b.level, b.label) for b in module_tree(["a.0.weight", "a.1.weight", "b.c.weight"], ["healthy"] * 3)]
    [(1, 'a'), (2, '0'), (2, '1'), (1, 'b.c')]
    """
    branches: list[Branch] = []
    waiting = [(node, label, label, 1) for label, node in reversed(_nested(names).children.items())]
    while waiting:
        node, label, path, level = waiting.pop()
        while node.row is None and len(node.children) == 1:
            ((part, node),) = node.children.items()
            label, path = _joined(label, part, is_leaf=node.row is not None), f"{path}.{part}"
        branches.append(Branch(label, path, level, node.row))
        waiting += [(child, part, f"{path}.{part}", level + 1) for part, child in reversed(node.children.items())]
    _count(branches, healths)
    return branches


def _nested(names: Sequence[str]) -> _Node:
    root = _Node()
    for row, name in enumerate(names):
        whole = parameter_name(name)
        *modules, own = whole.split(".")
        node = root
        for part in (*modules, own + name[len(whole) :]):
            node = node.children.setdefault(part, _Node())
        node.row = row
    return root


def _joined(label: str, part: str, *, is_leaf: bool) -> str:
    """A module with one weight goes by its own name: ``"fc"`` of ``"fc.weight"``, ``"fc[0]"`` of ``"fc.weight[0]"``."""
    if is_leaf and (part == "weight" or part.startswith("weight[")):
        return label + part.removeprefix("weight")
    return f"{label}.{part}"


def _count(branches: Sequence[Branch], healths: Sequence[str]) -> None:
    """Add up the weights of every branch, from the inside out."""
    above: list[Branch] = []
    for branch in branches:
        del above[branch.level - 1 :]
        above.append(branch)
        if branch.row is not None:
            for holder in above:
                health = healths[branch.row]
                holder.counts[health] = holder.counts.get(health, 0) + 1
