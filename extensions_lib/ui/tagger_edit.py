"""The Tagger's editor in the page: orders from the browser to the desk, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from extensions_lib.datasets.journal import Entry
from extensions_lib.datasets.tag_set import TagSet
from extensions_lib.errors import CrucibleError
from extensions_lib.ui import pieces, tagger_gallery, tagger_pieces
from extensions_lib.ui.compat import at_once, every_one, only_last
from extensions_lib.ui.tagger_desk import Desk, Done, View
from extensions_lib.ui.tagger_folder import SetFields
from extensions_lib.ui.tagger_look import Changes, said
from extensions_lib.ui.tagger_room import TaggerRoom

EMPTY = "<p>Name a folder of pictures above.</p>"


@dataclass(frozen=True)
class Wire:
    """What carries orders from the browser: a field it writes to, and the sign of an answer."""

    box: gr.Textbox
    told: gr.HTML


def wire(name: str) -> Wire:
    """Builds it, inside a column of the class `crucible-wired` and the elem_id `name`."""
    box = gr.Textbox(elem_id=f"{name}-wire", elem_classes=["crucible-wire"], show_label=False)
    return Wire(box, gr.HTML(elem_id=f"{name}-told", elem_classes=["crucible-wire"]))


def on_order(
    wire: Wire, act: Callable[..., Changes], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Has `act(order, *inputs)` follow what the browser tells, and answer it in any case."""

    def follow(text: str, *values: Any) -> Changes:
        order = json.loads(text)
        return {**act(order, *values), wire.told: tagger_gallery.told(order["number"])}

    wire.box.input(follow, [wire.box, *inputs], [wire.told, *outputs], **at_once(), **every_one())


@dataclass(frozen=True)
class EditTab:
    """The components of the editor."""

    room: TaggerRoom
    source: SetFields
    wire: Wire
    view: gr.State
    notes: gr.HTML
    result: gr.HTML
    bar: gr.HTML
    gallery: gr.HTML
    tags: gr.HTML
    history: gr.HTML


def build_edit(room: TaggerRoom, source: SetFields, tab: gr.Tab) -> EditTab:
    """Builds the editor inside its tab and wires it."""
    with gr.Column(elem_id="crucible-edit", elem_classes=["crucible-wired", "crucible-desk"]):
        orders = wire("crucible-edit")
        gr.HTML(tagger_gallery.FILTER)
        notes = said("crucible-edit-notes")
        bar = gr.HTML(EMPTY, elem_id="crucible-edit-bar")
        result = said("crucible-edit-result")
        with gr.Row(elem_classes=["crucible-tagger-sides"]):
            with gr.Column(scale=8, min_width=420):
                gallery = gr.HTML(elem_id="crucible-edit-gallery")
            with gr.Column(scale=4, min_width=300, elem_classes=["crucible-tagger-look"]):
                gr.HTML(tagger_gallery.CHANGES)
                gr.HTML(tagger_gallery.TAGS)
                tags = gr.HTML(elem_id="crucible-edit-tags")
                with gr.Accordion("History", open=False, elem_id="crucible-edit-past"):
                    history = gr.HTML(elem_id="crucible-edit-history")
    made = EditTab(
        room, source, orders, gr.State(View()), notes, result, bar, gallery, tags, history
    )
    outputs = [made.view, notes, result, bar, gallery, tags, history]

    def act(order: dict[str, Any], view: View, folder: str, subfolders: bool) -> Changes:
        return _answer(made, view, folder, subfolders, order)

    def arrive(view: View, folder: str, subfolders: bool) -> Changes:
        return _answer(made, view, folder, subfolders, {"do": "reload"})

    on_order(orders, act, [made.view, *source], outputs)
    for moment in (tab.select, source.folder.change, source.subfolders.change):
        moment(arrive, [made.view, *source], outputs, **at_once(), **only_last())
    return made


def _answer(
    tab: EditTab, view: View, folder: str, subfolders: bool, order: dict[str, Any]
) -> Changes:
    """Follows an order; what becomes of the page."""
    if not (folder or "").strip():
        return {**_blank(tab), tab.bar: EMPTY}
    try:
        path = tab.room.folder(folder)
        if (view.folder, view.subfolders) != (path, subfolders):
            if view.folder is not None:  # the order was meant for pictures of another set
                order = {"do": "reload"}
            view = View(path, subfolders, order=view.order, find=view.find)
        tag_set = tab.room.tag_set(path, subfolders)
    except CrucibleError as problem:
        return {**_blank(tab), tab.notes: pieces.messages([str(problem)], "error")}
    done = Desk(tag_set, view, partial(tab.room.path, base=path)).do(order)
    try:
        return _shown(tab, tag_set, done, fresh=order["do"] == "reload")
    except CrucibleError as problem:  # a journal that is broken
        return {tab.view: done.view, tab.notes: pieces.messages([str(problem)], "error")}


def _blank(tab: EditTab) -> Changes:
    empty = (tab.notes, tab.result, tab.bar, tab.gallery, tab.tags, tab.history)
    return {tab.view: View(), **dict.fromkeys(empty, "")}


def _shown(tab: EditTab, tag_set: TagSet, done: Done, fresh: bool) -> Changes:
    desk = Desk(tag_set, done.view)
    if done.problem:
        return {tab.view: done.view, tab.notes: _refusal(done), tab.result: ""}
    entries = tag_set.history()
    changes = {
        tab.view: done.view,
        tab.notes: _notes(tag_set, done, entries, fresh),
        tab.result: "" if done.preview is None else _preview(done),
        tab.bar: tagger_gallery.bar(desk, entries),
        tab.tags: tagger_gallery.tags(desk),
    }
    if done.redraw:
        changes[tab.gallery] = tagger_gallery.gallery(desk, tab.room.links)
    if done.changed:
        changes[tab.history] = tagger_gallery.history(entries)
    return changes


def _refusal(done: Done) -> str:
    """Why nothing was done; for a step over captions of another program, the ways out."""
    ways = ""
    if done.outside:
        ways = "<p>" + tagger_gallery.press(f"{done.outside}-keep", "Leave those, do the rest")
        ways += tagger_gallery.press(f"{done.outside}-over", "Write over them") + "</p>"
    return pieces.messages([done.problem], "error") + ways


def _notes(tag_set: TagSet, done: Done, entries: Sequence[Entry], fresh: bool) -> str:
    """What is to be said; when a set is opened, what has happened to it meanwhile."""
    said = "".join(tagger_pieces.status(each) for each in done.said)
    if done.moving and done.moving.names and done.moving.source == tag_set.folder:
        there = json.dumps({"from": str(done.moving.target), "names": done.moving.names})
        said += f"<p>{tagger_gallery.press('put-back', 'Put them back', there)}</p>"
    if not fresh:
        return said
    cut = next((entry for entry in entries if entry.state == "done"), None)
    if cut is not None and cut.interrupted:
        title = f"{cut.title}: was cut off half way. Finish it, or undo it as a whole."
        said += pieces.messages([title]) + f"<p>{tagger_gallery.press('finish', 'Finish it')}</p>"
    if outside := tag_set.changed_outside():
        told = [f"{len(outside)} captions were changed by another program since; that is kept."]
        back = tagger_gallery.press("restore", "Bring back the texts from before")
        said += pieces.messages(told) + f"<p>{back}</p>"
    return said


def _preview(done: Done) -> str:
    assert done.preview is not None
    return tagger_pieces.would_change(done.preview.changes)
