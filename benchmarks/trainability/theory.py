"""docs/beyond-unit-variance.md: what a std of 1 does not solve, measured, and its figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from goodinit import init_, lsuv_
from goodinit.auto import correlation, cosines, products, similarity
from goodinit.files import write_whole
from goodinit.paper.files import read_lines
from goodinit.paper.provenance import commit, machine, versions
from trainability.nets import perceptron
from trainability.pictures import save

DEPTH, WIDTH, SAMPLES = 50, 64, 256
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "GELU": nn.GELU, "ReLU": nn.ReLU}
SETTINGS: dict[str, dict[str, Any]] = {
    "target_std=1": {},
    "target_std=0.3": {"target_std": 0.3},
    "target_std=0.1": {"target_std": 0.1},
    "center=True": {"center": True},
    "center=True, target_mean=1": {"center": True, "target_mean": 1.0},
    "center=True, target_mean=2": {"center": True, "target_mean": 2.0},
    'target_std="auto"': {"target_std": "auto"},
}
Row = Mapping[str, Any]


def measure(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows: of every layer of deep perceptrons on the digits the output's std, the samples' similarity, the gradient's size."""
    from trainability.sets import digits

    x = digits().x[:SAMPLES]
    for activation, make in ACTIVATIONS.items():
        for setting in ("he", *SETTINGS):
            torch.manual_seed(seed)
            net, choice = perceptron(DEPTH, WIDTH, 64, 10, make), None
            if setting == "he":
                init_(net, "he", nonlinearity="tanh" if activation == "tanh" else "relu")
            else:
                choice = lsuv_(net, x, **SETTINGS[setting]).choice
            stds, similarities, gradients, likeness = layers(net, x)
            yield {
                "activation": activation,
                "setting": setting,
                "seed": seed,
                "depth": DEPTH,
                "width": WIDTH,
                "samples": SAMPLES,
                "std": stds,
                "similarity": similarities,
                "gradient": gradients,
                "likeness": likeness,
                "chosen": None if choice is None else str(choice).splitlines()[0],
            }


def write_rows(path: Path) -> None:
    """All of `measure`, with where they come from."""
    origin = {"versions": versions(), "machine": machine(), **commit(leaving_out=["benchmarks/results", "docs"])}
    lines = [json.dumps({**row, **origin}) for row in measure()]
    write_whole(path, ("\n".join(lines) + "\n").encode())


def layers(net: nn.Sequential, x: Tensor) -> tuple[list[float], list[float], list[float], list[float]]:
    """Of the linear layers: std of the output, mean cosine of distinct samples, norm of the gradient for random cotangents, and
    the correlation of the cosines of pairs with those in the first.
    """
    outputs, z = [], x
    for layer in net:
        z = layer(z)
        if isinstance(layer, nn.Linear):
            z.retain_grad()
            outputs.append(z)
    z.backward(torch.randn(z.shape, generator=torch.Generator().manual_seed(0)))
    gradients = [out.grad.norm().item() for out in outputs if out.grad is not None]
    values = [out.detach() for out in outputs]
    first = cosines(products(values[0]))
    likeness = [correlation(first, cosines(products(value))).item() for value in values]
    found = [value.std().item() for value in values], [similarity(value).item() for value in values], gradients, likeness
    return tuple([float(f"{v:.5g}") for v in some] for some in found)  # type: ignore[return-value]  # four of them


def write_theory(rows: Path, docs: Path) -> None:
    """The page and its figure."""
    found = read_lines(rows)
    if not found:
        return
    figure(found, docs / "figures" / "beyond-unit-variance.png")
    text = (Path(__file__).parent / "beyond-unit-variance.md.in").read_text(encoding="utf-8")
    write_whole(docs / "beyond-unit-variance.md", text.replace("{{table}}", _table(found)).encode())


_COLOURS = ("#999999", "#000000", "#56b4e9", "#0072b2", "#e69f00", "#d55e00", "#009e73")


def figure(rows: Sequence[Row], path: Path) -> None:
    """Similarity and gradient through the layers; a column an activation, a line a setting."""
    shown = [setting for setting in ("he", *SETTINGS) if setting != 'target_std="auto"']
    picture = Figure(figsize=(12, 5.6), layout="constrained")
    axes = picture.subplots(2, len(ACTIVATIONS), sharex=True)
    for column, activation in enumerate(ACTIVATIONS):
        for setting, colour in zip(shown, _COLOURS, strict=True):
            row = next(r for r in rows if r["activation"] == activation and r["setting"] == setting)
            numbers = range(1, len(row["std"]) + 1)
            axes[0, column].plot(numbers, row["similarity"], color=colour, label=setting)
            last = row["gradient"][-2]
            axes[1, column].plot(numbers, [g / last if last else math.nan for g in row["gradient"]], color=colour)
        axes[0, column].set_title(activation)
        axes[1, column].set_yscale("log")
        axes[1, column].set_xlabel("layer")
    axes[0, 0].set_ylabel("cosine of samples")
    axes[1, 0].set_ylabel("gradient / last hidden layer's")
    picture.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(picture, path)


def _table(rows: Sequence[Row]) -> str:
    head = [
        "",
        "setting",
        "std, last hidden layer",
        "gradient, first layer / last hidden",
        "cosine of samples, first layer",
        "last hidden",
        "likeness, first and last hidden",
    ]
    lines = []
    for row in rows:
        gradients, setting = row["gradient"], row["setting"]
        chosen = f": {row['chosen'].split(':')[1].strip()}" if row["chosen"] else ""
        first, last = row["similarity"][0], row["similarity"][-2]
        ratio = gradients[0] / gradients[-2] if gradients[-2] else math.nan
        cells = f"{row['std'][-2]:.2g}", f"{ratio:.2g}", f"{first:.2f}", f"{last:.2f}", f"{row['likeness'][-2]:.2f}"
        lines.append([row["activation"], f"`{setting}`{chosen}", *cells])
    rows_ = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)]
    return "\n".join(rows_)
