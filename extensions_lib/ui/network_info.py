"""The popup about one network: its file, its training, the person's notes, whether it would fit.

Everything is read when the popup is asked for, from headers, without torch. The hashes, which take
a look at the whole file, come after the rest. All text from files is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from extensions_lib.errors import FileProblem
from extensions_lib.toolbox.metadata import frequent_tags
from extensions_lib.ui import pieces
from extensions_lib.ui.cards import preferred_weight
from extensions_lib.ui.file_report import FileReport, file_report, lists_html, rows, said

if TYPE_CHECKING:
    from extensions_lib.library import Entry

ABOUT_ROUTE = "/crucible/network"
HASHES_ROUTE = "/crucible/network/hashes"
GONE = "{file}: is not among the networks any more; press Refresh."
INSERT_HINT = '<p class="crucible-hint">A click puts it into the prompt.</p>'
# What stands in it while an answer is awaited, and if none comes, is taken from the templates.
POPUP = (
    '<dialog id="crucible-about" aria-labelledby="crucible-about-name">'
    '<div class="crucible-sheet">'
    '<header><h2 id="crucible-about-name" translate="no"></h2>'
    '<button type="button" class="crucible-close" aria-label="Close">×</button></header>'
    '<div class="crucible-facts" aria-live="polite"></div></div></dialog>'
    '<template id="crucible-reading"><p class="crucible-hint">Reading the file …</p></template>'
    '<template id="crucible-unanswered"><ul class="crucible-messages crucible-error" role="alert">'
    "<li><span>Crucible gave no answer.</span> <code></code></li></ul></template>"
)


@dataclass
class About:
    """What the popup shows; `problems` are sentences about what could not be read or used."""

    entry: Entry
    report: FileReport | None = None
    triggers: list[str] = field(default_factory=list)
    tags: list[tuple[str, int]] = field(default_factory=list)
    user: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    problems: list[str] = field(default_factory=list)


# --- what there is to say ---------------------------------------------------------------------


def about(entry: Entry, checkpoint: Path | None) -> About:
    """Reads what is known of a network; what cannot be read becomes one of the `problems`."""
    told = About(entry)
    try:
        told.user, told.description = entry.user, entry.description
    except FileProblem as problem:
        told.problems.append(str(problem))
    words = told.user.get("activation text")
    told.triggers = [words] if isinstance(words, str) and words.strip() else []
    try:
        _read_header(told, checkpoint)
    except FileProblem as problem:
        told.problems.append(str(problem))
    if entry.problem and entry.problem not in told.problems:
        told.problems.append(entry.problem)
    return told


def _read_header(told: About, checkpoint: Path | None) -> None:
    """What the file's header says, and whether that fits the checkpoint. Raises FileProblem."""
    from extensions_lib.files.safe import read_any_header

    header = read_any_header(told.entry.path)
    phrase = header.metadata.get("modelspec.trigger_phrase", "")
    if phrase.strip() and phrase not in told.triggers:
        told.triggers.append(phrase)
    try:
        told.tags = frequent_tags(header.metadata.get("ss_tag_frequency", ""))
    except FileProblem as problem:
        told.problems.append(str(problem))
    told.report = file_report(header, checkpoint)
    told.problems += told.report.problems


# --- as HTML ----------------------------------------------------------------------------------


def about_html(told: About) -> str:
    """The inside of the popup."""
    entry, report = told.entry, told.report
    facts = [("File", _file(entry)), *(rows(report) if report else ())]
    if isinstance(told.user.get("preferred weight"), int | float):
        facts.append(("Preferred weight", said(f"{preferred_weight(told.user):g}")))
    inside = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in facts if value)
    triggers = _inserts((words, "") for words in told.triggers)
    tags = _inserts((tag, str(count)) for tag, count in told.tags)
    notes = _notes(told.description, told.user.get("notes"))
    address = f"{HASHES_ROUTE}?file={quote(str(entry.path), safe='')}"
    return "".join(
        (
            pieces.messages(told.problems, "error"),
            f"<dl>{inside}</dl>",
            lists_html(report) if report else "",
            _section("Trigger words", triggers),
            _section("Most frequent training tags", tags),
            INSERT_HINT if triggers or tags else "",
            _section("Notes", notes),
            _section("Hashes", f'<div data-fill="{html.escape(address)}"></div>'),
        )
    )


def hashes_html(entry: Entry) -> str:
    """The hashes of a file, or what kept it from being read."""
    from extensions_lib.files.hashes import sha256_file, short_checkpoint_hash

    try:
        network, full = entry.hash, sha256_file(entry.path, entry.cache)
    except FileProblem as problem:
        return pieces.messages([str(problem)], "error")
    found = {
        "AutoV3": entry.short_hash,
        "AutoV2": short_checkpoint_hash(full),
        "network": network,
        "sha256": full,
    }
    inside = "".join(f"<dt>{kind}</dt><dd><code>{text}</code></dd>" for kind, text in found.items())
    return f'<dl translate="no">{inside}</dl>'


def _file(entry: Entry) -> str:
    size, changed = entry.identity
    day = datetime.fromtimestamp(changed / 1e9).strftime("%Y-%m-%d %H:%M")
    path = f"{entry.relative}{entry.path.suffix}"
    return f"{said(path)}<br>{said(f'{size / 1e6:,.1f} MB · {day}')}"


def _section(title: str, inside: str) -> str:
    return f"<section><h3>{title}</h3>{inside}</section>" if inside else ""


def _inserts(words: Iterable[tuple[str, str]]) -> str:
    """Buttons that put their text into the prompt; the second text of each is beside it."""
    chips = "".join(
        f'<button type="button" class="crucible-chip" data-insert="{html.escape(text)}"'
        f' translate="no">{html.escape(text)}' + (f" <i>{count}</i>" if count else "") + "</button>"
        for text, count in words
    )
    return f'<div class="crucible-chips">{chips}</div>' if chips else ""


def _notes(*texts: object) -> str:
    found = dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip())
    return "".join(
        f'<p class="crucible-said" translate="no">{html.escape(text)}</p>' for text in found
    )
