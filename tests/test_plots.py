"""The curves on the axes, not the pixels."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from goodinit.errors import MissingExtraError, OptionError
from goodinit.measurement.propagation import Layer, Signal
from goodinit.plots import (
    COLOURS,
    check_picture_path,
    picture_formats,
    plot_gradients,
    plot_ridges,
    plot_signal,
    plot_stds,
    plot_updates,
    short_name,
    spread,
)
from goodinit.training_plots import demo_figure, plot_losses, running_mean


def lines(ax):
    """Label -> (x, y) of every labelled line."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in ax.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def values(line):
    """The y of one line."""
    return [float(y) for y in line.get_ydata()]


def draw(figure):
    """Layouts, and so their warnings, happen only when a figure is drawn."""
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def tick_labels(ax):
    return [label.get_text() for label in ax.get_xticklabels()]


def test_stds_by_layer():
    before = {"a.weight": 0.1, "b.weight": 0.01, "c.weight": 0.001}
    figure, ax = plot_stds(before, dict.fromkeys(before, 2.0), target=2)
    drawn = lines(ax)
    assert drawn["before"] == ([0, 1, 2], [0.1, 0.01, 0.001])
    assert drawn["after"] == ([0, 1, 2], [2.0, 2.0, 2.0])
    assert set(drawn["target 2"][1]) == {2}
    assert ax.get_yscale() == "log"
    assert tick_labels(ax) == ["a", "b", "c"]
    assert ax.figure is figure
    draw(figure)


def test_layers_of_either_side_keep_their_place():
    drawn = lines(plot_stds({"a": 1.0, "b": 2.0}, {"b": 3.0, "c": 4.0}, labels=("x", "y"))[1])
    assert drawn["x"] == ([0, 1], [1.0, 2.0])
    assert drawn["y"] == ([1, 2], [3.0, 4.0])


@pytest.mark.parametrize("count", [1, 5, 12, 13, 31, 500])
def test_names_stay_few_and_include_first_and_last(count):
    stds = {f"layer{i}.weight": 1.0 for i in range(count)}
    figure, ax = plot_stds(stds, stds)
    shown = tick_labels(ax)
    assert shown[0] == "layer0"
    assert shown[-1] == f"layer{count - 1}"
    assert min(count, 6) <= len(shown) <= 13
    assert len(set(shown)) == len(shown)
    assert [f"layer{round(tick)}" for tick in ax.get_xticks()] == shown
    draw(figure)


def test_markers_stay_few():
    stds = {str(i): 1.0 for i in range(500)}
    for line in plot_stds(stds, stds)[1].get_lines()[1:]:
        every = line.get_markevery()
        assert isinstance(every, int)
        assert 500 / every <= 40


def test_long_names_lose_their_middle():
    name = "blocks.105.attention.layer0.weight"
    assert tick_labels(plot_stds({name: 1.0}, {name: 1.0})[1]) == ["blocks.105.…n.layer0"]


@pytest.mark.parametrize("stds", [{}, {"a": 0.0, "b": 1.0}, {"a": 0.0}, {"a": math.nan, "b": 1.0}, {"a": 1e-38, "b": 1e38}])
def test_odd_stds_are_drawn_without_a_warning(stds):
    draw(plot_stds(stds, stds)[0])


def test_a_std_of_zero_falls_out_of_the_picture_at_the_bottom():
    _, ax = plot_stds({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0})
    bottom = ax.transData.transform((0, ax.get_ylim()[0]))[1]
    assert ax.transData.transform((0, 0.0))[1] < bottom


def test_curves_differ_in_colour_and_marker():
    _, ax = plot_stds({"a": 1.0}, {"a": 1.0})
    styles = [(line.get_color(), line.get_marker()) for line in ax.get_lines()[1:]]
    assert len({colour for colour, _ in styles}) == len({marker for _, marker in styles}) == 2


def test_losses_raw_and_smoothed():
    curves = {"slow": [float(i % 2) for i in range(100)], "fast": [3.0, 2.0, 1.0]}
    figure, ax = plot_losses(curves)
    raw_slow, smooth_slow, raw_fast, smooth_fast = ax.get_lines()
    assert values(raw_slow) == curves["slow"]
    assert values(smooth_slow) == running_mean(curves["slow"], 5)
    assert lines(ax)["fast"] == ([1, 2, 3], [3.0, 2.0, 1.0])
    assert values(raw_fast) == values(smooth_fast)
    assert list(lines(ax)) == ["slow", "fast"]
    assert raw_slow.get_color() == smooth_slow.get_color() != smooth_fast.get_color()
    assert smooth_slow.get_marker() != smooth_fast.get_marker()
    draw(figure)


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, math.nan], [math.inf]])
def test_odd_losses_are_drawn_without_a_warning(losses):
    draw(plot_losses({"a": losses, "b": [1.0, 2.0]})[0])


def test_running_mean():
    assert running_mean([1, 2, 6, 4], 1) == [1, 2, 6, 4]
    assert running_mean([1, 2, 6, 4], 3) == [1.5, 3, 4, 5]
    assert running_mean([1, 2, 6, 4], 2) == [1.5, 4, 5, 4]
    assert running_mean([], 3) == []


def test_a_given_axis_is_drawn_on():
    ax = Figure().add_subplot()
    assert plot_stds({"a": 1.0}, {"a": 1.0}, ax=ax) == (ax.figure, ax)
    assert plot_losses({"a": [1.0]}, ax=ax) == (ax.figure, ax)


def test_demo_figure():
    default = [Layer("conv1.weight", "conv2d", (4,), 0.0, 0.5, 0.4), Layer("head.weight", "linear", (4,), 0.0, 0.03, 1e-8)]
    lsuv = [Layer("conv1.weight", "conv2d", (4,), 0.0, 1.0, 0.7), Layer("head.weight", "linear", (4,), 0.0, 1.0, 0.9)]
    losses = {"default": [2.3, 2.4], "LSUV": [2.3, 0.1]}
    figure, (left, right) = demo_figure(default, lsuv, losses, title="a title", guessing=2.25)
    drawn = lines(left)
    assert drawn.pop("target 1")[1] == [1.0, 1.0]
    assert {label: y for label, (_, y) in drawn.items()} == {
        "default, all elements": [0.5, 0.03],
        "LSUV, all elements": [1.0, 1.0],
        "default, between images": [0.4, 1e-8],
        "LSUV, between images": [0.7, 0.9],
    }
    colours = {line.get_label(): line.get_color() for line in (*left.get_lines(), *right.get_lines())}
    for label, curve in losses.items():
        assert colours[label] == colours[f"{label}, all elements"] == colours[f"{label}, between images"]
        assert lines(right)[label][1] == curve
    assert set(lines(right)["guessing: 2.25"][1]) == {2.25}
    assert figure.get_suptitle() == "a title"
    draw(figure)
    level = [replace(layer, std=0.5) for layer in default]  # which has a range of its own, so that it looks level
    figure, (left, _) = demo_figure(level, level, losses, title="", guessing=2.25)
    draw(figure)
    assert left.get_ylim()[0] < 1e-8
    texts = [text.get_text() for text in left.get_legend().get_texts()]
    curves = ["default, all elements", "LSUV, all elements", "default, between images", "LSUV, between images"]
    assert texts == ["target 1", *curves]


def test_no_global_state_of_matplotlib_is_changed():
    before = dict(mpl.rcParams)
    draw(plot_stds({"a": 1.0}, {"a": 1.0})[0])
    draw(plot_losses({"a": [1.0]})[0])
    assert dict(mpl.rcParams) == before
    code = (
        "import sys; from goodinit.plots import plot_stds; assert 'matplotlib' not in sys.modules; "
        "plot_stds({'a': 1.0}, {'a': 1.0})[0].savefig(sys.argv[1]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "/dev/null" if sys.platform != "win32" else "nul"], check=True, timeout=120)


def test_missing_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for call in (
        lambda: plot_stds({}, {}),
        lambda: plot_losses({}),
        picture_formats,
        lambda: check_picture_path(tmp_path / "a.png"),
    ):
        with pytest.raises(MissingExtraError, match=r"matplotlib is not installed; .* pip install 'goodinit\[plot\]'"):
            call()


def test_check_picture_path_leaves_the_folder_as_it_is(tmp_path):
    old = tmp_path / "old.png"
    old.write_bytes(b"a picture")
    check_picture_path(old)
    check_picture_path(tmp_path / "new.PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert old.read_bytes() == b"a picture"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/a.png", r"nowhere.a\.png': No such file or directory; name a file in a folder that you can write to"),
        ("file/a.png", r"a\.png': Not a directory"),
        ("a.txt", r"a\.txt': its name should end in \.png, or in one of .*svg"),
        ("noend", r"its name should end in \.png"),
        ("folder.png", r"which is a folder; name a file in it, '.*folder\.png.goodinit\.png'"),
    ],
)
def test_paths_that_no_picture_can_be_saved_at(tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OptionError, match=message):
        check_picture_path(tmp_path / name)


def test_short_name():
    assert [short_name(n) for n in ("a.b.weight", "weight", "a.in_proj_weight[0:4]", "a.weight[2]")] == [
        "a.b",
        "weight",
        "a.in_proj_weight[0:4]",
        "a[2]",
    ]


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (31, 7), (1000, 12)])
def test_spread(count, most):
    chosen = spread(count, most)
    assert len(chosen) == min(count, most)
    assert chosen == sorted(set(chosen))
    assert not chosen or (chosen[0], chosen[-1]) == (0, count - 1)


# Signals.


def signal(count, base=0.9, **fields):
    """A std, a gradient and a histogram that shrink with every layer."""
    return Signal(
        tuple(
            Layer(
                f"body.{i}.weight", "linear", (4, 3), 0.0, base**i, 0.5 * base**i, weight_norm=2.0, weight_grad_norm=base**i,
                grad_std=base**i, output_shape=(1, 4), histogram=(0, 1, 4, 1),
            )
            for i in range(count)
        ),
        **fields,
    )  # fmt: skip


def test_gradients_and_updates():
    before, after = signal(3, 0.1, loss=1.0), signal(3, 1.0, loss=1.0, lr=0.5)
    _, ax = plot_gradients(before, after)
    assert lines(ax)["before"][1] == pytest.approx([2, 0.2, 0.02])
    assert lines(ax)["after"][1] == pytest.approx([2, 2, 2])
    _, ax = plot_updates(before, after, lr=0.1)
    assert lines(ax)["before"][1] == pytest.approx([0.05, 0.005, 0.0005])
    assert ax.get_ylabel() == "relative update at lr=0.1"
    (band,) = [patch for patch in ax.patches if patch.get_label() == "healthy: 0.1 % to 1 %"]
    assert isinstance(band, Rectangle)
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.001, 0.01))
    assert plot_updates(after)[1].get_ylabel() == "relative update at lr=0.5"


def test_ridges_have_the_width_of_the_signal_and_stay_few():
    _, ax = plot_ridges(signal(2, 0.1))
    widths = [float(np.ptp(np.asarray(line.get_xdata()))) for line in ax.get_lines()]
    assert widths == pytest.approx([6, 0.6])
    _, many = plot_ridges(signal(500, 1.0))
    assert len(many.get_lines()) == len(many.get_yticks()) <= 20
    assert [many.get_yticklabels()[i].get_text() for i in (0, -1)] == ["body.0", "body.499"]


@pytest.mark.parametrize("theme", ["light", "dark", None])
@pytest.mark.parametrize("count", [5, 500])
def test_a_signal_in_one_figure(count, theme):
    figure, axes = plot_signal(signal(count, loss=1.0), signal(count, 1.0, loss=1.0), theme=theme)
    draw(figure)
    assert len(axes) == 4
    for ax in (axes[0], axes[2], axes[3]):
        named = [label for label in ax.get_xticklabels() if label.get_text()]
        assert 5 <= len(named) <= 20
        boxes = [label.get_window_extent() for label in named]
        assert all(a.x0 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))
    ground = sum(mpl.colors.to_rgb(figure.get_facecolor()))
    assert ground < 1 if theme == "dark" else ground > 2
    assert len(set(COLOURS)) == len(COLOURS)


def test_a_signal_without_a_loss_has_no_panels_of_gradients():
    bare = Signal(tuple(Layer(f"{i}", "linear", (4, 3), 0.0, 1.0, 1.0, histogram=(1, 2)) for i in range(3)))
    figure, axes = plot_signal(bare)
    draw(figure)
    assert len(axes) == 2
    assert figure.get_suptitle() == "Healthy: no fault found in 3 layers."
