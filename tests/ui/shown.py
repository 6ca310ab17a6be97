"""What a page shows of its components, without a browser."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr


def labels(page: gr.Blocks) -> set[str]:
    """Labels, help and buttons; what only carries orders is left out."""
    found: set[str] = set()
    for block in seen(page):
        found |= {str(getattr(block, name, None) or "") for name in ("label", "info")}
        if isinstance(block, gr.Button):
            found.add(str(block.value))
    return found


def seen(page: gr.Blocks) -> Iterator[object]:
    """The components that people see."""
    for block in page.blocks.values():
        if "crucible-wire" not in (getattr(block, "elem_classes", None) or []):
            yield block
