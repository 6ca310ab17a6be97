"""The checkpoints that the standalone host offers, described from their headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from extensions_lib.errors import FileProblem

EXAMPLE = "a photo of a lighthouse on a cliff, evening light"


@dataclass(frozen=True)
class CheckpointInfo:
    """What the page needs to know: `size` (width, height), `cfg` and `example` prompt that suit."""

    path: Path
    family: str = ""
    size: tuple[int, int] = (512, 512)
    cfg: float = 7.0
    example: str = EXAMPLE
    problem: str = ""


def describe(path: Path) -> CheckpointInfo:
    """Family, size and example prompt; with `problem` instead if the file is no checkpoint.

    A checkpoint may name an example in its metadata (`crucible.example`).
    """
    from extensions_lib.files.checkpoints import checkpoint_structure
    from extensions_lib.files.safe import read_any_header
    from extensions_lib.hosts.standalone import StandaloneHost

    try:
        family = checkpoint_structure(path).family.value
        host = StandaloneHost(path)
        size, cfg = host.default_size(), host.default_cfg()
        example = read_any_header(path).metadata.get("crucible.example")
    except FileProblem as problem:
        return CheckpointInfo(path, problem=str(problem))
    return CheckpointInfo(path, family, size, cfg, example or EXAMPLE)
