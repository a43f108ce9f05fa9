"""The options that the commands have in common: their types, and what their help says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from goodinit.completion import one_of

MODEL, DATA, WEIGHTS, RESULT = "Model", "Data", "Weights", "Result"

EXIT_CODES = (
    "Exit codes: 0 done; 1 the command is fine, but the files, the packages or the model are not, or --check found fault; 2 the "
    "command itself cannot be meant, and nothing was run; 130 interrupted. Files are written whole or not at all. Nothing is "
    "unpickled."
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="MODULE:NAME of a class, of a function that returns a model, or of a model: net:make_model is make_model in net.py. "
        "Or transformers:FOLDER, by its config.json; or timm:NAME. Weights are not downloaded.",
    ),
]
Arg = Annotated[
    list[str] | None,
    typer.Option(
        "--arg", metavar="NAME=VALUE", help="Argument of the class or function; may be repeated.", rich_help_panel=MODEL
    ),
]
WeightsFile = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Weights to begin with, .safetensors.", rich_help_panel=MODEL),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1, … or auto.",
        rich_help_panel=MODEL,
        autocompletion=one_of("cpu", "cuda", "mps", "auto"),
    ),
]
DType = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Of weights and data: float32, float64, float16, bfloat16.",
        show_default="as the model is made",
        rich_help_panel=MODEL,
        autocompletion=one_of("float32", "float64", "float16", "bfloat16"),
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", help="Of the weights, and of which samples are drawn.", rich_help_panel=MODEL)
]

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="A file .safetensors, .npz, .npy, whose tensors are arguments of the forward by their names; a folder of images or "
        "of parquet files; hub:NAME, a set of images. With no data at hand noise:3x224x224 or tokens:128, the shape of a sample. "
        "Its variance should be about 1: images are standardized.",
        rich_help_panel=DATA,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Samples in a batch, drawn at random.",
        show_default="all of a file, else 64",
        rich_help_panel=DATA,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="N",
        help="Height and width to bring images to.",
        show_default="theirs, or 224",
        rich_help_panel=DATA,
    ),
]

Report = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Save what was found: a page (.html), a picture (.png, .svg, .pdf), or .json; may be repeated.",
        rich_help_panel=RESULT,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.", rich_help_panel=RESULT)]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.", rich_help_panel=RESULT)]
