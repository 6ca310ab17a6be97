"""Forge's checkpoint as training uses it: thawed, in a turn of its own, given back as it was.

Forge loads and merges weights in inference mode, and tensors made there cannot take part in a
backward pass; its transformer blocks add to their input in place, which a backward pass needs as it
was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.hosts.webui_trainable import WebUITrainable, frozen
from extensions_lib.models.loaded import LoadedModel
from extensions_lib.models.names import component_of
from extensions_lib.patching.forwards import Around

_NORMS = tuple(f".norm{number}" for number in (1, 2, 3))


@contextmanager
def training_on(engine: Any, loaded: LoadedModel) -> Iterator[ForgeTrainable]:
    """The model for the steps of a turn, with Forge's queue lock held by the caller.

    Its parts are loaded with nothing merged, and thawed: the weights have the same bits in other
    tensors afterwards. The rest is put back at the end, also of a turn that failed.
    """
    from backend.memory_management import get_torch_device, load_models_gpu

    objects = engine.forge_objects_original
    load_models_gpu([objects.unet, objects.clip.patcher])
    thaw([objects.unet.model, objects.clip.cond_stage_model, objects.vae.first_stage_model])
    device, dtype = get_torch_device(), objects.unet.model.computation_dtype
    there = replace(loaded, device=device, dtype=dtype)
    with ExitStack() as stack:
        stack.enter_context(frozen([loaded.unet, *loaded.text_encoders, loaded.vae]))
        stack.enter_context(_out_of_place(loaded))
        yield ForgeTrainable(engine, there)


def thaw(roots: Sequence[nn.Module]) -> int:
    """Puts tensors of equal bits in place of those made in inference mode; how many there were.

    Weights that are held packed, which nothing is trained on, stay. What modules share, they share
    afterwards. One tensor at a time is there twice.
    """
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in (each for root in roots for each in root.modules()):
        of_module: list[dict[str, Any]] = [module._parameters, module._buffers]
        for held in of_module:
            for name, tensor in held.items():
                if type(tensor) in (nn.Parameter, Tensor) and tensor.is_inference():
                    places.setdefault(id(tensor), []).append((held, name))
    with torch.inference_mode(False), torch.no_grad():
        for there in places.values():
            held, name = there[0]
            made = held[name].clone()
            if isinstance(held[name], nn.Parameter):
                made = nn.Parameter(made, requires_grad=False)
            for held, name in there:
                held[name] = made
    return len(places)


@contextmanager
def _out_of_place(model: LoadedModel) -> Iterator[None]:
    """While it lasts, what a transformer block adds to in place is nobody else's tensor."""
    blocks: dict[str, nn.Module] = {}
    with ExitStack() as stack:
        for canonical in model.layers:
            if component_of(canonical) == "unet" and canonical.endswith(_NORMS):
                block = canonical.rpartition(".")[0]
                if ".transformer_blocks." not in block:
                    continue
                module = model.layer(canonical)[0]
                stack.callback(module.register_forward_pre_hook(_copied).remove)
                blocks[block] = _parent(model.unet, model.layers[canonical].within)
        for module in blocks.values():
            # what is computed again for the backward pass begins with the input as it was
            stack.callback(Around(module, _on_copy).remove)
        yield


def _parent(root: nn.Module, path: str) -> nn.Module:
    return root.get_submodule(path.rpartition(".")[0])


def _copied(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].clone(), *args[1:]) if torch.is_grad_enabled() else args


def _on_copy(forward: Callable[..., Any], x: Tensor, *args: Any, **named: Any) -> Any:
    return forward(x.clone() if torch.is_grad_enabled() else x, *args, **named)


class ForgeTrainable(WebUITrainable):
    """Encodes through Forge's text engines, predicts with its UNet itself."""

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Trainable.encode_pictures`."""
        from backend.memory_management import load_models_gpu

        objects = self.sd_model.forge_objects_original
        load_models_gpu([objects.vae.patcher])
        try:
            return super().encode_pictures(pixels)
        finally:
            # where memory is short, the VAE has put these out
            load_models_gpu([objects.unet, objects.clip.patcher])

    @contextmanager
    def _ready_to_encode(self, clip_skip: int) -> Iterator[None]:
        from backend.text_processing import emphasis
        from modules.shared import opts

        kept = [(each, each.clip_skip, each.emphasis) for each in self._engines()]
        try:
            self.sd_model.set_clip_skip(clip_skip)
            for engine, _, _ in kept:
                engine.emphasis = emphasis.get_current_option(opts.emphasis)()
            yield
        finally:
            for engine, skip, way in kept:
                engine.clip_skip, engine.emphasis = skip, way

    def _engines(self) -> Sequence[Any]:
        single = getattr(self.sd_model, "text_processing_engine", None)
        if single is not None:
            return [single]
        return [self.sd_model.text_processing_engine_l, self.sd_model.text_processing_engine_g]

    def _fixes_of(self, engine: Any) -> Any:
        return engine.embeddings

    def _predicted(
        self, noisy: Tensor, timesteps: Tensor, states: Tensor, vector: Tensor | None
    ) -> Tensor:
        device, dtype = self.loaded.device, self.loaded.dtype
        told = {} if vector is None else {"y": vector.to(device, dtype)}
        answer: Tensor = self.loaded.unet(
            noisy.to(device, dtype),
            timesteps.to(device).float(),
            context=states.to(device, dtype),
            transformer_options={},
            **told,
        )
        return answer
