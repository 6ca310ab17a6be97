"""The Tagger tab: one picture or a folder to captions, an editor, rules, pictures for training.

The same builders serve the standalone page and the WebUIs.
"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from extensions_lib.ui.compat import on_browser
from extensions_lib.ui.jobs import Jobs
from extensions_lib.ui.tagger_browse import build_browser
from extensions_lib.ui.tagger_edit import build_edit
from extensions_lib.ui.tagger_folder import SetFields, build_folder
from extensions_lib.ui.tagger_one import build_one
from extensions_lib.ui.tagger_prepare import build_prepare
from extensions_lib.ui.tagger_room import TaggerRoom
from extensions_lib.ui.tagger_rules import build_rules


def build_tagger_tab(room: TaggerRoom, page: gr.Blocks) -> None:
    """Builds the tab inside `page` and wires it."""
    jobs = Jobs()
    with gr.Column(elem_id="crucible-tagger"):
        with gr.Row(elem_id="crucible-tagger-set"):
            folder = gr.Textbox(
                label="Folder of pictures",
                placeholder="/path/to/pictures",
                max_lines=1,
                scale=6,
                elem_id="crucible-tagger-folder",
            )
            browse = gr.Button(
                "Browse …", size="sm", scale=0, min_width=90, elem_id="crucible-tagger-browse"
            )
            subfolders = gr.Checkbox(
                label="Subfolders", scale=1, min_width=130, elem_id="crucible-tagger-subfolders"
            )
        build_browser(room, folder, browse)
        source = SetFields(folder, subfolders)
        with gr.Tabs(elem_id="crucible-tagger-tabs"):
            with gr.Tab("One picture", elem_id="crucible-tagger-tab-one"):
                one = build_one(room, jobs)
            with gr.Tab("Folder", elem_id="crucible-tagger-tab-folder"):
                tab = build_folder(room, source, jobs)
            with gr.Tab("Edit", elem_id="crucible-tagger-tab-edit") as edit:
                view = build_edit(room, source, edit).view
            with gr.Tab("Rules", elem_id="crucible-tagger-tab-rules") as rules:
                build_rules(room, source, view, rules)
            with gr.Tab("Prepare", elem_id="crucible-tagger-tab-prepare") as preparing:
                prepare = build_prepare(room, source, jobs, preparing)
        fields = [*source, *one.models.inputs, *tab.output.inputs, *tab.models.inputs]
        _remember(page, [*fields, tab.follow, *prepare.remembered])


def _remember(page: gr.Blocks, fields: list[Any]) -> None:
    """Fields that keep their values over a reload, in the browser; each can be reset."""
    names = json.dumps([field.elem_id for field in fields])
    restore = f"(...values) => window.crucibleTagger?.restore(values, {names}) ?? values"
    page.load(None, None, fields, **on_browser(restore))
    remember = on_browser("(...values) => window.crucibleTagger?.remember(values) ?? []")
    for field in fields:
        field.change(None, fields, None, **remember)
    reset = gr.Button("Reset", elem_id="crucible-tagger-reset", elem_classes=["crucible-wire"])
    back = on_browser("(...values) => window.crucibleTagger?.reset(values) ?? values")
    reset.click(None, None, fields, **back)
