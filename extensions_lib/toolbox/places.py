"""Putting a file where a WebUI looks for it, never over another one."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from extensions_lib.atomic import atomic_write, place_new, reason
from extensions_lib.errors import FileProblem
from extensions_lib.toolbox.report import Report
from extensions_lib.toolbox.work import ToolProblem, free_name

# What lies beside a file of that stem and belongs to it.
_BESIDE = (
    ".json", ".txt", ".yaml", ".civitai.info", ".preview.png", ".png", ".jpg", ".jpeg", ".webp",
    ".preview.jpg", ".preview.jpeg", ".preview.webp", ".description.txt",
)  # fmt: skip


def place_in(report: Report, webui: Path) -> Path:
    """Where a file belongs in a WebUI's folder. Raises ToolProblem where it belongs nowhere."""
    if not report.place:
        raise ToolProblem(f"{report.path}: is {report.what}, which has no place in a WebUI")
    if not (webui / "models").is_dir():
        raise FileProblem(f"{webui}: is no WebUI, it has no folder models; name the WebUI's folder")
    return webui / report.place / report.path.name


def move_there(report: Report, webui: Path, *, number: bool = False) -> Path:
    """Moves a file, and what belongs to it (preview, notes), to its place; returns the new path.

    Raises FileProblem where a file of that name is there already and `number` is not set.
    """
    return move_into(report.path, place_in(report, webui).parent, number=number)


def move_into(path: Path, folder: Path, *, number: bool = False) -> Path:
    """Moves a file, and what belongs to it, into a folder; returns the new path.

    Raises FileProblem where a file of that name is there already and `number` is not set.
    """
    target = folder / path.name
    if os.path.lexists(target):
        if target.exists() and target.samefile(path):
            return target
        if not number:
            raise FileProblem(f"{target}: is there already; nothing was moved")
        target = free_name(target)
    _move(path, target)
    for ending in _BESIDE:
        beside = path.with_name(path.stem + ending)
        there = target.with_name(target.stem + ending)
        if beside != path and beside.is_file() and not os.path.lexists(there):
            _move(beside, there)
    return target


def _move(source: Path, target: Path) -> None:
    """To another disk it is copied whole before the source goes. Raises FileProblem."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place_new(source, target)
    except FileExistsError as error:
        raise FileProblem(f"{target}: is there already; nothing was moved") from error
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise FileProblem(f"{target}: could not be moved there ({reason(error)})") from error
        with atomic_write(target, fresh=True) as temporary:
            shutil.copyfile(source, temporary)
        shutil.copystat(source, target)
        source.unlink()
