"""A field for a picture that somebody drops, which may be none."""

from __future__ import annotations

from typing import Any

import gradio as gr

from extensions_lib.datasets.pictures import PictureProblem
from extensions_lib.ui.compat import from_files

NO_PICTURE = "This file cannot be opened as a picture; drop another one, such as a PNG or JPEG."


def picture_field(**told: Any) -> gr.Image:
    """A field whose value is a PIL picture, None, or a PictureProblem for what is no picture.

    Gradio would tell of its own copy's path, in a corner, and leave the event out.
    """
    field = gr.Image(type="pil", **told, **from_files())
    opened = field.preprocess

    def preprocess(given: Any) -> Any:
        try:
            return opened(given)
        except Exception:  # a decoder raises anything over a broken file
            return PictureProblem(NO_PICTURE)

    field.preprocess = preprocess
    return field
