"""A run over a folder: its options, how far it is, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from extensions_lib.options import option
from extensions_lib.tagging.ensemble import WAYS
from extensions_lib.tagging.writer import Outcome


@dataclass(frozen=True)
class Run:
    """How a folder is worked through."""

    subfolders: bool = option(False, "also the folders below")
    join: str = option("union", "how several taggers become one", choices=WAYS, group="Run")
    batch: int | None = option(
        None, "pictures at once; none: 16 on a GPU, 1 on the CPU", low=1, high=256, group="Run"
    )
    decoders: int | None = option(
        None, "threads that decode pictures; none: one for each core", low=1, high=64, group="Run"
    )
    draft: bool = option(
        False, "decode large JPEGs at a part of their size: faster, not exact", group="Run"
    )
    again: bool = option(False, "ask the models also where their answers are kept", group="Run")


@dataclass(frozen=True)
class Progress:
    """How far a run is; `rate` in pictures/s, `left` in seconds, None while not known."""

    done: int
    total: int
    rate: float
    left: float | None
    problems: int


@dataclass
class Report:
    """What a run did. `inferred` pictures were asked about, the answers of others were kept.

    `changes` are those of a dry run, else empty. `problems` are the outcomes of pictures that could
    not be read or captions that could not be written, `messages` what else is to be said.
    """

    total: int
    done: int = 0
    inferred: int = 0
    written: int = 0
    unchanged: int = 0
    kept: int = 0
    stopped: bool = False
    seconds: float = 0.0
    problems: list[Outcome] = field(default_factory=list)
    changes: list[Outcome] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The pictures of a run, and those of them that have a caption which somebody else wrote."""

    root: Path
    pictures: tuple[Path, ...]
    existing: tuple[Path, ...]
    problems: tuple[Outcome, ...]
    messages: tuple[str, ...]
