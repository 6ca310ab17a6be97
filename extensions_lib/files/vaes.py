"""A VAE alone in a file, in ldm or diffusers layout, as the part of a checkpoint that it is."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem
from extensions_lib.files.checkpoints import standard_names
from extensions_lib.files.safe import read_any_header, read_tensors
from extensions_lib.models.layouts import pieces, put_together
from extensions_lib.models.names import checkpoint_shapes
from extensions_lib.models.strangers import describe
from extensions_lib.models.structures import VAE_PREFIX

if TYPE_CHECKING:
    from torch import Tensor

    from extensions_lib.models.families import Structure

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(r"(mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.")


def read_vae(path: str | os.PathLike[str], structure: Structure) -> dict[str, Tensor]:
    """The tensors of a VAE under the keys that they have in a checkpoint of this structure.

    Raises FileProblem: another kind of file, a part of it missing, or a VAE of another size.
    """
    path = Path(path)
    shapes = read_any_header(path).shapes
    wanted = {k: s for k, s in checkpoint_shapes(structure).items() if k.startswith(VAE_PREFIX)}
    if any(".resnets." in key for key in shapes):
        found = _from_diffusers(path, structure, shapes)
    else:
        own = {VAE_PREFIX + key.removeprefix(VAE_PREFIX): key for key in shapes}
        names = {key: own[old] for key, old in standard_names(own).items() if key in wanted}
        stored = read_tensors(path, list(names.values()))
        found = {key: stored[old] for key, old in names.items()}
    missing = [key for key in wanted if key not in found]
    if missing:
        raise FileProblem(
            f"{path}: is no VAE of this kind of model, {missing[0]} is not in it:"
            f" {describe(shapes)}"
        )
    for key, shape in wanted.items():
        if found[key].numel() != math.prod(shape) or found[key].shape[:1] != shape[:1]:
            sizes = f"{key} is {list(found[key].shape)}, expected {list(shape)}"
            raise FileProblem(f"{path}: is the VAE of another model: {sizes}")
    return {key: found[key].reshape(shape) for key, shape in wanted.items()}


def _from_diffusers(
    path: Path, structure: Structure, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    stored = {today(key): tensor for key, tensor in read_tensors(path).items()}
    found = {}
    for key, own in pieces(structure).items():
        if key.startswith(VAE_PREFIX) and all(part.name in stored for part in own):
            tensors = [stored[part.name].reshape(part.shape) for part in own]
            found[key] = put_together(own, tensors, checkpoint_shapes(structure)[key])
    return found


def today(key: str) -> str:
    """Today's name of a tensor in diffusers' VAE, which called its attention otherwise once."""
    return _OLD_ATTENTION.sub(lambda match: f"{match[1]}.{_OLD[match[2]]}.", key)
