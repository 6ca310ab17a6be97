"""The inputs of the Generate tab: prompt, negative prompt, and what else an order can say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.control_picture import received
from extensions_lib.hosts.standalone.samplers import SAMPLERS, SCHEDULES
from extensions_lib.ui import pieces
from extensions_lib.ui.checkpoints import CheckpointInfo


@dataclass(frozen=True)
class Form:
    """The inputs of a picture; `remembered` survive a reload of the page (pictures do not)."""

    checkpoint: gr.Dropdown
    prompt: gr.Textbox
    negative: gr.Textbox
    steps: gr.Slider
    sampler: gr.Dropdown
    schedule: gr.Dropdown
    cfg: gr.Slider
    seed: gr.Number
    width: gr.Slider
    height: gr.Slider
    batch_size: gr.Slider
    batch_count: gr.Slider
    clip_skip: gr.Slider
    control: gr.Image

    @property
    def all(self) -> list[Any]:
        return list(vars(self).values())

    @property
    def remembered(self) -> list[Any]:
        return self.all[1:-1]


def prompt_boxes(info: CheckpointInfo | None) -> tuple[gr.Textbox, gr.Textbox, gr.HTML]:
    """Prompt, negative prompt and the count of tokens, with the checkpoint's example."""
    example = info.example if info else CheckpointInfo(Path()).example
    with gr.Group(elem_id="crucible-prompts"):
        tokens = gr.HTML(pieces.token_count(0, 75), elem_id="crucible-tokens")
        prompt = gr.Textbox(
            label="Prompt",
            placeholder=example,
            lines=3,
            max_lines=8,
            autofocus=True,
            elem_id="crucible-prompt",
        )
        negative = gr.Textbox(
            label="Negative prompt",
            placeholder="what the picture should not show",
            lines=2,
            max_lines=6,
            elem_id="crucible-negative",
        )
    return prompt, negative, tokens


def setting_fields(
    info: CheckpointInfo | None,
) -> tuple[dict[str, Any], tuple[gr.Button, gr.Button]]:
    """The other fields of a Form by name, as they suit the checkpoint; the seed's two buttons."""
    suited = info or CheckpointInfo(Path())
    width, height = suited.size
    made: dict[str, Any] = {}
    with gr.Row():
        made["sampler"] = gr.Dropdown(
            list(SAMPLERS), value="DPM++ 2M", label="Sampler", elem_id="crucible-sampler"
        )
        made["schedule"] = gr.Dropdown(
            list(SCHEDULES), value="Automatic", label="Schedule type", elem_id="crucible-schedule"
        )
    with gr.Row():
        made["steps"] = _slider("Steps", 1, 150, 20, elem_id="crucible-steps")
        made["cfg"] = _slider("CFG scale", 1, 30, suited.cfg, step=0.5, elem_id="crucible-cfg")
    with gr.Row():
        made["width"] = _slider("Width", 64, 2048, width, step=8, elem_id="crucible-width")
        made["height"] = _slider("Height", 64, 2048, height, step=8, elem_id="crucible-height")
    with gr.Row(elem_classes=["crucible-seed"]):
        made["seed"] = gr.Number(
            value=-1, label="Seed (−1: a new one each time)", precision=0, elem_id="crucible-seed"
        )
        fresh = gr.Button("Random", size="sm", scale=0, min_width=80, elem_id="crucible-random")
        reuse = gr.Button("Reuse last", size="sm", scale=0, min_width=120, elem_id="crucible-reuse")
    with gr.Accordion("More: batches, clip skip", open=False, elem_id="crucible-more"):
        with gr.Row():
            made["batch_count"] = _slider("Batch count", 1, 100, 1, elem_id="crucible-batch-count")
            made["batch_size"] = _slider("Batch size", 1, 16, 1, elem_id="crucible-batch-size")
        made["clip_skip"] = _slider("Clip skip", 1, 12, 1, elem_id="crucible-clip-skip")
    return made, (fresh, reuse)


def _slider(
    label: str, low: float, high: float, value: float, *, step: float = 1, elem_id: str
) -> gr.Slider:
    return gr.Slider(low, high, value=value, step=step, label=label, elem_id=elem_id, min_width=160)


def request_of(given: dict[str, Any]) -> GenerationRequest:
    """The order that the values of a Form make, by field name, the checkpoint left out.

    Raises FileProblem for a control picture that is none.
    """
    seed = given["seed"]
    return GenerationRequest(
        prompt=given["prompt"],
        negative=given["negative"],
        steps=int(given["steps"]),
        sampler=given["sampler"],
        schedule=given["schedule"],
        cfg=float(given["cfg"]),
        seed=-1 if seed is None else int(seed),
        width=int(given["width"]),
        height=int(given["height"]),
        batch_size=int(given["batch_size"]),
        batch_count=int(given["batch_count"]),
        clip_skip=int(given["clip_skip"]),
        control=received(given["control"]),
    )
