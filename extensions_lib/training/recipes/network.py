"""A network is trained: adapters on the loaded model's layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extensions_lib.adapters import Adapter
from extensions_lib.files.networks import write_network
from extensions_lib.models.names import component_of
from extensions_lib.models.trainable import Conditioning, Trainable
from extensions_lib.patching.in_training import Dropouts, InTraining
from extensions_lib.training.networks import (
    fresh_network,
    limit_norms,
    rate_groups,
    rate_of,
    trained_parts,
)
from extensions_lib.training.option_groups import NetworkTraining
from extensions_lib.training.step import Batch, diffusion_losses


class NetworkRecipe:
    """Trains a network on `model`; `adapters` are fresh ones unless given, to go on with."""

    def __init__(
        self,
        model: Trainable,
        options: NetworkTraining,
        learning_rate: float,
        *,
        seed: int = 0,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        self.model, self.options = model, options
        self._goes_on = adapters is not None
        generator = torch.Generator().manual_seed(seed)
        self.adapters = dict(adapters or fresh_network(model.loaded, options, generator))
        self._set = InTraining(
            model.loaded,
            self.adapters,
            dropouts=Dropouts(
                options.network_dropout, options.rank_dropout, options.module_dropout
            ),
            unit=options.unit if options.kind == "dylora" else None,
        )
        self._groups = rate_groups(model.loaded, self.adapters, options, learning_rate)
        rates = {
            component: rate_of(model.loaded, component, options, learning_rate)
            for component in {component_of(name) for name in self.adapters}
        }
        self.reads = any(rate > 0 for name, rate in rates.items() if name != "unet")
        for group in self._groups:
            for tensor in group["params"]:
                tensor.requires_grad_(True)

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """As `Recipe.groups`."""
        return self._groups

    def tensors(self) -> dict[str, Tensor]:
        """As `Recipe.tensors`; what stays as it was drawn is in it too."""
        return self._set.parameters()

    def put_in(self) -> None:
        """As `Recipe.put_in`."""
        self._set.put_in()

    def take_out(self) -> None:
        """As `Recipe.take_out`."""
        self._set.take_out()

    def losses(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """As `Recipe.losses`."""
        conditioning = batch.conditioning
        if conditioning is None:
            conditioning = self.encode(batch.prompts)
        return diffusion_losses(self.model, batch, conditioning, self.options, generator)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The prompts by the text encoders, with gradients where these are trained."""
        with nullcontext() if self.reads else torch.no_grad():
            return self.model.encode_text(
                prompts,
                clip_skip=self.options.clip_skip,
                chunks=self.options.max_token_length // 75,
            )

    def after_step(self) -> None:
        """As `Recipe.after_step`."""
        if self.options.scale_weight_norms:
            limit_norms(self.adapters, self.options.scale_weight_norms)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """As `Recipe.without_dropout`."""
        self._set.dropping = False
        try:
            yield
        finally:
            self._set.dropping = True

    def save(
        self,
        path: Path,
        metadata: Mapping[str, str],
        dtype: torch.dtype,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """As `Recipe.save`; spelled as kohya does."""
        write_network(
            path, self.learnt(values), metadata, dtype=dtype, family=self.model.loaded.family
        )

    def learnt(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Adapter]:
        """The adapters as they are now, apart from the run; `values`: other values for them.

        Fresh layers of which nothing is trained are left out: they change nothing.
        """
        found = {}
        for layer, adapter in self.adapters.items():
            learning = trained_parts(adapter, self.options).values()
            if not self._goes_on and not any(each.requires_grad for each in learning):
                continue
            parts = adapter.tensors()
            for name in adapter.parameters():
                now = parts[name] if values is None else values[f"{layer}.{name}"]
                parts[name] = now.detach().clone()
            found[layer] = type(adapter).from_tensors(parts)
        return found
