"""The whole state of a run on disk, from which it goes on as if it had never stopped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extensions_lib.atomic import atomic_write
from extensions_lib.errors import FileProblem

_FORMAT = 1
_NAME = re.compile(r"step-(\d{8})\.state")


def save_state(folder: Path, state: Mapping[str, Any], about: Mapping[str, Any], keep: int) -> Path:
    """Writes the state (Loop.state) and what else is to be kept, plain values and tensors alone.

    The `keep` newest of the folder stay, also where writing fails. Raises FileProblem.
    """
    import torch

    path = folder / f"step-{state['done']:08d}.state"
    with atomic_write(path) as temporary:
        torch.save({"format": _FORMAT, "state": dict(state), "about": dict(about)}, temporary)
    for old in states(folder)[: -max(1, keep)]:
        old.unlink(missing_ok=True)
    return path


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and what was kept with it. Raises FileProblem for anything that is no such file."""
    from extensions_lib.files.pickles import read_pickle

    held = read_pickle(path)
    if not (isinstance(held, dict) and held.get("format") == _FORMAT and "state" in held):
        raise FileProblem(f"{path}: is no state of a training run of this version.")
    return held["state"], held["about"]


def states(folder: Path) -> list[Path]:
    """The states in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
