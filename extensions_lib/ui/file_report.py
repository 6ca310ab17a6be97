"""What a network file holds and what of it is no use, for the popups of the page and of a WebUI.

Counts come first; the layers by name are in lists that a click opens. Told from headers, without
torch: `run.py inspect` reads the tensors too. All text from files is escaped.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem
from extensions_lib.toolbox.match import Match, match
from extensions_lib.ui import pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extensions_lib.files.header import Header
    from extensions_lib.files.recognise import NetworkFacts

LISTED = 400  # lines of an opened list
_COMPONENTS = {"unet": "in the UNet", "te1": "in the text encoder", "te2": "in the second one"}


@dataclass
class FileReport:
    """What a header tells; `problems` are sentences about what could not be compared."""

    facts: NetworkFacts
    match: Match | None = None
    problems: list[str] = field(default_factory=list)


def file_report(header: Header, checkpoint: Path | None) -> FileReport:
    """Recognises a network by its header and holds it against a checkpoint, if there is one."""
    from extensions_lib.files.checkpoints import checkpoint_structure
    from extensions_lib.files.recognise import facts_of

    report = FileReport(facts_of(header.shapes))
    if checkpoint is not None and report.facts.layers:
        try:
            report.match = match(header.shapes, checkpoint_structure(checkpoint))
        except FileProblem as problem:
            report.problems.append(str(problem))
    return report


# --- as HTML ----------------------------------------------------------------------------------


def rows(report: FileReport) -> list[tuple[str, str]]:
    """Labels and what to say there, as HTML; "" where there is nothing to say."""
    facts = report.facts
    if facts.foreign:
        return [("Base", f"{said(facts.foreign)} {pieces.words('cannot be used here')}")]
    inside = ("Embeddings in it", said(", ".join(sorted(facts.embeddings))))
    if not facts.layers:
        return [("Layers", _layers(report)), inside]
    family = "" if facts.family is None else facts.family.value
    return [
        ("Kind", said(facts.title)),
        ("Rank", said(ranks(facts))),
        ("Base", said(family) or pieces.words("not known")),
        ("Names", said(", ".join(facts.ways))),
        ("Layers", _layers(report)),
        inside,
    ]


def lists_html(report: FileReport) -> str:
    """What was not understood, was left out or does not fit: each a list that a click opens."""
    facts, found = report.facts, report.match
    if facts.foreign:
        return _list("Not understood", facts.unmatched)
    return (
        _list("Not understood", facts.unmatched)
        + _list("Left out", facts.problems)
        + _list("Layers that do not fit", found.strange if found else [])
        + _list("How it was read", facts.notes)
    )


def said(text: str) -> str:
    """Text from a file, which a translation leaves alone."""
    return f'<span translate="no">{html.escape(text)}</span>' if text else ""


def ranks(facts: NetworkFacts) -> str:
    """16, or where layers differ: 4 × 12, 16 × 180."""
    if len(facts.ranks) < 2:
        return ", ".join(str(rank) for rank in facts.ranks)
    return ", ".join(f"{rank} × {count}" for rank, count in sorted(facts.ranks.items()))


def _layers(report: FileReport) -> str:
    """Two lines: what the file has, and what of it this checkpoint takes."""
    facts, found = report.facts, report.match
    counts = [
        (count, _COMPONENTS.get(component, f"in {component}"))
        for component, count in facts.components.items()
    ]
    counts += [(len(facts.unmatched), "not understood"), (len(facts.problems), "left out")]
    lines = [_counted(counts)]
    if found is not None:
        fitting = [(found.fitting, "fit the checkpoint"), (len(found.strange), "do not")]
        # a zero is worth saying here
        lines.append(_counted(fitting) if found.fitting else pieces.words("none fits"))
    return "<br>".join(line for line in lines if line)


def _counted(counts: Sequence[tuple[int, str]]) -> str:
    told = [pieces.words(str(count), what) for count, what in counts if count]
    return " <span>·</span> ".join(told)


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in lines[:LISTED])
    more = len(lines) - LISTED
    rest = f"<li>… + {more}</li>" if more > 0 else ""
    return (
        f'<details class="crucible-list"><summary>{pieces.words(title)}'
        f' <span translate="no">({len(lines)})</span></summary>'
        f'<ul translate="no">{shown}{rest}</ul></details>'
    )
