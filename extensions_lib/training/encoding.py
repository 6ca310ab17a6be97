"""Pictures as latents and prompts as states: from the caches, or encoded when asked for."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from extensions_lib.datasets.ahead import Ahead
from extensions_lib.datasets.at_once import Progress, at_once
from extensions_lib.datasets.augment import Seen, mirrors, seen
from extensions_lib.datasets.items import Picture
from extensions_lib.datasets.options import DataOptions
from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.models.trainable import Conditioning, Sizes, Trainable
from extensions_lib.training.caches import (
    Cache,
    InMemory,
    OnDisk,
    Tensors,
    latent_key,
    text_identity,
    text_key,
    vae_identity,
)

_MIRRORED = "mirrored "


@dataclass(frozen=True)
class TextOptions:
    """How prompts are encoded: `chunks` times 75 tokens of them.

    `settings`: what a host's encoding follows from besides the weights, such as its own options
    and the embeddings it has loaded.
    """

    clip_skip: int = 1
    chunks: int = 3
    settings: str = ""


@dataclass(frozen=True)
class Encoded:
    """Pictures of one size, encoded. mean, deviation [B, 4, h, w]; mask [B, 1, h, w] or None."""

    mean: Tensor
    deviation: Tensor
    mask: Tensor | None
    sizes: tuple[Sizes, ...]


class Encoder:
    """Encodes for a training set with these options. `prepare` comes first."""

    def __init__(self, options: DataOptions, text: TextOptions | None = None) -> None:
        self._options, self._text = options, text or TextOptions()
        root = Path(options.cache_dir) if options.cache_dir else None
        self._latents = _cache(options.cache_latents_to_disk, root, "latents")
        self._states = _cache(options.cache_text_encoder_outputs_to_disk, root, "prompts")
        self._beside = ""  # the picture beside which prompts are kept
        self._vae = self._encoders = ""
        self._model: Trainable | None = None
        self._ahead = Ahead()

    @property
    def notes(self) -> list[str]:
        """What was broken in caches on disk."""
        return [
            note
            for cache in (self._latents, self._states)
            if isinstance(cache, OnDisk)
            for note in cache.notes
        ]

    # --- before the first step ----------------------------------------------------------------

    def prepare(
        self,
        model: Trainable,
        pictures: Sequence[Picture],
        prompts: Sequence[str],
        on_progress: Progress | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """Fills the caches that the options ask for, by the model as it is now.

        Raises CrucibleError for a picture that cannot be read any more, is another one, or of
        which the VAE makes no numbers; FileProblem where a cache cannot be written; Stopped. What
        is on disk by then is found the next time.
        """
        self._model, self._beside = model, str(pictures[0].path)
        missing: list[Picture] = []
        unread: list[str] = []
        if self._options.caches_latents:
            self._vae = vae_identity(model.loaded)
            missing = [each for each in _once(pictures) if self._cached(each) is None]
        if self._options.caches_text:
            self._encoders = text_identity(model.loaded, self._text.settings)
            unread = [each for each in dict.fromkeys(prompts) if self._known(each) is None]
        done, work = 0, len(missing) + len(unread)
        for count in itertools.chain(
            self._encode_pictures(missing, stop), self._encode_prompts(unread)
        ):
            done += count
            if on_progress:
                on_progress(done, work)
            if stop is not None and stop.is_set():
                break
        if stop is not None and stop.is_set():
            raise Stopped("Stopped while encoding pictures and prompts.")
        if isinstance(self._latents, OnDisk):
            self._latents.clear_changed(pictures)

    def _encode_pictures(
        self, pictures: Sequence[Picture], stop: threading.Event | None
    ) -> Iterator[int]:
        """Encodes pictures of one bucket together; yields how many each time."""
        size = self._options.vae_batch_size
        ordered = sorted(pictures, key=lambda each: each.where.bucket)
        waiting: list[tuple[Picture, Seen]] = []
        for picture, found in at_once(seen, ordered, stop=stop):
            if isinstance(found, CrucibleError):
                raise found
            if waiting and waiting[0][1].placed.bucket != found.placed.bucket:
                yield self._keep(waiting)
                waiting = []
            waiting.append((picture, found))
            if len(waiting) == size:
                yield self._keep(waiting)
                waiting = []
        if waiting and not (stop and stop.is_set()):
            yield self._keep(waiting)

    def _keep(self, some: Sequence[tuple[Picture, Seen]]) -> int:
        """Encodes these, mirrored too where they will be, and keeps the result."""
        pictures = [picture for picture, _ in some]
        plain = self._encode(pictures, [each for _, each in some])
        flipped = [number for number, (each, _) in enumerate(some) if each.options.flip_aug]
        other = self._encode(
            [pictures[number] for number in flipped],
            [some[number][1].mirrored() for number in flipped],
        )
        for number, (picture, found) in enumerate(some):
            held = {"mean": plain[0][number], "deviation": plain[1][number]}
            if number in flipped:
                at = flipped.index(number)
                held |= {_MIRRORED + "mean": other[0][at], _MIRRORED + "deviation": other[1][at]}
            if found.mask is not None:
                held["mask"] = torch.tensor(found.mask)
            self._latents.put(latent_key(picture, self._vae), str(picture.path), held)
        return len(some)

    def _encode(self, pictures: Sequence[Picture], some: Sequence[Seen]) -> tuple[Tensor, Tensor]:
        """Mean and deviation [B, 4, h, w] on the CPU. Raises CrucibleError where they are none."""
        if not some:
            return torch.empty(0), torch.empty(0)
        assert self._model is not None, "prepare comes first"
        bytes_ = torch.stack([torch.tensor(each.pixels) for each in some])
        pixels = bytes_.permute(0, 3, 1, 2).float() / 127.5 - 1
        mean, deviation = (each.cpu() for each in self._model.encode_pictures(pixels))
        for picture, whole in zip(pictures, mean.isfinite().flatten(1).all(1), strict=True):
            if not whole:
                raise CrucibleError(
                    f"{picture.path}: the VAE makes something of it that is no number, as in 16"
                    " bits some do; use the VAE in 32 bits (in a WebUI --no-half-vae), or another."
                )
        return mean, deviation

    def _encode_prompts(self, prompts: Sequence[str]) -> Iterator[int]:
        """Encodes each alone, so that its states do not depend on the others' lengths."""
        for prompt in prompts:
            found = self._read(prompt)
            held = {"states": found.states.cpu()}
            if found.pooled is not None:
                held["pooled"] = found.pooled.cpu()
            self._states.put(self._text_key(prompt), self._beside, held)
            yield 1

    def _read(self, prompt: str) -> Conditioning:
        assert self._model is not None, "prepare comes first"
        with torch.no_grad():
            return self._model.encode_text(
                [prompt], clip_skip=self._text.clip_skip, chunks=self._text.chunks
            )

    # --- in a step ----------------------------------------------------------------------------

    def pictures(self, pictures: Sequence[Picture], draws: Sequence[Sequence[float]]) -> Encoded:
        """Pictures of one bucket, encoded, changed as the numbers drawn for each say."""
        if self._options.caches_latents:
            found = [
                self._from_cache(picture, mirrors(picture.options, drawn))
                for picture, drawn in zip(pictures, draws, strict=True)
            ]
            mean, deviation, masks = (list(each) for each in zip(*found, strict=True))
            places = [
                each.where.mirrored() if mirrors(each.options, drawn) else each.where
                for each, drawn in zip(pictures, draws, strict=True)
            ]
            encoded = torch.stack(mean), torch.stack(deviation)
        else:
            looks = [
                seen(each, drawn, self._ahead.take(each))
                for each, drawn in zip(pictures, draws, strict=True)
            ]
            encoded = self._encode(pictures, looks)
            masks = [None if each.mask is None else torch.tensor(each.mask) for each in looks]
            places = [each.placed for each in looks]
        return Encoded(*encoded, _stacked(masks, encoded[0]), tuple(each.sizes for each in places))

    def expect(self, pictures: Sequence[Picture]) -> None:
        """Which pictures come next: they are decoded meanwhile, unless their latents are kept."""
        if not self._options.caches_latents:
            self._ahead.expect(pictures)

    def _from_cache(self, picture: Picture, mirrored: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        held = self._cached(picture)
        if held is None:  # it was deleted or damaged on disk meanwhile
            self._keep([(picture, seen(picture))])
            held = self._cached(picture)
            assert held is not None
        mask, prefix = held.get("mask"), _MIRRORED if mirrored else ""
        if mask is not None and mirrored:
            mask = mask.flip(-1)
        return held[prefix + "mean"], held[prefix + "deviation"], mask

    def prompts(self, prompts: Sequence[str]) -> Conditioning | None:
        """The prompts encoded, None where they are not kept."""
        if not self._options.caches_text:
            return None
        parts = []
        for prompt in prompts:
            held = self._known(prompt)
            if held is None:  # deleted on disk meanwhile; or none was asked for in `prepare`
                list(self._encode_prompts([prompt]))
                held = self._known(prompt)
                assert held is not None
            pooled = held.get("pooled")
            parts.append(Conditioning(held["states"], pooled))
        return Conditioning.joined(parts)

    def _cached(self, picture: Picture) -> Tensors | None:
        return self._latents.get(latent_key(picture, self._vae), str(picture.path))

    def _known(self, prompt: str) -> Tensors | None:
        return self._states.get(self._text_key(prompt), self._beside)

    def _text_key(self, prompt: str) -> str:
        return text_key(prompt, self._text.clip_skip, self._text.chunks, self._encoders)


def _cache(on_disk: bool, root: Path | None, kind: str) -> Cache:
    return OnDisk(root, kind) if on_disk else InMemory()


def _once(pictures: Sequence[Picture]) -> list[Picture]:
    """Those of which the same entry would be made twice, once."""
    return list({(each.path, latent_key(each, "")): each for each in pictures}.values())


def _stacked(masks: Sequence[Tensor | None], like: Tensor) -> Tensor | None:
    """[B, 1, h, w]: a picture without a mask counts everywhere. None where none has one."""
    if all(mask is None for mask in masks):
        return None
    whole = torch.ones(like.shape[-2:])
    return torch.stack([whole if mask is None else mask for mask in masks])[:, None]
