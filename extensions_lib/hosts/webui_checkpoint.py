"""What both WebUIs note of the checkpoint in memory in the same way, for a LoadedModel of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from extensions_lib.errors import FileProblem, NetworkProblem
from extensions_lib.models.families import Structure

FOR = "Crucible's networks work on SD1, SD2 and SDXL checkpoints"


class Noted(TypedDict):
    """Fields of a LoadedModel."""

    name: str
    path: Path | None
    hash: str
    metadata: dict[str, str]


def noted(sd_model: Any) -> Noted:
    """The checkpoint's name, file and metadata, from the WebUI's note of it on its object."""
    info = getattr(sd_model, "sd_checkpoint_info", None)
    metadata = getattr(info, "metadata", None) or {}
    return {
        "name": getattr(info, "name", None) or type(sd_model).__name__,
        "path": Path(info.filename) if info is not None else None,
        "hash": getattr(info, "sha256", None) or "",
        "metadata": {key: str(value) for key, value in metadata.items()},
    }


def structure_by(found: Callable[[], Structure]) -> Structure:
    """What `found` gives. Raises NetworkProblem where it meets none that networks are for."""
    try:
        return found()
    except FileProblem as problem:
        raise NetworkProblem(f"{FOR}: {problem}") from None
