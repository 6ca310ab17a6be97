"""From answers to caption files: what is there already, one step in the journal, nothing twice.

A caption that the pipeline itself wrote, unchanged since, does not count as existing: the text from
before is remembered beside the scores, so that other thresholds, a resumed run or a second model
start from what people wrote, and appending never appends to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.datasets import captions
from extensions_lib.datasets.captions import Caption, CaptionProblem
from extensions_lib.datasets.pictures import is_picture
from extensions_lib.errors import FileProblem
from extensions_lib.options import option
from extensions_lib.tagging.scores import ScoreStore, Written

if TYPE_CHECKING:
    from extensions_lib.datasets.journal import Step

TEMPLATE = "[name].[output_extension]"


@dataclass(frozen=True)
class Output:
    """Where captions go, and what becomes of those that are there."""

    existing: str = option(
        "ask",
        "captions that are there already; copy overwrites and leaves a copy beside",
        choices=captions.EXISTING,
        group="Captions",
    )
    output_name: str = option(
        TEMPLATE,
        "name of the caption file: [name], [extension], [hash:sha256], [output_extension]",
        group="Captions",
    )
    output_extension: str = option("txt", "suffix of the caption file", group="Captions")
    dry_run: bool = option(
        False, "only show what would be written; scores are kept", group="Captions"
    )


@dataclass(frozen=True)
class Outcome:
    """What became of one picture's caption; `what` is written, unchanged, kept or a problem."""

    picture: Path
    what: str
    before: str | None = None
    after: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Decided:
    """A caption to write: its name in the set, the file as it is, and as it shall be."""

    picture: Path
    name: str
    now: Caption | None
    then: Caption
    record: Written
    copy: bool


def target(picture: Path, output: Output) -> Path:
    """The picture's caption file. Raises CaptionProblem for a template that makes no name."""
    if "[output_extension]" in output.output_name:
        _check_suffix(output.output_extension)
    if output.output_name == TEMPLATE:
        return captions.caption_path(picture, "." + output.output_extension.strip(". "))
    return captions.output_path(output.output_name, picture, output.output_extension)


def _check_suffix(extension: str) -> None:
    """Raises CaptionProblem for a suffix that is none, or that pictures have."""
    suffix = extension.strip(". ")
    if not suffix or captions.UNFIT.search(suffix) or is_picture(f"a.{suffix}"):
        raise CaptionProblem(
            f"output_extension: {extension!r} is no suffix for captions; take txt or caption."
        )


@dataclass(frozen=True)
class Found:
    """A caption file: as it is, the text of it that people wrote, and whether it is all ours."""

    now: Caption | None
    theirs: str | None
    ours: bool


def look(path: Path, name: str, store: ScoreStore) -> Found:
    """The caption file at `path`, which is called `name` in its set. Raises CaptionProblem."""
    now = captions.read(path)
    if now is None:
        return Found(None, None, False)
    record = store.written(name)
    if record is not None and now.text in (record.after, record.previous):
        return Found(now, record.before, True)
    return Found(now, now.text, False)


class CaptionWriter:
    """Writes captions of pictures below `root`; `step` None: only tells what it would write."""

    def __init__(
        self, root: Path, output: Output, store: ScoreStore, step: Step | None = None
    ) -> None:
        self.root, self.output, self.store, self.step = root, output, store, step

    def write(self, texts: Sequence[tuple[Path, str]]) -> list[Outcome]:
        """Captions for some pictures; each is written whole or not at all."""
        outcomes: list[Outcome] = []
        decided: list[_Decided] = []
        for picture, text in texts:
            try:
                found = self._decide(picture, text)
            except FileProblem as problem:
                found = Outcome(picture, "problem", problem=str(problem))
            if isinstance(found, Outcome):
                outcomes.append(found)
            else:
                decided.append(found)
        if self.step is not None:
            # Remembered first: if this is the last thing that happens, the old file is still there.
            self.store.put_written((each.name, each.record) for each in decided)
        return outcomes + self._write(decided)

    def _decide(self, picture: Path, text: str) -> Outcome | _Decided:
        path = target(picture, self.output)
        name = path.relative_to(self.root).as_posix()
        found = look(path, name, self.store)
        now = found.now
        new = captions.combined(found.theirs, text, self.output.existing)
        if new is None:
            return Outcome(picture, "kept", found.theirs, found.theirs)
        then = (now or Caption("")).rewritten(new)
        if now is not None and then == now:
            return Outcome(picture, "unchanged", now.text, now.text)
        record = Written(found.theirs, then.text, now.text if now and found.ours else None)
        copy = self.output.existing == "copy" and now is not None and not found.ours
        return _Decided(picture, name, now, then, record, copy)

    def _write(self, decided: Sequence[_Decided]) -> list[Outcome]:
        if self.step is None or not decided:
            return [_outcome(each) for each in decided]
        files: dict[str, bytes | None] = {}
        for each in decided:
            files[each.name] = each.then.encoded
            if each.copy and each.now is not None:
                copy = captions.copy_path(self.root / each.name)
                files[copy.relative_to(self.root).as_posix()] = each.now.encoded
        try:
            self.step.write(files)
        except FileProblem as problem:
            if len(decided) > 1:  # which one it was
                return [outcome for each in decided for outcome in self._write([each])]
            return [Outcome(decided[0].picture, "problem", problem=str(problem))]
        return [_outcome(each) for each in decided]


def _outcome(decided: _Decided) -> Outcome:
    before = None if decided.now is None else decided.now.text
    return Outcome(decided.picture, "written", before, decided.then.text)
