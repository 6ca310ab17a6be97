"""The Tagger's preparing in the page: options, problems found, crops by hand, and the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from extensions_lib.datasets.prepare import Preparation, Prepared, prepare
from extensions_lib.datasets.survey import survey
from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.run import Progress
from extensions_lib.ui import pieces, tagger_pieces, tagger_shelves
from extensions_lib.ui.compat import at_once, only_last, side_by_side, window_of
from extensions_lib.ui.jobs import Jobs, Tell
from extensions_lib.ui.option_fields import OptionForm
from extensions_lib.ui.tagger_edit import Wire, on_order, wire
from extensions_lib.ui.tagger_folder import SetFields
from extensions_lib.ui.tagger_look import WINDOWS, Changes, said
from extensions_lib.ui.tagger_pieces import counted
from extensions_lib.ui.tagger_room import TaggerRoom
from extensions_lib.ui.tagger_run import bar, no_pictures
from extensions_lib.ui.tagger_workbench import Bench, laid_out, surveyed

PREFIX = "crucible-prepare"
BUTTON = "Prepare the pictures"
Job = Callable[[Tell, Event], Changes]


@dataclass(frozen=True)
class PrepareTab:
    """The components, and the line of its jobs."""

    room: TaggerRoom
    jobs: Jobs
    source: SetFields
    wire: Wire
    bench: gr.State
    output: gr.Textbox
    options: OptionForm[Preparation]
    smallest: gr.Number
    go: gr.Button
    stop: gr.Button
    look: gr.Button
    notes: gr.HTML
    progress: gr.HTML
    result: gr.HTML
    onwards: gr.Button
    found: gr.HTML
    cropper: gr.HTML
    shelf: gr.HTML

    @property
    def remembered(self) -> list[Any]:
        return [self.output, self.smallest, *self.options.inputs]


def build_prepare(room: TaggerRoom, source: SetFields, jobs: Jobs, tab: gr.Tab) -> PrepareTab:
    """Builds the tab and wires it."""
    options = OptionForm(Preparation, PREFIX)
    with (
        gr.Column(elem_id=PREFIX, elem_classes=["crucible-wired", "crucible-desk"]),
        gr.Row(elem_classes=["crucible-tagger-sides"]),
    ):
        with gr.Column(scale=5, min_width=360):
            orders = wire(PREFIX)
            with gr.Row(elem_classes=["crucible-tagger-actions"]):
                go = gr.Button(BUTTON, variant="primary", scale=4, elem_id=f"{PREFIX}-go")
                stop = gr.Button(
                    "Stop", variant="stop", scale=1, min_width=90, interactive=False,
                    elem_id=f"{PREFIX}-stop",
                )  # fmt: skip
            notes, progress, result = (
                said(f"{PREFIX}-{name}") for name in ("notes", "progress", "result")
            )
            onwards = gr.Button(
                "Go on with the prepared pictures", size="sm", visible=False,
                elem_id=f"{PREFIX}-onwards",
            )  # fmt: skip
            output = gr.Textbox(
                label="Into the folder", info="empty: beside the set, with -prepared at the end",
                max_lines=1, elem_id=f"{PREFIX}-output",
            )  # fmt: skip
            options.field("size", info=None, label="Brought to")
            with gr.Row():
                options.field("side", info="of buckets, that of the square one", min_width=130)
                options.field("step", label="Buckets in steps of", info=None, min_width=130)
                options.field("crop", label="Stays in sight", info=None, min_width=130)
            with gr.Row():
                options.field("mirror", label="Mirrored copies", info=None, min_width=130)
                options.field("enlarge", label="Enlarge small ones", info=None, min_width=130)
                options.field("captions", label="Copy captions", info=None, min_width=130)
            with gr.Accordion("File format", open=False, elem_id=f"{PREFIX}-group-format"):
                options.rest()
        with gr.Column(scale=6, min_width=420):
            with gr.Row(elem_classes=["crucible-tagger-steps"]):
                smallest = gr.Number(
                    512, label="Too small is a side below (pixels)", precision=0, min_width=150,
                    elem_id=f"{PREFIX}-smallest",
                )  # fmt: skip
                look = gr.Button("Look for broken, small and double ones", elem_id=f"{PREFIX}-look")
            cropper, found = (said(f"{PREFIX}-{name}") for name in ("cropper", "found"))
            shelf = gr.HTML(elem_id=f"{PREFIX}-shelf")
    made = PrepareTab(
        room, jobs, source, orders, gr.State(Bench()), output, options, smallest, go, stop, look,
        notes, progress, result, onwards, found, cropper, shelf,
    )  # fmt: skip
    _wire_bench(made, tab)
    _wire_jobs(made)
    return made


# --- what is chosen ---------------------------------------------------------------------------


def _wire_bench(tab: PrepareTab, page: gr.Tab) -> None:
    inputs = [tab.bench, *tab.source, *tab.options.inputs]
    outputs = [tab.bench, tab.go, tab.notes, tab.found, tab.cropper, tab.shelf]

    def act(order: dict[str, Any], bench: Bench, folder: str, sub: bool, *rest: Any) -> Changes:
        if not (folder or "").strip():
            blank = dict.fromkeys((tab.notes, tab.found, tab.cropper, tab.shelf), "")
            return {**blank, tab.bench: Bench(), tab.go: gr.update(value=BUTTON)}
        try:
            path = tab.room.folder(folder)
            bench = laid_out(path, sub, bench)
            if not bench.names:
                raise no_pictures(path, sub)
            bench = bench.do(order)
            options = tab.options.read(rest)
            return {**_shown(tab, bench, options), tab.notes: ""}
        except CrucibleError as problem:
            return {tab.bench: bench, tab.notes: pieces.messages([str(problem)], "error")}

    def arrive(*values: Any) -> Changes:
        return act({"do": "look"}, *values)

    on_order(tab.wire, act, inputs, outputs)
    shape = [tab.options.fields[name] for name in ("size", "side", "step")]
    for moment in (page.select, tab.source.folder.change, tab.source.subfolders.change):
        moment(arrive, inputs, outputs, **at_once(), **only_last())
    for each in shape:  # the crop shows what will be left
        each.change(arrive, inputs, outputs, **at_once(), **only_last())


def _shown(tab: PrepareTab, bench: Bench, options: Preparation) -> Changes:
    links = tab.room.links
    return {
        tab.bench: bench,
        tab.go: gr.update(
            value=f"Prepare {counted(len(bench.taken), 'picture')}", interactive=True
        ),
        tab.found: tagger_shelves.found(bench, links),
        tab.cropper: tagger_shelves.cropper(bench, options, links),
        tab.shelf: tagger_shelves.shelf(bench, links),
    }


def output_folder(room: TaggerRoom, typed: str, folder: Path) -> Path:
    """Where prepared pictures go. Raises CrucibleError for a place that may not be named."""
    if (typed or "").strip():
        return room.path(typed)
    return room.path(str(folder.with_name(f"{folder.name}-prepared")))


# --- the work ---------------------------------------------------------------------------------


def _wire_jobs(tab: PrepareTab) -> None:
    inputs = [tab.bench, *tab.source, tab.output, tab.smallest, *tab.options.inputs]
    outputs = [
        tab.go, tab.stop, tab.look, tab.notes, tab.progress, tab.result, tab.onwards, tab.bench,
        tab.found, tab.cropper, tab.shelf,
    ]  # fmt: skip
    running: dict[str, Any] = {"show_progress": "hidden", **side_by_side(WINDOWS)}
    for button, job in ((tab.go, _preparing), (tab.look, _looking)):
        button.click(_worker(tab, job), inputs, outputs, **running)

    def stop(request: gr.Request) -> None:
        tab.jobs.stop(f"{window_of(request)} prepare")

    def onwards(folder: str, typed: str) -> Changes:
        return {tab.source.folder: str(output_folder(tab.room, typed, tab.room.folder(folder)))}

    tab.stop.click(stop, None, None, **at_once())
    tab.onwards.click(onwards, [tab.source.folder, tab.output], [tab.source.folder], **at_once())


def _worker(tab: PrepareTab, job_of: Callable[..., Job]) -> Callable[..., Iterator[Changes]]:
    """An event that runs a job and shows how it goes."""

    def work(
        request: gr.Request, bench: Bench, folder: str, subfolders: bool, *rest: Any
    ) -> Iterator[Changes]:
        idle: Changes = {
            tab.go: gr.update(interactive=True),
            tab.look: gr.update(interactive=True),
            tab.stop: gr.update(interactive=False),
            tab.progress: "",
        }
        try:
            bench = laid_out(tab.room.folder(folder), subfolders, bench)
            job = job_of(tab, bench, *rest)
        except CrucibleError as problem:
            yield {**idle, tab.notes: pieces.messages([str(problem)], "error"), tab.result: ""}
            return
        updates = tab.jobs.run(f"{window_of(request)} prepare", job)  # before Stop can be pressed
        yield {
            tab.go: gr.update(interactive=False),
            tab.look: gr.update(interactive=False),
            tab.stop: gr.update(interactive=True),
            tab.notes: "",
            tab.result: "",
            tab.onwards: gr.update(visible=False),
        }
        for update in updates:
            if update.state == "done":
                yield {**idle, **update.result}
            elif update.state == "stopped":
                yield {**idle, tab.notes: pieces.messages(["Stopped before a picture was done."])}
            elif update.state == "failed":
                yield {**idle, tab.notes: pieces.messages([update.message], "error")}
            else:
                yield {tab.progress: bar(update)}

    return work


def _preparing(tab: PrepareTab, bench: Bench, typed: str, _: Any, *values: Any) -> Job:
    assert bench.folder is not None
    folder, options = bench.folder, tab.options.read(values)
    output = output_folder(tab.room, typed, folder)
    if not bench.taken:
        raise CrucibleError("No picture is taken: take some of those that are left out.")

    def job(tell: Tell, stop: Event) -> Changes:
        done = prepare(
            folder,
            [folder / name for name in bench.taken],
            output,
            options,
            boxes={folder / name: box for name, box in bench.boxes.items()},
            on_progress=paced(tell),
            stop=stop,
        )
        return {
            tab.result: _told(output, done),
            tab.onwards: gr.update(visible=bool(done.written)),
        }

    return job


def _told(output: Path, done: Prepared) -> str:
    head = "Stopped after" if done.stopped else "Done:"
    words = pieces.words(head, counted(len(done.written), "file"), "written into")
    said = f'<p role="status" class="crucible-tagger-done">{words} '
    said += f"{tagger_pieces.plain(str(output))}</p>"
    left_out = [note.reason for note in done.left_out]
    said += tagger_pieces.problem_list("left out", left_out, shown=not done.written)
    return said + tagger_pieces.problem_list("to be looked at", [n.reason for n in done.notes])


def _looking(tab: PrepareTab, bench: Bench, _: str, smallest: float | None, *values: Any) -> Job:
    assert bench.folder is not None
    folder, options = bench.folder, tab.options.read(values)

    def job(tell: Tell, stop: Event) -> Changes:
        paths = [folder / name for name in bench.names]
        seen = survey(paths, int(smallest or 0), on_progress=paced(tell), stop=stop)
        return _shown(tab, replace(bench, found=surveyed(folder, seen)), options)

    return job


def paced(tell: Tell) -> Callable[[int, int], None]:
    """Tells of pictures done, with pictures/s since it was made and the time left."""
    started = time.monotonic()

    def count(done: int, total: int) -> None:
        rate = done / max(1e-6, time.monotonic() - started)
        tell(Progress(done, total, rate, (total - done) / rate if rate else None, 0))

    return count
