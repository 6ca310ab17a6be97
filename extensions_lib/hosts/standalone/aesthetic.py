"""Aesthetic gradients (SD1): `<aesthetic:name:weight:steps=5:rate=0.0001>`.

After Gallego 2022, "Personalizing Text-to-Image Generation via Aesthetic Gradients"
(arXiv 2209.12330): a copy of the text encoder takes some steps of Adam that turn the prompt's
vector towards the mean vector of some pictures, and what it then makes of the prompt is blended in.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.files.aesthetics import find_projection, read_aesthetic, read_projection
from extensions_lib.files.networks import network_key
from extensions_lib.models.families import Family
from extensions_lib.prompts.tags import NetworkTag, split_tags

if TYPE_CHECKING:
    from extensions_lib.library import Library
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.prompts.tags import NetworkRequest

KIND = "aesthetic"
MAX_STEPS = 100
PROJECTIONS = ("CLIP", "clip", "text_encoder", "text_encoders")  # folders in models/
_NAMED = ("weight", "steps", "rate", "slerp")


@dataclass(frozen=True, eq=False)
class Aesthetic:
    """One tag's wish: `vector` [features], `projection` [features, width of the text encoder].

    `slerp` blends along the arc between two vectors, else along the line.
    """

    vector: Tensor
    projection: Tensor
    weight: float
    steps: int
    rate: float
    slerp: bool
    identity: tuple[object, ...]


class Aesthetics:
    """The aesthetic embeddings that tags name, for one model."""

    def __init__(self, model: LoadedModel, library: Library, models: Path) -> None:
        self._model, self._library, self._models = model, library, models

    def find(self, requests: Sequence[NetworkRequest]) -> tuple[list[Aesthetic], list[str]]:
        """What the tags ask for in their order, and sentences on what cannot be."""
        found, messages = [], []
        for request in requests:
            try:
                found.append(self._found(request))
            except CrucibleError as problem:
                messages.append(f"{request.tag}: {problem}")
        return found, messages

    def _found(self, request: NetworkRequest) -> Aesthetic:
        if self._model.family is not Family.SD1:
            raise FileProblem(f"works on SD1 checkpoints alone, this one is {self._model.family}.")
        (tag,) = split_tags(request.tag)[1]
        weight, steps, rate, slerp = _arguments(tag)
        self._library.refresh()
        entry = self._library.find(request.name)
        if entry is None:
            raise FileProblem(f"no aesthetic embedding in {self._library.folders[0]} has the name.")
        key, vector = network_key(entry.path), read_aesthetic(entry.path)
        width = self._model.structure.texts[0].width
        folders = [self._models / name for name in PROJECTIONS]
        file = find_projection(folders, width, len(vector))
        if file is None:
            raise FileProblem(
                f"needs CLIP's text projection [{len(vector)}, {width}], which checkpoints leave"
                f" out: put a clip_l.safetensors that has it into {folders[0]}."
            )
        identity = (key, network_key(file), weight, steps, rate, slerp)
        return Aesthetic(vector, read_projection(file), weight, steps, rate, slerp, identity)


def _arguments(tag: NetworkTag) -> tuple[float, int, float, bool]:
    """Weight, steps, rate and whether by slerp. Raises FileProblem that shows the argument."""
    given = dict(zip(_NAMED, tag.args, strict=False)) | dict(tag.named)
    foreign = [*tag.args[len(_NAMED) :], *(key for key in tag.named if key not in _NAMED)]
    if foreign:
        raise FileProblem(f"{foreign[0]!r} has no meaning here; known are {', '.join(_NAMED)}.")

    def number(key: str, default: float, low: float, high: float) -> float:
        try:
            value = float(given.get(key, default))
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise FileProblem(f"{key} {given[key]!r} is no number from {low:g} to {high:g}.")
        return value

    steps = number("steps", 5, 0, MAX_STEPS)
    if steps != int(steps):
        raise FileProblem(f"steps {given['steps']!r} is not a whole number.")
    weight, rate = number("weight", 0.9, -2, 2), number("rate", 1e-4, 0, 1)
    return weight, int(steps), rate, bool(number("slerp", 0, 0, 1))


def turned(
    encoder: Any,
    aesthetic: Aesthetic,
    tokens: Sequence[Sequence[int]],
    inserted: Callable[[Any], AbstractContextManager[None]],
) -> nn.Module:
    """A copy of the text encoder after its steps towards the pictures; the original is untouched.

    `inserted(encoder)` puts embeddings in while the encoder runs.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # float32: in half precision the steps are too small to count
        twin = copy.deepcopy(encoder).float().requires_grad_(True)
        device = next(twin.parameters()).device
        ids = torch.tensor([list(row) for row in tokens], device=device)
        image = nn.functional.normalize(aesthetic.vector.clone().to(device), dim=0)
        projection = aesthetic.projection.clone().to(device)
        optimiser = torch.optim.Adam(twin.parameters(), lr=aesthetic.rate)
        with inserted(twin):
            for _ in range(aesthetic.steps):
                features = twin(input_ids=ids).pooler_output @ projection.T
                loss = -(nn.functional.normalize(features, dim=-1) @ image).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    made: nn.Module = twin.requires_grad_(False)
    return made


def blended(plain: Tensor, other: Tensor, aesthetic: Aesthetic) -> Tensor:
    """Encodings [texts, 77, width] between the plain ones and the turned encoder's."""
    weight = aesthetic.weight
    if not aesthetic.slerp:
        return plain * (1 - weight) + other * weight
    one = nn.functional.normalize(plain, dim=-1)
    two = nn.functional.normalize(other, dim=-1)
    angle = (one * two).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - weight) * angle).sin() * plain + (weight * angle).sin() * other) / sine
    # between parallel vectors the arc is a line
    return torch.where(sine > 1e-6, arc, plain * (1 - weight) + other * weight)
