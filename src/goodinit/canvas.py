"""What pictures are drawn on and with: figures without pyplot, colours, names under an axis, files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from goodinit.errors import OptionError, require
from goodinit.files import check_writable
from goodinit.interception.weights import parameter_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"] | None

# Of Okabe and Ito's palette, told apart with any kind of colour vision. Vermillion, blue, green, purple, orange, sky blue on
# white; the lighter ones first where the ground is dark.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_ON_DARK = ("#E69F00", "#56B4E9", "#2BC49A", "#E5A4C5", "#F0E442", "#FF8A4C")
MARKERS = "osD^vP"
LABELS = ("before", "after")
"""Of two curves."""
_MOST_TICKS = 12


def colours(ax: Axes) -> tuple[str, ...]:
    """Those that can be seen on an axis's ground."""
    return _ON_DARK if is_dark(ax) else COLOURS


def muted(ax: Axes) -> str:
    """A gray for what is not data."""
    return "0.45" if is_dark(ax) else "0.75"


def is_dark(ax: Axes) -> bool:
    """Whether text on it should be light."""
    from matplotlib.colors import to_rgba  # noqa: PLC0415 - needs the extra

    red, green, blue, alpha = to_rgba(ax.get_facecolor())
    return alpha > 0 and 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5  # luminance, nearly


def themed(theme: Theme) -> AbstractContextManager[object]:
    """Figures made inside are light or dark; None: as matplotlib's style says.

    Raises:
        OptionError: another theme.
        MissingExtraError: matplotlib is not installed.
    """
    if theme not in ("light", "dark", None):
        raise OptionError(f"theme must be 'light', 'dark' or None, for matplotlib's own style; got {theme!r}")
    require("matplotlib", extra="plot")
    if theme is None:
        return nullcontext()
    import matplotlib as mpl  # noqa: PLC0415 - needs the extra
    from matplotlib import style  # noqa: PLC0415

    dark = style.library["dark_background"]
    return mpl.rc_context(dark if theme == "dark" else {key: mpl.rcParamsDefault[key] for key in dark})


def picture_formats() -> dict[str, str]:
    """Suffixes that a figure can be saved with, and what they mean.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="plot")
    from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415 - needs the extra

    return dict(FigureCanvasBase.get_supported_filetypes())


def check_picture_path(path: Path) -> None:
    """Refuse a path that no picture could be saved at: before the work whose result it should show, not after.

    Raises:
        OptionError: an unknown format, no such folder, no permission.
        MissingExtraError: matplotlib is not installed.
    """
    formats = picture_formats()
    if not path.is_dir() and path.suffix.lower().lstrip(".") not in formats:
        raise OptionError(
            f"a picture cannot be saved as {str(path)!r}: its name should end in .png, or in one of {', '.join(formats)}"
        )
    check_writable(path, what="a picture", example="goodinit.png")


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, without pyplot."""
    require("matplotlib", extra="plot")
    from matplotlib.figure import Figure  # noqa: PLC0415 - needs the extra

    return Figure(figsize=(width, height), layout="constrained")


def new_axes() -> Axes:
    """An axis on a figure of its own."""
    return new_figure(6, 4).add_subplot()


def label_layers(ax: Axes, names: Sequence[str]) -> None:
    """Names under the axis, as many as stay readable, evenly spaced; the last one always."""
    last, step = len(names) - 1, max(1, math.ceil(len(names) / _MOST_TICKS))
    shown = [i for i in range(0, len(names), step) if i == last or last - i > step // 2]
    if names and last not in shown:
        shown.append(last)
    labels = [axis_name(names[i]) for i in shown]
    ax.set_xticks(shown, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize="small")


def short_name(name: str) -> str:
    """``"conv1"`` of ``"conv1.weight"``, ``"attention.in_proj_weight[0:64]"`` as it is."""
    return parameter_name(name).removesuffix(".weight") + name[len(parameter_name(name)) :]


def axis_name(name: str) -> str:
    """A short name; a long one without its middle."""
    name = short_name(name)
    return literal(name if len(name) <= 20 else f"{name[:11]}…{name[-8:]}")


def literal(text: str) -> str:
    """For matplotlib, which takes what stands between dollars for a formula."""
    return text.replace("$", r"\$")


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` (2 or more) of the numbers below ``count``, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
