"""A generation request made definite: checked, its seed drawn, its sampler found."""

from __future__ import annotations

import random
from dataclasses import dataclass

from extensions_lib import __version__
from extensions_lib.errors import CrucibleError
from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.standalone.samplers import Sampler, find_sampler, shown_schedule

STEPS = (1, 150)
CFG = (1.0, 30.0)
SIDE = (16, 4096)
SIDE_MULTIPLE = 8  # pixels that one latent stands for
BATCH_SIZE = (1, 64)
BATCH_COUNT = (1, 1000)
CLIP_SKIP = (1, 12)
LAST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Order:
    """What will be made: `seeds` and `prompts` have one entry a picture.

    `notes` are sentences for the person.
    """

    request: GenerationRequest
    width: int
    height: int
    sampler: Sampler
    kind: str
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def evaluations(self) -> int:
        """WebUI's count of model evaluations, on which prompt editing is laid out."""
        return self.request.steps * (2 if self.sampler.second_order else 1)

    def batches(self) -> list[range]:
        """The numbers of the pictures in each batch."""
        size, count = self.request.batch_size, len(self.seeds)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def settings(
        self,
        seed: int,
        *,
        model_hash: str,
        model: str,
        hashes: str = "",
        embedding_hashes: str = "",
    ) -> dict[str, object]:
        """The settings of one picture's infotext, in WebUI's order."""
        request = self.request
        return {
            "Steps": request.steps,
            "Sampler": self.sampler.name,
            "Schedule type": shown_schedule(self.sampler, self.kind, request.schedule),
            "CFG scale": f"{request.cfg:g}",
            "Seed": seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": model_hash[:10] or None,
            "Model": model,
            "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
            "Lora hashes": hashes or None,
            "TI hashes": embedding_hashes or None,
            "Version": f"Crucible {__version__}",
        }


def order(request: GenerationRequest, default_size: tuple[int, int]) -> Order:
    """Checks a request and fills in what it leaves open.

    Raises CrucibleError that names the first setting that cannot be used.
    """
    width = default_size[0] if request.width is None else request.width
    height = default_size[1] if request.height is None else request.height
    _within("Steps", request.steps, STEPS)
    _within("CFG scale", request.cfg, CFG)
    for name, side in (("Width", width), ("Height", height)):
        _within(name, side, SIDE)
        if side % SIDE_MULTIPLE:
            near = round(side / SIDE_MULTIPLE) * SIDE_MULTIPLE
            raise CrucibleError(
                f"{name} {side} is not a multiple of {SIDE_MULTIPLE}; {near} would do."
            )
    _within("Batch size", request.batch_size, BATCH_SIZE)
    _within("Batch count", request.batch_count, BATCH_COUNT)
    _within("Clip skip", request.clip_skip, CLIP_SKIP)
    _within("Seed", request.seed, (-1, LAST_SEED))
    sampler, kind = find_sampler(request.sampler, request.schedule)
    asked = request.schedule.strip().lower()
    notes = []
    if sampler.spacing != "sigmas" and asked not in ("", "automatic"):
        notes.append(
            f"{sampler.name} has its own timesteps; schedule type {request.schedule} is not used."
        )
    first = request.seed if request.seed >= 0 else random.SystemRandom().randrange(2**32)
    count = request.batch_size * request.batch_count
    seeds = tuple((first + index) % (LAST_SEED + 1) for index in range(count))
    prompts = request.prompts or (request.prompt,) * count
    if len(prompts) != count:
        raise CrucibleError(
            f"{len(prompts)} prompts for {count} pictures; give one for each, or one for all."
        )
    return Order(request, width, height, sampler, kind, seeds, prompts, tuple(notes))


def _within(name: str, value: float, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not low <= value <= high:  # also refuses what is no number
        told, first, last = (str(n) if isinstance(n, int) else f"{n:g}" for n in (value, *bounds))
        raise CrucibleError(f"{name} {told} is out of range; choose {first} to {last}.")
