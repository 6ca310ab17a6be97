"""From a prompt to what the UNet is told at each step, as AUTOMATIC1111 WebUI 1.10.1 does it.

Prompts longer than 75 tokens are encoded in chunks that follow one another; emphasis multiplies
the encoded tokens and then restores their mean ("Original" in WebUI's settings).
"""

from __future__ import annotations

import html
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.models.families import Family
from extensions_lib.prompts.attention import parse_attention
from extensions_lib.prompts.chunks import Chunk, chunk_tokens, token_pieces
from extensions_lib.prompts.compose import split_and
from extensions_lib.prompts.schedule import schedule

if TYPE_CHECKING:
    from extensions_lib.models.loaded import LoadedModel

VOCABULARY = Path(__file__).resolve().parents[3] / "models" / "demo" / "clip"
MAX_CLIP_SKIP = 12
PADDING = {"clip": 49407, "openclip": 0}  # what fills a chunk behind its first end token
_REMEMBERED = 64


@dataclass(frozen=True)
class Conditioning:
    """One encoded text: `context` [77 · chunks, width] and, for SDXL, `pooled` [width]."""

    context: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Timeline:
    """One text with its editing: each conditioning holds up to evaluation `until` (from 0)."""

    spans: tuple[tuple[int, Conditioning], ...]

    def at(self, evaluation: int) -> Conditioning:
        """WebUI's rule; after the last span the first holds again."""
        for until, conditioning in self.spans:
            if evaluation <= until:
                return conditioning
        return self.spans[0][1]


@dataclass(frozen=True)
class Guidance:
    """A prompt in parts with their weights, and the negative prompt (None: no guidance)."""

    parts: tuple[tuple[Timeline, float], ...]
    negative: Timeline | None


@lru_cache(maxsize=2)
def load_tokenizer(folder: Path = VOCABULARY) -> Any:
    """transformers' plain CLIPTokenizer, which cleans text as WebUI's does where ftfy is there.

    The fast one treats curly quotes and Chinese characters differently.
    Raises FileProblem when the vocabulary is not in `folder`.
    """
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise FileProblem(f"{folder}: the tokenizer needs {' and '.join(missing)} there.")
    from transformers import CLIPTokenizer
    from transformers import logging as transformers_logging

    # Long prompts are cut into chunks here: the warning about 77 tokens would mislead.
    transformers_logging.get_logger("transformers.tokenization_utils_base").setLevel("ERROR")
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


class TextEncoder:
    """Encodes prompts with a model's text encoders, remembering the last few."""

    def __init__(self, model: LoadedModel, tokenizer: Any = None) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._memory: OrderedDict[Hashable, list[Conditioning]] = OrderedDict()

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer()
        return self._tokenizer

    def guidance(
        self,
        prompt: str,
        negative: str | None,
        evaluations: int,
        *,
        clip_skip: int = 1,
        networks: Hashable = (),
    ) -> Guidance:
        """Both prompts over all model evaluations of a sampling run.

        `evaluations` is WebUI's count for prompt editing (twice the steps for second-order
        samplers). `prompt` comes without network tags; `networks` is the identity of the set in
        force, since it changes what the encoders answer.
        """
        parts = tuple(
            (self._timeline(text, evaluations, clip_skip, networks, negative=False), weight)
            for text, weight in split_and(prompt)
        )
        if negative is None:
            return Guidance(parts, None)
        return Guidance(
            parts, self._timeline(negative, evaluations, clip_skip, networks, negative=True)
        )

    def _timeline(
        self, text: str, evaluations: int, clip_skip: int, networks: Hashable, *, negative: bool
    ) -> Timeline:
        spans = schedule(text, evaluations)
        texts = tuple(span.text for span in spans)
        encoded = self.encode(texts, clip_skip=clip_skip, networks=networks, negative=negative)
        return Timeline(tuple(zip((span.until for span in spans), encoded, strict=True)))

    def encode(
        self,
        texts: Sequence[str],
        *,
        clip_skip: int = 1,
        networks: Hashable = (),
        negative: bool = False,
    ) -> list[Conditioning]:
        """The texts of one edited prompt, encoded together as WebUI does.

        They all become as long as the longest, and the mean that emphasis restores is taken over
        them all. An empty SDXL negative prompt is all zeros.
        Raises CrucibleError when the encoder has no layer to skip to.
        """
        key = (tuple(texts), clip_skip, networks, negative)
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        encoded = self._encode(texts, clip_skip)
        if negative and self._model.family is Family.SDXL and not any(texts):
            encoded = [_zeros(each) for each in encoded]
        self._memory[key] = encoded
        while len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)
        return encoded

    def _encode(self, texts: Sequence[str], clip_skip: int) -> list[Conditioning]:
        contexts, pooled = [], None
        for index, encoder in enumerate(self._model.text_encoders):
            kind = self._model.structure.texts[index].kind
            columns = _columns([self.chunks(text, kind) for text in texts], PADDING[kind])
            states = []
            for place, column in enumerate(columns):
                state, summary = self._states(encoder, index, column, clip_skip)
                states.append(_emphasised(state, column))
                if place == 0:
                    pooled = summary if summary is not None else pooled
            contexts.append(torch.cat(states, dim=1))
        length = max(context.shape[1] for context in contexts)
        context = torch.cat([_padded(context, length) for context in contexts], dim=2)
        return [
            Conditioning(context[row], None if pooled is None else pooled[row])
            for row in range(len(texts))
        ]

    def chunks(self, text: str, kind: str = "clip") -> list[Chunk]:
        """The text's tokens in chunks of 77 with their weights, for a "clip" or "openclip"."""
        pieces = token_pieces(parse_attention(text), lambda parts: self.tokens(parts, kind))
        return chunk_tokens(pieces, pad=PADDING[kind])

    def tokens(self, texts: Sequence[str], kind: str = "clip") -> list[list[int]]:
        """Token numbers without start and end; open_clip's tokenizer also undoes HTML escapes."""
        if kind == "openclip":
            texts = [html.unescape(html.unescape(text)) for text in texts]
        ids: list[list[int]] = self.tokenizer(
            list(texts), truncation=False, add_special_tokens=False
        )["input_ids"]
        return ids

    def _states(
        self, encoder: Any, index: int, chunks: Sequence[Chunk], clip_skip: int
    ) -> tuple[Tensor, Tensor | None]:
        """One encoder's hidden states [texts, 77, width] and its pooled vectors, if it has any."""
        device = next(encoder.parameters()).device
        tokens = torch.tensor([chunk.tokens for chunk in chunks], device=device)
        answer = encoder(input_ids=tokens, output_hidden_states=True)
        hidden = answer.hidden_states  # the embeddings, then each layer's output
        family, shape = self._model.family, self._model.structure.texts[index]
        if family is Family.SDXL:
            pooled = getattr(answer, "text_embeds", None)
            return hidden[shape.layers - 1].float(), None if pooled is None else pooled.float()
        if family is Family.SD1 and not 1 <= clip_skip <= min(MAX_CLIP_SKIP, shape.layers):
            raise CrucibleError(
                f"Clip skip {clip_skip}: this model's text encoder has {shape.layers} layers; "
                f"choose 1 to {min(MAX_CLIP_SKIP, shape.layers)}."
            )
        # SD2 has no choice: its last layer was never trained with it.
        layer = shape.layers - (shape.unused_layers if family is Family.SD2 else clip_skip - 1)
        state: Tensor = encoder.text_model.final_layer_norm(hidden[layer])
        return state.float(), None


def _columns(texts: Sequence[list[Chunk]], pad: int) -> list[list[Chunk]]:
    """The first chunk of every text, the second of every text, …; short texts get empty ones."""
    empty = chunk_tokens([], pad=pad)[0]
    return [list(column) for column in zip_longest(*texts, fillvalue=empty)]


def _emphasised(states: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """Each token's state times its weight, then all of them scaled to their former mean."""
    weights = states.new_tensor([chunk.multipliers for chunk in chunks])
    if bool((weights == 1).all()):
        return states  # what the formula gives, but for rounding
    weighted = states * weights.unsqueeze(-1)
    return weighted * (states.mean() / weighted.mean())


def _padded(context: Tensor, length: int) -> Tensor:
    missing = length - context.shape[1]
    return nn.functional.pad(context, (0, 0, 0, missing)) if missing else context


def _zeros(conditioning: Conditioning) -> Conditioning:
    pooled = conditioning.pooled
    return Conditioning(
        torch.zeros_like(conditioning.context),
        None if pooled is None else torch.zeros_like(pooled),
    )
