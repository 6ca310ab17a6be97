"""The Tagger's one picture: dropped, asked about, its caption copied or sent to the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any, NamedTuple

import gradio as gr

from extensions_lib.errors import CrucibleError
from extensions_lib.ui import pieces, tagger_pieces
from extensions_lib.ui.compat import (
    at_once,
    on_browser,
    only_last,
    side_by_side,
    window_of,
)
from extensions_lib.ui.dropped import picture_field
from extensions_lib.ui.jobs import Jobs, Tell
from extensions_lib.ui.option_fields import searchable
from extensions_lib.ui.tagger_look import WINDOWS, Changes, said
from extensions_lib.ui.tagger_models import Asked, ModelFields, model_fields, rest_of
from extensions_lib.ui.tagger_room import TaggerRoom, answers, device_notes, devices
from extensions_lib.ui.tagger_run import alone, bar, load

PREFIX = "crucible-one"


@dataclass(frozen=True)
class Heard:
    """What the models said of the picture. (As a tuple, gradio would keep a list.)"""

    models: tuple[str, ...] = ()
    said: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    devices: str = ""


class OneTab(NamedTuple):
    """The components."""

    models: ModelFields
    picture: gr.Image
    go: gr.Button
    stop: gr.Button
    notes: gr.HTML
    bars: gr.HTML
    caption: gr.Textbox
    heard: gr.State


def build_one(room: TaggerRoom, jobs: Jobs) -> OneTab:
    """Builds the tab and wires it."""
    with gr.Row(elem_classes=["crucible-tagger-sides"]):
        with gr.Column(scale=5, min_width=360):
            picture = picture_field(
                label="Picture", image_mode="RGBA", height=360, elem_id=f"{PREFIX}-picture"
            )
            with gr.Row(elem_classes=["crucible-tagger-actions"]):
                go = gr.Button("Tag the picture", variant="primary", scale=4, elem_id=PREFIX)
                stop = gr.Button(
                    "Stop", variant="stop", scale=1, min_width=90, interactive=False,
                    elem_id=f"{PREFIX}-stop",
                )  # fmt: skip
            models = model_fields(room, PREFIX)
            with searchable():
                rest_of(models, batch=False)
        with gr.Column(scale=6, min_width=360, elem_classes=["crucible-tagger-look"]):
            notes = said(f"{PREFIX}-notes")
            caption = gr.Textbox(
                label="Caption", lines=3, max_lines=12, show_copy_button=True,
                elem_id=f"{PREFIX}-caption",
            )  # fmt: skip
            send = gr.Button("Send to prompt", size="sm", elem_id=f"{PREFIX}-send")
            bars = said(f"{PREFIX}-bars")
    tab = OneTab(models, picture, go, stop, notes, bars, caption, gr.State(Heard()))
    _wire(tab, room, jobs)
    to_prompt = on_browser("(text) => window.crucibleTagger.toPrompt(text)")
    send.click(None, caption, None, **to_prompt)
    return tab


def _wire(tab: OneTab, room: TaggerRoom, jobs: Jobs) -> None:
    def ask(request: gr.Request, picture: Any, *values: Any) -> Iterator[Changes]:
        window = f"{window_of(request)} one"
        if picture is None:
            yield {tab.notes: pieces.messages(["Drop a picture into the field."])}
            return
        if isinstance(picture, CrucibleError):
            yield {**clear(), tab.notes: pieces.messages([str(picture)], "error")}
            return
        yield from _ask(tab, room, jobs, window, picture, values)

    def follow(heard: Heard, *values: Any) -> Changes:
        if not heard.said:
            return {tab.heard: heard}
        try:
            return _told(tab, room, tab.models.read(values), heard)
        except CrucibleError as problem:
            return {tab.notes: pieces.messages([str(problem)], "error")}

    def stop(request: gr.Request) -> None:
        jobs.stop(f"{window_of(request)} one")

    def clear() -> Changes:
        return {tab.heard: Heard(), tab.bars: "", tab.caption: "", tab.notes: ""}

    inputs = tab.models.inputs
    outputs = [tab.go, tab.stop, tab.notes, tab.bars, tab.caption, tab.heard]
    running: dict[str, Any] = {"show_progress": "hidden", **side_by_side(WINDOWS)}
    for moment in (tab.go.click, tab.picture.upload):
        moment(ask, [tab.picture, *inputs], outputs, **running)
    tab.picture.clear(clear, None, outputs, **at_once())
    tab.stop.click(stop, None, None, **at_once())
    followed = [tab.notes, tab.bars, tab.caption, tab.heard]
    for field in tab.models.live:
        field.change(follow, [tab.heard, *inputs], followed, **at_once(), **only_last())


def _ask(
    tab: OneTab, room: TaggerRoom, jobs: Jobs, window: str, picture: Any, values: tuple[Any, ...]
) -> Iterator[Changes]:
    rest: Changes = {tab.go: gr.update(interactive=True), tab.stop: gr.update(interactive=False)}
    try:
        asked = tab.models.read(values)
    except CrucibleError as problem:
        yield {tab.notes: pieces.messages([str(problem)], "error")}
        return

    def job(tell: Tell, stop: Event) -> Heard:
        from extensions_lib.datasets.pictures import as_rgb

        runners = load(room, asked, tell, stop)
        with alone(room, stop):
            found = answers(runners, as_rgb(picture))
        names = tuple(runner.key.name for runner in runners)
        return Heard(names, tuple(found), tuple(device_notes(runners)), devices(runners))

    busy: Changes = {tab.go: gr.update(interactive=False), tab.stop: gr.update(interactive=True)}
    updates = jobs.run(window, job)  # before Stop can be pressed
    yield {**busy, tab.notes: "", tab.bars: "", tab.caption: "", tab.heard: Heard()}
    for update in updates:
        if update.state == "done":
            yield {**rest, **_told(tab, room, asked, update.result)}
        elif update.state == "stopped":
            yield {**rest, tab.notes: ""}
        elif update.state == "failed":
            yield {**rest, tab.notes: pieces.messages([update.message], "error")}
        else:
            yield {tab.notes: bar(update)}


def _told(tab: OneTab, room: TaggerRoom, asked: Asked, heard: Heard) -> Changes:
    """Bars and caption of what was heard, as the fields want them. Raises CrucibleError."""
    from extensions_lib.tagging.composer import Composer

    models = asked.here
    if models.names != heard.models:
        return {tab.heard: heard}  # of other models: they are asked when the button is pressed
    runners = room.pool.runners(models.models, models.run)
    how = asked.run.join
    told = tagger_pieces.bars(runners, heard.said, asked.selection, how, PREFIX)
    return {
        tab.notes: pieces.messages(heard.notes),
        tab.bars: told + tagger_pieces.asked_on(heard.devices),
        tab.caption: Composer(runners, asked.selection, how).text(heard.said),
        tab.heard: heard,
    }
