"""The Tagger's folder: captions for all pictures of a set, with a look at one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.run import Run
from extensions_lib.tagging.writer import Output
from extensions_lib.ui import pieces, tagger_run
from extensions_lib.ui.compat import at_once, only_last, side_by_side, window_of
from extensions_lib.ui.jobs import Jobs
from extensions_lib.ui.option_fields import OptionForm, searchable
from extensions_lib.ui.tagger_look import (
    WINDOWS,
    Changes,
    Look,
    Seen,
    build_look,
    said,
    show_picture,
    wire_look,
)
from extensions_lib.ui.tagger_models import ModelFields, model_fields, rest_of
from extensions_lib.ui.tagger_room import TaggerRoom
from extensions_lib.ui.tagger_run import Order

PREFIX = "crucible-tagger"
BUTTON = "Tag the folder"


class SetFields(NamedTuple):
    """Which set of pictures all the tabs are about."""

    folder: gr.Textbox
    subfolders: gr.Checkbox


@dataclass(frozen=True)
class FolderTab:
    """The components of the tab, and the line of its jobs."""

    room: TaggerRoom
    jobs: Jobs
    source: SetFields
    models: ModelFields
    output: OptionForm[Output]
    go: gr.Button
    stop: gr.Button
    follow: gr.Checkbox
    notes: gr.HTML
    progress: gr.HTML
    result: gr.HTML
    tagged: gr.State  # the folder that this window has tagged, ""
    look: Look

    @property
    def inputs(self) -> list[Any]:
        return [*self.source, *self.output.inputs, *self.models.inputs]

    def read(self, values: tuple[Any, ...]) -> Order:
        """What was asked for. Raises CrucibleError."""
        folder, subfolders, *rest = values
        count = len(self.output.fields)
        output = self.output.read(rest[:count])
        asked = self.models.read(rest[count:], subfolders=bool(subfolders))
        return Order(self.room.folder(folder), output, asked)


def build_folder(room: TaggerRoom, source: SetFields, jobs: Jobs) -> FolderTab:
    """Builds the tab and wires it."""
    output = OptionForm(Output, f"{PREFIX}-output")
    with gr.Row(elem_classes=["crucible-tagger-sides"]):
        with gr.Column(scale=6, min_width=420):
            with gr.Row(elem_classes=["crucible-tagger-actions"]):
                go = gr.Button(BUTTON, variant="primary", scale=4, elem_id=f"{PREFIX}-go")
                stop = gr.Button(
                    "Stop", variant="stop", scale=1, min_width=90, interactive=False,
                    elem_id=f"{PREFIX}-stop",
                )  # fmt: skip
            notes = said(f"{PREFIX}-notes")
            progress = said(f"{PREFIX}-progress")
            result = said(f"{PREFIX}-result")
            models = model_fields(room, PREFIX)
            output.field("existing", label="Captions that are there already", info=None)
            follow = gr.Checkbox(
                value=True,
                label="Captions follow the fields once the folder is tagged",
                info="from kept scores, without the models; each time a step that can be undone",
                elem_id=f"{PREFIX}-follow",
            )
            with searchable():
                output.rest()
                rest_of(models, batch=True)
        with gr.Column(scale=5, min_width=360, elem_classes=["crucible-tagger-look"]):
            look = build_look()
    tab = FolderTab(
        room, jobs, source, models, output, go, stop, follow, notes, progress, result,
        gr.State(""), look,
    )  # fmt: skip
    _wire_arrival(tab)
    _wire_run(tab)
    _wire_following(tab)
    wire_look(look, room, jobs, tab.read, tab.inputs, models)
    return tab


def _wire_arrival(tab: FolderTab) -> None:
    fields = [*tab.source, tab.output.fields["existing"]]
    look = tab.look

    def arrive(folder: str, subfolders: bool, existing: str) -> Changes:
        """The button says what it will do, and the first picture is shown."""
        blank: Changes = {tab.go: gr.update(value=BUTTON), look.picture: "", look.bars: ""}
        blank[look.seen] = Seen()
        if not (folder or "").strip():
            return {**blank, tab.notes: ""}
        try:
            path, output = tab.room.folder(folder), Output(existing)
            found = tagger_run.planned(tab.room, path, output, Run(bool(subfolders)))
            shown = [show_picture(tab.room, each, path) for each in found.pictures[:1]]
        except CrucibleError as problem:
            return {**blank, tab.notes: pieces.messages([str(problem)], "error")}
        return {
            **blank,
            tab.go: gr.update(value=tagger_run.label(found, existing)),
            look.picture: "".join(shown),
            tab.notes: pieces.messages(tagger_run.about(found, existing)),
        }

    outputs = [tab.go, look.picture, look.bars, look.seen, tab.notes]
    for field in fields:
        field.change(arrive, fields, outputs, **at_once(), **only_last())


def _wire_run(tab: FolderTab) -> None:
    def run(request: gr.Request, *values: Any) -> Iterator[Changes]:
        yield from _run(tab, values, window_of(request))

    def stop(request: gr.Request) -> None:
        tab.jobs.stop(window_of(request))

    tab.go.click(run, tab.inputs, _outputs(tab), **_running())
    tab.stop.click(stop, None, None, **at_once())


def _wire_following(tab: FolderTab) -> None:
    def follow(request: gr.Request, tagged: str, on: bool, *values: Any) -> Iterator[Changes]:
        if on and tagged and tagged == str(tab.room.named(values[0])):
            yield from _run(tab, values, window_of(request))
        else:
            yield {tab.tagged: tagged}

    inputs = [tab.tagged, tab.follow, *tab.inputs]
    for settled in tab.models.settled:
        settled(follow, inputs, _outputs(tab), **_running(), **only_last())


def _outputs(tab: FolderTab) -> list[Any]:
    return [tab.go, tab.stop, tab.notes, tab.progress, tab.result, tab.tagged]


def _running() -> dict[str, Any]:
    return {"show_progress": "hidden", **side_by_side(WINDOWS)}


def _run(tab: FolderTab, values: tuple[Any, ...], window: str) -> Iterator[Changes]:
    """One press of the button, as changes of the page."""
    try:
        order = tab.read(values)
    except CrucibleError as problem:
        message = pieces.messages([str(problem)], "error")
        yield {tab.notes: message, tab.result: "", tab.progress: ""}
        return
    work = lambda tell, stop: tagger_run.tag_folder(tab.room, order, tell, stop)  # noqa: E731
    updates = tab.jobs.run(window, work)  # before Stop can be pressed
    yield {
        tab.go: gr.update(interactive=False),
        tab.stop: gr.update(interactive=True),
        tab.notes: "",
        tab.result: "",
        tab.progress: pieces.bar(None, "Starting …"),
    }
    rest: Changes = {
        tab.go: gr.update(interactive=True),
        tab.stop: gr.update(interactive=False),
        tab.progress: "",
    }
    for update in updates:
        if update.state == "done":
            tagged: tagger_run.Tagged = update.result
            yield {
                **rest,
                tab.notes: pieces.messages(tagged.notes),
                tab.result: tagger_run.summary(order, tagged),
                tab.tagged: "" if order.output.dry_run else str(order.folder),
            }
        elif update.state == "stopped":
            yield {**rest, tab.notes: pieces.messages(["Stopped before a picture was done."])}
        elif update.state == "failed":
            yield {**rest, tab.notes: pieces.messages([update.message], "error")}
        else:
            yield {tab.progress: tagger_run.bar(update)}
