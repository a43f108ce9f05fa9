"""The ``goodinit`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import goodinit
from goodinit.command.init_command import init
from goodinit.command.inspect_command import inspect
from goodinit.command.options import EXIT_CODES
from goodinit.completion import one_of
from goodinit.console import errors_shown
from goodinit.paper import command as reproduce

# Errors that are no GoodinitError are bugs: their traceback is shown as Python shows it.
# Markup is named, for some versions of typer have another default, which joins the lines of examples in a help.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.command(epilog=EXIT_CODES)(init)
app.command(epilog=EXIT_CODES)(inspect)
app.add_typer(reproduce.app, name="reproduce")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"goodinit {goodinit.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Makes deep networks trainable before the first step of training (LSUV initialization, for PyTorch)."""


@app.command()
def demo(
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="digits|mnist",
            help="scikit-learn's digits, which need no download, or MNIST at half its size.",
            autocompletion=one_of("digits", "mnist"),
        ),
    ] = "digits",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with MNIST's train-*.parquet and test-*.parquet.", show_default="download")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each of the two runs.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the weights and of the order of the images.")] = 0,
    depth: Annotated[int, typer.Option(help="Number of convolutions.")] = 30,
    activation: Annotated[
        str, typer.Option(metavar="tanh|relu", help="Between the layers.", autocompletion=one_of("tanh", "relu"))
    ] = "tanh",
    lr: Annotated[float | None, typer.Option(help="Learning rate of both runs.", show_default="tanh 0.01, relu 0.001")] = None,
    out: Annotated[Path, typer.Option(help="Where to save the picture.")] = Path("goodinit-demo.png"),
) -> None:
    """Train a deep network without normalization layers from PyTorch's default initialization, and from LSUV."""
    with errors_shown():
        from goodinit.demo import Setting, Story, picture, run_demo  # noqa: PLC0415 - other commands do not need it
        from goodinit.plots import check_picture_path  # noqa: PLC0415

        check_picture_path(out)
        story = Story()
        result = run_demo(Setting(data, data_dir, steps, seed, depth, activation, lr), story)
        picture(result).savefig(out, dpi=150)
        story.ending(result, out)
