"""Numbers as wide as a row says that they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No rounding of float32 to TF32's 10 bits, which cuDNN's convolutions begin with by default."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    newer = hasattr(cudnn, "conv")  # where convolutions and recurrent layers have a switch each
    holders = (cudnn.conv, cudnn.rnn) if newer else (cudnn,)
    name, exact = ("fp32_precision", "ieee") if newer else ("allow_tf32", False)
    before = [getattr(holder, name) for holder in holders]
    for holder in holders:
        setattr(holder, name, exact)
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            setattr(holder, name, value)
