"""Textual inversion: files that hold what some words of a prompt mean, as vectors.

Known forms: the WebUI's `.pt` (`string_to_param`), diffusers' `.bin` and `.safetensors` (one
tensor under any name), SDXL's pair `clip_l` and `clip_g`, and pictures that carry one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.files.embedding_pictures import (
    PICTURES,
    list_shape,
    picture_data,
    stated_name,
)
from extensions_lib.files.header import AGAIN, short
from extensions_lib.files.safe import (
    PICKLE_SUFFIXES,
    atomic_write,
    is_pickle,
    read_any_header,
    read_header,
    read_tensors,
    write_safetensors,
)
from extensions_lib.models.strangers import describe

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".bin", *PICTURES)
SINGLE = ""  # the part of a model with one text encoder
PAIR = ("clip_l", "clip_g")  # the parts of SDXL's two
_ALSO_CALLED = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
# of OneTrainer: added to what a text encoder gives, where others take the place of tokens
_BEHIND = ("clip_l_out", "clip_g_out", "emb_params_out", "emp_params_out")
_STATED_STEP, _STATED_HASH, _STATED_MODEL = "step", "sd_checkpoint", "sd_checkpoint_name"

Shape = tuple[int, ...]
Key = tuple[str, int, int]


@dataclass(frozen=True)
class EmbeddingFacts:
    """What can be told of an embedding without reading its numbers."""

    widths: Mapping[str, int]  # part ("" or "clip_l", "clip_g") -> numbers in a vector
    vectors: int
    name: str | None = None  # stated inside a picture


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vectors of one name: by part ("" or "clip_l", "clip_g"), [vectors, width] in float32.

    `step`, `checkpoint_hash` and `checkpoint` say how it was trained, where the file does.
    """

    name: str
    parts: Mapping[str, Tensor]
    path: Path | None = None
    key: Key = ("", 0, 0)  # content identity: absolute path, size, time of the last change in ns
    step: int | None = None
    checkpoint_hash: str | None = None
    checkpoint: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)  # a safetensors file's metadata

    @property
    def vectors(self) -> int:
        return next(iter(self.parts.values())).shape[0]

    @property
    def widths(self) -> dict[str, int]:
        return {part: tensor.shape[1] for part, tensor in self.parts.items()}


def misfit(widths: Mapping[str, int], encoders: Sequence[int]) -> str | None:
    """Why vectors of these widths do not fit text encoders of those; None if they do.

    One encoder takes the part "", two take "clip_l" and "clip_g".
    """
    needed = dict(zip(part_names(len(encoders)), encoders, strict=True))
    if dict(widths) == needed:
        return None
    return f"its vectors are {_wide(widths)} wide, the loaded checkpoint needs {_wide(needed)}"


def part_names(encoders: int) -> tuple[str, ...]:
    """The parts of an embedding that so many text encoders take, in their order."""
    return (SINGLE,) if encoders == 1 else PAIR


def _wide(widths: Mapping[str, int]) -> str:
    return " + ".join(
        f"{widths[part]} ({part})" if part else str(widths[part]) for part in sorted(widths)[::-1]
    )


# --- reading ----------------------------------------------------------------------------------


def embedding_facts(path: str | os.PathLike[str]) -> EmbeddingFacts | None:
    """What a file in an embedding folder is, without torch; None for a picture without one.

    Raises FileProblem if it is broken, or something else.
    """
    path = Path(path)
    if path.suffix.lower() in PICTURES:
        data = picture_data(path)
        if data is None:
            return None
        shapes = {key: shape for key, (_, shape) in _lists(data).items()}
        return _facts(path, shapes, stated_name(data))
    return _facts(path, read_any_header(path).shapes)


def _facts(path: Path, shapes: Mapping[str, Shape], name: str | None = None) -> EmbeddingFacts:
    chosen = _chosen(path, shapes)
    counts = {shapes[key][0] if len(shapes[key]) == 2 else 1 for key in chosen.values()}
    if len(counts) > 1:
        raise FileProblem(f"{path}: its clip_l and clip_g have unlike numbers of vectors; {AGAIN}")
    return EmbeddingFacts(
        {part: shapes[key][-1] for part, key in chosen.items()}, counts.pop(), name
    )


def _chosen(label: object, shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Part -> the tensor that holds it. Raises FileProblem where that is not clear."""
    behind = next((key for key in shapes if key in _BEHIND), None)
    shapes = {key: shape for key, shape in shapes.items() if key not in _BEHIND}
    if behind and not shapes:
        raise FileProblem(
            f"{label}: holds vectors for the output of a text encoder ('{behind}'), which are not"
            " supported; train it as an embedding of the input"
        )
    params = [key for key in shapes if key.split(".", 1)[0] == "string_to_param"]
    pair = {_ALSO_CALLED.get(key, key): key for key in shapes}
    if params:
        found = {SINGLE: params[0]} if len(params) == 1 else {}
    elif all(part in pair for part in PAIR):
        found = {part: pair[part] for part in PAIR}
    elif "emb_params" in shapes:
        found = {SINGLE: "emb_params"}
    else:
        found = {SINGLE: next(iter(shapes))} if len(shapes) == 1 else {}
    if not found:
        raise FileProblem(
            f"{label}: is no embedding, which holds one tensor, or clip_l and clip_g:"
            f" {describe(shapes)}"
        )
    for key in found.values():
        if len(shapes[key]) not in (1, 2) or 0 in shapes[key]:
            raise FileProblem(
                f"{label}: is no embedding: its tensor '{short(key)}' has the shape"
                f" {list(shapes[key])}, expected [vectors, width]"
            )
    return found


def read_embedding(path: str | os.PathLike[str], name: str | None = None) -> Embedding:
    """Reads an embedding. `name` None: as a picture states it, else the file's stem.

    Raises FileProblem: also for a picture without one, and for values that are no finite numbers.
    """
    from extensions_lib.files.networks import network_key

    path = Path(path)
    key = network_key(path)  # before the read: a change while reading gives another key later
    stated: Mapping[str, Any] = {}
    notes: dict[str, str] = {}
    if path.suffix.lower() in PICTURES:
        data = picture_data(path)
        if data is None:
            raise FileProblem(f"{path}: is a picture without an embedding in it")
        stated, tensors = data, _tensors_of(path, data)
        name = name or stated_name(data)
    elif is_pickle(path):
        tensors, stated = _from_pickle(path)
    else:
        tensors, notes = read_tensors(path), dict(read_header(path).metadata)
        stated = notes
    return Embedding(
        name or path.stem,
        _parts(path, tensors),
        path,
        key,
        _number(stated.get(_STATED_STEP)),
        _text(stated.get(_STATED_HASH)),
        _text(stated.get(_STATED_MODEL)),
        notes,
    )


def embedding_of(name: str, tensors: Mapping[str, Tensor], key: Key = ("", 0, 0)) -> Embedding:
    """An embedding that came inside another file (a bundle), from its tensors by their names there.

    Raises FileProblem.
    """
    return Embedding(name, _parts(f"embedding '{short(name)}'", tensors), key=key)


def _from_pickle(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    from extensions_lib.files.pickles import flatten, read_pickle

    loaded = read_pickle(path)
    return flatten(loaded, path), loaded if isinstance(loaded, Mapping) else {}


def _parts(label: object, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    parts = {}
    for part, key in _chosen(label, shapes).items():
        tensor = tensors[key].detach()
        if not tensor.is_floating_point():
            raise FileProblem(f"{label}: '{short(key)}' holds {tensor.dtype}, expected numbers")
        # a copy: the file may be replaced while this is in use
        vectors = tensor.reshape(-1, tensor.shape[-1]).to(torch.float32, copy=True)
        if not bool(torch.isfinite(vectors).all()):
            raise FileProblem(f"{label}: '{short(key)}' holds values that are no numbers; {AGAIN}")
        parts[part] = vectors
    if len({len(vectors) for vectors in parts.values()}) > 1:
        raise FileProblem(f"{label}: its clip_l and clip_g have unlike numbers of vectors; {AGAIN}")
    return parts


def _lists(data: Mapping[str, Any]) -> dict[str, tuple[list[Any], Shape]]:
    """The tensors in a picture's JSON, which are nested lists there, by dotted name."""
    found = {}
    for key, value in data.items():
        inner = value if isinstance(value, dict) else {"": value}
        for below, item in inner.items():
            shape = list_shape(item)
            if shape is not None:
                found[f"{key}.{below}" if below else key] = (item, shape)
    return found


def _tensors_of(path: Path, data: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    try:
        # a number too large for float32 becomes infinite, which `_parts` refuses
        return {
            key: torch.tensor(item, dtype=torch.float64).to(torch.float32)
            for key, (item, _) in _lists(data).items()
        }
    except (OverflowError, ValueError, RuntimeError) as error:
        raise FileProblem(f"{path}: its embedding is broken ({short(error)}); {AGAIN}") from None


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) < 12:
        return int(value)
    return value if type(value) is int else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


# --- writing ----------------------------------------------------------------------------------


def write_embedding(
    path: str | os.PathLike[str], embedding: Embedding, *, fresh: bool = False
) -> None:
    """Writes an embedding, atomically, so that the WebUIs, ComfyUI and diffusers read it.

    `.safetensors`: `emb_params`, or `clip_l` and `clip_g`, with how it was trained as metadata.
    `.pt`: the WebUI's own dict; the WebUI reads nothing but the vectors of a pair.
    `fresh` as in `atomic_write`. Raises FileProblem.
    """
    path = Path(path)
    stated = {
        _STATED_STEP: embedding.step,
        _STATED_HASH: embedding.checkpoint_hash,
        _STATED_MODEL: embedding.checkpoint,
    }
    parts = {part: tensor.detach().cpu().contiguous() for part, tensor in embedding.parts.items()}
    if path.suffix.lower() in PICKLE_SUFFIXES:
        _write_pickle(path, embedding.name, parts, stated, fresh)
        return
    told = {key: str(value) for key, value in stated.items() if value is not None}
    tensors = {part or "emb_params": tensor for part, tensor in parts.items()}
    metadata = {**embedding.notes, **told, "name": embedding.name}
    write_safetensors(path, tensors, metadata, fresh=fresh)


def _write_pickle(
    path: Path, name: str, parts: Mapping[str, Tensor], stated: Mapping[str, Any], fresh: bool
) -> None:
    import torch

    data: dict[str, Any] = dict(parts)
    if SINGLE in parts:
        data = {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": parts[SINGLE]},
            "name": name,
            **stated,
        }
    with atomic_write(path, fresh=fresh) as temporary:
        # the older form is the one that AUTOMATIC1111's own unpickler knows
        torch.save(data, temporary, _use_new_zipfile_serialization=False)
