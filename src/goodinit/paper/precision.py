"""Numbers as wide as a row says that they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No rounding of float32 to TF32's 10 bits, which cuDNN's convolutions begin with by default."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    holder, name, exact = (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
    before = getattr(holder, name)
    setattr(holder, name, exact)
    try:
        yield
    finally:
        setattr(holder, name, before)
