"""Choosing a folder of this machine by looking into its folders, below the Tagger's path field."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from extensions_lib.datasets.pictures import is_picture, natural
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.ui import pieces
from extensions_lib.ui.compat import at_once
from extensions_lib.ui.tagger_edit import on_order, wire
from extensions_lib.ui.tagger_gallery import press
from extensions_lib.ui.tagger_look import Changes, said
from extensions_lib.ui.tagger_pieces import counted
from extensions_lib.ui.tagger_room import TaggerRoom

MOST = 300  # folders of a list


def build_browser(room: TaggerRoom, folder: gr.Textbox, button: gr.Button) -> None:
    """Builds the list that `button` opens; a folder that is taken is written into `folder`."""
    with gr.Column(elem_id="crucible-browse", elem_classes=["crucible-wired"]):
        orders = wire("crucible-browse")
        listing = said("crucible-browse-list")

    def look(typed: str) -> Changes:
        return {listing: _told(room, nearest(room, typed))}

    def act(order: dict[str, Any]) -> Changes:
        value = str(order.get("value") or "")
        if order["do"] == "into":
            return {listing: _told(room, value)}
        if order["do"] == "take":
            return {listing: "", folder: value}
        return {listing: ""}

    button.click(look, folder, [listing], **at_once())
    on_order(orders, act, [], [listing, folder])


def nearest(room: TaggerRoom, typed: str) -> str:
    """The folder that a path as typed is, or lies in; where it is none, the one to begin at."""
    path = room.named(typed)
    while path is not None and not path.is_dir() and path != path.parent:
        path = path.parent
    return str(path if path is not None and room.named(str(path)) is not None else room.base)


def _told(room: TaggerRoom, where: str) -> str:
    try:
        path = room.folder(where)
        return _list(room, path)
    except CrucibleError as problem:
        return pieces.messages([str(problem)], "error")


def _list(room: TaggerRoom, path: Path) -> str:
    """One folder: how many pictures it holds, the folders in it, the one around it."""
    folders, pictures = _inside(path)
    rows = [press("into", html.escape(name), path / name) for name in folders[:MOST]]
    if room.named(str(path.parent)) is not None and path.parent != path:
        rows.insert(0, press("into", "↑", path.parent, title="The folder around it"))
    if (more := len(folders) - MOST) > 0:
        rows.append(f"<span>+ {more}</span>")
    take = press("take", "Take this folder", path)
    return (
        f'<p><b translate="no">{html.escape(str(path))}</b>'
        f" <span>{counted(pictures, 'picture')}</span> {take} {press('close', 'Close')}</p>"
        f'<div translate="no">{"".join(rows)}</div>'
    )


def _inside(path: Path) -> tuple[list[str], int]:
    """Its folders in natural order, without hidden ones, and how many pictures are in it.

    Raises FileProblem.
    """
    try:
        found = list(_entries(path))
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror}).") from error
    folders = sorted((name for name, is_folder in found if is_folder), key=natural)
    return folders, sum(is_picture(name) for name, is_folder in found if not is_folder)


def _entries(path: Path) -> Iterator[tuple[str, bool]]:
    with os.scandir(path) as listing:
        for entry in listing:
            if not entry.name.startswith("."):
                yield entry.name, entry.is_dir()
