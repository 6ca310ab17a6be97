"""The bits of HTML that the tabs show: progress, messages, token count. All text is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from extensions_lib.hosts.base import Progress

PREVIEW_SIDE = 512


def clock(seconds: float) -> str:
    """0:07, 12:30, 1:02:05."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def words(*parts: str) -> str:
    """Each part in its own element, so that a translation finds its words without the numbers."""
    return " ".join(f"<span>{html.escape(part)}</span>" for part in parts if part)


def bar(fraction: float | None, *parts: str) -> str:
    """A progress bar with its words; fraction None is work of unknown length."""
    known = fraction is not None
    value = f'aria-valuenow="{fraction:.0%}"' if known else ""
    width = f"{min(1.0, fraction or 0.0):.1%}" if known else "100%"
    kind = "" if known else " crucible-unknown"
    return (
        f'<div class="crucible-progress{kind}" role="progressbar" {value}>'
        f'<div class="crucible-bar" style="width: {width}"></div>'
        f'<div class="crucible-words">{words(*parts)}</div></div>'
    )


def progress_bar(progress: Progress) -> str:
    """Step 7/20, picture 1/4, time left. The bar counts over all pictures of the order."""
    steps, images = max(1, progress.steps), max(1, progress.images)
    # While a batch runs, its pictures are not finished yet: they add their share of steps.
    fraction = min(1.0, (progress.image + progress.step / steps) / images)
    parts = ["Step", f"{progress.step}/{progress.steps}"]
    if images > 1:
        parts += ["· picture", f"{min(progress.image + 1, images)}/{images}"]
    if progress.eta_seconds is not None:
        parts += [f"· {clock(progress.eta_seconds)}", "left"]
    return bar(fraction, *parts)


_jobs = count(1)


def ended(seconds: float) -> str:
    """What is left of a job's progress: not seen, but told to those who listen to the page."""
    told = words("Ended after", f"{seconds:.1f} s")
    return f'<p class="crucible-heard" role="status" data-job="{next(_jobs)}">{told}</p>'


def preview(picture: Image | None) -> str:
    """The picture as it emerges, inside the page itself; while there is none, what to do."""
    if picture is None:
        hint = "Describe a picture and press Generate (or Ctrl+Enter)."
        return f'<div class="crucible-stage crucible-empty"><p>{hint}</p></div>'
    small = picture.convert("RGB")
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    image = f'<img alt="preview" src="data:image/jpeg;base64,{data}">'
    return f'<div class="crucible-stage">{image}</div>'


def messages(texts: Sequence[str], kind: str = "note") -> str:
    """Sentences for the person, at the picture. Kinds: note (amber), error (red)."""
    if not texts:
        return ""
    rows = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    role = "alert" if kind == "error" else "status"
    return f'<ul class="crucible-messages crucible-{kind}" role="{role}">{rows}</ul>'


def token_count(used: int, limit: int) -> str:
    """12/75; marked when the prompt has grown beyond one chunk."""
    more = " crucible-more" if limit > 75 else ""
    title = "tokens of the prompt, and how many fit into its chunks of 75"
    return f'<span class="crucible-tokens{more}" title="{title}">{used}/{limit}</span>'
