"""An embedding is trained (textual inversion): what a new word of a prompt means.

Gal et al. 2022 (arXiv 2208.01618). With a second one for the negative prompt it is DreamArtist
(Dong et al. 2022, arXiv 2211.11337): what is told to answer with the noise is what guidance makes
of both, ε(neg) + s · (ε(pos) − ε(neg)).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.errors import CrucibleError
from extensions_lib.files.embeddings import Embedding, misfit, part_names, write_embedding
from extensions_lib.models.loaded import LoadedModel
from extensions_lib.models.trainable import Conditioning, Sizes, Trainable
from extensions_lib.training.recipe_options import EmbeddingTraining
from extensions_lib.training.step import Batch, diffusion_losses

_BAD = re.compile(r"[()\[\]{}<>:|,\\]|\b(?:AND|BREAK)\b")


class EmbeddingRecipe:
    """Trains an embedding for the text encoders of `model`; the encoders stay as they are.

    `embeddings`: the one, or the one and the negative one, to go on with. Raises CrucibleError for
    a name that no prompt could say, or an embedding of another width.
    """

    reads = True  # prompts mean something else after every step

    def __init__(
        self,
        model: Trainable,
        options: EmbeddingTraining,
        learning_rate: float,
        *,
        embeddings: Sequence[Embedding] = (),
    ) -> None:
        self.model, self.options = model, options
        self.names = _names(options)
        sizes = (options.num_vectors_per_token, options.negative_vectors)
        words = (options.init_word, options.negative_init_word)
        self._parts: list[dict[str, Tensor]] = []
        for number in range(len(self.names)):
            if number < len(embeddings):
                found = _taken(model.loaded, embeddings[number])
            else:
                found = vectors_of(model, words[number], sizes[number])
            self._parts.append({part: each.requires_grad_(True) for part, each in found.items()})
        ratios = (1.0, options.negative_lr_ratio)
        self._groups = [
            {"params": list(parts.values()), "lr": learning_rate * ratio, "name": name}
            for name, parts, ratio in zip(self.names, self._parts, ratios, strict=False)
        ]
        self._in = ExitStack()

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """As `Recipe.groups`."""
        return self._groups

    def tensors(self) -> dict[str, Tensor]:
        """As `Recipe.tensors`."""
        return {
            f"{name}.{part or 'emb_params'}": tensor
            for name, parts in zip(self.names, self._parts, strict=True)
            for part, tensor in parts.items()
        }

    def put_in(self) -> None:
        """As `Recipe.put_in`."""
        self.take_out()
        for name, parts in zip(self.names, self._parts, strict=True):
            self._in.enter_context(self.model.embedding(name, parts))

    def take_out(self) -> None:
        """As `Recipe.take_out`."""
        self._in.close()

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """As `Recipe.losses`. The prompts are encoded anew whatever comes with the batch."""
        wanted = self._encoded([self.named(prompt) for prompt in batch.prompts])
        model: Trainable = self.model
        if len(self.names) > 1:
            avoided = self._encoded([self.names[1]] * len(batch.prompts))
            model = _Guided(self.model, avoided, self.options.guidance)
        return diffusion_losses(model, batch, wanted, self.options, generator)

    def named(self, prompt: str) -> str:
        """The prompt as it is learnt from: where the name is not in it, it comes first."""
        name = self.names[0]
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt, re.IGNORECASE):
            return prompt
        return f"{name}, {prompt}" if prompt else name

    def _encoded(self, prompts: Sequence[str]) -> Conditioning:
        options = self.options
        return self.model.encode_text(
            prompts, clip_skip=options.clip_skip, chunks=options.max_token_length // 75
        )

    def after_step(self) -> None:
        """As `Recipe.after_step`: nothing."""

    def without_dropout(self) -> AbstractContextManager[None]:
        """As `Recipe.without_dropout`: there is none."""
        return nullcontext()

    def learnt(
        self, values: Mapping[str, Tensor] | None = None, *, step: int | None = None
    ) -> list[Embedding]:
        """The embeddings as they are now, apart from the run; `values`: others for them."""
        held, loaded = values or self.tensors(), self.model.loaded
        return [
            Embedding(
                name,
                {
                    part: held[f"{name}.{part or 'emb_params'}"].detach().float().cpu().clone()
                    for part in parts
                },
                step=step,
                checkpoint_hash=loaded.hash[:10] or None,
                checkpoint=loaded.name,
            )
            for name, parts in zip(self.names, self._parts, strict=True)
        ]

    def save(
        self,
        path: Path,
        metadata: Mapping[str, str],
        dtype: torch.dtype,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """As `Recipe.save`; the negative one lies beside the other, its ending in its name.

        Always in fp32: the files are small, and the WebUIs' own are so.
        """
        steps = metadata.get("ss_steps", "")
        learnt = self.learnt(values, step=int(steps) if steps.isdecimal() else None)
        ends = ("", self.options.negative_ending)
        for each, end in zip(learnt, ends, strict=False):
            named = Embedding(
                path.stem + end, each.parts, None, each.key, each.step,
                each.checkpoint_hash, each.checkpoint, dict(metadata),
            )  # fmt: skip
            write_embedding(path.with_name(f"{path.stem}{end}{path.suffix}"), named)


class _Guided:
    """A model that answers what guidance makes of two answers (Ho and Salimans, 2207.12598)."""

    def __init__(self, model: Trainable, avoided: Conditioning, scale: float) -> None:
        self._model, self._avoided, self._scale = model, avoided, scale
        self.loaded = model.loaded
        self.encode_text, self.encode_pictures = model.encode_text, model.encode_pictures
        self.embedding = model.embedding

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[Sizes] | None = None,
    ) -> Tensor:
        """As `Trainable.predict`."""
        both = Conditioning.joined([self._avoided, conditioning])
        twice = None if sizes is None else [*sizes, *sizes]
        answers = self._model.predict(
            torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), both, twice
        )
        avoided, wanted = answers.chunk(2)
        return avoided + self._scale * (wanted - avoided)


def _names(options: EmbeddingTraining) -> tuple[str, ...]:
    name = options.token_string
    if not name or name != name.strip() or _BAD.search(name):
        raise CrucibleError(
            f"token_string: {name!r} cannot stand in a prompt as a word; use letters, digits, "
            "- and _."
        )
    negative = (name + options.negative_ending,) if options.negative_embedding else ()
    return (name, *negative)


def vectors_of(model: Trainable, words: str, count: int) -> dict[str, Tensor]:
    """The vectors of the tokens of `words`, from the first again where they are too few.

    By part ("", or "clip_l" and "clip_g"), [count, width] fp32 on the model's device. Raises
    CrucibleError where there are no tokens.
    """
    components = model.loaded.structure.text_components
    read: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        tables = {component: _table(model.loaded, component) for component in components}
        for component, table in tables.items():
            stack.enter_context(_reading(table, read, component))
        model.encode_text([words])
    found = {}
    for part, component in zip(part_names(len(components)), components, strict=True):
        tokens = read[component][0]
        weight = tables[component].weight
        assert isinstance(weight, Tensor)
        end = int((tokens == len(weight) - 1).nonzero()[0])  # the last of the vocabulary
        if end == 1:
            raise CrucibleError(f"init_word: {words!r} has no tokens; name a word, such as *.")
        chosen = tokens[1:end].repeat(-(-count // (end - 1)))[:count]
        found[part] = weight.detach()[chosen].to(model.loaded.device, torch.float32, copy=True)
    return found


def _table(loaded: LoadedModel, component: str) -> nn.Module:
    return loaded.layer(f"{component}.text_model.embeddings.token_embedding")[0]


@contextmanager
def _reading(table: nn.Module, read: dict[str, Tensor], component: str) -> Iterator[None]:
    """While it lasts, the tokens [prompts, 77] that are looked up last are kept in `read`."""

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        read[component] = args[0].detach().clone()

    handle = table.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _taken(loaded: LoadedModel, embedding: Embedding) -> dict[str, Tensor]:
    problem = misfit(embedding.widths, [text.width for text in loaded.structure.texts])
    if problem:
        raise CrucibleError(f"{embedding.name} cannot be trained further: {problem}.")
    return {
        part: tensor.to(loaded.device, torch.float32, copy=True)
        for part, tensor in embedding.parts.items()
    }
