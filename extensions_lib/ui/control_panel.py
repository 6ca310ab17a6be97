"""The panel of the Generate tab for the picture that ControlNet-LLLite tags follow.

It is there once there is a file for it, or a prompt that asks for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from extensions_lib.prompts.tags import split_tags
from extensions_lib.ui.compat import at_once, named, only_last
from extensions_lib.ui.dropped import picture_field

if TYPE_CHECKING:
    from extensions_lib.library import Library

KIND = "lllite"
LABEL = "Control picture"
HINT = "Edges, depth, a pose …: what the network was trained to follow"


@dataclass(frozen=True)
class ControlPanel:
    """The panel's components."""

    box: gr.Accordion
    picture: gr.Image
    names: gr.Dropdown
    add: gr.Button


def picture_input(elem_id: str) -> gr.Image:
    """Where the picture is dropped; also in a WebUI."""
    # In its own mode: as RGB, gradio would cut the range of a picture of 16 bits.
    return picture_field(label=HINT, image_mode=None, height=220, elem_id=elem_id)


def build_control_panel() -> ControlPanel:
    """Builds the panel; `wire_control_panel` fills it when the page opens."""
    with gr.Accordion(LABEL, open=False, visible=False, elem_id="crucible-control") as box:
        picture = picture_input("crucible-control-picture")
        with gr.Row(elem_id="crucible-control-names"):
            names = gr.Dropdown(
                [], label="ControlNet-LLLite", scale=3, elem_id="crucible-control-name"
            )
            add = gr.Button(
                "Add to prompt", size="sm", scale=1, min_width=130, elem_id="crucible-control-add"
            )
    return ControlPanel(box, picture, names, add)


def wire_control_panel(
    panel: ControlPanel, prompt: gr.Textbox, library: Library, page: gr.Blocks
) -> None:
    """Fills the panel when the page opens, and opens it when a tag is written."""
    asked = gr.State(False)  # whether the prompt has had a tag

    def fill() -> dict[Any, Any]:
        library.refresh()
        found = [library.tag_name(entry) for entry in library.entries if not entry.problem]
        found.sort(key=str.casefold)
        first = found[0] if found else None
        return {
            panel.names: gr.update(choices=named([(name, name) for name in found]), value=first),
            panel.box: gr.update(visible=True) if found else gr.update(),
        }

    def look(text: str, asked_before: bool) -> tuple[Any, bool]:
        asks = any(tag.kind == KIND for tag in split_tags(text)[1])
        if asks and not asked_before:  # once: who closes it keeps it closed
            return gr.update(visible=True, open=True), asks
        return gr.update(), asks

    page.load(fill, None, [panel.names, panel.box], **at_once())
    prompt.change(look, [prompt, asked], [panel.box, asked], **at_once(), **only_last())
    panel.add.click(with_tag, [prompt, panel.names], prompt, **at_once())


def with_tag(text: str, name: str | None) -> str:
    """The prompt with a tag for this file, unless it has one."""
    tags = split_tags(text)[1]
    if not name or any(tag.kind == KIND and tag.name == name for tag in tags):
        return text
    return f"{text.rstrip()} <{KIND}:{name}:1>".lstrip()
