"""A look at what a merge would make of a picture, before it is written."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from extensions_lib.api.toolbox import Work
from extensions_lib.errors import CrucibleError
from extensions_lib.models.place import Sample
from extensions_lib.ui import pieces
from extensions_lib.ui.toolbox_work import PREFIX, WorkFields, wire_work, work_fields

if TYPE_CHECKING:
    from PIL.Image import Image

    from extensions_lib.ui.option_fields import OptionForm
    from extensions_lib.ui.toolbox_room import ToolboxRoom


@dataclass(frozen=True)
class Preview:
    """The components."""

    prompt: gr.Textbox
    seed: gr.Number
    steps: gr.Number
    size: gr.Textbox
    work: WorkFields

    @property
    def fields(self) -> list[Any]:
        """What the browser keeps."""
        return [self.prompt, self.seed, self.steps, self.size]

    def wire(self, room: ToolboxRoom, networks: gr.Textbox, how: OptionForm[Any]) -> None:
        """Makes the pictures when the button is pressed."""

        def read(values: tuple[Any, ...]) -> Work:
            text, prompt, seed, steps, size, *options = values
            wanted = [line.strip() for line in (text or "").splitlines() if line.strip()]
            if not wanted:
                raise CrucibleError("Add a network first.")
            if not (prompt or "").strip():
                raise CrucibleError("Describe a picture first.")
            merging, (width, height) = how.read(options), _size(size or "")
            sample = Sample(
                prompt.strip(), seed=int(seed or 0), steps=max(1, int(steps or 20)),
                width=width, height=height,
            )  # fmt: skip
            return lambda tell, stop: room.preview(wanted, merging, sample, tell, stop)

        inputs = [networks, *self.fields, *how.inputs]
        wire_work(self.work, room.service.jobs, read, _side_by_side, inputs)


def build_preview() -> Preview:
    """Builds the fields; the pictures stand below."""
    with gr.Group(elem_id=f"{PREFIX}-preview"):
        with gr.Row():
            prompt = gr.Textbox(
                label="Picture to look at", placeholder="what it shows; no tags are needed",
                max_lines=3, scale=6, elem_id=f"{PREFIX}-preview-prompt",
            )  # fmt: skip
            seed = gr.Number(
                1, label="Seed", precision=0, minimum=0, scale=1, min_width=100,
                elem_id=f"{PREFIX}-preview-seed",
            )  # fmt: skip
            steps = gr.Number(
                20, label="Steps", precision=0, minimum=1, scale=1, min_width=90,
                elem_id=f"{PREFIX}-preview-steps",
            )  # fmt: skip
            size = gr.Textbox(
                label="Size", placeholder="its own, or 512x768", max_lines=1, scale=2,
                min_width=150, elem_id=f"{PREFIX}-preview-size",
            )  # fmt: skip
        work = work_fields("preview", "Preview the merge", "Making the picture …", main=False)
    return Preview(prompt, seed, steps, size, work)


def _size(text: str) -> tuple[int | None, int | None]:
    """Width and height, None for the checkpoint's own. Raises CrucibleError."""
    if not text.strip():
        return None, None
    parts = [part.strip() for part in text.lower().replace("×", "x").split("x")]
    if not (len(parts) in (1, 2) and all(part.isdecimal() and int(part) >= 8 for part in parts)):
        raise CrucibleError(f"Size: {text!r} is none; write it as 512x768.")
    width, height = (int(part) // 8 * 8 for part in (parts[0], parts[-1]))
    return width, height


def _side_by_side(pictures: list[Image]) -> str:
    shown = "".join(
        f'<figure><img alt="" src="{_inline(picture)}"><figcaption>{pieces.words(said)}'
        "</figcaption></figure>"
        for picture, said in zip(pictures, ("without networks", "merged"), strict=True)
    )
    return f'<div class="crucible-toolbox-pictures">{shown}</div>'


def _inline(picture: Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
