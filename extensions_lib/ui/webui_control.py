"""The control picture in a WebUI: an accordion below the settings, in txt2img and in img2img."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from extensions_lib.hosts.webui_control import WebUIControl

HOW = (
    "Write &lt;lllite:name:weight&gt; in the prompt: a ControlNet-LLLite (SDXL) from"
    " models/ControlNet or models/Lora then follows this picture."
)


@cache
def control() -> WebUIControl:
    """The one of this program."""
    from extensions_lib.hosts.webui_control import WebUIControl, folders
    from extensions_lib.ui.webui import session

    return WebUIControl(session, lambda: folders(session().folders))


def panel(elem_id: str) -> list[Any]:
    """Builds the accordion; returns the inputs of the script."""
    import gradio as gr

    from extensions_lib.ui.control_panel import LABEL, picture_input

    with gr.Accordion(LABEL, open=False, elem_id=elem_id):
        picture = picture_input(f"{elem_id}-picture")
        gr.HTML(f"<p>{HOW}</p>")
    return [picture]


def register() -> None:
    """Answers `<lllite:…>` tags."""
    from extensions_lib.hosts.webui_control import register as answer

    answer(control())


def step_begins(params: Any) -> None:
    """The WebUI is about to ask the UNet."""
    control().at(params.sampling_step, params.total_sampling_steps)


def script_unloaded() -> None:
    """The page is being reloaded."""
    control().clear()
