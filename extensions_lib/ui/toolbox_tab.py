"""The Toolbox tab: what a model file is, and what can be made of it.

The same builder serves the standalone page and the WebUIs. javascript/toolbox.js offers the host's
files in the fields, shows networks with weights as rows, draws the energy by rank, and takes a file
from what is shown about it to the tool that was chosen.
"""

from __future__ import annotations

import html
import json
from typing import Any

import gradio as gr

from extensions_lib.ui.compat import on_browser
from extensions_lib.ui.toolbox_caches import build_caches
from extensions_lib.ui.toolbox_know import build_folder, build_know
from extensions_lib.ui.toolbox_room import ToolboxRoom
from extensions_lib.ui.toolbox_tools import LOOKS, build_tool
from extensions_lib.ui.toolbox_work import PREFIX


def build_toolbox_tab(room: ToolboxRoom, page: gr.Blocks) -> None:
    """Builds the tab inside `page` and wires it."""
    fields: list[Any] = []
    with gr.Column(elem_id=PREFIX):
        route = html.escape(f".{room.route}", quote=True)
        gr.HTML(f'<div id="{PREFIX}-live" data-route="{route}"></div>', elem_id=f"{PREFIX}-wire")
        with gr.Tabs(elem_id=f"{PREFIX}-tabs"):
            with gr.Tab("About a file", elem_id=f"{PREFIX}-tab-about"):
                build_know(room)
            for word, look in LOOKS.items():
                with gr.Tab(look.label, elem_id=f"{PREFIX}-tab-{word}"):
                    tool = build_tool(word, room)
                fields += tool.inputs
                if tool.preview is not None:
                    fields += tool.preview.fields
            with gr.Tab("Caches", elem_id=f"{PREFIX}-tab-cache"):
                fields += build_caches(room)
            with gr.Tab("Duplicates", elem_id=f"{PREFIX}-tab-folder"):
                fields.append(build_folder(room))
        _remember(page, fields)


def _remember(page: gr.Blocks, fields: list[Any]) -> None:
    """Fields that keep their values over a reload, in the browser; each can be reset."""
    names = json.dumps([field.elem_id for field in fields])
    restore = f"(...values) => window.crucibleToolbox?.restore(values, {names}) ?? values"
    page.load(None, None, fields, **on_browser(restore))
    remember = on_browser("(...values) => window.crucibleToolbox?.remember(values) ?? []")
    changed = gr.Button("Changed", elem_id=f"{PREFIX}-changed", elem_classes=["crucible-wire"])
    changed.click(None, fields, None, **remember)
    reset = gr.Button("Reset", elem_id=f"{PREFIX}-reset", elem_classes=["crucible-wire"])
    back = on_browser("(...values) => window.crucibleToolbox?.reset(values) ?? values")
    reset.click(None, fields, fields, **back)
