"""What a tool wrote, as HTML: the file, what it keeps of each layer, what it left out."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from extensions_lib.toolbox.tools import figures_of, kept_of
from extensions_lib.ui import pieces
from extensions_lib.ui.tagger_pieces import plain, problem_list
from extensions_lib.ui.toolbox_page import size

if TYPE_CHECKING:
    from extensions_lib.api.toolbox import Pace
    from extensions_lib.toolbox.spectrum import LayerFigures
    from extensions_lib.toolbox.work import Written
    from extensions_lib.ui.jobs import Update

_BARS = 1200  # layers


def under_way(update: Update, pace: Pace, doing: str) -> str:
    """A job that waits or works, as a bar."""
    if update.state == "waiting":
        return pieces.bar(None, "Waiting for", str(update.ahead), "other")
    if not isinstance(update.progress, tuple):
        return pieces.bar(None, doing)
    done, total = update.progress[-2:]
    if len(update.progress) > 2:
        doing = f"{update.progress[0]} …"
    left = pace.left(done, total)
    parts = [doing, f"{done}/{total}"]
    if left is not None:
        parts += [f"· {pieces.clock(left)}", "left"]
    return pieces.bar(done / max(1, total), *parts)


def result(written: Written, shown: str, size_of: int) -> str:
    """The file, its figures, notes, and what was left out."""
    where = html.escape(shown, quote=True)
    button = (
        '<button type="button" class="crucible-press" data-tool="about" data-field="file"'
        f' data-path="{where}">Look at it</button>'
    )
    head = (
        f'<p role="status" class="crucible-toolbox-done"><b>{pieces.words("Written:")}</b>'
        f" {plain(shown)} <small>{size(size_of)}</small> {button}</p>"
    )
    return (
        head
        + _said(written)
        + pieces.messages(written.notes)
        + problem_list("parts of the input were left out", written.left_out)
        + bars(figures_of(written))
    )


def _said(written: Written) -> str:
    """In a line what it keeps, or what changed."""
    parts: list[str] = []
    kept = kept_of(written)
    if kept is not None:
        parts = [str(kept.layers), "layers", f"· {kept.share:.2%}", "of the energy kept"]
    changed: Any = getattr(written, "changed", None)
    if changed is not None:
        parts = [f"{changed}/{getattr(written, 'tensors', 0)}", "tensors changed"]
    return f"<p>{pieces.words(*parts)}</p>" if parts else ""


def bars(figures: Sequence[LayerFigures]) -> str:
    """The share that each layer keeps; the list opens by itself where something was lost."""
    if not figures:
        return ""
    lost = min(each.kept for each in figures) < 0.9995
    ordered = sorted(figures, key=lambda each: each.kept)[:_BARS]
    rows = "".join(_row(each) for each in ordered)
    more = len(figures) - len(ordered)
    rest = f"<li>+ {more}</li>" if more > 0 else ""
    title = pieces.words("What each layer keeps, the least first")
    return (
        f'<details class="crucible-list crucible-toolbox-kept"{" open" if lost else ""}>'
        f"<summary>{title}</summary>"
        f'<ul class="crucible-toolbox-bars">{rows}{rest}</ul></details>'
    )


def _row(each: LayerFigures) -> str:
    before = "" if each.before is None or each.before == each.rank else f"{each.before} → "
    return (
        f"<li>{plain(each.layer)}"
        f'<span><i style="width:{min(1.0, max(0.0, each.kept)):.1%}"></i></span>'
        f"<em>{each.kept:.2%}</em><small>{before}{each.rank}</small></li>"
    )


# --- energy by rank ---------------------------------------------------------------------------


def energy(figures: Sequence[LayerFigures]) -> str:
    """The curve of energy by rank, which toolbox.js draws: of all layers, and of the least."""
    if not figures:
        return pieces.messages(["Its layers have no ranks: there is nothing to draw."])
    most = max(len(each.curve) for each in figures)
    total = sum(each.energy for each in figures) or 1.0
    whole, least = [], []
    for rank in range(most):
        at = [each.curve[min(rank, len(each.curve) - 1)] if each.curve else 1.0 for each in figures]
        kept = sum(share * each.energy for share, each in zip(at, figures, strict=True)) / total
        whole.append(round(kept, 5))
        worst = min(range(len(at)), key=at.__getitem__)
        least.append([round(at[worst], 5), figures[worst].layer])
    told = {"whole": whole, "least": least, "layers": len(figures)}
    data = html.escape(json.dumps(told), quote=True)
    return (
        f'<div class="crucible-energy" data-energy="{data}"></div>'
        '<p class="crucible-toolbox-quiet">Energy that is kept, by rank: of all layers (line),'
        " of the layer that keeps least (dashed). Drag the mark to choose the rank.</p>"
    )
