"""``goodinit init``: from a model and data to initialized weights in a file."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from goodinit.command import options
from goodinit.console import FAILED, errors_shown

EXIT_CODES = (
    "Exit codes: 0 done; 1 it failed, or --check found fault; 2 the command cannot be meant, nothing was run; 130 interrupted. "
    "Files are written whole or not at all."
)


def init(
    model: options.Model,
    *,
    data: options.Data,
    arg: options.Arg = None,
    weights: options.Weights = None,
    device: options.Device = "cpu",
    dtype: options.DType = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    batches: Annotated[
        int, typer.Option(metavar="N", help="Pool the std over so many batches, exactly.", rich_help_panel="Data")
    ] = 1,
    image_size: options.ImageSize = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Leave these weights as they are: head, 'layers.0.*'; several.", rich_help_panel="Weights"
        ),
    ] = None,
    target_std: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PATTERN=]STD",
            help="The std to give outputs: 0.5, or head=0.1; several, of which the first that matches counts.",
            show_default="1",
            rich_help_panel="Weights",
        ),
    ] = None,
    pre_init: Annotated[
        str,
        typer.Option(
            metavar="orthonormal|gaussian|none",
            help="What to draw weights from before they are scaled; none: keep and scale them.",
            rich_help_panel="Weights",
        ),
    ] = "orthonormal",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Save the weights.", rich_help_panel="Result"),
    ] = None,
    report: options.Report = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 if a weight missed its target.", rich_help_panel="Result")
    ] = False,
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Initialize a model on your data (LSUV): the output of every linear operator gets unit variance.

    goodinit init net:make_model --data images/ --out weights.safetensors --report report.html
    """
    with errors_shown(whole=traceback), contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        from goodinit.command.initialization import Wishes, initialize  # noqa: PLC0415 - other commands do not need it
        from goodinit.command.preparation import Setup  # noqa: PLC0415

        setup = Setup(model, data, arg or (), weights, device, dtype, seed, batches, batch_size, image_size)
        wishes = Wishes(tuple(skip or ()), tuple(target_std or ()), pre_init, out, tuple(report or ()))
        done = initialize(setup, wishes)
        if not as_json:
            done.show()
    if as_json:
        typer.echo(json.dumps(done.as_json(), allow_nan=False))
    if check and not done.report.ok:
        raise typer.Exit(FAILED)
