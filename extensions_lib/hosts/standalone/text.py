"""From a prompt to what the UNet is told at each step, as AUTOMATIC1111 WebUI 1.10.1 does it.

Prompts longer than 75 tokens are encoded in chunks that follow one another; emphasis multiplies
the encoded tokens and then restores their mean ("Original" in WebUI's settings).
"""

from __future__ import annotations

import html
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.files.embeddings import Embedding, part_names
from extensions_lib.hosts.standalone.aesthetic import Aesthetic, blended, turned
from extensions_lib.models.built import VOCABULARY
from extensions_lib.models.families import Family
from extensions_lib.prompts.attention import parse_attention
from extensions_lib.prompts.chunks import Chunk, Finder, Placed, chunk_tokens, token_pieces
from extensions_lib.prompts.compose import split_and
from extensions_lib.prompts.schedule import schedule

if TYPE_CHECKING:
    from extensions_lib.hosts.embeddings import Embeddings
    from extensions_lib.models.loaded import LoadedModel

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


def tokens(texts: Sequence[str], kind: str = "clip") -> list[list[int]]:
    """Token numbers without start and end; open_clip's tokenizer also undoes HTML escapes.

    Raises FileProblem when the vocabulary is not there.
    """
    if kind == "openclip":
        texts = [html.unescape(html.unescape(text)) for text in texts]
    ids: list[list[int]] = load_tokenizer()(
        list(texts), truncation=False, add_special_tokens=False
    )["input_ids"]
    return ids


class TextEncoder:
    """Encodes prompts with a model's text encoders, remembering the last few.

    `embeddings`: those that a prompt may name; None: none.
    """

    def __init__(self, model: LoadedModel, embeddings: Embeddings | None = None) -> None:
        self._model = model
        self._embeddings = embeddings
        self._lent: list[Embedding] = []
        self._memory: OrderedDict[Hashable, list[Conditioning]] = OrderedDict()

    def guidance(
        self,
        prompt: str,
        negative: str | None,
        evaluations: int,
        *,
        clip_skip: int = 1,
        networks: Hashable = (),
        aesthetics: Sequence[Aesthetic] = (),
    ) -> Guidance:
        """Both prompts over all model evaluations of a sampling run.

        `evaluations` is WebUI's count for prompt editing (twice the steps for second-order
        samplers). `prompt` comes without network tags; `networks` is the identity of the set in
        force, since it changes what the encoders answer. `aesthetics` turn the prompt alone.
        """
        encode = partial(self.encode, clip_skip=clip_skip, networks=networks)
        wished = partial(encode, aesthetics=aesthetics)
        parts = tuple(
            (_timeline(text, evaluations, wished), weight) for text, weight in split_and(prompt)
        )
        if negative is None:
            return Guidance(parts, None)
        return Guidance(parts, _timeline(negative, evaluations, partial(encode, negative=True)))

    def encode(
        self,
        texts: Sequence[str],
        *,
        clip_skip: int = 1,
        networks: Hashable = (),
        negative: bool = False,
        aesthetics: Sequence[Aesthetic] = (),
    ) -> list[Conditioning]:
        """The texts of one edited prompt, encoded together as WebUI does.

        They all become as long as the longest, and the mean that emphasis restores is taken over
        them all. An empty SDXL negative prompt is all zeros.
        Raises CrucibleError when the encoder has no layer to skip to.
        """
        kinds = [shape.kind for shape in self._model.structure.texts]
        chunked = [[self.chunks(text, kind) for text in texts] for kind in kinds]
        # The numbers of the tokens do not tell what an embedding has put in their place.
        placed = _placed(chunk for of_kind in chunked for chunks in of_kind for chunk in chunks)
        wishes = tuple(each.identity for each in aesthetics)
        key = (tuple(texts), clip_skip, networks, negative, placed, wishes)
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        encoded = self._encode(chunked, clip_skip, aesthetics)
        if negative and self._model.family is Family.SDXL and not any(texts):
            encoded = [_zeros(each) for each in encoded]
        self._memory[key] = encoded
        while len(self._memory) > _REMEMBERED:
            self._memory.popitem(last=False)
        return encoded

    def fresh(
        self, texts: Sequence[str], *, clip_skip: int = 1, chunks: int | None = None
    ) -> list[Conditioning]:
        """Texts of their own, each encoded alone and not remembered, with gradients where wanted.

        `chunks`: what is beyond so many times 75 tokens is cut off; None: nothing is.
        """
        kinds = [shape.kind for shape in self._model.structure.texts]
        return [
            self._encode([[self.chunks(text, kind)[:chunks]] for kind in kinds], clip_skip, ())[0]
            for text in texts
        ]

    def _encode(
        self,
        chunked: Sequence[Sequence[list[Chunk]]],
        clip_skip: int,
        aesthetics: Sequence[Aesthetic],
    ) -> list[Conditioning]:
        """`chunked`: for each text encoder, the chunks of every text."""
        contexts, pooled = [], None
        for index, encoder in enumerate(self._model.text_encoders):
            columns = _columns(chunked[index], PADDING[self._model.structure.texts[index].kind])
            states = []
            for place, column in enumerate(columns):
                state, summary = self._states(encoder, index, column, clip_skip)
                state = _emphasised(state, column)
                for wish in aesthetics:
                    state = self._turned(wish, state, encoder, index, column, clip_skip)
                states.append(state)
                if place == 0:
                    pooled = summary if summary is not None else pooled
            contexts.append(torch.cat(states, dim=1))
        length = max(context.shape[1] for context in contexts)
        context = torch.cat([_padded(context, length) for context in contexts], dim=2)
        return [
            Conditioning(context[row], None if pooled is None else pooled[row])
            for row in range(len(chunked[0]))
        ]

    def _turned(
        self,
        wish: Aesthetic,
        state: Tensor,
        encoder: Any,
        index: int,
        column: Sequence[Chunk],
        clip_skip: int,
    ) -> Tensor:
        """Encodings with what an aesthetic embedding makes of the same chunks blended in."""
        part = part_names(len(self._model.text_encoders))[index]
        ids = [chunk.tokens for chunk in column]
        twin = turned(encoder, wish, ids, lambda twin: _inserted(twin, column, part))
        return blended(state, self._states(twin, index, column, clip_skip)[0], wish)

    def chunks(self, text: str, kind: str = "clip") -> list[Chunk]:
        """The text's tokens in chunks of 77 with their weights, for a "clip" or "openclip"."""
        pieces = token_pieces(parse_attention(text), lambda parts: tokens(parts, kind))
        return chunk_tokens(pieces, pad=PADDING[kind], find_embedding=self._finder(kind))

    @contextmanager
    def lent(self, embedding: Embedding) -> Iterator[None]:
        """While it lasts, texts that are encoded may name this embedding too.

        It goes before a file of the same name. What is remembered does not know of it: encode by
        `fresh`.
        """
        self._lent.append(embedding)
        try:
            yield
        finally:
            self._lent.remove(embedding)

    @contextmanager
    def afresh(self) -> Iterator[None]:
        """While it lasts nothing is remembered from before, and nothing of it stays."""
        kept, self._memory = self._memory, OrderedDict()
        try:
            yield
        finally:
            self._memory = kept

    def _finder(self, kind: str) -> Finder | None:
        """What finds the embeddings of files and those that are lent: the longest name wins."""
        known = None if self._embeddings is None else self._embeddings.finder(kind)
        if not self._lent:
            return known
        names = [(tuple(tokens([each.name], kind)[0]), each) for each in self._lent]

        def find(ids: Sequence[int], position: int) -> Placed | None:
            found = known(ids, position) if known else None
            for name, each in names:
                here = tuple(ids[position : position + len(name)]) == name
                if name and here and (found is None or len(name) >= found.tokens):
                    found = Placed(each, each.vectors, len(name))
            return found

        return find

    def _states(
        self, encoder: Any, index: int, chunks: Sequence[Chunk], clip_skip: int
    ) -> tuple[Tensor, Tensor | None]:
        """One encoder's hidden states [texts, 77, width] and its pooled vectors, if it has any."""
        device = next(encoder.parameters()).device
        tokens = torch.tensor([chunk.tokens for chunk in chunks], device=device)
        part = part_names(len(self._model.text_encoders))[index]
        with _inserted(encoder, chunks, part):
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


@contextmanager
def _inserted(encoder: Any, chunks: Sequence[Chunk], part: str) -> Iterator[None]:
    """While it lasts, the encoder reads the vectors of embeddings where chunks have placed them."""
    if not any(chunk.fixes for chunk in chunks):
        yield
        return

    def put_in(_: nn.Module, __: object, vectors: Tensor) -> Tensor:
        vectors = vectors.clone()
        for row, chunk in enumerate(chunks):
            for offset, embedding in chunk.fixes:
                assert isinstance(embedding, Embedding)
                first = offset + 1  # one further for the start token
                placed = embedding.parts[part].to(vectors)
                vectors[row, first : first + embedding.vectors] = placed
        return vectors

    handle = encoder.get_input_embeddings().register_forward_hook(put_in)
    try:
        yield
    finally:
        handle.remove()


def _placed(chunks: Iterable[Chunk]) -> tuple[Hashable, ...]:
    """The content of the embeddings in the chunks, in their order."""
    found = []
    for chunk in chunks:
        for _, embedding in chunk.fixes:
            assert isinstance(embedding, Embedding)
            found.append((embedding.name, embedding.key))
    return tuple(found)


def _timeline(
    text: str, evaluations: int, encode: Callable[[Sequence[str]], list[Conditioning]]
) -> Timeline:
    """One text over a sampling run, its versions encoded together."""
    spans = schedule(text, evaluations)
    encoded = encode(tuple(span.text for span in spans))
    return Timeline(tuple(zip((span.until for span in spans), encoded, strict=True)))


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
