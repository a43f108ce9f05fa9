"""``goodinit inspect``: from a model and data to a verdict on the signal through it."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Annotated

import typer

from goodinit.command import options
from goodinit.completion import one_of
from goodinit.console import FAILED, errors_shown


def inspect(
    model: options.Model,
    *,
    data: options.Data,
    arg: options.Arg = None,
    weights: options.WeightsFile = None,
    device: options.Device = "cpu",
    dtype: options.DType = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    image_size: options.ImageSize = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="LOSS",
            help="Measure gradients too: of cross-entropy or mse against the labels in the data; output, the loss that the model "
            "returns; or MODULE:NAME of a function of its output, or of output and labels.",
            rich_help_panel=options.DATA,
            autocompletion=one_of("cross-entropy", "mse", "output"),
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Judge the updates of plain SGD at this learning rate, with --loss.",
            show_default="not judged; shown for 0.01",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    report: options.Report = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 1 if the model is not healthy.", rich_help_panel=options.RESULT)
    ] = False,
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Measure the signal through a model on your data, and say what is wrong with it and what to do.

    goodinit inspect net:make_model --data images/ --loss cross-entropy
    """
    with errors_shown(whole=traceback), contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        from goodinit.command.inspection import inspected  # noqa: PLC0415 - other commands do not need it
        from goodinit.command.preparation import Setup  # noqa: PLC0415

        setup = Setup(model, data, arg or (), weights, device, dtype, seed, 1, batch_size, image_size)
        found = inspected(setup, loss, lr, tuple(report or ()))
        if not as_json:
            found.show()
    if as_json:
        typer.echo(json.dumps(found.as_json(), allow_nan=False))
    if check and not found.signal.healthy:
        raise typer.Exit(FAILED)
