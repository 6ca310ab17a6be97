"""The HTML of the Tagger's preparing: pictures that are taken or left out, the crop by hand."""

from __future__ import annotations

import html
from pathlib import Path

from extensions_lib.datasets.prepare import Preparation
from extensions_lib.ui import pieces, tagger_pieces
from extensions_lib.ui.tagger_gallery import press
from extensions_lib.ui.tagger_links import LARGE, Links
from extensions_lib.ui.tagger_workbench import PAGE, Bench, Found, becomes


def shelf(bench: Bench, links: Links) -> str:
    """A page of the set's pictures."""
    pages = max(1, -(-len(bench.names) // PAGE))
    page = min(max(1, bench.page), pages)
    names = bench.names[(page - 1) * PAGE : page * PAGE]
    turn = ""
    if pages > 1:
        turn = (
            press("page", "‹", page - 1, title="Previous page", off=page <= 1)
            + f"<span>{page}/{pages}</span>"
            + press("page", "›", page + 1, title="Next page", off=page >= pages)
        )
    parts = [f"{len(bench.taken)} of {len(bench.names)} pictures are taken"]
    if bench.boxes:
        parts.append(f"· {len(bench.boxes)} cropped by hand")
    every = press("take-all", "Take all", off=not bench.left_out)
    return (
        f'<div class="crucible-edit-bar"><p>{pieces.words(*parts)}</p><div>{every}</div>'
        f"<div>{turn}</div></div>{_slots(bench, names, links)}"
    )


def _slots(bench: Bench, names: tuple[str, ...], links: Links) -> str:
    slots = "".join(_slot(bench, name, links) for name in names)
    return f'<ul class="crucible-slots">{slots}</ul>'


def _slot(bench: Bench, name: str, links: Links) -> str:
    assert bench.folder is not None
    out, cut = name in bench.left_out, name in bench.boxes
    kind = " crucible-out" if out else ""
    told = html.escape(name, quote=True)
    leave = press("leave", "take" if out else "leave out", name)
    crop = press("open", "crop ✓" if cut else "crop", name)
    return (
        f'<li class="crucible-shot{kind}" data-name="{told}"><img loading="lazy"'
        f' alt="cannot be shown" src="{links.to(bench.folder / name)}">'
        f'<b translate="no" title="{told}">{html.escape(name)}</b><div>{leave}{crop}</div></li>'
    )


# --- what a survey found ----------------------------------------------------------------------


def found(bench: Bench, links: Links) -> str:
    """Broken, too small, and twice there; nothing before one has looked."""
    seen = bench.found
    if seen is None:
        return ""
    if not (seen.broken or seen.too_small or seen.duplicates):
        return tagger_pieces.status(f"{seen.looked_at} pictures looked at: nothing is wrong.")
    return (
        tagger_pieces.problem_list("cannot be read", seen.broken, shown=True)
        + _small(bench, seen, links)
        + _doubles(bench, seen, links)
    )


def _small(bench: Bench, seen: Found, links: Links) -> str:
    if not seen.too_small:
        return ""
    leave = press("leave-found", "Leave them out", "small")
    slots = _slots(bench, seen.too_small[:PAGE], links)
    head = pieces.words(str(len(seen.too_small)), "too small")
    return f"<details open><summary>{head}</summary>{leave}{slots}</details>"


def _doubles(bench: Bench, seen: Found, links: Links) -> str:
    if not seen.duplicates:
        return ""
    leave = press("leave-found", "Leave all but the largest out", "doubles")
    groups = "".join(_slots(bench, group, links) for group in seen.duplicates[:PAGE])
    groups_ = tagger_pieces.counted(len(seen.duplicates), "group")
    head = pieces.words(groups_, "that look alike, the largest first")
    return f"<details open><summary>{head}</summary>{leave}{groups}</details>"


# --- the crop by hand -------------------------------------------------------------------------


def cropper(bench: Bench, options: Preparation, links: Links) -> str:
    """The open picture with its box to drag, and what will be left of it."""
    if not bench.open or bench.folder is None:
        return ""
    name, (width, height) = bench.open, bench.size
    box = bench.boxes.get(name)
    kept, brought = becomes(bench.size, box, options)
    left, top, right, bottom = box or (0, 0, width, height)
    told = html.escape(name, quote=True)
    square = "1" if options.size == "square" else ""
    drawn = (
        "" if box is None else f"{left / width},{top / height},{right / width},{bottom / height}"
    )
    style = (
        f"left:{kept[0] / width:.4%};top:{kept[1] / height:.4%};"
        f"width:{(kept[2] - kept[0]) / width:.4%};height:{(kept[3] - kept[1]) / height:.4%}"
    )
    address = links.to(bench.folder / Path(name), LARGE)
    size = pieces.words(f"{right - left} × {bottom - top}", "→", *brought.split(", "))
    return f"""
<div class="crucible-cropper"><div class="crucible-edit-bar">
<p><span translate="no">{html.escape(name)}</span> {size}</p>
<div>{press("open", "‹", bench.beside(-1), title="Previous picture")}
{press("open", "›", bench.beside(1), title="Next picture")}
{press("uncrop", "Whole picture", name, off=box is None)}{press("close", "Close")}</div></div>
<div class="crucible-crop" data-value="{told}" data-box="{drawn}" data-ratio="{square}"
data-width="{width}" data-height="{height}" tabindex="0" aria-label="Crop">
<img alt="" draggable="false" src="{address}">
<div class="crucible-crop-kept" style="{style}"></div>
<div class="crucible-crop-box" hidden><i></i><i></i><i></i><i></i></div></div>
<p class="crucible-tagger-quiet">
<span>Drag over the picture to draw a box; what is outside is cut off.</span>
<span>The bright part is what is left.</span></p></div>"""
