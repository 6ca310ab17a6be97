"""A look at one picture of the folder: what models say of it, as bars that follow the fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import gradio as gr

from extensions_lib.errors import CrucibleError
from extensions_lib.ui import pieces, tagger_pieces
from extensions_lib.ui.compat import at_once, only_last, side_by_side, window_of
from extensions_lib.ui.jobs import Jobs, Tell
from extensions_lib.ui.tagger_models import Asked, ModelFields
from extensions_lib.ui.tagger_room import TaggerRoom, answers, device_notes
from extensions_lib.ui.tagger_run import Order, alone, bar, load, no_pictures

WINDOWS = 16  # inside one event at a time
Changes = dict[Any, Any]
Read = Callable[[tuple[Any, ...]], Order]


@dataclass(frozen=True)
class Seen:
    """The picture that is looked at, and what the models said about it. (As a tuple, gradio would
    keep a list.)
    """

    place: int = 0  # among the pictures of the folder
    models: tuple[str, ...] = ()
    said: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Look:
    """The components."""

    back: gr.Button
    look: gr.Button
    on: gr.Button
    picture: gr.HTML
    bars: gr.HTML
    seen: gr.State


class Shown(NamedTuple):
    """What a job has found out about a picture."""

    picture: Path
    seen: Seen
    bars: str
    notes: tuple[str, ...]


def said(elem_id: str) -> gr.HTML:
    """A place for what is to be said, which takes no room while that is nothing."""
    return gr.HTML(elem_id=elem_id, elem_classes=["crucible-tagger-said"])


def build_look() -> Look:
    """Builds the components, in the column that is open."""
    with gr.Row(elem_classes=["crucible-tagger-steps"]):
        back = gr.Button("‹", size="sm", min_width=50, scale=0, elem_id="crucible-tagger-back")
        look = gr.Button("Ask about this picture", size="sm", elem_id="crucible-tagger-look")
        on = gr.Button("›", size="sm", min_width=50, scale=0, elem_id="crucible-tagger-next")
    picture = gr.HTML(elem_id="crucible-tagger-picture")
    bars = said("crucible-tagger-bars")
    return Look(back, look, on, picture, bars, gr.State(Seen()))


def show_picture(room: TaggerRoom, picture: Path, folder: Path) -> str:
    """The picture itself with its name."""
    name = picture.relative_to(folder).as_posix()
    return tagger_pieces.thumb(room.links.to(picture), name)


def wire_look(
    look: Look, room: TaggerRoom, jobs: Jobs, read: Read, inputs: list[Any], models: ModelFields
) -> None:
    """The buttons ask the models; bars follow the fields without asking."""
    for button, by in ((look.back, -1), (look.look, 0), (look.on, 1)):
        _wire_button(look, button, by, room, jobs, read, inputs)

    def follow(seen: Seen, *values: Any) -> Changes:
        if not seen.said:
            return {look.seen: seen}
        try:
            asked = read(values).asked
            return {look.bars: bars_of(room, asked, seen.models, seen.said)}
        except CrucibleError as problem:
            return {look.bars: pieces.messages([str(problem)], "error")}

    for field in models.live:
        field.change(
            follow, [look.seen, *inputs], [look.bars, look.seen], **at_once(), **only_last()
        )


def bars_of(room: TaggerRoom, asked: Asked, models: tuple[str, ...], said: tuple[Any, ...]) -> str:
    """Bars from what was said before; nothing where other models are chosen by now."""
    here = asked.here
    if here.names != models:
        return ""
    runners = room.pool.runners(here.models, here.run)
    return tagger_pieces.bars(runners, said, asked.selection, asked.run.join)


def _wire_button(
    look: Look,
    button: gr.Button,
    by: int,
    room: TaggerRoom,
    jobs: Jobs,
    read: Read,
    inputs: list[Any],
) -> None:
    def show(request: gr.Request, seen: Seen, *values: Any) -> Iterator[Changes]:
        try:
            order = read(values)
        except CrucibleError as problem:
            yield {look.bars: pieces.messages([str(problem)], "error")}
            return
        window, place = f"{window_of(request)} look", seen.place + by

        def job(tell: Tell, stop: Event) -> Shown:
            return _look(room, order, place, tell, stop)

        for update in jobs.run(window, job):
            if update.state == "done":
                shown: Shown = update.result
                yield {
                    look.picture: show_picture(room, shown.picture, order.folder),
                    look.seen: shown.seen,
                    look.bars: pieces.messages(shown.notes) + shown.bars,
                }
            elif update.state == "failed":
                yield {
                    look.seen: Seen(place),
                    look.bars: pieces.messages([update.message], "error"),
                }
            elif update.state != "stopped":
                yield {look.bars: bar(update)}

    outputs = [look.picture, look.seen, look.bars]
    running: dict[str, Any] = {"show_progress": "hidden", **side_by_side(WINDOWS)}
    button.click(show, [look.seen, *inputs], outputs, **running)


def _look(room: TaggerRoom, order: Order, place: int, tell: Tell, stop: Event) -> Shown:
    """Asks the models about one picture, or finds what they said. Raises CrucibleError."""
    from extensions_lib.datasets import pictures

    found = pictures.find(order.folder, order.asked.run.subfolders, [])
    if not found:
        raise no_pictures(order.folder, order.asked.run.subfolders)
    place %= len(found)
    runners = load(room, order.asked, tell, stop)
    with room.store(order.folder) as store, alone(room, stop):
        said = answers(runners, found[place], store)
    names = tuple(runner.key.name for runner in runners)
    html = tagger_pieces.bars(runners, said, order.asked.selection, order.asked.run.join)
    return Shown(found[place], Seen(place, names, tuple(said)), html, tuple(device_notes(runners)))
