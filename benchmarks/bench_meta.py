"""A large decoder, initialized from the meta device: peak memory, seconds, and whether the result is right.

    python benchmarks/bench_meta.py [--layers 36] [--checkpoint DIR]

The default has 3.0 billion parameters in bfloat16, 5.6 GiB; the shapes are those of Llama decoders of its size. Target: the peak
of the process is at most the finished model, twice its largest weight in float32 (which it is drawn in), what Python and torch
take without any model, and 256 MiB for libraries that are loaded on the way and the batch's activations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, cast

import torch
from rows import Rows
from timing import timed
from torch import nn

from goodinit import lsuv_, measure

_OUT = Path(__file__).resolve().parent / "results" / "bench_meta.jsonl"
_GIB = 1 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description="Initialize a large decoder from the meta device.")
    parser.add_argument("--layers", default=36, type=int)
    parser.add_argument("--width", default=2560, type=int)
    parser.add_argument("--tokens", default=64, type=int, help="of the batch")
    parser.add_argument("--pre-init", default="structured", choices=("orthonormal", "structured"))
    parser.add_argument("--checkpoint", type=Path, help="folder to write finished shards to on the way")
    parser.add_argument("--out", default=_OUT, type=Path, help="file that the raw row is appended to")
    options = parser.parse_args()
    rows = Rows(options.out, 0, quick=options.layers < 36)
    model = decoder(options.layers, options.width)
    ids = {"input_ids": torch.randint(32_000, (1, options.tokens), generator=torch.Generator().manual_seed(0))}
    lsuv_(nn.Linear(8, 8), torch.randn(8, 8))  # what is loaded at the first call counts as there before
    before = peak()
    reports = []
    seconds = timed(
        lambda: reports.append(
            lsuv_(
                model,
                ids,
                pre_init=options.pre_init,
                device="cpu",
                checkpoint=options.checkpoint,
                generator=torch.Generator().manual_seed(0),
            )
        )
    )
    after, report = peak(), reports[0]
    size = sum(p.nbytes for p in model.parameters())
    largest = max(p.numel() for p in model.parameters())
    allowed = before + size + 2 * 4 * largest + (256 << 20)
    stds = [layer.std for layer in measure(model, ids).layers]
    wrong = [
        *([] if report.ok and len(stds) == len(report) else ["not every weight is at its target"]),
        *([f"stds from {min(stds)} to {max(stds)}"] if max(abs(std - 1) for std in stds) > 0.05 else []),
        *([f"{after / _GIB:.2f} GiB at most, {allowed / _GIB:.2f} allowed"] if after > allowed else []),
    ]
    rows.add(
        "meta",
        f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion parameters",
        options.pre_init,
        seconds=[seconds],
        failed_checks=wrong,
        parameters=sum(p.numel() for p in model.parameters()),
        weights=len(report),
        dtype="bfloat16",
        layers=options.layers,
        width=options.width,
        tokens=options.tokens,
        checkpoint=options.checkpoint is not None,
        model_gib=size / _GIB,
        peak_before_gib=before / _GIB,
        peak_gib=after / _GIB,
        allowed_gib=allowed / _GIB,
        sampling_seconds=report.sampling_seconds,
        std_min=min(stds),
        std_max=max(stds),
    )
    print(f"{report.summary()}\npeak {after / _GIB:.2f} GiB, of it {before / _GIB:.2f} before, the model {size / _GIB:.2f}")
    print("\n".join(rows.failed), file=sys.stderr)
    return int(bool(rows.failed))


def decoder(layers: int, width: int) -> nn.Module:
    """On the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config: Any = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=width * 27 // 10,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        use_cache=False,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
        return cast("nn.Module", model.to(torch.bfloat16))


def peak() -> int:
    """The most memory that this process has had, in bytes. getrusage counts what it was before it ran Python, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    sys.exit(main())
