"""The UNet with guidance: one call an evaluation, whatever prompts are in play."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from extensions_lib.hosts.standalone.text import Conditioning, Guidance
from extensions_lib.models.families import Family

if TYPE_CHECKING:
    from extensions_lib.models.loaded import LoadedModel


class GuidedModel:
    """Answers for `batch` samples at once; every prompt's inputs are laid out once, not each step.

    Positive parts of unequal length are drawn out to the longest by repeating their last token,
    and a negative prompt of another length gets a call of its own, both as WebUI does.
    """

    def __init__(
        self,
        model: LoadedModel,
        guidance: Guidance,
        cfg: float,
        batch: int,
        size: tuple[int, int],
    ) -> None:
        self._unet = model.unet
        self._model = model
        self._guidance = guidance
        self._batch = batch
        self._size = size
        self._strengths = [weight * cfg for _, weight in guidance.parts]
        self._calls: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        self._extra = (
            _masked_picture(model, size) if model.structure.unet.in_channels == 9 else None
        )

    def __call__(self, sample: Tensor, timestep: Tensor, evaluation: int) -> Tensor:
        """The model's answer [batch, 4, h, w] in float32, parts and negative combined.

        With e the negative's answer: e + Σ strength · (part − e), after Liu et al. 2022,
        "Compositional Visual Generation with Composable Diffusion Models".
        """
        sample = sample.to(self._model.dtype)
        if self._extra is not None:
            sample = torch.cat([sample, self._extra.expand(len(sample), -1, -1, -1)], dim=1)
        answers = []
        for call in self._inputs(evaluation):
            copies = call["encoder_hidden_states"].shape[0] // self._batch
            repeated = sample.repeat(copies, 1, 1, 1) if copies > 1 else sample
            answer = self._unet(repeated, timestep, return_dict=False, **call)[0]
            answers += list(answer.float().chunk(copies))
        if self._guidance.negative is None:
            combined = answers[0] * self._strengths[0]
            for answer, strength in zip(answers[1:], self._strengths[1:], strict=True):
                combined = combined + answer * strength
            return combined
        *parts, base = answers
        combined = base
        for part, strength in zip(parts, self._strengths, strict=True):
            combined = combined + (part - base) * strength
        return combined

    def _inputs(self, evaluation: int) -> list[dict[str, Any]]:
        """The UNet's arguments, a dict a call; kept for as long as the same texts hold."""
        parts = [timeline.at(evaluation) for timeline, _ in self._guidance.parts]
        negative = self._guidance.negative
        base = [] if negative is None else [negative.at(evaluation)]
        key = tuple(id(each) for each in parts + base)
        if key not in self._calls:
            together = _same_length(parts)
            if not base or base[0].context.shape == together[0].context.shape:
                groups = [together + base]
            else:
                groups = [together, base]
            self._calls[key] = [self._arguments(group) for group in groups]
        return self._calls[key]

    def _arguments(self, group: list[Conditioning]) -> dict[str, Any]:
        model = self._model
        context = torch.stack([each.context for each in group]).repeat_interleave(self._batch, 0)
        arguments: dict[str, Any] = {"encoder_hidden_states": context.to(model.device, model.dtype)}
        if model.family is Family.SDXL:
            pooled = [each.pooled for each in group if each.pooled is not None]
            width, height = self._size
            place = [height, width, 0, 0, height, width]  # original size, crop corner, target size
            arguments["added_cond_kwargs"] = {
                "text_embeds": torch.stack(pooled)
                .repeat_interleave(self._batch, 0)
                .to(model.device, model.dtype),
                "time_ids": context.new_tensor([place]).repeat(len(context), 1).to(model.device),
            }
        return arguments


def _same_length(conditionings: list[Conditioning]) -> list[Conditioning]:
    length = max(each.context.shape[0] for each in conditionings)
    return [
        Conditioning(
            torch.cat([each.context, each.context[-1:].expand(length - len(each.context), -1)]),
            each.pooled,
        )
        for each in conditionings
    ]


def _masked_picture(model: LoadedModel, size: tuple[int, int]) -> Tensor:
    """What an inpainting UNet sees besides the sample: a full mask, a grey picture [1, 5, h, w]."""
    width, height = size
    vae: Any = model.vae
    weight = next(vae.parameters())
    grey = torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype)
    latent = vae.encode(grey).latent_dist.mode() * model.vae_scale
    return nn.functional.pad(latent.to(model.device, model.dtype), (0, 0, 0, 0, 1, 0), value=1.0)
