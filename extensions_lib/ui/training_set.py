"""What the Check found, as HTML: numbers, what speaks against it, crops, prompts; all escaped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from extensions_lib.ui import pieces
from extensions_lib.ui.tagger_pieces import plain, problem_list

if TYPE_CHECKING:
    from extensions_lib.datasets.items import Picture
    from extensions_lib.training.data import TrainingData
    from extensions_lib.training.data_report import DataReport
    from extensions_lib.training.preflight import Cost, Preflight
    from extensions_lib.ui.tagger_links import Links

_SHOWN = 24  # pictures of one bucket
_SIDE = 96  # pixels of a small picture's longer side


def steps_label(steps: int) -> str:
    """What the main button will do."""
    return f"Train {steps:,} steps"


# Out of sight until an option is changed (training.js, style.css).
_OLD = (
    '<p class="crucible-training-old">'
    f"{pieces.words('An option has changed since: press Check again.')}</p>"
)


def summary(found: Preflight) -> str:
    """In a line what there is and what it takes; below what speaks against it, and notes."""
    said = ""
    if found.data is not None and found.pictures is not None:
        parts = [*_of_data(found.data, found.pictures), *_of_run(found)]
        said = f'<p class="crucible-training-sum" role="status">{pieces.words(*parts)}</p>{_OLD}'
    return said + pieces.messages(found.problems, "error") + pieces.messages(found.notes)


def _of_data(data: DataReport, pictures: TrainingData) -> list[str]:
    regular = sum(each.subset.is_reg for each in pictures.used)
    parts = _count(data.pictures - regular, "picture", "pictures")
    parts += [f"+ {regular}", "of regularisation"] if regular else []
    parts += ["·", *_count(data.pictures - len(data.uncaptioned), "caption", "captions")]
    parts += [f"({' + '.join(sorted(data.suffixes))})"] if data.suffixes else []
    if data.uncaptioned:
        parts += [f"· {len(data.uncaptioned)}", "missing"]
    if data.held_out:
        parts += [f"· {data.held_out}", "held out"]
    return [*parts, "·", *_count(len(data.buckets), "size", "sizes")]


def _of_run(found: Preflight) -> list[str]:
    parts = ["·", *_count(found.steps, "step", "steps"), f"= {found.epochs:.1f}", "epochs"]
    if found.cost is not None:
        parts += _of_cost(found.cost)
    return parts


def _of_cost(cost: Cost) -> list[str]:
    parts = ["·", "about", pieces.clock(cost.seconds), f"· {_bytes(cost.bytes_needed)}"]
    if cost.bytes_there is not None:
        parts += ["of", _bytes(cost.bytes_there), "free"]
    learnt = f"{cost.trained / 1e6:.2g}" if cost.trained < 1e7 else f"{cost.trained / 1e6:.0f}"
    return [*parts, f"· {learnt} M", "numbers learn"]


def _count(count: int, one: str, many: str) -> list[str]:
    return [f"{count:,}", one if count == 1 else many]


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 / 10 else f"{count / 2**20:.0f} MB"


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
    count = _count(len(pictures), "picture", "pictures")
    head = pieces.words(f"{size[0]} × {size[1]}", "·", *count)
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
