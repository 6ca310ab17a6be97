"""Putting a file where a WebUI looks for it, never over another one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from extensions_lib.atomic import reason
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
    target = place_in(report, webui)
    if os.path.lexists(target):
        if target.exists() and target.samefile(report.path):
            return target
        if not number:
            raise FileProblem(f"{target}: is there already; nothing was moved")
        target = free_name(target)
    pairs = [(report.path, target)]
    for ending in _BESIDE:
        beside = report.path.with_name(report.path.stem + ending)
        there = target.with_name(target.stem + ending)
        if beside != report.path and beside.is_file() and not os.path.lexists(there):
            pairs.append((beside, there))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for source, goal in pairs:
            shutil.move(source, goal)
    except OSError as error:
        raise FileProblem(f"{target}: could not be moved there ({reason(error)})") from error
    return target
