"""The bits of HTML that the Tagger tab shows: tags as bars, lists of what went wrong, thumbnails.

All text is escaped; tags and names are marked as not to be translated.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from extensions_lib.ui import pieces

if TYPE_CHECKING:
    from extensions_lib.datasets.tag_set import Change
    from extensions_lib.tagging.run import Progress
    from extensions_lib.tagging.runners import Runner
    from extensions_lib.tagging.selection import Selected, Selection

MOST_BARS = 60
LOOSE = 0.1  # score from which a tag below its threshold is shown
SHOWN = 200  # rows of a list


def plain(text: str) -> str:
    """A text that is somebody's own: escaped, and not translated."""
    return f'<span translate="no">{html.escape(text)}</span>'


def doing(act: str, value: str) -> str:
    """The attributes of an element whose click is told to the server (see tagger.js)."""
    return f'data-crucible-do="{act}" data-value="{html.escape(value, quote=True)}"'


def counted(number: int, word: str) -> str:
    """1 caption, 2 captions."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def status(sentence: str) -> str:
    """What was done, told in a line."""
    return f'<p role="status" class="crucible-tagger-done">{html.escape(sentence)}</p>'


def asked_on(device: str) -> str:
    """Where the models ran."""
    return f'<p class="crucible-tagger-quiet"><span>asked on</span> {plain(device)}</p>'


def progress(told: Progress) -> str:
    """96/214 · 6.2 pictures/s · 0:19 left."""
    parts = [f"{told.done}/{told.total}"]
    if told.rate:
        parts += [f"· {told.rate:.1f}", "pictures/s"]
    if told.left is not None:
        parts += [f"· {pieces.clock(told.left)}", "left"]
    return pieces.bar(told.done / max(1, told.total), *parts)


def problem_list(title: str, problems: Sequence[str], *, shown: bool = False) -> str:
    """A list that opens: what could not be read or written, each with its reason."""
    if not problems:
        return ""
    rows = "".join(f"<li>{html.escape(each)}</li>" for each in problems[:SHOWN])
    if (more := len(problems) - SHOWN) > 0:
        rows += f"<li>+ {more}</li>"
    head = f"{pieces.words(str(len(problems)), title)}"
    return (
        f'<details class="crucible-tagger-problems"{" open" if shown else ""}>'
        f"<summary>{head}</summary><ul>{rows}</ul></details>"
    )


def thumb(address: str, name: str) -> str:
    """One picture with its name."""
    return (
        f'<figure class="crucible-tagger-one"><img alt="cannot be shown" src="{address}">'
        f"<figcaption>{plain(name)}</figcaption></figure>"
    )


def would_change(changes: Sequence[Change]) -> str:
    """What a change would do, before it is done."""
    head = f"<p>Would change {counted(len(changes), 'caption')}</p>"
    return head + (before_after(changes) if changes else "")


def before_after(changes: Sequence[Change], most: int = SHOWN) -> str:
    """Captions as they are and as they would be."""
    rows = "".join(
        f"<tr><th>{plain(each.name)}</th><td>{plain(each.before or '')}</td>"
        f"<td>{plain(each.after)}</td></tr>"
        for each in changes[:most]
    )
    if (more := len(changes) - most) > 0:
        rows += f"<tr><td colspan=3>+ {more}</td></tr>"
    heads = "".join(f"<th>{word}</th>" for word in ("Picture", "Before", "After"))
    return (
        f'<div class="crucible-tagger-scroll"><table class="crucible-tagger-changes"><thead><tr>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


# --- tags as bars -----------------------------------------------------------------------------


def bars(
    runners: Sequence[Runner],
    said: Sequence[Any],
    selection: Selection,
    how: str,
    prefix: str = "crucible-tagger",
) -> str:
    """Rating, sentences, and each tag with its score; those below their threshold are dim.

    `prefix` names the sliders that the threshold's line is a handle of.
    """
    from extensions_lib.tagging.composer import Composer
    from extensions_lib.tagging.selection import resolved

    chosen = Composer(runners, selection, how).selected(said)
    loose = replace(
        selection,
        general=min(LOOSE, _least(selection.general)),
        character=min(LOOSE, _least(selection.character)),
        thresholds=(),
        mcut=False,
        max_tags=MOST_BARS,
        sort="score",
        trigger="",
        additional=(),
    )
    others = Composer(runners, loose, how).selected(said)
    own: dict[str, float] = {}
    for runner in runners:
        own.update(runner.thresholds)
    line = resolved(selection, own)
    lines = {"general": line.general or 0.0, "character": line.character or 0.0}
    sliders = {kind: f"{prefix}-select-{kind}" for kind in lines}
    return _bars(chosen, others, {} if selection.mcut else lines, sliders)


def _least(value: float | None) -> float:
    return LOOSE if value is None else value


def _bars(
    chosen: Selected, others: Selected, lines: Mapping[str, float], sliders: Mapping[str, str]
) -> str:
    written = {tag.text for tag in chosen.tags}
    seen = {tag.text for tag in others.tags}
    tags = [*others.tags, *(tag for tag in chosen.tags if tag.text not in seen)]
    rows = []
    for tag in tags:
        kind = tag.category if tag.category in sliders else "general"
        line = None if tag.category in ("trigger", "additional") else lines.get(kind)
        rows.append(_bar(tag.text, tag.score, line, sliders[kind], tag.text in written))
    head = ""
    if chosen.rating is not None:
        name, score = chosen.rating
        told = f"<b>{plain(name)}</b> {score:.2f}"
        head = f'<p class="crucible-rating"><span>Rating:</span> {told}</p>'
    head += "".join(f"<p>{plain(sentence)}</p>" for sentence in chosen.sentences)
    if not rows and not chosen.sentences:
        head += "<p>No tag reaches a tenth.</p>"
    return f'{head}<ul class="crucible-bars">{"".join(rows)}</ul>'


def _bar(text: str, score: float, line: float | None, slider: str, written: bool) -> str:
    kind = "" if written else ' class="crucible-below"'
    mark = "" if line is None else f'<b data-threshold="{slider}" style="left:{line:.0%}"></b>'
    return (
        f'<li{kind}>{plain(text)}<span><i style="width:{min(1.0, score):.1%}"></i>{mark}</span>'
        f"<em>{score:.2f}</em></li>"
    )
