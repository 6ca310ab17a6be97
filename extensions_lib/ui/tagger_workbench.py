"""The Tagger's preparing of pictures without its page: which are taken, how they are cropped.

An order is what the browser told: `{"do": "leave", "value": "a.png"}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from extensions_lib.datasets import pictures
from extensions_lib.datasets.prepare import Box, Preparation, crop_box, target_size
from extensions_lib.datasets.survey import Survey, survey
from extensions_lib.errors import CrucibleError

PAGE = 48  # pictures
LEAST = 16  # pixels of a crop's side
Order = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What a survey found, by the pictures' names in the set."""

    broken: tuple[str, ...] = ()  # sentences
    too_small: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()  # the largest of each group first
    looked_at: int = 0

    @property
    def doubles(self) -> frozenset[str]:
        """All duplicates but the largest of each group."""
        return frozenset(name for group in self.duplicates for name in group[1:])


@dataclass(frozen=True)
class Bench:
    """What a window has chosen of a set: kept between its orders.

    `boxes` are crops drawn by hand, in pixels of the upright picture; `open` is the picture whose
    crop is being drawn, of the size `size`.
    """

    folder: Path | None = None
    subfolders: bool = False
    names: tuple[str, ...] = ()
    page: int = 1
    left_out: frozenset[str] = frozenset()
    boxes: Mapping[str, Box] = field(default_factory=dict)
    open: str = ""
    size: tuple[int, int] = (0, 0)
    found: Found | None = None

    @property
    def taken(self) -> list[str]:
        """The pictures that are prepared."""
        return [name for name in self.names if name not in self.left_out]

    def do(self, order: Order) -> Bench:
        """The bench after an order. Raises CrucibleError."""
        act = _ACTS.get(str(order.get("do")))
        if act is None:
            raise CrucibleError(f"There is no order {order.get('do')!r}.")
        return act(self, order)

    def beside(self, by: int) -> str:
        """The name of the picture so far from the open one, around the end."""
        at = self.names.index(self.open) if self.open in self.names else 0
        return self.names[(at + by) % len(self.names)]


def laid_out(folder: Path, subfolders: bool, before: Bench) -> Bench:
    """The bench of a set; what was chosen stays where it is the same. Raises PictureProblem."""
    names = tuple(
        path.relative_to(folder).as_posix() for path in pictures.find(folder, subfolders, [])
    )
    if (before.folder, before.subfolders) != (folder, subfolders):
        return Bench(folder, subfolders, names)
    return replace(before, names=names)


def surveyed(folder: Path, result: Survey) -> Found:
    """A survey with names in place of paths."""

    def name(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    return Found(
        tuple(note.reason for note in result.broken),
        tuple(map(name, result.too_small)),
        tuple(tuple(map(name, group)) for group in result.duplicates),
        len(result.sizes) + len(result.broken),
    )


def becomes(size: tuple[int, int], box: Box | None, options: Preparation) -> tuple[Box, str]:
    """What is left of a picture, in its own pixels, and the size that is brought to."""
    left, top, right, bottom = box or (0, 0, *size)
    cut = right - left, bottom - top
    target = target_size(cut, options)
    inner = crop_box(cut, target)
    kept = (left + inner[0], top + inner[1], left + inner[2], top + inner[3])
    grows = target[0] > inner[2] - inner[0] or target[1] > inner[3] - inner[1]
    small = grows and not options.enlarge and options.size in ("buckets", "square")
    return kept, f"{target[0]} × {target[1]}{', which it is too small for' if small else ''}"


# --- what an order does -----------------------------------------------------------------------


def _page(bench: Bench, order: Order) -> Bench:
    return replace(bench, page=int(order["value"]))


def _leave(bench: Bench, order: Order) -> Bench:
    return replace(bench, left_out=bench.left_out ^ {str(order["value"])})


def _leave_found(bench: Bench, order: Order) -> Bench:
    """Leaves the doubles or those that are too small out."""
    found = bench.found or Found()
    names = found.doubles if order["value"] == "doubles" else frozenset(found.too_small)
    return replace(bench, left_out=bench.left_out | names)


def _take_all(bench: Bench, _: Order) -> Bench:
    return replace(bench, left_out=frozenset())


def _open(bench: Bench, order: Order) -> Bench:
    assert bench.folder is not None
    name = str(order["value"])
    path = bench.folder / name
    if name not in bench.names:
        raise CrucibleError(f"{name}: is no picture of {bench.folder}; reload the page.")
    seen = survey([path], most_bits=None)
    if path not in seen.sizes:
        raise CrucibleError(seen.broken[0].reason)
    return replace(bench, open=name, size=seen.sizes[path])


def _close(bench: Bench, _: Order) -> Bench:
    return replace(bench, open="", size=(0, 0))


def _crop(bench: Bench, order: Order) -> Bench:
    """The box as shares of the picture's sides."""
    shares = [min(1.0, max(0.0, float(each))) for each in order["box"]]
    sides = [*bench.size, *bench.size]
    left, top, right, bottom = (
        round(share * side) for share, side in zip(shares, sides, strict=True)
    )
    name = str(order["value"])
    if name != bench.open or right - left < LEAST or bottom - top < LEAST:
        return bench
    return replace(bench, boxes={**bench.boxes, name: (left, top, right, bottom)})


def _uncrop(bench: Bench, order: Order) -> Bench:
    name = str(order["value"])
    return replace(bench, boxes={each: box for each, box in bench.boxes.items() if each != name})


_ACTS: dict[str, Callable[[Bench, Order], Bench]] = {
    "page": _page,
    "leave": _leave,
    "leave-found": _leave_found,
    "take-all": _take_all,
    "open": _open,
    "close": _close,
    "crop": _crop,
    "uncrop": _uncrop,
    "look": lambda bench, _: bench,
}
