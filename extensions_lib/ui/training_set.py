"""What the Check found, as HTML: numbers, what speaks against it, crops, prompts; all escaped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from extensions_lib.ui import pieces
from extensions_lib.ui.tagger_pieces import plain, problem_list

if TYPE_CHECKING:
    from extensions_lib.datasets.items import Picture
    from extensions_lib.training.data_report import DataReport
    from extensions_lib.training.preflight import Cost, Preflight
    from extensions_lib.ui.tagger_links import Links

_SHOWN = 24  # pictures of one bucket
_SIDE = 96  # pixels of a small picture's longer side


def steps_label(steps: int) -> str:
    """What the main button will do."""
    return f"Train {steps:,} steps"


def summary(found: Preflight) -> str:
    """In a line what there is and what it takes; below what speaks against it, and notes."""
    said = ""
    if found.data is not None:
        parts = _of_data(found.data) + _of_run(found)
        said = f'<p class="crucible-training-sum" role="status">{pieces.words(*parts)}</p>'
    return said + pieces.messages(found.problems, "error") + pieces.messages(found.notes)


def _of_data(data: DataReport) -> list[str]:
    parts = [str(data.pictures), "pictures"]
    captions = data.pictures - len(data.uncaptioned)
    files = " + ".join(sorted(data.suffixes))
    parts += [f"· {captions}", "captions"] + ([f"({files})"] if files else [])
    if data.uncaptioned:
        parts += [f"({len(data.uncaptioned)}", "missing", ")"]
    if data.regular:
        parts += [f"· {data.regular}", "of regularisation"]
    if data.held_out:
        parts += [f"· {data.held_out}", "held out"]
    return [*parts, f"· {len(data.buckets)}", "sizes"]


def _of_run(found: Preflight) -> list[str]:
    parts = [f"· {found.steps:,}", "steps", f"· {found.epochs:.1f}", "epochs"]
    if found.cost is not None:
        parts += _of_cost(found.cost)
    return parts


def _of_cost(cost: Cost) -> list[str]:
    parts = ["· about", pieces.clock(cost.seconds)]
    needed = _gigabytes(cost.bytes_needed)
    if cost.bytes_there is None:
        parts += [f"· {needed} GB"]
    else:
        parts += [f"· {needed}", "of", f"{_gigabytes(cost.bytes_there)} GB"]
    return [*parts, f"· {cost.trained / 1e6:.1f} M", "numbers learn in", str(cost.layers), "layers"]


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f}"


# --- details ----------------------------------------------------------------------------------


def missing(data: DataReport) -> str:
    """Pictures without a caption, with an empty one, and those that cannot be read."""
    broken = [f"{note.name}: {note.reason}" for note in data.broken]
    return (
        problem_list("pictures without a caption", data.uncaptioned)
        + problem_list("captions are empty", data.empty)
        + problem_list("pictures cannot be read", broken)
    )


def crops(pictures: Sequence[Picture], links: Links) -> str:
    """The pictures by the size at which they are trained, each with what is seen of it."""
    by_size: dict[tuple[int, int], list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_size[picture.where.bucket].append(picture)
    return "".join(
        _bucket(size, those, links)
        for size, those in sorted(by_size.items(), key=lambda pair: -len(pair[1]))
    )


def _bucket(size: tuple[int, int], pictures: Sequence[Picture], links: Links) -> str:
    head = pieces.words(f"{size[0]} × {size[1]}", f"· {len(pictures)}", "pictures")
    more = len(pictures) - _SHOWN
    rest = f"<p>+ {more}</p>" if more > 0 else ""
    shown = "".join(_crop(picture, links) for picture in pictures[:_SHOWN])
    return (
        f'<section class="crucible-training-bucket"><h4>{head}</h4>'
        f'<div class="crucible-training-crops">{shown}{rest}</div></section>'
    )


def _crop(picture: Picture, links: Links) -> str:
    """The picture, dimmed where it is cropped away; by what factor it is resized."""
    where = picture.where
    (width, height), (left, top, right, bottom) = where.size, where.seen
    small = _SIDE / max(width, height)
    edges = (top / height, 1 - right / width, 1 - bottom / height, left / width)
    inset = " ".join(f"{max(0.0, each):.2%}" for each in edges)
    return (
        f'<figure><div style="width:{width * small:.0f}px;height:{height * small:.0f}px">'
        f'<img alt="" loading="lazy" src="{links.to(picture.path)}">'
        f'<i style="inset:{inset}"></i></div>'
        f"<figcaption>{plain(picture.path.name)}"
        f"<small>{width} × {height} · {where.scale:.0%}</small></figcaption></figure>"
    )


def prompts(data: DataReport) -> str:
    """The prompts of the first epoch, as the text encoders are given them."""
    rows = "".join(
        f"<tr><th>{plain(name)}</th><td>{plain(prompt) if prompt else '<i>—</i>'}</td></tr>"
        for name, prompt in data.prompts
    )
    more = data.pictures - len(data.prompts)
    rest = f"<p>+ {more}</p>" if more > 0 else ""
    return (
        f'<div class="crucible-tagger-scroll"><table class="crucible-tagger-changes"><tbody>{rows}'
        f"</tbody></table></div>{rest}"
    )
