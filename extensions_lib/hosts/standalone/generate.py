"""From a request to pictures: networks, prompts, sampling, decoding, infotext."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from extensions_lib.errors import Stopped
from extensions_lib.hosts.base import GenerationRequest, GenerationResult, OnProgress, Progress
from extensions_lib.hosts.control import KIND as LLLITE
from extensions_lib.hosts.control import ControlTags
from extensions_lib.hosts.embeddings import Embeddings
from extensions_lib.hosts.hypernetworks import KIND as HYPERNET
from extensions_lib.hosts.hypernetworks import HypernetworkTags
from extensions_lib.hosts.networks import Applied, Networks, Sampling
from extensions_lib.hosts.standalone.aesthetic import KIND as AESTHETIC
from extensions_lib.hosts.standalone.aesthetic import Aesthetic, Aesthetics
from extensions_lib.hosts.standalone.guided import GuidedModel
from extensions_lib.hosts.standalone.order import Order, order
from extensions_lib.hosts.standalone.samplers import Plan
from extensions_lib.hosts.standalone.text import Guidance, TextEncoder, tokens
from extensions_lib.patching.active import ActiveSet
from extensions_lib.patching.room import Room, from_gigabytes
from extensions_lib.prompts.infotext import write_hashes, write_infotext
from extensions_lib.prompts.tags import NetworkRequest, network_requests

if TYPE_CHECKING:
    from extensions_lib.library import Library
    from extensions_lib.models.loaded import LoadedModel

PREVIEW_SIDE = 32  # latents; larger samples are shrunk before a preview is decoded
PREVIEW_PAUSE = 1.0  # seconds between previews at least,
PREVIEW_SHARE = 10  # and this many times as long as one takes


class Shelves(Protocol):
    """Where the files lie: the host."""

    root: Path
    originals: float | None  # GB of clean weights that stay on the device (None: as it has room)

    @property
    def library(self) -> Library: ...

    @property
    def embeddings(self) -> Library: ...

    @property
    def hypernetworks(self) -> Library: ...

    @property
    def aesthetics(self) -> Library: ...

    @property
    def lllites(self) -> Library: ...


class Generator:
    """Makes pictures with one loaded model; one call at a time."""

    def __init__(self, model: LoadedModel, shelves: Shelves) -> None:
        self.model = model
        self.embeddings = Embeddings(model.structure, shelves.embeddings, tokens)
        self.text = TextEncoder(model, self.embeddings)
        room = Room(lambda: from_gigabytes(shelves.originals))
        self.networks = Networks(model, shelves.library, ActiveSet(model, room))
        self.hypernetworks = HypernetworkTags(model, shelves.hypernetworks)
        self.control = ControlTags(model, shelves.lllites)
        self.aesthetics = Aesthetics(model, shelves.aesthetics, shelves.root / "models")

    def park(self) -> None:
        """Takes everything off the model; the same networks come back without computing."""
        self.networks.park()
        self.hypernetworks.release()
        self.control.release()

    def release(self) -> None:
        """Takes everything off the model and frees its memory."""
        self.networks.release()
        self.hypernetworks.release()
        self.control.release()

    def generate(
        self,
        request: GenerationRequest,
        default_size: tuple[int, int],
        on_progress: OnProgress | None = None,
        stop: threading.Event | None = None,
    ) -> GenerationResult:
        """The pictures of a request.

        A stop keeps the pictures that are finished. Raises CrucibleError for a request that cannot
        be met, and Stopped when nothing was finished.
        """
        definite = order(request, default_size)
        result = GenerationResult()
        read = {prompt: _Prompt(prompt) for prompt in dict.fromkeys(definite.prompts)}
        for prompt in read.values():
            _say(result, prompt.problems)
        _say(result, definite.notes)
        clock = _Clock(definite, on_progress, stop or threading.Event())
        with torch.inference_mode(), self.control:
            try:
                for run in _runs(definite, read):
                    prompts = [read[definite.prompts[number]] for number in run]
                    self._prepare(prompts, definite, result)
                    seeds = [definite.seeds[number] for number in run]
                    latents = self._sample(definite, prompts, seeds, clock)
                    self._finish(latents, prompts, seeds, definite, result, clock)
            except Stopped:
                if not result.images:
                    raise
                made, planned = len(result.images), len(definite.seeds)
                result.messages.append(f"Stopped: {made} of {planned} pictures are finished.")
            _say(result, self.control.remarks())
        return result

    def _prepare(
        self, prompts: Sequence[_Prompt], definite: Order, result: GenerationResult
    ) -> None:
        """Puts in force what each prompt of a batch asks for, and encodes it.

        Their hypernetworks and control networks are the same.
        """
        area, rows = definite.width * definite.height // 64, 2 * len(prompts)
        applied = self.networks.apply_each(
            [prompt.of_kind() for prompt in prompts],
            sampling=Sampling(definite.evaluations, rows, area),
        )
        for each in applied:
            _say(result, each.messages)
        _say(result, self.hypernetworks.apply(prompts[0].of_kind(HYPERNET)))
        _say(result, self.control.remarks())
        told = prompts[0].of_kind(LLLITE)
        others = any(f"<{LLLITE}:" in prompt for prompt in definite.prompts)
        picture = definite.request.control if told or not others else None
        _say(result, self.control.apply(told, picture))
        for number, (prompt, each) in enumerate(zip(prompts, applied, strict=True)):
            if prompt.guidance is None:
                self.networks.encode_for(number)
                self._encode(prompt, each, definite, result)

    def _encode(
        self, prompt: _Prompt, applied: Applied, definite: Order, result: GenerationResult
    ) -> None:
        """Encodes a prompt by the text encoders as they are now."""
        wishes, wrong = self.aesthetics.find(prompt.of_kind(AESTHETIC))
        _say(result, wrong)
        self.embeddings.begin(applied.bundled)
        prompt.guidance = self._guidance(prompt.text, definite, applied, wishes)
        _say(result, self.embeddings.messages)
        _say(result, self._suggestions())
        named = {name: short for name, short in self.embeddings.used.items() if short}
        prompt.hashes, prompt.embedding_hashes = write_hashes(applied.hashes), write_hashes(named)

    def _suggestions(self) -> list[str]:
        return [
            f"Embedding '{name}' belongs in the negative prompt, beside its other half."
            for name in self.embeddings.partners()
        ]

    def _guidance(
        self, prompt: str, definite: Order, applied: Applied, wishes: Sequence[Aesthetic]
    ) -> Guidance:
        request = definite.request
        encode = partial(
            self.text.guidance,
            evaluations=definite.evaluations,
            clip_skip=request.clip_skip,
            networks=applied.text_identity,
            aesthetics=wishes,
        )
        plain = encode(prompt, None)
        # The negative prompt counts 1 − Σ cfg · weight: at cfg 1 it need not be computed.
        if request.cfg * sum(weight for _, weight in plain.parts) == 1.0:
            return plain
        return encode(prompt, request.negative)

    def _sample(
        self,
        definite: Order,
        prompts: Sequence[_Prompt],
        seeds: Sequence[int],
        clock: _Clock,
    ) -> Tensor:
        """Finished latents [pictures, 4, h/8, w/8] in float32.

        Noise is drawn on the CPU from a generator for each picture, so that a picture does not
        depend on the device or on its neighbours.
        """
        model, size = self.model, (definite.width, definite.height)
        plan = Plan(
            definite.sampler, definite.kind, definite.request.steps, model.schedule, model.device
        )
        guidances = [prompt.guidance for prompt in prompts if prompt.guidance is not None]
        guided = GuidedModel(model, guidances, definite.request.cfg, size, self.networks.rows)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (4, definite.height // 8, definite.width // 8)
        noise = torch.stack([torch.randn(shape, generator=each) for each in generators])
        sample = noise.to(model.device) * plan.start
        clock.begin(plan, len(seeds))
        for index in range(len(plan)):
            clock.check()
            self.networks.at(index, len(plan))
            self.control.at(index, len(plan))
            scaled = plan.scale(sample, index)
            output = guided(scaled, plan.timesteps[index], index)
            sample = plan.advance(output, index, sample, generators)
            preview = None
            if clock.wants_preview(index):
                started = time.perf_counter()
                preview = self._preview(plan.finished(scaled[:1], output[:1], index))
                clock.preview_took(time.perf_counter() - started)
            clock.done(index, preview)
        return sample

    def _finish(
        self,
        latents: Tensor,
        prompts: Sequence[_Prompt],
        seeds: Sequence[int],
        definite: Order,
        result: GenerationResult,
        clock: _Clock,
    ) -> None:
        """Decodes a batch, picture by picture, and writes it down with its infotext."""
        negative = definite.request.negative
        for latent, prompt, seed in zip(latents, prompts, seeds, strict=True):
            if not bool(torch.isfinite(latent).all()):
                result.messages.append(
                    f"The picture with seed {seed} came out as no numbers at all (NaN): try other "
                    "networks or lower weights, a lower CFG scale, or 32-bit precision."
                )
            result.images.append(self.decode(latent.unsqueeze(0)))
            settings = definite.settings(
                seed,
                model_hash=self.model.hash,
                model=self.model.name,
                hashes=prompt.hashes,
                embedding_hashes=prompt.embedding_hashes,
            )
            result.infotexts.append(write_infotext(prompt.whole, negative, settings))
            result.seeds.append(seed)
            clock.finished_one()

    def decode(self, latent: Tensor) -> Image.Image:
        """The picture of one latent [1, 4, h, w]; pixels are cut to whole numbers as in WebUI."""
        vae: Any = self.model.vae
        weight = next(vae.parameters())
        latent = torch.nan_to_num(latent).to(weight.device, weight.dtype)
        decoded = vae.decode(latent / self.model.vae_scale, return_dict=False)[0]
        pixels = torch.nan_to_num((decoded[0].float() + 1) / 2).clamp(0, 1) * 255
        return Image.fromarray(pixels.permute(1, 2, 0).byte().cpu().contiguous().numpy())

    def _preview(self, latent: Tensor) -> Image.Image:
        """What the model foresees, small: the VAE itself on a shrunken latent fits every VAE."""
        side = max(latent.shape[-2:])
        if side > PREVIEW_SIDE:
            size = [max(1, each * PREVIEW_SIDE // side) for each in latent.shape[-2:]]
            latent = torch.nn.functional.interpolate(latent, size, mode="area")
        return self.decode(latent)


class _Prompt:
    """A prompt read; `guidance` and the hashes of its infotext are there once it is encoded."""

    def __init__(self, whole: str) -> None:
        self.whole = whole
        self.text, self._wanted, problems = network_requests(whole)
        self.problems = [each.message for each in problems]
        self.guidance: Guidance | None = None
        self.hashes = self.embedding_hashes = ""

    def of_kind(self, kind: str | None = None) -> list[NetworkRequest]:
        """The requests of one kind; None: of all that have no handler of their own."""
        own = (HYPERNET, AESTHETIC, LLLITE)
        return [
            each
            for each in self._wanted
            if each.kind == kind or (not kind and each.kind not in own)
        ]


def _runs(definite: Order, read: Mapping[str, _Prompt]) -> Iterator[list[int]]:
    """The numbers of the pictures that are sampled together.

    A batch is cut where pictures differ in what a forward pass has for all of its samples.
    """

    def whole(number: int) -> list[list[NetworkRequest]]:
        prompt = read[definite.prompts[number]]
        return [prompt.of_kind(kind) for kind in (HYPERNET, LLLITE)]

    for batch in definite.batches():
        for _, run in groupby(batch, whole):
            yield list(run)


def _say(result: GenerationResult, messages: Iterable[str]) -> None:
    """Adds what has not been said yet."""
    result.messages += [each for each in messages if each not in result.messages]


class _Clock:
    """Keeps time over one request: progress, the time left, previews, and the person's stop."""

    def __init__(
        self, definite: Order, on_progress: OnProgress | None, stop: threading.Event
    ) -> None:
        self._report = on_progress
        self._stop = stop
        self._planned = len(definite.seeds)
        self._finished = 0
        self._spent = 0.0  # seconds over `_worked`, the first evaluation of all left out
        self._worked = 0  # picture evaluations
        self._decoding = 0.0
        self._now = self._previewed = time.perf_counter()
        self._pause = PREVIEW_PAUSE
        self._first = True

    def check(self) -> None:
        if self._stop.is_set():
            raise Stopped("Stopped before a picture was finished.")

    def begin(self, plan: Plan, batch: int) -> None:
        self._plan, self._batch = plan, batch
        self._now = time.perf_counter()

    def wants_preview(self, index: int) -> bool:
        last = index == len(self._plan) - 1
        now = time.perf_counter()
        return self._report is not None and not last and now - self._previewed >= self._pause

    def preview_took(self, seconds: float) -> None:
        self._previewed = time.perf_counter()
        self._pause = max(PREVIEW_PAUSE, PREVIEW_SHARE * seconds)

    def done(self, index: int, preview: Image.Image | None) -> None:
        """After each evaluation; tells of every step once it is complete."""
        now = time.perf_counter()
        if not self._first:
            self._spent += now - self._now
            self._worked += self._batch
        self._first = False
        self._now = now
        shown, last = self._plan.shown, len(self._plan) - 1
        complete = index == last or shown[index + 1] != shown[index]
        if self._report is not None and complete:
            eta = self._eta(last - index)
            images = (self._finished, self._planned)
            self._report(Progress(shown[index], self._plan.steps, *images, eta, preview))

    def finished_one(self) -> None:
        now = time.perf_counter()
        self._finished += 1
        self._decoding += now - self._now
        self._now = now

    def _eta(self, evaluations: int) -> float | None:
        """Seconds left, from what evaluations and decoding have taken so far."""
        if not self._worked:
            return None
        others = self._planned - self._finished - self._batch
        work = evaluations * self._batch + others * len(self._plan)
        decoding = self._decoding / self._finished if self._finished else 0.0
        return self._spent / self._worked * work + decoding * (self._planned - self._finished)
