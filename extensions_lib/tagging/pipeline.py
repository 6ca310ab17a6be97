"""A folder of pictures to captions: decode, infer and write at the same time.

    decode threads → bounded channel → one thread of inference → channel → one writer

What a model said is kept by what the picture is (`scores`), and captions are made from what is
kept: a run that was stopped or killed goes on where it was, and other thresholds need no model.
A picture that cannot be read is listed at the end. Captions are one step in the set's journal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.datasets import pictures
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.tagging.run import Plan, Progress, Report, Run
from extensions_lib.tagging.stages import Work
from extensions_lib.tagging.writer import Outcome, Output, look, target

if TYPE_CHECKING:
    from extensions_lib.tagging.runners import Runner
    from extensions_lib.tagging.scores import ScoreStore
    from extensions_lib.tagging.selection import Selection


def plan(
    folder: Path, output: Output, run: Run, store: ScoreStore, only: Iterable[Path] | None = None
) -> Plan:
    """What there is to do in a folder, or with `only` some of its pictures.

    Raises PictureProblem for a folder that cannot be read, CaptionProblem for a wrong template.
    """
    messages: list[str] = []
    found = pictures.find(folder, run.subfolders, messages) if only is None else list(only)
    existing, problems, taken = [], [], dict[Path, Path]()
    chosen = []
    for picture in found:
        path = target(picture, output)
        first = taken.setdefault(path, picture)
        if first is not picture:
            problems.append(_same_caption(picture, first, path))
            continue
        chosen.append(picture)
        try:
            theirs = look(path, path.relative_to(folder).as_posix(), store).theirs
        except FileProblem:
            continue  # listed when its turn comes, whatever is done with existing captions
        if theirs is not None and theirs.strip():
            existing.append(picture)
    return Plan(folder, tuple(chosen), tuple(existing), tuple(problems), tuple(messages))


def refuse_to_guess(planned: Plan, output: Output) -> None:
    """Raises CrucibleError where people must be asked what becomes of their captions."""
    if output.existing == "ask" and planned.existing:
        raise CrucibleError(
            f"{len(planned.existing)} of {len(planned.pictures)} pictures have captions already,"
            f" {planned.existing[0].name} for one: choose, by the option existing, to keep,"
            " overwrite, append, prepend or copy them."
        )


def _same_caption(picture: Path, first: Path, caption: Path) -> Outcome:
    said = (
        f"{picture}: has the same caption file as {first.name}, {caption.name}; rename one of them,"
        " or take the output name [name].[extension].[output_extension]."
    )
    return Outcome(picture, "problem", problem=said)


def tag(
    planned: Plan,
    runners: Sequence[Runner],
    selection: Selection,
    output: Output,
    run: Run,
    store: ScoreStore,
    *,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Captions for the planned pictures; returns within a second of `stop`.

    Raises CrucibleError where existing captions are to be asked about, for wrong options, and when
    a model, the store or the journal fails; what was written by then stays, and can be undone.
    """
    refuse_to_guess(planned, output)
    if not runners:
        raise CrucibleError("Choose at least one tagger or captioner.")
    return Work(planned, runners, selection, output, run, store, stop).go(on_progress)
