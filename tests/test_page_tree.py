"""The tree of modules, from names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from goodinit.page.tree import module_tree


def tree(names, healths=None):
    return [(b.level, b.label, b.path, b.row) for b in module_tree(names, healths or ["healthy"] * len(names))]


def test_modules_before_what_is_in_them_in_call_order():
    assert tree(["b.fc.weight", "a.0.weight", "b.out.weight"]) == [
        (1, "b", "b", None),
        (2, "fc", "b.fc.weight", 0),
        (2, "out", "b.out.weight", 2),
        (1, "a.0", "a.0.weight", 1),
    ]


def test_what_does_not_branch_is_one_line():
    assert tree(["a.b.c.0.weight", "a.b.c.1.weight"])[0] == (1, "a.b.c", "a.b.c", None)


def test_parts_of_a_parameter_and_odd_names():
    assert tree(["m.w[0]", "m.w[1]", "fc.weight[2:4, 1]", "bare", "m.in_proj_weight", 'x"<b>.weight', ".weight"]) == [
        (1, "m", "m", None),
        (2, "w[0]", "m.w[0]", 0),
        (2, "w[1]", "m.w[1]", 1),
        (2, "in_proj_weight", "m.in_proj_weight", 4),
        (1, "fc[2:4, 1]", "fc.weight[2:4, 1]", 2),
        (1, "bare", "bare", 3),
        (1, 'x"<b>', 'x"<b>.weight', 5),
        (1, "", ".weight", 6),
    ]


def test_health_of_a_module_is_the_gravest_in_it():
    found = module_tree(["a.x.weight", "a.y.weight", "b.x.weight", "b.y.weight"], ["healthy", "fault", "unjudged", "healthy"])
    modules = {b.path: (b.health, b.size, b.ailing) for b in found if b.row is None}
    assert modules == {"a": ("fault", 2, 1), "b": ("healthy", 2, 0)}


def test_modules_a_thousand_deep():
    names = [f"{'next.' * depth}fc.weight" for depth in range(1000)]
    found = module_tree(names, ["healthy"] * 1000)
    assert max(branch.level for branch in found) == 999
    assert next(branch.size for branch in found if branch.row is None) == 999


part = st.text(st.characters(exclude_characters=".["), min_size=1, max_size=3)


@given(st.lists(st.lists(part, min_size=1, max_size=4).map(".".join), unique=True, max_size=8))
def test_every_weight_is_there_once(names):
    # A name that is also the path of a module does not occur: an attribute is one or the other.
    names = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    rows = [branch.row for branch in module_tree(names, ["healthy"] * len(names)) if branch.row is not None]
    assert sorted(rows) == list(range(len(names)))
