"""The Generate tab of the standalone host: prompt, settings, networks, and the picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from extensions_lib.errors import FileProblem
from extensions_lib.hosts.base import GenerationResult
from extensions_lib.ui import pieces
from extensions_lib.ui.checkpoints import CheckpointInfo, describe
from extensions_lib.ui.compat import (
    at_once,
    lossless,
    named,
    on_browser,
    only_last,
    side_by_side,
    window_of,
)
from extensions_lib.ui.control_panel import build_control_panel, wire_control_panel
from extensions_lib.ui.generate_form import Form, prompt_boxes, request_of, setting_fields
from extensions_lib.ui.jobs import Update
from extensions_lib.ui.networks_panel import NetworksPanel, Shelf, build_panel
from extensions_lib.ui.pictures import OutputFolder
from extensions_lib.ui.studio import Studio
from extensions_lib.ui.tokens import count_tokens

AT_REST = ""  # no progress to show
WINDOWS = 16  # that may wait for pictures at once
NO_CHECKPOINT = (
    "There is no checkpoint yet. Put one into models/Stable-diffusion and reload this page, or "
    "make the demo one by: python run.py build-demo"
)
Changes = dict[Any, Any]


@dataclass(frozen=True)
class Room:
    """What the tab works with: the host behind its line, networks, output folder, checkpoints."""

    studio: Studio
    shelf: Shelf
    outputs: OutputFolder
    checkpoints: Callable[[], list[Path]]

    def in_use(self) -> str | None:
        """Of the checkpoints offered the one that the host has, else the first; None for none."""
        offered = self.checkpoints()
        try:
            now = self.studio.host.checkpoint.absolute()
        except FileProblem:  # there is none
            return None
        same = (path for path in offered if path.absolute() == now)
        return str(next(same, offered[0])) if offered else None

    def info(self, chosen: str | None) -> CheckpointInfo | None:
        """The checkpoint chosen in the list."""
        return describe(Path(chosen)) if chosen else None

    def family(self, chosen: str | None) -> str:
        """Its family, "" if there is none."""
        info = self.info(chosen)
        return info.family if info else ""


@dataclass(frozen=True)
class Stage:
    """Where the answer appears."""

    go: gr.Button
    stop: gr.Button
    notes: gr.HTML
    preview: gr.HTML
    gallery: gr.Gallery
    progress: gr.HTML
    parameters: gr.Textbox
    made: gr.State  # list of (infotext, seed)
    chosen: gr.State  # index of the picture looked at

    @property
    def all(self) -> list[Any]:
        return list(vars(self).values())


def build_generate_tab(room: Room, page: gr.Blocks) -> None:
    """Builds the tab inside `page` and wires it."""
    paths = room.checkpoints()
    info = describe(paths[0]) if paths else None
    choices = [(path.stem, str(path)) for path in paths]
    with gr.Row(elem_id="crucible-generate", equal_height=False):
        with gr.Column(scale=5, min_width=420):
            checkpoint = gr.Dropdown(
                named(choices),
                value=choices[0][1] if choices else None,
                label="Checkpoint",
                elem_id="crucible-checkpoint",
            )
            prompt, negative, tokens = prompt_boxes(info)
            with gr.Row(elem_id="crucible-actions"):
                go = gr.Button("Generate", variant="primary", scale=4, elem_id="crucible-go")
                stop = gr.Button(
                    "Stop",
                    variant="stop",
                    scale=1,
                    min_width=90,
                    elem_id="crucible-stop",
                    interactive=False,
                )
            control = build_control_panel()
            with gr.Tabs(elem_id="crucible-side"):
                with gr.Tab("Settings"):
                    settings, seed_buttons = setting_fields(info)
                with gr.Tab("Networks", elem_id="crucible-networks-tab"):
                    panel = build_panel(room.shelf, checkpoint, room.family)
        with gr.Column(scale=6, min_width=420):
            stage = Stage(go, stop, *_stage())
    form = Form(checkpoint, prompt, negative, **settings, control=control.picture)
    _wire_generation(room, form, stage)
    _wire_picture(form, stage, *seed_buttons)
    _wire_form(room, form, panel, tokens, page)
    wire_control_panel(control, prompt, room.studio.host.lllites, page)


def _stage() -> tuple[Any, ...]:
    notes = gr.HTML(elem_id="crucible-notes")
    with gr.Column(elem_id="crucible-picture"):
        preview = gr.HTML(pieces.preview(None), elem_id="crucible-preview")
        gallery = gr.Gallery(
            label="Pictures",
            show_label=False,
            elem_id="crucible-gallery",
            columns=4,
            height=520,
            object_fit="contain",
            preview=True,
            visible=False,
            **lossless(),
        )
        progress = gr.HTML(elem_id="crucible-progress")
    parameters = gr.Textbox(
        label="Parameters",
        lines=3,
        max_lines=12,
        interactive=False,
        show_copy_button=True,
        visible=False,
        elem_id="crucible-parameters",
    )
    return notes, preview, gallery, progress, parameters, gr.State([]), gr.State(0)


# --- what happens -----------------------------------------------------------------------------


def _wire_generation(room: Room, form: Form, stage: Stage) -> None:
    names = list(vars(form))

    def generate(request: gr.Request, made: list[Any], *values: Any) -> Iterator[Changes]:
        given = dict(zip(names, values, strict=True))
        started = time.monotonic()
        for changes in _generate(room, form, stage, given, window_of(request)):
            if changes.get(stage.progress) == AT_REST:
                changes[stage.progress] = pieces.ended(time.monotonic() - started)
                if made and stage.gallery not in changes:  # the last pictures, in place of previews
                    changes[stage.preview] = gr.update(value="", visible=False)
                    changes[stage.gallery] = gr.update(visible=True)
            yield changes

    def stop(request: gr.Request) -> None:
        room.studio.stop(window_of(request))

    outputs = [form.prompt, *stage.all]
    running: dict[str, Any] = {"show_progress": "hidden", **side_by_side(WINDOWS)}
    stage.go.click(generate, [stage.made, *form.all], outputs, **running)
    stage.stop.click(stop, None, None, **at_once())


def _generate(
    room: Room, form: Form, stage: Stage, given: dict[str, Any], window: str
) -> Iterator[Changes]:
    """One press of Generate, as changes of the page."""
    info = room.info(given.pop("checkpoint"))
    if info is None or info.problem:
        yield _failed(stage, info.problem if info else NO_CHECKPOINT)
        return
    opening: Changes = {
        stage.go: gr.update(interactive=False),
        stage.stop: gr.update(interactive=True),
        stage.notes: "",
        stage.progress: pieces.bar(None, "Starting …"),
    }
    if not given["prompt"].strip() and not given["negative"].strip():
        # The first press of someone who has not typed anything shows what the model can do.
        given["prompt"] = opening[form.prompt] = info.example
    try:
        order = request_of(given)
    except FileProblem as problem:
        yield _failed(stage, str(problem))
        return
    updates = room.studio.run(order, window, info.path)  # before Stop can be pressed
    yield opening
    for update in updates:
        yield _changes(room, stage, update)


def _changes(room: Room, stage: Stage, update: Update) -> Changes:
    """What an update of the job changes on the page."""
    if update.state == "waiting":
        return {stage.progress: pieces.bar(None, "Waiting for", str(update.ahead), "other")}
    if update.state == "loading":
        return {stage.progress: pieces.bar(None, "Preparing the model …")}
    if update.progress is not None:
        changes: Changes = {stage.progress: pieces.progress_bar(update.progress)}
        if update.progress.preview is not None:
            changes[stage.preview] = gr.update(
                value=pieces.preview(update.progress.preview), visible=True
            )
            changes[stage.gallery] = gr.update(visible=False)
        return changes
    if update.result is not None:
        return _finished(room, stage, update.result)
    if update.state == "failed":
        return _failed(stage, update.message)
    return {**_at_rest(stage), stage.notes: pieces.messages(["Stopped before a picture was done."])}


def _at_rest(stage: Stage) -> Changes:
    return {
        stage.go: gr.update(interactive=True),
        stage.stop: gr.update(interactive=False),
        stage.progress: AT_REST,
        stage.preview: gr.update(value=pieces.preview(None)),
    }


def _failed(stage: Stage, message: str) -> Changes:
    return {**_at_rest(stage), stage.notes: pieces.messages([message], "error")}


def _finished(room: Room, stage: Stage, result: GenerationResult) -> Changes:
    notes = list(result.messages)
    shown: list[Any] = []
    made = list(zip(result.infotexts, result.seeds, strict=True))
    for image, (infotext, seed) in zip(result.images, made, strict=True):
        try:
            shown.append(str(room.outputs.save(image, infotext, seed)))
        except FileProblem as problem:
            notes.append(str(problem))
            shown.append(image)
    return {
        **_at_rest(stage),
        stage.notes: pieces.messages(notes),
        stage.preview: gr.update(value="", visible=False),
        stage.gallery: gr.update(value=shown, visible=True, selected_index=0),
        stage.parameters: gr.update(value=made[0][0] if made else "", visible=bool(made)),
        stage.made: made,
        stage.chosen: 0,
    }


def _wire_picture(form: Form, stage: Stage, fresh: gr.Button, reuse: gr.Button) -> None:
    def look(made: list[tuple[str, int]], event: gr.SelectData) -> tuple[str, int]:
        index = event.index if isinstance(event.index, int) else 0
        return (made[index][0], index) if index < len(made) else ("", 0)

    def seed_of(made: list[tuple[str, int]], chosen: int) -> Any:
        return made[chosen][1] if chosen < len(made) else gr.update()

    chosen = [stage.parameters, stage.chosen]
    # New pictures report a choice too; one made while that is under way must not be dropped.
    stage.gallery.select(look, stage.made, chosen, **at_once(), **only_last())
    fresh.click(lambda: -1, None, form.seed, **at_once())
    reuse.click(seed_of, [stage.made, stage.chosen], form.seed, **at_once())


def _wire_form(
    room: Room, form: Form, panel: NetworksPanel, tokens: gr.HTML, page: gr.Blocks
) -> None:
    def choose(chosen: str | None) -> Changes:
        info = room.info(chosen)
        changes: Changes = {panel.cards: panel.render(chosen)}
        if info and not info.problem:
            changes[form.prompt] = gr.update(placeholder=info.example)
            changes[form.width], changes[form.height] = info.size
            changes[form.cfg] = info.cfg
        return changes

    def opened() -> Changes:
        choices = [(path.stem, str(path)) for path in room.checkpoints()]
        value = room.in_use()
        if choices:
            room.studio.warm_up()
        return {
            form.checkpoint: gr.update(choices=named(choices), value=value),
            panel.cards: panel.render(value),
        }

    def count(prompt: str, steps: float) -> str:
        try:
            finder = room.studio.host.embedding_finder()
        except FileProblem:
            finder = None  # without a checkpoint no embedding has a width to fit
        return pieces.token_count(*count_tokens(prompt, int(steps), finder))

    form.checkpoint.input(
        choose,
        form.checkpoint,
        [panel.cards, form.prompt, form.width, form.height, form.cfg],
        **at_once(),
        **only_last(),
    )
    form.prompt.change(count, [form.prompt, form.steps], tokens, **at_once(), **only_last())
    page.load(opened, None, [form.checkpoint, panel.cards], **at_once())
    restore = on_browser("(...values) => window.crucible.restore(values)")
    # A browser function is handed the values of inputs and outputs: the outputs' are enough here.
    page.load(None, None, form.remembered, **restore)
    remember = on_browser("(...values) => window.crucible.remember(values)")
    for field in form.remembered:
        field.change(None, form.remembered, None, **remember)
