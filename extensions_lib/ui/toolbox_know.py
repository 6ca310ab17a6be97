"""What a file is: dropped, typed or chosen; and a folder of files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from extensions_lib.api.toolbox import Work, watch
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.toolbox import sorts
from extensions_lib.ui import pieces, toolbox_page
from extensions_lib.ui.compat import side_by_side
from extensions_lib.ui.toolbox_room import ToolboxRoom
from extensions_lib.ui.toolbox_tools import file_field
from extensions_lib.ui.toolbox_work import (
    PREFIX,
    WINDOWS,
    Changes,
    said,
    wire_work,
    work_fields,
)


class Known(NamedTuple):
    """The components that others need."""

    file: gr.Textbox
    go: gr.Button


def build_know(room: ToolboxRoom) -> Known:
    """Builds the tab about a file and wires it."""
    with gr.Row(elem_id=f"{PREFIX}-about-row"):
        file = file_field(
            "about-file", "Model file", "path, or the name of a model", "any", scale=7,
            min_width=300,
        )  # fmt: skip
        go = gr.Button(
            "Look at it", variant="primary", scale=1, min_width=130, elem_id=f"{PREFIX}-about-go"
        )
    drop = gr.File(label="Drop a model file here", height=96, elem_id=f"{PREFIX}-drop")
    told = said("about-told")
    move = gr.Button("Move it there", visible=False, elem_id=f"{PREFIX}-move")
    page = said("about-page")
    outputs = [told, move, page]
    running: dict[str, Any] = {"show_progress": "hidden", **side_by_side(WINDOWS)}

    def look(text: str) -> Iterator[Changes]:
        """The page at once, and once more when the file is hashed."""
        yield {told: pieces.bar(None, "Reading …"), move: gr.update(visible=False)}
        try:
            for hashes in (False, True):
                report, against = _looked(room, text, hashes)
                shown = room.desk.shown(report.path)
                where, button = _place(room, report)
                yield {
                    told: where if hashes else where + pieces.bar(None, "Hashing …"),
                    move: button,
                    page: toolbox_page.page(report, shown, against, hashing=not hashes),
                }
        except CrucibleError as problem:
            yield {told: pieces.messages([str(problem)], "error"), page: ""}

    def dropped(given: Any) -> Iterator[Changes]:
        """A file that the page was given becomes the one that is looked at."""
        if given is None:
            return
        path = Path(getattr(given, "name", given))
        room.desk.dropped.add(path)
        for changes in look(str(path)):
            yield {file: str(path), drop: None, **changes}

    def go_there(text: str) -> Iterator[Changes]:
        try:
            moved = room.desk.move(text)
        except CrucibleError as problem:
            yield {told: pieces.messages([str(problem)], "error"), file: text}
            return
        name = room.desk.shown(moved)
        for changes in look(name):
            yield {file: name, **changes}

    go.click(look, file, outputs, **running)
    file.submit(look, file, outputs, **running)
    drop.upload(dropped, drop, [file, drop, *outputs], **running)
    move.click(go_there, file, [file, *outputs], **running)
    return Known(file, go)


def _looked(room: ToolboxRoom, text: str, hashes: bool) -> tuple[Any, str]:
    """The report, and the name of the checkpoint that a network was held against."""
    desk = room.desk
    try:
        loaded = desk.loaded()
        return desk.inspect(text, hashes=hashes, against="loaded" if loaded else ""), (
            loaded.name if loaded else ""
        )
    except FileProblem:  # of the file; or of the checkpoint, which is no reason to say nothing
        return desk.inspect(text, hashes=hashes), ""


def _place(room: ToolboxRoom, report: Any) -> tuple[str, Any]:
    """Where it belongs, and the button that moves it there."""
    home, hidden = room.desk.home(report.sort), gr.update(visible=False)
    if home is None:
        nowhere = report.sort not in (sorts.FOLDER, "")
        return (_line("It has no place in a WebUI.") if nowhere else ""), hidden
    if room.desk.is_at_home(report.path, report.sort):
        return _line("It lies where it belongs."), hidden
    shown = room.desk.shown(home)
    return _line("It belongs in", shown), gr.update(visible=True)


def _line(sentence: str, path: str = "") -> str:
    where = f" {toolbox_page.plain(path)}" if path else ""
    return f'<p role="status">{pieces.words(sentence)}{where}</p>'


def build_folder(room: ToolboxRoom) -> gr.Textbox:
    """Builds the tab about a folder: what lies in it, and what is there twice."""
    folder = gr.Textbox(
        label="Folder of model files", placeholder="/path/to/models", max_lines=1,
        elem_id=f"{PREFIX}-folder-path",
    )  # fmt: skip
    work = work_fields("folder", "Look through it", "Looking at the files …")

    def read(values: tuple[Any, ...]) -> Work:
        text = values[0] or ""
        room.desk.path(text, "a folder")
        return lambda tell, stop: room.desk.survey(text, watch(tell, stop))

    wire_work(work, room.service.jobs, read, toolbox_page.survey_page, [folder])
    return folder
