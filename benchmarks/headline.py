"""From the raw rows of bench_lsuv.py to the table that the README shows of them.

python benchmarks/headline.py
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rows import Row, last_run
from table import Cells, grouped, table

_ROOT = Path(__file__).resolve().parents[1]
_ROWS = _ROOT / "benchmarks" / "results" / "bench_lsuv.jsonl"
_README = _ROOT / "README.md"
_BEGIN, _END = "<!-- made by `python benchmarks/headline.py`; do not edit -->\n", "<!-- end -->\n"
_NETS = {
    "mlp-100": "perceptron of 100 layers",
    "plain-cnn-50": "plain CNN of 50 layers",
    "resnet18-like": "ResNet-18",
    "resnet50-like": "ResNet-50",
    "inception-like": "GoogLeNet's inception blocks",
    "gpt2-like": "GPT-2 of transformers",
    "caffenet": "CaffeNet",
}
_CONTESTANTS = {"goodinit lsuv_": "goodinit", "lsuv 0.3.0": "`lsuv` 0.3.0", "anyinit 0.4.0": "`anyinit` 0.4.0"}


def main() -> int:
    _README.write_text(replaced(_README.read_text(encoding="utf-8"), headline(last_run(_ROWS))), encoding="utf-8")
    return 0


def replaced(text: str, shown: str) -> str:
    """The text with another table between the marks."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{shown}\n{_END}{after}"


def headline(rows: Sequence[Row]) -> str:
    """Seconds, forward passes and stds of every contestant, and where the figures come from."""
    nets = {name: by for name, by in grouped([row for row in rows if row["section"] == "b"]) if name in _NETS}
    lines: list[Cells] = [(_NETS[name], *(_found(nets[name][who]) for who in _CONTESTANTS)) for name in _NETS if name in nets]
    row = rows[0]
    loads = [row["load"] for by in nets.values() for row in by.values()]
    told = (
        "Seconds, forward passes, and the smallest and largest std of a layer's output afterwards, in train mode (`anyinit` aims "
        f"at the activations' mean square instead). `{row['command']}`, {row['date'][:10]}, {row['machine']['cpu']}, "
        f"{row['machine']['threads']} thread, load {min(loads):g} to {max(loads):g}, torch {row['versions']['torch']}; medians "
        "of 1 to 5 calls; `>`: stopped, or not begun, as it takes longer."
    )
    return f"{table(('network', *_CONTESTANTS.values()), lines)}\n\n{textwrap.fill(told, 128)}\n"


def _found(row: Row) -> str:
    if row["median_seconds"] is None and not row["seconds_at_least"]:
        return str(row["status"]).partition(":")[0]
    seconds = _short(row["median_seconds"]) if row["median_seconds"] else f"> {_short(row['seconds_at_least'])}"
    parts = [f"{seconds} s"]
    if row["median_seconds"]:
        parts += [f"{row['forward_passes']} pass" + ("es" if row["forward_passes"] > 1 else ""), _span(row)]
    return ", ".join(parts)


def _short(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 10 else f"{seconds:.0f}"


def _span(row: dict[str, Any]) -> str:
    low, high = (f"{float(row[key]):.2f}" for key in ("std_min", "std_max"))
    return f"std {low}" if low == high else f"std {low} to {high}"


if __name__ == "__main__":
    sys.exit(main())
