"""Latents and text states of a data set, written ahead for training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from extensions_lib.api.toolbox import Work
from extensions_lib.training.cache_options import Caching
from extensions_lib.ui import pieces
from extensions_lib.ui.option_fields import OptionForm, searchable
from extensions_lib.ui.toolbox_room import ToolboxRoom
from extensions_lib.ui.toolbox_work import PREFIX, wire_work, work_fields

if TYPE_CHECKING:
    from extensions_lib.training.cache_ahead import Cached

_MEANT = ("cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs")


def build_caches(room: ToolboxRoom) -> list[Any]:
    """Builds the tab and wires it; returns its fields."""
    form: OptionForm[Any] = OptionForm(Caching, f"{PREFIX}-cache")
    with gr.Row():
        form.field("train_data_dir", label="Folder of pictures", scale=3, min_width=260)
        form.field("dataset_config", scale=2, min_width=220)
    with gr.Row():
        form.field("resolution", min_width=160)
        form.field("clip_skip", min_width=160)
        form.field("max_token_length", min_width=240)
        form.field(
            "cache_text_encoder_outputs_to_disk", label="Text states too",
            info="for runs that do not train the text encoders", min_width=200,
        )  # fmt: skip
    work = work_fields("cache", "Write caches", "Encoding …")
    with gr.Accordion("More options", open=False, elem_id=f"{PREFIX}-cache-more"), searchable():
        form.rest(leave_out=_MEANT)

    def read(values: tuple[Any, ...]) -> Work:
        options = form.read(values)
        return lambda tell, stop: room.desk.write_caches(options, lambda *at: tell(at), stop)

    wire_work(work, room.service.jobs, read, _shown, form.inputs)
    return form.inputs


def _shown(cached: Cached) -> str:
    parts = [str(cached.pictures), "pictures", f"· {cached.prompts}", "prompts"]
    parts += [f"· {cached.written}", "newly written"]
    line = f'<p role="status" class="crucible-toolbox-done">{pieces.words(*parts)}</p>'
    return line + pieces.messages(cached.notes)
