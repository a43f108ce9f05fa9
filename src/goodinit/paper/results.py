"""Rows: one JSON line a finished run, with all that is needed to judge it and to make it again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import get_num_threads

from goodinit.errors import DataError, GoodinitError, OptionError
from goodinit.paper.config import KINDS, Run, Timing, Training, Walk, run_of
from goodinit.paper.files import append_line, read_lines
from goodinit.paper.outcome import Outcome
from goodinit.paper.provenance import commit, machine, now, versions
from goodinit.paper.timings import Seconds

Row = dict[str, Any]
Digests = tuple[str | None, ...]
_SCHEMA = 1
# What a row must have to be on the page, whatever it is of; and what more of each kind.
_COMMON = ("seed", "status", "command", "device", "versions.torch", "machine.cpu", "machine.threads", "commit", "dirty")
_OF_KIND = {
    "training": ("final_accuracy", "guessing", "evaluations"),
    "timing": ("seconds",),
    "walk": ("paths", "step_mean", "step_std"),
}
# A change of these makes no difference to a run.
_NO_SOURCES = ("benchmarks/results", "docs")


@dataclass(frozen=True)
class Result:
    """A row that was read, and the run that it is of."""

    run: Run
    row: Mapping[str, Any]

    @cached_property
    def of_any_seed(self) -> Run:
        """The run with seed 0: equal for all seeds of a run."""
        return replace(self.run, seed=0)

    @cached_property
    def images(self) -> Digests:
        """What it is of."""
        return images_of(self.row.get("data", {}))

    def is_of(self, run: Run, device: str) -> bool:
        """Whether a run need not be done again. Times are those of a device, and of so many threads as torch uses now."""
        if isinstance(run, Timing) and (self.row["device"], self.row["machine"]["threads"]) != (device, get_num_threads()):
            return False
        return self.run == run

    @property
    def converged(self) -> bool:
        """Whether it was trained to something better than guessing; true of what is no training."""
        return bool(self.row["status"] == "done")


def _has(row: Any, key: str, *more: str) -> bool:
    """Whether there is something at a path of keys."""
    return isinstance(row, dict) and key in row and (not more or _has(row[key], *more))


def images_of(data: Mapping[str, Any]) -> Digests:
    """What tells the images that a row is of from others: digests of those to train with, and to test with."""
    return tuple(data.get(part, {}).get("sha256") for part in ("train", "test"))


def _file_name(run: Run) -> str:
    """For people and programs; of a set whose name is a path no path."""
    return "-".join([*re.findall(r"[\w.=]*[\w=][\w.=]*", str(run)), run.key]).lstrip(".")


class Results:
    """A folder of rows and of the checkpoints of runs that are not finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "runs.jsonl"

    def weights(self, run: Run) -> Path:
        """Where the final weights of a run are kept that others need."""
        return self.folder / "weights" / f"{_file_name(run)}.safetensors"

    def checkpoint(self, run: Run) -> Path:
        """Where the state of an unfinished run is kept."""
        return self.folder / ".checkpoints" / f"{_file_name(run)}.pt"

    def read(self) -> list[Result]:
        """All rows, in the order in which the runs ended.

        Raises:
            GoodinitError: a line is broken, or of another version.
        """
        results = []
        for number, row in enumerate(read_lines(self.file), 1):
            where = f"line {number} of {str(self.file)!r}"
            kind = row["run"].get("kind") if isinstance(row.get("run"), dict) else None
            if row.get("schema") != _SCHEMA or not isinstance(kind, str) or kind not in KINDS:
                raise GoodinitError(f"{where} is no row of schema {_SCHEMA}")
            if lacking := [key for key in (*_COMMON, *_OF_KIND[kind]) if not _has(row, *key.split("."))]:
                raise GoodinitError(f"{where} lacks {', '.join(lacking)}")
            settings = {key: value for key, value in row["run"].items() if key != "kind"}
            try:
                run = run_of(kind, settings, where)
            except OptionError as error:
                raise GoodinitError(str(error)) from error
            results.append(Result(run, row))
        return results

    def has(self, run: Run, device: str) -> bool:
        """Whether a run is finished."""
        return any(result.is_of(run, device) for result in self.read())

    def check_images(self, runs: Iterable[Training], data: Mapping[str, Any]) -> None:
        """Refuse trainings on other images than those that the same runs had, with this seed or another one.

        Raises:
            DataError: they are others.
        """
        asked: dict[Run, Training] = {replace(run, seed=0): run for run in runs}
        now = images_of(data)
        for result in self.read():
            run = asked.get(result.of_any_seed)
            if run is not None and any(result.images) and result.images != now:
                were, are = (" and ".join(str(digest)[:12] for digest in each) for each in (result.images, now))
                raise DataError(
                    f"rows in {str(self.file)!r} have {run}, or another seed of it, on other images of {run.data} (SHA-256 of "
                    f"those to train and to test with: {were}; now {are}), and a cell is of one set: name another folder with "
                    "--results, or take these rows out"
                )

    def add(self, row: Row) -> None:
        """Append a row.

        Raises:
            SaveError: the disk is full; the rows are as they were.
        """
        append_line(self.file, row)


@dataclass(frozen=True)
class Provenance:
    """What the rows of one call have in common. Made before the first run: the sources may change while it goes on."""

    common: Mapping[str, Any]

    @classmethod
    def gathered(cls, command: str, device: str, *, compiled: bool) -> Provenance:
        """Of this process, on this machine."""
        return cls(
            {
                "command": command,
                "device": device,
                "compiled": compiled,
                "versions": versions("numpy", "datasets", "pillow"),
                "machine": machine(),
                **commit(leaving_out=_NO_SOURCES),
            }
        )

    @property
    def origin(self) -> str:
        """What does the work, in a line."""
        facts = self.common
        commit_ = f"{str(facts['commit'])[:10]}{' with changes' if facts['dirty'] else ''}"
        compiled = ", compiled" if facts["compiled"] else ""
        return f"{commit_}, {facts['device']}, {facts['machine']['threads']} threads{compiled}"

    def row(self, run: Run, place: Mapping[str, Any], measured: Mapping[str, Any]) -> Row:
        """A row of a finished run."""
        date = f"{now():%Y-%m-%dT%H:%M:%SZ}"
        return {"schema": _SCHEMA, **place, "seed": run.seed, **measured, "run": run.plain(), "date": date, **self.common}


def of_training(run: Training, outcome: Outcome, data: Mapping[str, Any], processes: int) -> Row:
    """What a row says of a training."""
    progress = outcome.progress
    return {
        "status": outcome.status,
        "iterations": progress.iteration,
        "diverged_at": progress.diverged_at,
        "final_accuracy": outcome.final_accuracy,
        "best_accuracy": outcome.best_accuracy,
        "guessing": outcome.guessing,
        "evaluations": [[e.iteration, e.accuracy, round(e.loss, 6)] for e in outcome.evaluations],
        "images_per_second": round(outcome.images_per_second, 1),
        "train_seconds": round(progress.seconds, 3),
        "init_seconds": round(progress.init_seconds, 4),
        "interruptions": progress.interruptions,
        **({"origins": progress.origins} if len(progress.origins) > 1 else {}),
        "processes": processes,
        "weights_sha256": outcome.weights_sha256,
        "data": dict(data),
        **({"updates": progress.updates} if run.updates else {}),
    }


def of_timing(run: Timing, seconds: Seconds) -> Row:
    """What a row says of a measurement of times."""
    return {
        "status": "done",
        "n": run.repeats,
        "seconds": {name: [round(s, 6) for s in values] for name, values in seconds.items()},
    }


def of_walk(run: Walk, measured: Mapping[str, Any]) -> Row:
    """What a row says of random walks."""
    return {"status": "done", "n": run.draws, **measured}
