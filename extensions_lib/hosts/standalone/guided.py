"""The UNet with guidance: one call an evaluation, whatever prompts are in play."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from extensions_lib.hosts.standalone.text import Conditioning, Guidance
from extensions_lib.models.families import Family

if TYPE_CHECKING:
    from extensions_lib.models.loaded import LoadedModel


class _Call(NamedTuple):
    """One call of the UNet: what each of its samples is the answer to, and the texts."""

    answers: list[tuple[int, int]]  # picture and part; the negative is the part behind the last
    arguments: dict[str, Any]

    @property
    def pictures(self) -> list[int]:
        return [picture for picture, _ in self.answers]


class GuidedModel:
    """Answers for a batch of samples at once; the texts are laid out once, not at each step.

    `guidances` has one entry a sample. A picture's positive parts of unequal length are drawn out
    to its longest by repeating their last token, as WebUI does; texts of another length get a call
    of their own. `on_rows` hears before each call of which picture each of its samples is.
    """

    def __init__(
        self,
        model: LoadedModel,
        guidances: Sequence[Guidance],
        cfg: float,
        size: tuple[int, int],
        on_rows: Callable[[Sequence[int]], None] = lambda pictures: None,
    ) -> None:
        self._unet = model.unet
        self._model = model
        self._guidances = guidances
        self._size = size
        self._on_rows = on_rows
        self._strengths = [[weight * cfg for _, weight in each.parts] for each in guidances]
        self._calls: dict[tuple[int, ...], list[_Call]] = {}
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
        answers: dict[tuple[int, int], Tensor] = {}
        for call in self._inputs(evaluation):
            pictures = call.pictures
            self._on_rows(pictures)
            given = sample if pictures == list(range(len(sample))) else sample[pictures]
            answer = self._unet(given, timestep, return_dict=False, **call.arguments)[0]
            answers.update(zip(call.answers, answer.float(), strict=True))
        return torch.stack([self._combined(n, answers) for n in range(len(self._guidances))])

    def _combined(self, picture: int, answers: Mapping[tuple[int, int], Tensor]) -> Tensor:
        strengths = self._strengths[picture]
        parts = [answers[picture, part] for part in range(len(strengths))]
        if self._guidances[picture].negative is None:
            combined = parts[0] * strengths[0]
            for part, strength in zip(parts[1:], strengths[1:], strict=True):
                combined = combined + part * strength
            return combined
        combined = base = answers[picture, len(parts)]
        for part, strength in zip(parts, strengths, strict=True):
            combined = combined + (part - base) * strength
        return combined

    def _inputs(self, evaluation: int) -> list[_Call]:
        """The UNet's calls; kept for as long as the same texts hold."""
        texts = [_texts(guidance, evaluation) for guidance in self._guidances]
        key = tuple(id(each) for held in texts for each in held)
        if key not in self._calls:
            self._calls[key] = self._laid_out(texts)
        return self._calls[key]

    def _laid_out(self, texts: Sequence[Sequence[Conditioning]]) -> list[_Call]:
        """The first part of all pictures, the second, …, the negatives: by length, a call each."""
        rows: list[tuple[int, int, Conditioning]] = []
        for picture, held in enumerate(texts):
            count = len(self._guidances[picture].parts)
            alike = [*_same_length(held[:count]), *held[count:]]
            rows += [(picture, part, text) for part, text in enumerate(alike)]
        rows.sort(key=lambda row: (row[1] == len(self._guidances[row[0]].parts), row[1]))
        by_length: dict[int, list[tuple[int, int, Conditioning]]] = {}
        for row in rows:
            by_length.setdefault(row[2].context.shape[0], []).append(row)
        return [
            _Call(
                [(picture, part) for picture, part, _ in group],
                self._arguments([text for _, _, text in group]),
            )
            for group in by_length.values()
        ]

    def _arguments(self, group: list[Conditioning]) -> dict[str, Any]:
        model = self._model
        context = torch.stack([each.context for each in group])
        arguments: dict[str, Any] = {"encoder_hidden_states": context.to(model.device, model.dtype)}
        if model.family is Family.SDXL:
            pooled = [each.pooled for each in group if each.pooled is not None]
            width, height = self._size
            place = [height, width, 0, 0, height, width]  # original size, crop corner, target size
            arguments["added_cond_kwargs"] = {
                "text_embeds": torch.stack(pooled).to(model.device, model.dtype),
                "time_ids": context.new_tensor([place]).repeat(len(context), 1).to(model.device),
            }
        return arguments


def _texts(guidance: Guidance, evaluation: int) -> list[Conditioning]:
    """What the picture's parts and then its negative say at an evaluation."""
    timelines = [timeline for timeline, _ in guidance.parts]
    if guidance.negative is not None:
        timelines.append(guidance.negative)
    return [timeline.at(evaluation) for timeline in timelines]


def _same_length(conditionings: Sequence[Conditioning]) -> list[Conditioning]:
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
