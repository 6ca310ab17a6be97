"""Pictures made ready for training, in another folder: cropped, resized, mirrored, with captions.

The originals are only read. What is in the output folder already is left, so that a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.atomic import atomic_write
from extensions_lib.datasets import buckets, captions, faces
from extensions_lib.datasets.at_once import Note, Progress, at_once
from extensions_lib.datasets.pictures import PictureProblem, open_picture
from extensions_lib.datasets.survey import is_upright
from extensions_lib.errors import CrucibleError
from extensions_lib.options import option

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Point = tuple[float, float]

_CROPPED = ("buckets", "square")
_MIRRORED = "_mirrored"
_FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


class PrepareProblem(CrucibleError):
    """Pictures that cannot be prepared as asked."""


@dataclass(frozen=True)
class Preparation:
    """How pictures are prepared."""

    size: str = option(
        "buckets",
        "what they are brought to: the nearest bucket or a square of that side (both cropped), that"
        " longer or shorter side, or the size they have",
        choices=("buckets", "square", "longer", "shorter", "as it is"),
    )
    side: int = option(
        1024, "the side; of buckets, that of the square one", unit="pixels", low=64, high=8192
    )
    step: int = option(
        64, "what the sides of buckets are multiples of", unit="pixels", low=8, high=512
    )
    crop: str = option(
        "centre",
        "what stays in sight when a picture is cropped: its centre, or faces in photographs",
        choices=("centre", "faces"),
    )
    enlarge: bool = option(
        False, "enlarge pictures that are too small, instead of leaving them out"
    )
    mirror: bool = option(False, "add a copy of each picture with left and right exchanged")
    format: str = option(
        "png", "the files' format; pictures that need no change are copied as they are",
        choices=tuple(_FORMATS),
    )  # fmt: skip
    quality: int = option(95, "of JPEG and WEBP files", low=1, high=100)
    captions: bool = option(True, "copy captions along")


@dataclass(frozen=True)
class Prepared:
    """What was done: files written, pictures left out and why, what else is to be said."""

    written: tuple[Path, ...]
    left_out: tuple[Note, ...]
    notes: tuple[Note, ...] = ()
    stopped: bool = False


# --- one picture ------------------------------------------------------------------------------


def fitted(picture: Image, options: Preparation, focus: Point | None = None) -> Image | None:
    """A picture in RGB cropped and resized (Lanczos); None if it is too small for that.

    `focus` (x, y in pixels) stays as near to the middle as can be; None: the centre.
    """
    from PIL import Image

    target = target_size(picture.size, options)
    box = crop_box(picture.size, target, focus)
    if (box[2] - box[0], box[3] - box[1]) == target:
        return picture.crop(box) if target != picture.size else picture
    too_small = target[0] > box[2] - box[0] or target[1] > box[3] - box[1]
    if too_small and options.size in _CROPPED and not options.enlarge:
        return None
    return picture.resize(target, Image.Resampling.LANCZOS, box=box)


def target_size(size: tuple[int, int], options: Preparation) -> tuple[int, int]:
    """The size (width, height) that a picture is brought to."""
    if options.size == "square":
        return options.side, options.side
    if options.size == "buckets":
        side, step = options.side, options.step
        least, most = max(step, side // 4 // step * step), 2 * side
        return buckets.nearest(size, buckets.sizes(side * side, step, least, most))
    if options.size == "as it is":
        return size
    given = max(size) if options.size == "longer" else min(size)
    if given <= options.side and not options.enlarge:
        return size
    scale = options.side / given
    width, height = (max(1, round(each * scale)) for each in size)
    return width, height


def crop_box(size: tuple[int, int], target: tuple[int, int], focus: Point | None = None) -> Box:
    """The largest box of the target's shape in a picture, with `focus` as near to its middle as
    the picture's edges allow."""
    scale = min(size[0] / target[0], size[1] / target[1])
    box = []
    for whole, wanted, middle in zip(
        size, target, focus or (size[0] / 2, size[1] / 2), strict=True
    ):
        long = min(whole, max(1, round(wanted * scale)))
        start = min(max(0, round(middle - long / 2)), whole - long)
        box.append((start, start + long))
    (left, right), (top, bottom) = box
    return left, top, right, bottom


# --- a folder ---------------------------------------------------------------------------------


def prepare(
    folder: str | os.PathLike[str],
    paths: Sequence[Path],
    output: str | os.PathLike[str],
    options: Preparation,
    *,
    boxes: Mapping[Path, Box] | None = None,
    threads: int | None = None,
    on_progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Prepared:
    """Prepares the pictures `paths` of a set `folder`; subfolders are kept.

    `boxes` are cut out first, in pixels of the upright picture. A picture that cannot be read, or
    is too small, is left out and said. Raises PrepareProblem for an output folder within the set,
    or around it, and where faces are asked for and cannot be found; FileProblem where nothing can
    be written.
    """
    source, target = Path(folder), Path(output)
    _check_apart(source, target)
    if options.crop == "faces" and (why := faces.why_not()):
        raise PrepareProblem(why)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrepareProblem(
            f"{target}: cannot be made ({error.strerror}); name another."
        ) from error
    jobs = _jobs(source, paths, target, options, boxes or {})
    written: list[Path] = []
    left_out: list[Note] = []
    notes: list[Note] = []
    for job, done in at_once(_do, jobs, threads, on_progress, stop):
        if isinstance(done, CrucibleError):  # nothing can be written, or faces cannot be found
            raise done
        written += done.written
        left_out += [Note(str(job.picture), why) for why in done.left_out]
        notes += [Note(str(job.picture), said) for said in done.notes]
    return Prepared(
        tuple(written), tuple(left_out), tuple(notes), stop is not None and stop.is_set()
    )


def _check_apart(source: Path, output: Path) -> None:
    real, other = source.resolve(), output.resolve()
    if real == other or real in other.parents or other in real.parents:
        raise PrepareProblem(
            f"{output}: lies in the set {source} or around it, where originals could be taken for"
            " prepared pictures; name a folder beside it."
        )


@dataclass(frozen=True)
class _Job:
    """One picture; `target` is where its copy goes, without suffix."""

    picture: Path
    target: Path
    options: Preparation
    box: Box | None


@dataclass
class _Done:
    written: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _jobs(
    source: Path,
    paths: Sequence[Path],
    target: Path,
    options: Preparation,
    boxes: Mapping[Path, Box],
) -> list[_Job]:
    taken: set[str] = set()
    jobs = []
    for path in paths:
        try:
            below = path.relative_to(source)
        except ValueError:
            raise PrepareProblem(f"{path}: is no picture of {source}.") from None
        # a.png and a.jpg become one file's name: the second is a_jpg
        stem, number = below.with_name(below.stem), 1
        while str(stem).casefold() in taken:
            tail = below.suffix[1:] + (str(number) if number > 1 else "")
            stem, number = below.with_name(f"{below.stem}_{tail}"), number + 1
        taken |= {str(stem).casefold(), f"{stem}{_MIRRORED}".casefold()}
        jobs.append(_Job(path, target / stem, options, boxes.get(path)))
    return jobs


def _do(job: _Job) -> _Done:
    done = _Done()
    targets = [job.target] + [_suffixed(job.target, _MIRRORED)] * job.options.mirror
    missing = [target for target in targets if not _there(target, job)]
    if not missing:
        done.left_out.append(f"{job.picture.name}: is in the output folder already.")
        return done
    try:
        picture = open_picture(job.picture)
        whole = picture if job.box is None else picture.crop(_within(job.box, picture.size, job))
    except (PictureProblem, PrepareProblem) as problem:
        done.left_out.append(str(problem))
        return done
    made = fitted(whole, job.options, _focus(whole, job, done))
    if made is None:
        width, height = target_size(whole.size, job.options)
        done.left_out.append(
            f"{job.picture.name}: {whole.width} × {whole.height} pixels are too few for"
            f" {width} × {height}."
        )
        return done
    for target in missing:
        if job.options.captions:
            _copy_caption(job.picture, target)
        done.written.append(_write(made, picture, job, target))
    return done


def _there(target: Path, job: _Job) -> bool:
    suffixes = {job.picture.suffix, _FORMATS[job.options.format]}
    return any(_suffixed(target, suffix).exists() for suffix in suffixes)


def _suffixed(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _within(box: Box, size: tuple[int, int], job: _Job) -> Box:
    left, top, right, bottom = box
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise PrepareProblem(
            f"{job.picture.name}: the box {box} is not within its {size[0]} × {size[1]} pixels."
        )
    return box


def _focus(picture: Image, job: _Job, done: _Done) -> Point | None:
    if job.options.crop != "faces" or job.options.size not in _CROPPED:
        return None
    found = faces.find_faces(picture)
    if not found:
        done.notes.append(f"{job.picture.name}: no face was found; cropped at the centre.")
        return None
    left, top, right, bottom = found[0]
    return (left + right) / 2, (top + bottom) / 2


def _write(made: Image, picture: Image, job: _Job, target: Path) -> Path:
    from PIL import Image

    mirrored = target != job.target
    if made is picture and not mirrored and is_upright(job.picture):
        path = _suffixed(target, job.picture.suffix)
        with atomic_write(path, durable=False) as temporary:
            shutil.copyfile(job.picture, temporary)
        return path
    if mirrored:
        made = made.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    kind = job.options.format
    saving: dict[str, Any] = {} if kind == "png" else {"quality": job.options.quality}
    if kind == "jpeg":
        saving["subsampling"] = 0
    path = _suffixed(target, _FORMATS[kind])
    with atomic_write(path, durable=False) as temporary:
        made.save(temporary, format=kind.upper(), **saving)
    return path


def _copy_caption(picture: Path, target: Path) -> None:
    """Copies the caption as it is; one that is there already may have been worked on, and stays."""
    path = captions.caption_path(picture)
    copy = _suffixed(target, path.suffix)
    if path.exists() and not copy.exists():
        with atomic_write(copy, durable=False) as temporary:
            shutil.copyfile(path, temporary)
