"""Two signals side by side."""

from __future__ import annotations

from dataclasses import replace

from goodinit.measurement.layer import Layer
from goodinit.measurement.signals import Signal

LAYER = Layer("fc.weight", "linear", (4, 3), 0.0, 0.5, 0.25, weight_norm=2.0, grad_std=0.5, output_shape=(8, 2))


def signal(*stds, names=None, **fields):
    names = names or [f"{i}.weight" for i in range(len(stds))]
    return Signal(
        tuple(replace(LAYER, name=n, std=std, sample_std=std / 2) for n, std in zip(names, stds, strict=True)), **fields
    )


VANISHING, LEVEL, EXPLODING = (signal(*(base**i for i in range(30))) for base in (0.5, 1.0, 2.0))


def test_what_was_mended_is_left_and_is_new():
    better, worse = VANISHING.compare(LEVEL), LEVEL.compare(VANISHING)
    assert (better.mended, better.left, better.new) == (("vanishing",), (), ())
    assert (worse.mended, worse.left, worse.new) == ((), (), ("vanishing",))
    assert VANISHING.compare(VANISHING).left == ("vanishing",)
    assert better.summary() == "Faults: vanishing only before."
    assert LEVEL.compare(LEVEL).summary() == "No faults in either."
    other = VANISHING.compare(EXPLODING, labels=("run A", "run B"))
    assert other.summary() == "Faults: vanishing only run A; exploding only run B."


def test_layers_are_matched_by_name():
    both = signal(1.0, 2.0, names=["a", "b"]).compare(signal(3.0, 4.0, names=["c", "b"]))
    assert [name for name, _, _ in both.layers] == ["a", "b", "c"]
    found = {name: tuple(None if side is None else side.std for side in sides) for name, *sides in both.layers}
    assert found == {"a": (1.0, None), "b": (2.0, 4.0), "c": (None, 3.0)}


def test_the_table():
    lines = str(signal(0.5, names=["a"]).compare(signal(1.0, names=["a"]))).splitlines()
    assert lines[0].split() == ["weight", "std", "before", "std", "after", "of", "samples", "before", "of", "samples", "after"]
    assert lines[2].split() == ["a", "0.500", "1.000", "0.250", "0.500"]
    assert lines[-1] == "No faults in either."
    with_loss = str(signal(0.5).compare(signal(1.0, loss=1.0), labels=("A", "B"))).splitlines()
    assert with_loss[0].endswith("gradient A  gradient B")
    assert with_loss[2].split()[-2:] == ["2.000", "2.000"]


def test_show_prints_it(capsys):
    both = signal(0.5).compare(signal(1.0))
    both.show()
    assert capsys.readouterr().out == f"{both}\n"
