"""Section d: peak memory of lsuv_ against a plain forward, each in a fresh process.

Run as a script it is such a process: it builds a network and its batch, notes its resident memory (the baseline), makes the
kernel's record of the peak start anew, does one thing, and prints the peak as JSON. No warm-up: what a library allocates at its
first use counts for both.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from checks import failed_stds, output_stds
from fresh_process import last_line
from networks import Net, full_size, small_size
from rows import Rows

_ACTIONS = ("forward", "lsuv_")


def measure(net: Net, rows: Rows, *, repeats: int, budget: float, seed: int, quick: bool) -> None:
    """Rows of one network: bytes of every process, in order."""
    found: dict[str, list[dict[str, Any]]] = {action: [] for action in _ACTIONS}
    start = time.perf_counter()
    for i in range(repeats):
        if i > 0 and (time.perf_counter() - start) * (i + 1) / i > budget:
            break
        for action in _ACTIONS:
            found[action].append(_in_fresh_process(net.name, action, seed, quick=quick))
    median = {
        action: {key: statistics.median(p[key] for p in found[action]) for key in ("baseline", "peak")} for action in _ACTIONS
    }
    weights = found["forward"][0]["weight_bytes"]
    forward, lsuv = median["forward"], median["lsuv_"]
    comparison = {
        # What lsuv_ adds to a model and its data, to what a forward adds and one copy of the weights.
        "ratio": (lsuv["peak"] - lsuv["baseline"]) / (forward["peak"] - forward["baseline"] + weights),
        # The same of all resident memory, libraries included: at most 1 if peak(lsuv_) <= 1.1 peak(forward) + weights.
        "absolute_ratio": lsuv["peak"] / (1.1 * forward["peak"] + weights),
    }
    for action in _ACTIONS:
        processes = found[action]
        rows.add(
            "d",
            net.name,
            action,
            n=len(processes),
            peak_bytes=median[action]["peak"],
            peaks_bytes=[p["peak"] for p in processes],
            baseline_bytes=median[action]["baseline"],
            baselines_bytes=[p["baseline"] for p in processes],
            weight_bytes=weights,
            method=processes[0]["method"],
            failed_checks=[check for p in processes for check in p["failed"]],
            **(comparison if action == "lsuv_" else {}),
        )
    print(f"d  {net.name}: {comparison['ratio']:.3f} of a forward and a copy of the weights", flush=True)


def _in_fresh_process(net: str, action: str, seed: int, *, quick: bool) -> dict[str, Any]:
    options = ["--seed", str(seed), "--threads", str(torch.get_num_threads()), *(["--quick"] if quick else [])]
    line = last_line(__file__, [net, action, *options], f"peak memory of {action} on {net}")
    result: dict[str, Any] = json.loads(line)
    return result


def memory(key: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS, resident now; VmHWM, resident at most."""
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def reset_peak() -> bool:
    """Make VmHWM start from what is resident now; False where the system does not allow that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("net")
    parser.add_argument("action", choices=_ACTIONS)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = next(net for net in (small_size() if options.quick else full_size()) if net.name == options.net)
    model, batch = net.make(options.seed)
    from goodinit import lsuv_

    gc.collect()
    resets = reset_peak()
    baseline = memory("VmRSS")
    scaled = 0
    if options.action == "lsuv_":
        scaled = sum(record.status == "scaled" for record in lsuv_(model, batch))
    else:
        with torch.no_grad():
            model(batch)
    peak = memory("VmHWM") if resets else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    failed = failed_stds(output_stds(model, batch, training=True), expected=scaled) if options.action == "lsuv_" else []
    method = "VmHWM, reset before" if resets else "ru_maxrss, of the whole process"
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    print(json.dumps({"baseline": baseline, "peak": peak, "weight_bytes": weight_bytes, "method": method, "failed": failed}))


if __name__ == "__main__":
    _main()
