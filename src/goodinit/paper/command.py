"""``goodinit reproduce``: the experiments of the paper, one command each."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from goodinit.completion import one_of
from goodinit.console import errors_shown
from goodinit.errors import DataError, GoodinitError, OptionError, did_you_mean, require
from goodinit.files import check_writable
from goodinit.paper import catalogue

if TYPE_CHECKING:
    from rich.table import Table

    from goodinit.paper.experiment import Experiment
    from goodinit.paper.order import Order
    from goodinit.paper.runner import Launcher

RESULTS = Path("goodinit-results")
ALL = "all"
WITHOUT_DATA = "experiments without data"


class _Group(TyperGroup):
    """An unknown command is the name of an experiment, and options may come before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        return ["EXPERIMENT [OPTIONS] | list | report [OPTIONS]"]

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        what = next(parameter for parameter in self.commands["run"].params if parameter.name == "what")
        return [*super().shell_complete(ctx, incomplete), *what.shell_complete(ctx, incomplete)]


# A paragraph is one line here: the terminal breaks it where it ends.
_HELP = f"""The experiments of the paper: tables and figures, one command each.

EXPERIMENT is {", ".join(catalogue.names())}; {ALL}, which is all of them, one after the other; or a TOML file with one of \
your own.

  goodinit reproduce list                        what each of them is
  goodinit reproduce table3 --budget smoke       does it work? seconds a run
  goodinit reproduce table3 --only lsuv,he/relu  some of its runs
  goodinit reproduce table3 --help               all options
  goodinit reproduce report                      a page of what came of it

Every run that ends is a line in {RESULTS}/runs.jsonl, and is not done again. A run that was broken off goes on where \
it was. Several processes may share the runs of an experiment: start the same command again beside the first."""

app = typer.Typer(cls=_Group, no_args_is_help=True, help=_HELP)


@app.command("list")
def list_() -> None:
    """List the experiments, their numbers of runs, and the budgets."""
    with errors_shown():
        from rich.console import Console  # noqa: PLC0415 - needs the extra

        from goodinit.paper import experiment as experiments  # noqa: PLC0415 - other commands do not need it

        found = experiments.experiments()
    console = Console(highlight=False)
    console.print(_table(("experiment", "runs", "what"), ((e.name, _runs(e), _titled(e)) for e in found)))
    console.print("\nRuns are those of one seed: --seeds 3 makes three times as many.\n")
    own = [
        (budget, f"{experiment.name} alone: {note}")
        for experiment in found
        for budget, note in experiment.budgets.items()
        if budget not in catalogue.BUDGETS
    ]
    console.print(_table(("--budget", "what"), [*catalogue.COSTS.items(), *own]))
    console.print(f"\nAll of them, one after the other: goodinit reproduce {ALL}")


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    """Short columns first, so that the text in the last gets the rest of the terminal."""
    from rich.table import Table  # noqa: PLC0415 - needs the extra
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, no_wrap=title != titles[-1], justify="right" if title == "runs" else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _runs(experiment: Experiment) -> str:
    """How many with one seed, which budgets may differ in."""
    return ", ".join(map(str, sorted({len(cells) for cells in experiment.cells.values()})))


def _titled(experiment: Experiment) -> str:
    return f"{experiment.title} ({experiment.source})" if experiment.source else experiment.title


@app.command()
def report(
    *,
    results: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the rows.")] = RESULTS,
    own: Annotated[
        list[Path] | None, typer.Option("--experiment", metavar="FILE.toml", help="One of your own, to be on the page too.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page; its pictures go into a folder beside it.")] = Path(
        "paper.md"
    ),
) -> None:
    """Write the page with our figures beside the published ones, from the rows alone."""
    with errors_shown():
        from goodinit.paper import experiment as experiments  # noqa: PLC0415 - other commands do not need it
        from goodinit.paper.page import HIDDEN, write_page  # noqa: PLC0415
        from goodinit.paper.results import Results  # noqa: PLC0415

        if out.suffix.lower() not in ("", ".md", ".markdown"):
            raise OptionError(f"the page is Markdown, its name should end in .md; got {str(out)!r}")
        if out.parent.is_dir():
            check_writable(out, what="the page", example="paper.md")
        rows = Results(results)
        if not rows.file.exists():
            raise OptionError(f"there are no rows in {str(results)!r} (no runs.jsonl); goodinit reproduce … --results makes them")
        found = rows.read()
        pictures = write_page(found, out, [experiments.read(path) for path in own or ()])
    smoke = sum(result.row.get("budget") == HIDDEN for result in found)
    hidden = f"; {smoke} rows of the budget {HIDDEN} are not shown" if smoke else ""
    typer.echo(f"{out}" + (f", and {len(pictures)} pictures in {pictures[0].parent}" if pictures else "") + hidden)


def _offered_experiments() -> list[str]:
    """To who asks the shell to complete one; for files it has its own way."""
    return [*catalogue.names(), ALL]


def _offered_budgets(ctx: typer.Context) -> list[str]:
    """Those of the experiment that is on the line so far."""
    # While its last option lacks a value, a line is not parsed to its end, and the experiment is left over.
    what = next((word for word in (ctx.params.get("what"), *ctx.args) if word), ALL)
    try:
        return list(catalogue.BUDGETS) if what == ALL else catalogue.budgets(what)
    except GoodinitError:  # there is none of that name, yet
        return list(catalogue.BUDGETS)


@app.command()
def run(
    what: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT",
            help=f"Its name, see `goodinit reproduce list`; a TOML file with one of your own; or {ALL}: one after the other.",
            autocompletion=_offered_experiments,
        ),
    ],
    *,
    budget: Annotated[
        str,
        typer.Option(
            metavar="|".join(catalogue.BUDGETS),
            help=". ".join(f"{name}: {cost}" for name, cost in catalogue.COSTS.items()) + ".",
            autocompletion=_offered_budgets,
        ),
    ] = "short",
    seeds: Annotated[int, typer.Option(help="How many; they are 0, 1, 2, …")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW,ROW/COLUMN,…", help="Which cells; * and ? as in a shell.", show_default="all"),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of image sets, or of one.", show_default="download")
    ] = None,
    results: Annotated[Path, typer.Option(metavar="DIR", help="Folder of rows and checkpoints.")] = RESULTS,
    device: Annotated[str, typer.Option(metavar="cpu|cuda|auto", autocompletion=one_of("cpu", "cuda", "auto"))] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="float32|bfloat16",
            help="bfloat16: autocast.",
            show_default="float32",
            autocompletion=one_of("float32", "bfloat16"),
        ),
    ] = "",
    compiled: Annotated[bool, typer.Option("--compile", help="Train with torch.compile.")] = False,
    threads: Annotated[int, typer.Option(help="Of the CPU.", show_default="torch's")] = 0,
    save_every: Annotated[float, typer.Option(metavar="SECONDS", help="How much work a kill may cost.")] = 60.0,
    launcher: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            help="This process, or the workers of a Ray cluster.",
            autocompletion=one_of("local", "ray"),
        ),
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT|auto", help="A cluster that runs.", show_default="one of this machine")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="Of each run on Ray, and its threads.", show_default="1")] = None,
    gpus: Annotated[float | None, typer.Option(help="Of each run on Ray.", show_default="1 with --device cuda, else 0")] = None,
    tensorboard: Annotated[Path | None, typer.Option(metavar="DIR", help="Write loss and accuracy for TensorBoard.")] = None,
) -> None:
    """Run an experiment: `reproduce table3` is short for `reproduce run table3`."""
    with errors_shown():
        require("numpy", extra="paper")
        import torch  # noqa: PLC0415 - what follows takes its time, which other commands need not spend

        from goodinit.paper.allocator import keep_freed_memory  # noqa: PLC0415
        from goodinit.paper.order import Order, device_named  # noqa: PLC0415
        from goodinit.paper.results import Provenance, Results  # noqa: PLC0415
        from goodinit.paper.runner import reproduce  # noqa: PLC0415
        from goodinit.paper.show import audience  # noqa: PLC0415
        from goodinit.paper.worker import NO_TEACHER  # noqa: PLC0415
        from goodinit.paper.world import processes, started_together  # noqa: PLC0415

        patterns = tuple(pattern.strip() for given in only or () for pattern in given.split(",") if pattern.strip())
        if only and not patterns:
            raise OptionError("--only names rows, or row/column; got nothing. Leave it out for all of them")
        if not 0 <= save_every < float("inf"):
            raise OptionError(f"--save-every must be a number of seconds, 0 or more; got {save_every}")
        if data_dir is not None and not data_dir.is_dir():
            raise OptionError(
                f"--data-dir: there is no folder {str(data_dir)!r}; without a data folder image sets are downloaded"
            )
        device = device_named(device, elsewhere=launcher == "ray")
        orders = [
            Order(each, budget, seeds, patterns, data_dir, device, compiled, precision or None, save_every)
            for each in _experiments(what, patterns)
        ]
        if what == ALL:  # each as far as it goes
            orders = [order.with_what_applies() for order in orders]
        for order in orders:  # what cannot be meant is refused before anything is done
            with _named(order, alone=len(orders) == 1):
                order.runs()
        if threads < 0:
            raise OptionError(f"threads must be 1 or more; got {threads}")
        if launcher == "local" and (ray_address is not None or cpus is not None or gpus is not None):
            raise OptionError("--ray-address, --cpus and --gpus are for --launcher ray; this process has --threads and --device")
        if launcher == "ray":
            _check_for_ray(threads=threads, hides_gpus=device == "cuda" and gpus == 0, tensorboard=tensorboard is not None)
        if threads:
            torch.set_num_threads(threads)
        keep_freed_memory()
        gpus = float(device == "cuda") if gpus is None else gpus
        launch = _launcher(launcher, ray_address, 1 if cpus is None else cpus, gpus)
        finished, count = Results(results), Counter[str]()
        # Made before the first run: the sources may change while it goes on.
        origins = [Provenance.gathered(_command(order), device, compiled=order.compiled) for order in orders]
        with processes(device) as world, audience(world.first, tensorboard) as shown, _taken_up_again():
            for order, origin in zip(orders, origins, strict=True):
                try:
                    count += reproduce(order, finished, origin, shown, launch)
                except DataError as error:  # noqa: PERF203 - of all experiments some may be without their images
                    if len(orders) == 1 or started_together():
                        raise
                    typer.echo(f"goodinit: {order.experiment.name} is left out: {error}", err=True)
                    count[WITHOUT_DATA] += 1
        if world.first:
            typer.echo(f"{', '.join(f'{n} {status}' for status, n in count.items() if n)}; rows in {finished.file}")
        if count[NO_TEACHER] or count[WITHOUT_DATA]:
            raise typer.Exit(1)


def _check_for_ray(*, threads: int, hides_gpus: bool, tensorboard: bool) -> None:
    """Refuse what the launcher ray cannot have.

    Raises:
        OptionError: there is such.
    """
    from goodinit.paper.world import started_together  # noqa: PLC0415 - loads torch

    if threads:
        raise OptionError("--threads is for the launcher local; on Ray --cpus says how many processors and threads a run has")
    if hides_gpus:
        raise OptionError("--device cuda needs --gpus, of which 0 were asked for; 1 is the default, a fraction shares one")
    if tensorboard:
        raise OptionError("--tensorboard is for the launcher local; on Ray the rows are written, and TensorBoard's files are not")
    if started_together():
        raise OptionError(
            "--launcher ray is for one process, whose workers do the runs; these were started by torchrun, which --launcher "
            "local is for"
        )


def _experiments(what: str, patterns: tuple[str, ...]) -> list[Experiment]:
    """The one of a name or a file; all that come with goodinit."""
    from goodinit.paper import experiment as experiments  # noqa: PLC0415 - other commands do not need it

    if what != ALL:
        return [experiments.read(Path(what)) if what.endswith(".toml") else experiments.named(what)]
    if patterns:
        raise OptionError(f"--only is for one experiment, whose rows it names; got {what}, whose experiments have different ones")
    return experiments.experiments()


@contextmanager
def _named(order: Order, *, alone: bool) -> Iterator[None]:
    """Of several experiments an error says which it is of."""
    try:
        yield
    except OptionError as error:
        if alone:
            raise
        raise OptionError(f"{order.experiment.name}: {error}") from error


@contextmanager
def _taken_up_again() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("goodinit: interrupted; the same command goes on from the last checkpoint (see --save-every)", err=True)
        sys.exit(130)


def _launcher(name: str, address: str | None, cpus: int, gpus: float) -> Launcher | None:
    if name not in ("local", "ray"):
        raise OptionError(f"launcher must be local or ray; got {name!r}{did_you_mean(name, ('local', 'ray'))}")
    if name == "local":
        return None
    from goodinit.paper.launch_ray import on_ray  # noqa: PLC0415 - needs the extra

    return on_ray(address, cpus=cpus, gpus=gpus)


def _command(order: Order) -> str:
    """What makes the rows again, wherever the data and the results lie."""
    options = {
        "--budget": order.budget,
        "--seeds": str(order.seeds),
        "--only": ",".join(order.only),
        "--precision": order.precision,
    }
    words = [word for option, value in options.items() if value for word in (option, value)]
    return shlex.join(["goodinit", "reproduce", order.experiment.command, *words, *(["--compile"] if order.compiled else [])])
