"""The cards of the networks panel, as HTML; what a click does is in javascript/crucible.js."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem

if TYPE_CHECKING:
    from extensions_lib.library import Entry


@dataclass(frozen=True)
class Card:
    """What a card shows: `why` dims it, `problem` makes it unusable, `note` does neither."""

    name: str
    file: str = ""
    path: str = ""  # by which the popup asks for it
    folder: str = ""  # below the network folder, "/"-separated; "" at its top
    changed: int = 0  # s since 1970
    alias: str = ""
    kind: str = ""
    family: str = ""
    weight: float = 1.0
    words: str = ""
    description: str = ""
    preview: str = ""
    why: str = ""
    note: str = ""
    problem: str = ""

    @property
    def tag(self) -> str:
        """What a click writes into the prompt."""
        return f"<lora:{self.name}:{self.weight:g}>"

    @property
    def group(self) -> int:
        """0 for those that fit, 1 for those of other bases, 2 for broken files."""
        return 2 if self.problem else 1 if self.why else 0


def card_of(entry: Entry, name: str, family: str, preview: str) -> Card:
    """The card of a library entry that tags call `name`, for a checkpoint of this family.

    A family "" is one that is not known. Notes that cannot be read are said on the card; the
    network itself stays usable.
    """
    theirs = "" if entry.family is None else entry.family.value
    why = ""
    if theirs and family and family != theirs:
        why = f"made for {theirs}; this checkpoint is {family}"
    user: dict[str, Any] = {}
    description = unreadable = ""
    try:
        user, description = entry.user, entry.description
    except FileProblem as problem:
        unreadable = str(problem)
    return Card(
        name=name,
        file=entry.path.name,
        path=str(entry.path),
        folder=entry.relative.rpartition("/")[0],
        changed=entry.identity[1] // 1_000_000_000,
        alias=entry.alias or "",
        kind=entry.kind,
        family=theirs,
        weight=preferred_weight(user),
        words=str(user.get("activation text") or ""),
        description=description,
        preview=preview,
        why=why,
        note=unreadable,
        # The card says already which file it is.
        problem=(entry.problem or "").removeprefix(f"{entry.path}: "),
    )


def preferred_weight(user: Mapping[str, Any]) -> float:
    """The weight that the person noted for this network; 1 if none (or 0, A1111's "not set")."""
    value = user.get("preferred weight")
    return float(value) if isinstance(value, int | float) and value else 1.0


def card_html(card: Card) -> str:
    """One card: a button, so that keyboard and screen readers know it, and the "i" on top of it.

    The "i" stands beside the card, not in it: a button must not hold another one. What sorting and
    filters need is on the slot around both.
    """
    esc = html.escape
    state = ("", " crucible-other", " crucible-broken")[card.group]
    note = card.problem or card.why or card.note
    names = (card.name, card.alias, card.kind, card.family, card.file, card.folder)
    picture = (
        f'<img loading="lazy" alt="" src="{esc(card.preview)}">'
        if card.preview
        else f'<span class="crucible-letter" aria-hidden="true">{esc(card.name[:1].upper())}</span>'
    )
    badges = "".join(f"<b>{esc(text)}</b>" for text in (card.kind, card.family) if text)
    title = "\n".join(filter(None, (card.name, card.description, card.words, note)))
    return (
        f'<div class="crucible-slot" data-search="{esc(" ".join(filter(None, names)).lower())}"'
        f' data-group="{card.group}" data-kind="{esc(card.kind)}" data-changed="{card.changed}"'
        f' data-folder="{esc(card.folder)}">'
        f'<button type="button" class="crucible-card{state}" aria-pressed="false"'
        f' data-name="{esc(card.name)}" data-alias="{esc(card.alias)}" data-tag="{esc(card.tag)}"'
        f' data-words="{esc(card.words)}" title="{esc(title)}">'
        f'<span class="crucible-thumb">{picture}</span>'
        f'<span class="crucible-name">{esc(card.name)}</span>'
        f'<span class="crucible-badges">{badges}</span>'
        + (f'<span class="crucible-why">{esc(note)}</span>' if note else "")
        + f'</button><button type="button" class="crucible-i" data-file="{esc(card.path)}"'
        ' aria-haspopup="dialog" aria-label="About this network">i</button></div>'
    )


def folders_html(cards: Sequence[Card]) -> str:
    """A row of chips: all, then every folder with the number of cards in and below it.

    "" where no network lies in a subfolder.
    """
    counts: Counter[str] = Counter()
    for name, count in Counter(card.folder for card in cards).items():
        below = PurePosixPath(name)
        for folder in (below, *below.parents):
            counts[str(folder)] += count if folder.name else 0
    counts = +counts
    if not counts:
        return ""
    chips = "".join(
        '<button type="button" class="crucible-chip" aria-pressed="false" translate="no"'
        f' data-folder="{html.escape(name)}">{html.escape(name)} <i>{counts[name]}</i></button>'
        for name in sorted(counts, key=str.lower)
    )
    return (
        '<div class="crucible-folders" role="group" aria-label="Folders">'
        '<button type="button" class="crucible-chip" aria-pressed="true" data-folder="">'
        f"<span>All</span> <i>{len(cards)}</i></button>{chips}</div>"
    )


def cards_html(cards: Sequence[Card], folders: Sequence[Path], checkpoint: str = "") -> str:
    """All cards: fitting ones first, then those of other bases, then broken files; by name.

    checkpoint: the file that they were made out for.
    """
    if not cards:
        places = " or ".join(html.escape(str(folder)) for folder in folders)
        return (
            '<div class="crucible-nothing"><p>No networks yet.</p>'
            f"<p><span>Put .safetensors files into</span> <code>{places}</code>"
            "<span>, then press Refresh.</span></p></div>"
        )
    ordered = sorted(cards, key=lambda card: (card.group, card.name.lower()))
    inside = "".join(card_html(card) for card in ordered)
    return (
        f"{folders_html(cards)}"
        f'<div class="crucible-cards" data-checkpoint="{html.escape(checkpoint)}">{inside}</div>'
        '<p class="crucible-nothing crucible-nomatch" hidden>Nothing matches the search.</p>'
    )
