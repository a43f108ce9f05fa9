"""The options that the commands have in common: their types, and what their help says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_ASKED, _DATA, _RESULT = "Model", "Data", "Result"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="MODULE:NAME of a class, a function that returns a model, or a model, such as net:make_model for make_model in "
        "net.py; transformers:FOLDER by its config.json; or timm:NAME.",
    ),
]
Arg = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="NAME=VALUE", help="Argument of the class or function; several.", rich_help_panel=_ASKED),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Begin with these: safetensors.", rich_help_panel=_ASKED),
]
Device = Annotated[str, typer.Option("--device", metavar="cpu|cuda|auto|…", help="Where the model runs.", rich_help_panel=_ASKED)]
DType = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="float32|bfloat16|…",
        help="Of the weights, and of data with a fraction.",
        show_default="as made",
        rich_help_panel=_ASKED,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Of weights, and of which data is drawn.", rich_help_panel=_ASKED)]

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="A file .safetensors, .npz or .npy; a folder of images or parquet files; hub:NAME of images; without data at hand "
        "noise:3x224x224 or tokens:128, the shape of a sample. Its variance should be about 1.",
        rich_help_panel=_DATA,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", help="Samples in a batch.", show_default="a whole file, else 64", rich_help_panel=_DATA
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        help="Height and width to bring images to.",
        show_default="theirs, or 224",
        rich_help_panel=_DATA,
    ),
]

Report = Annotated[
    list[Path] | None,
    typer.Option(
        "--report", metavar="FILE", help="Save a page (.html), a picture (.png, …) or .json; several.", rich_help_panel=_RESULT
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.", rich_help_panel=_RESULT)]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.", rich_help_panel=_RESULT)]
