"""Pillow's images of every mode as gray or coloured ones, without losing what is in them."""

from __future__ import annotations

from typing import Any

from goodinit.errors import DataError

GRAY = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "F"})
"""Pillow's names; images of other modes are made RGB."""
_DEEP = frozenset({"I", "I;16", "I;16B"})  # of 16 bits


def shallow(image: Any) -> Any:
    """The 16 bits that some gray images have as floats from 0 to 255: Pillow would cut them off in any other mode."""
    is_deep = image.mode in _DEEP and image.getextrema()[1] > 255
    return image.convert("F").point(lambda value: value * (1 / 257) + 0) if is_deep else image


def in_eight_bits(image: Any) -> Any:
    """Gray images as ``L``, all others as ``RGB``.

    Raises:
        DataError: that would lose what is in it. Its text goes on from "image 3 of …".
    """
    if image.mode == "F":
        raise DataError(
            "has floating-point values (mode F), of which it is not known what is white: save all images with 8 or 16 bits"
        )
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        raise DataError(
            f"is transparent in places (mode {image.mode}), and what is behind is not known: put all images on a background"
        )
    if image.mode in _DEEP:  # which Pillow rounds down
        return shallow(image).convert("F").point(lambda value: value * 1 + 0.5).convert("L")
    return image.convert("L" if image.mode in GRAY else "RGB")
