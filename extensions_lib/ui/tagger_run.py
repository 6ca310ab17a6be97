"""The Tagger's folder as a job: what there is to do, doing it, and how the page tells of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.tagging.run import Plan, Report, Run
from extensions_lib.tagging.writer import Output
from extensions_lib.ui import pieces, tagger_pieces
from extensions_lib.ui.jobs import Tell, Update
from extensions_lib.ui.tagger_models import Asked
from extensions_lib.ui.tagger_pieces import counted
from extensions_lib.ui.tagger_room import TaggerRoom, device_notes, devices

_runs = count(1)


@dataclass(frozen=True)
class Order:
    """A folder to be tagged, and how."""

    folder: Path
    output: Output
    asked: Asked


@dataclass(frozen=True)
class Told:
    """A progress that is no count of pictures."""

    words: tuple[str, ...]
    fraction: float | None = None


class Tagged(NamedTuple):
    """What a run did, where its models ran, and what else is to be said."""

    report: Report
    devices: str
    notes: tuple[str, ...]


def planned(room: TaggerRoom, folder: Path, output: Output, run: Run) -> Plan:
    """What there is to do in a folder. Raises CrucibleError, also for one without pictures."""
    from extensions_lib.tagging.pipeline import plan

    with room.store(folder, make=False) as store:
        found = plan(folder, output, run, store)
    if not found.pictures and not found.problems:
        raise no_pictures(folder, run.subfolders)
    return found


def no_pictures(folder: Path, subfolders: bool) -> CrucibleError:
    """What to say of a folder without pictures."""
    more = "" if subfolders else " Tick Subfolders to look below it too."
    return CrucibleError(f"{folder}: there are no pictures in it.{more}")


def label(found: Plan, existing: str) -> str:
    """What the main button will do."""
    if existing == "keep" and found.existing:
        left = len(found.pictures) - len(found.existing)
        kept = counted(len(found.existing), "caption")
        return f"Tag {counted(left, 'picture')}, keep {kept}"
    return f"Tag {counted(len(found.pictures), 'picture')}"


def about(found: Plan, existing: str) -> list[str]:
    """What is to be said of a folder before it is tagged."""
    notes = [problem.problem for problem in found.problems]
    if found.existing and existing == "ask":
        notes.append(
            f"{len(found.existing)} of {len(found.pictures)} pictures have captions already:"
            " choose below what becomes of them."
        )
    return [*notes, *found.messages]


def tag_folder(room: TaggerRoom, order: Order, tell: Tell, stop: Event) -> Tagged:
    """The job. Raises CrucibleError."""
    from extensions_lib.tagging.pipeline import plan, refuse_to_guess, tag

    asked = order.asked
    with room.store(order.folder) as store:
        found = plan(order.folder, order.output, asked.run, store)
        refuse_to_guess(found, order.output)
        if not found.pictures and not found.problems:
            raise no_pictures(order.folder, asked.run.subfolders)
        runners = load(room, asked, tell, stop)
        with alone(room, stop):
            report = tag(
                found, runners, asked.selection, order.output, asked.run, store,
                stop=stop, on_progress=tell,
            )  # fmt: skip
        notes = (*device_notes(runners), *store.messages, *report.messages)
    return Tagged(report, devices(runners), notes)


def load(room: TaggerRoom, asked: Asked, tell: Tell, stop: Event) -> list[Any]:
    """The models, downloaded if that is allowed. Raises CrucibleError, Stopped."""

    def download(told: Any) -> None:
        if stop.is_set():
            raise Stopped("The download was stopped; what has arrived is kept.")
        fraction = told.done / told.total if told.total else None
        tell(Told(("Downloading", told.file, f"{told.done / 1e6:.0f} MB"), fraction))

    tell(Told(("Loading the model …",)))
    return room.pool.runners(asked.models, asked.run, download)


def alone(room: TaggerRoom, stop: Event) -> AbstractContextManager[Any]:
    """The device for oneself. Raises Stopped for one who gave up waiting."""
    if stop.is_set():
        raise Stopped("stopped")
    return room.alone()


def bar(update: Update) -> str:
    """A job under way."""
    if update.state == "waiting":
        return pieces.bar(None, "Waiting for", str(update.ahead), "other")
    if isinstance(update.progress, Told):
        return pieces.bar(update.progress.fraction, *update.progress.words)
    if update.progress is not None:
        return tagger_pieces.progress(update.progress)
    return pieces.bar(None, "Starting …")


def summary(order: Order, tagged: Tagged) -> str:
    """A job that has ended: what was done, what could not be, what a dry run would write."""
    report, dry = tagged.report, order.output.dry_run
    parts = [
        "Stopped after" if report.stopped else "Done:",
        f"{report.done}/{report.total} · {report.written}",
        "captions would be written" if dry else "captions written",
    ]
    for number, what in ((report.unchanged, "as they were"), (report.kept, "kept")):
        if number:
            parts += [f"· {number}", what]
    if report.inferred and report.seconds:
        parts += [f"· {report.inferred / report.seconds:.1f}", "pictures/s", f"· {tagged.devices}"]
    if report.stopped:
        parts += ["·", "what is done stays; press the button to go on."]
    problems = [outcome.problem for outcome in report.problems]
    words = pieces.words(*parts)
    said = f'<p role="status" class="crucible-tagger-done" data-run="{next(_runs)}">{words}</p>'
    said += tagger_pieces.problem_list("could not be read or written", problems)
    changes = [_change(order, outcome) for outcome in report.changes]
    return said + (tagger_pieces.before_after(changes) if changes else "")


def _change(order: Order, outcome: Any) -> Any:
    from extensions_lib.datasets.tag_set import Change

    name = outcome.picture.relative_to(order.folder).as_posix()
    return Change(name, outcome.picture, "", outcome.before, outcome.after or "")
