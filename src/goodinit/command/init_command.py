"""``goodinit init``: from a model and data to initialized weights in a file."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from goodinit.command import options
from goodinit.completion import one_of
from goodinit.console import FAILED, errors_shown


def init(
    model: options.Model,
    *,
    data: options.Data,
    arg: options.Arg = None,
    weights: options.WeightsFile = None,
    device: options.Device = "cpu",
    dtype: options.DType = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    batches: Annotated[
        int, typer.Option(metavar="N", help="Pool the std over so many batches, exactly.", rich_help_panel=options.DATA)
    ] = 1,
    image_size: options.ImageSize = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave weights as they are: head, 'layers.0.*'; may be repeated.",
            rich_help_panel=options.WEIGHTS,
        ),
    ] = None,
    target_std: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STD",
            help="The std to give outputs: 0.5, or for some weights head=0.1; may be repeated, the first that matches counts. "
            "auto: chosen, and whether to centre too, by up to thirteen forward and six backward passes.",
            show_default="1",
            rich_help_panel=options.WEIGHTS,
        ),
    ] = None,
    pre_init: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What is scaled: orthonormal or gaussian draws; structured, orthonormal too and faster where large; none: the "
            "weights as they are.",
            rich_help_panel=options.WEIGHTS,
            autocompletion=one_of("orthonormal", "structured", "gaussian", "none"),
        ),
    ] = "orthonormal",
    variance: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Which variance is brought to the target: of all elements; between samples; of the channels one by one.",
            rich_help_panel=options.WEIGHTS,
            autocompletion=one_of("all", "samples", "channels"),
        ),
    ] = "all",
    center: Annotated[
        bool,
        typer.Option("--center", help="Remove each channel's mean, through the biases.", rich_help_panel=options.WEIGHTS),
    ] = False,
    target_mean: Annotated[
        float,
        typer.Option(
            metavar="MEAN",
            help="What --center brings the means to, in units of the target std.",
            rich_help_panel=options.WEIGHTS,
        ),
    ] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save the weights, .safetensors.", rich_help_panel=options.RESULT),
    ] = None,
    report: options.Report = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit code 1 if a weight is no-signal or bias-dominated.", rich_help_panel=options.RESULT),
    ] = False,
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Initialize a model on your data, so that the output of every linear operator has unit variance (LSUV).

    goodinit init net:make_model --data images/ --out weights.safetensors
    """
    with errors_shown(whole=traceback), contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        from goodinit.command.initialization import Wishes, initialize  # noqa: PLC0415 - other commands do not need it
        from goodinit.command.preparation import Setup  # noqa: PLC0415

        setup = Setup(model, data, arg or (), weights, device, dtype, seed, batches, batch_size, image_size)
        stds, reports = tuple(target_std or ()), tuple(report or ())
        wishes = Wishes(tuple(skip or ()), stds, pre_init, variance, center, target_mean, out, reports)
        done = initialize(setup, wishes)
        if not as_json:
            done.show()
    if as_json:
        typer.echo(json.dumps(done.as_json(), allow_nan=False))
    if check and not done.report.ok:
        raise typer.Exit(FAILED)
