"""The verdict: what a page says before it shows anything."""

from __future__ import annotations

from dataclasses import dataclass

from goodinit.measurement.signals import Signal
from goodinit.page.health import HEALTHS, health_of_record, worst
from goodinit.report import STATUSES, Record, Report

_ADVICE = {
    "no-signal": "No factor mends an output that does not vary: look upstream of the first of them for a branch that begins at "
    "zero, units that are all dead, or data that are constant.",
    "bias-dominated": "Start from biases of zero, as lsuv_ does unless pre_init=None, or ask for a larger target_std.",
}


@dataclass(frozen=True)
class Note:
    """One thing that a person should know."""

    health: str
    kind: str
    names: tuple[str, ...]
    """The weights that it is about."""
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Verdict:
    """One sentence, and what led to it."""

    health: str
    sentence: str
    notes: tuple[Note, ...] = ()


def verdict_of_report(report: Report) -> Verdict:
    """What an initialization came to, by the statuses of its records."""
    by_status: dict[str, list[Record]] = {status: [] for status in STATUSES}
    for record in report:
        by_status.setdefault(record.status, []).append(record)
    notes = [_note_of_status(status, records) for status, records in by_status.items() if records and _is_notable(status)]
    notes += [*_notes_of_records(report), *_note_of_choice(report)]
    notes.sort(key=lambda note: list(HEALTHS).index(note.health))
    return Verdict(worst(map(health_of_record, report)), _sentence(report), tuple(notes))


def _sentence(report: Report) -> str:
    if not len(report):
        return "There is no weight in this report."
    failed = sum(not record.ok for record in report)
    scaled = sum(health_of_record(record) == "healthy" for record in report)
    if failed:
        return f"{failed} of {_weights(len(report))} could not be brought to the target std."
    if scaled == len(report):
        return f"{'All ' if scaled > 1 else 'The '}{_weights(scaled, with_count=scaled > 1)} {_have(scaled)} the target std."
    if not scaled:
        drawn = sum(record.status == "drawn" for record in report)
        return f"{drawn} of {_weights(len(report))} {'was' if drawn == 1 else 'were'} drawn; none was scaled."
    left = len(report) - scaled
    others = f"{left} {'was' if left == 1 else 'were'} not to be scaled"
    return f"{scaled} of {_weights(len(report))} {_have(scaled)} the target std; {others}."


def _weights(count: int, *, with_count: bool = True) -> str:
    return f"{f'{count} ' if with_count else ''}weight{'' if count == 1 else 's'}"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _is_notable(status: str) -> bool:
    return status not in ("scaled", "drawn")


def _note_of_status(status: str, records: list[Record]) -> Note:
    meaning = STATUSES.get(status, "")
    text = f"{_weights(len(records))}: {meaning}." if meaning else f"{_weights(len(records))}."
    health = health_of_record(records[0])
    return Note(health, status, tuple(record.name for record in records), text, _ADVICE.get(status, ""))


def _notes_of_records(report: Report) -> list[Note]:
    """What could not be done as it was asked for, once each."""
    names: dict[str, list[str]] = {}
    for record in report:
        if record.note:
            names.setdefault(record.note, []).append(record.name)
    return [Note("unjudged", "note", tuple(found), f"{_weights(len(found))}: {text}.") for text, found in names.items()]


def _note_of_choice(report: Report) -> list[Note]:
    """What ``target_std="auto"`` chose, and what it chose from."""
    if report.choice is None:
        return []
    chosen, *_ = str(report.choice).removeprefix("auto: ").splitlines()
    tried = "; ".join(map(str, report.choice.trials))
    head = () if report.choice.head is None else (report.choice.head,)
    return [Note("unjudged", "auto", head, f"{chosen}.", f"Tried: {tried}.")]


def verdict_of_signal(signal: Signal) -> Verdict:
    """What a measurement found."""
    faults = tuple(Note("fault", f.kind, (f.layer,) if f.layer else (), f.text, f.advice) for f in signal.findings)
    notes = tuple(Note("unjudged", "note", (), text) for text in signal.notes)
    return Verdict("fault" if faults else "healthy", signal.verdict.partition("\n")[0], (*faults, *notes))
