"""The standalone host's model as training uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extensions_lib.files.embeddings import Embedding
from extensions_lib.hosts.standalone.text import TextEncoder
from extensions_lib.models.families import Family
from extensions_lib.models.trainable import Conditioning, Sizes, own_sizes

if TYPE_CHECKING:
    from extensions_lib.hosts.embeddings import Embeddings
    from extensions_lib.models.loaded import LoadedModel


class StandaloneTrainable:
    """Encodes and predicts with diffusers' modules, as the host's own sampling does.

    `embeddings`: those that a prompt may name; None: none. `others` encode prompts beside it, and
    are lent the embeddings that it is lent.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        embeddings: Embeddings | None = None,
        others: Sequence[TextEncoder] = (),
    ) -> None:
        self.loaded, self._others = loaded, tuple(others)
        if embeddings is not None:
            embeddings.begin()
        self._text = TextEncoder(loaded, embeddings)

    def encode_text(
        self, prompts: Sequence[str], *, clip_skip: int = 1, chunks: int = 1
    ) -> Conditioning:
        """As `Trainable.encode_text`. Raises CrucibleError where the encoder has no such layer."""
        return Conditioning.joined(
            [
                Conditioning(each.context[None], None if each.pooled is None else each.pooled[None])
                for each in self._text.fresh(prompts, clip_skip=clip_skip, chunks=chunks)
            ]
        )

    @contextmanager
    def embedding(self, name: str, parts: Mapping[str, Tensor]) -> Iterator[None]:
        """As `Trainable.embedding`."""
        with ExitStack() as lent:
            for text in (self._text, *self._others):
                lent.enter_context(text.lent(Embedding(name, parts)))
            yield

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Trainable.encode_pictures`."""
        vae: Any = self.loaded.vae
        weight = next(vae.parameters())
        with torch.no_grad():
            posterior = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
        scale = self.loaded.vae_scale
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[Sizes] | None = None,
    ) -> Tensor:
        """As `Trainable.predict`."""
        model = self.loaded
        unet: Any = model.unet
        arguments: dict[str, Any] = {}
        if model.family is Family.SDXL:
            assert conditioning.pooled is not None
            places = torch.tensor(list(sizes or own_sizes(noisy)), device=model.device)
            arguments["added_cond_kwargs"] = {
                "text_embeds": conditioning.pooled.to(model.device, model.dtype),
                "time_ids": places.to(model.dtype),
            }
        answer: Tensor = unet(
            noisy.to(model.device, model.dtype),
            timesteps.to(model.device),
            encoder_hidden_states=conditioning.states.to(model.device, model.dtype),
            return_dict=False,
            **arguments,
        )[0]
        return answer.float()
