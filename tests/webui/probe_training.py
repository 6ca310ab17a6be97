"""Runs inside a WebUI under test: trains on its checkpoint, looks at what that leaves behind."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path

import torch

from extensions_lib.errors import CrucibleError
from extensions_lib.hosts.webui_embeddings import databases_of
from extensions_lib.hosts.webui_trainable import posterior
from extensions_lib.patching.checkpointing import Checkpointing
from extensions_lib.training.loop import Loop, LoopOptions
from extensions_lib.training.option_groups import NetworkTraining
from extensions_lib.training.recipe_options import (
    EmbeddingTraining,
    FullTraining,
    HypernetworkTraining,
)
from extensions_lib.training.recipes.embedding import EmbeddingRecipe
from extensions_lib.training.recipes.full import FullRecipe
from extensions_lib.training.recipes.hypernetwork import HypernetworkRecipe
from extensions_lib.training.recipes.network import NetworkRecipe
from extensions_lib.training.step import Batch

PROMPT = "a (red:1.3) circle, large"


class Fixed:
    """The same two latents in every step."""

    def __init__(self, side: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.latents = torch.randn(2, 4, side, side, generator=generator)

    def __len__(self) -> int:
        return 1

    def batch(self, epoch: int, index: int, generator: torch.Generator) -> Batch:
        return Batch(self.latents, (PROMPT, "a square"), ("0.png", "1.png"))


def _recipe(model, asked: dict):
    rate = asked["rate"]
    kind = asked.get("recipe", "network")
    if kind == "embedding":
        options = EmbeddingTraining(token_string=asked["word"], init_word="red circle")
        return EmbeddingRecipe(model, options, rate)
    if kind == "hypernetwork":
        return HypernetworkRecipe(model, HypernetworkTraining(activation_func="relu"), rate)
    if kind == "full":
        return FullRecipe(model, FullTraining(train_text_encoder=True), rate)
    options = NetworkTraining(network_dim=asked["rank"], conv_dim=asked.get("conv"))
    return NetworkRecipe(model, options, rate)


def train(turns, session, asked: dict) -> dict:
    """Steps of a recipe, each in a turn of its own; `file`: what is learnt is written there."""
    with turns.turn() as model:
        loaded = model.loaded
        before, traces, words = _bits(loaded), _traces(loaded), _words(model.sd_model)
        agrees = _agrees(model) if asked.get("compare") else {}
        recipe = _recipe(model, asked)
        start = {name: tensor.detach().clone() for name, tensor in recipe.tensors().items()}
        loop = _loop(recipe, model.loaded, asked)
        checkpointing = Checkpointing(loaded) if asked.get("checkpointing") else None
    losses, failed = [], None
    for number in range(asked["steps"]):
        try:
            with turns.turn():
                recipe.put_in()
                if checkpointing:
                    checkpointing.put_in()
                try:
                    if number == asked.get("fail_at"):
                        raise CrucibleError("as asked")
                    losses.append(loop.step().loss)
                finally:
                    if checkpointing:
                        checkpointing.take_out()
                    recipe.take_out()
        except CrucibleError as error:
            failed = str(error)
            break
    with turns.turn():
        left = {
            "same bits": _bits(loaded) == before,
            "same traces": _traces(loaded) == traces,
            "same words": _words(model.sd_model) == words,
            "inside": traces,
        }
    outside = _traces(loaded)
    learning = {name: t for name, t in recipe.tensors().items() if "lora_down" not in name}
    if "file" in asked:
        recipe.save(Path(asked["file"]), {}, torch.float32)
        session.library.refresh()
    return {
        "losses": losses,
        "failed": failed,
        "learning": len(learning),
        "still": [name for name, each in learning.items() if torch.equal(each, start[name])],
        "left": left,
        "outside": outside,
        "agrees": agrees,
    }


def _loop(recipe, loaded, asked: dict) -> Loop:
    """As a run makes it: in the model's own precision, small gradients of fp16 kept."""
    half = loaded.dtype in (torch.float16, torch.bfloat16)
    return Loop(
        recipe,
        Fixed(asked["side"]),
        LoopOptions(learning_rate=asked["rate"]),
        precision=loaded.dtype if half else None,
        device=loaded.device.type,
        scaled=loaded.dtype == torch.float16 and loaded.device.type == "cuda",
    )


def _words(sd_model) -> list[str]:
    """The embeddings that prompts may name."""
    databases = databases_of(sd_model)
    return sorted(name for each in databases for name in each._db.word_embeddings)


def _bits(loaded) -> str:
    digest = hashlib.sha256()
    for root in (loaded.unet, *loaded.text_encoders, loaded.vae):
        for name, tensor in root.state_dict().items():
            digest.update(name.encode())
            held = tensor.detach().contiguous().cpu()
            digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _traces(loaded) -> list[int]:
    """What training puts on modules and takes off again: forwards, hooks, wishes for gradients."""
    modules = [m for r in (loaded.unet, *loaded.text_encoders, loaded.vae) for m in r.modules()]
    parameters = [p for module in modules for p in module._parameters.values() if p is not None]
    return [
        sum("forward" in vars(module) for module in modules),
        sum(len(module._forward_pre_hooks) for module in modules),
        sum(parameter.requires_grad for parameter in parameters),
        sum(parameter.grad is not None for parameter in parameters),
    ]


def _agrees(model) -> dict[str, float]:
    """How far what training sees is from what the WebUI itself computes."""
    sd_model, loaded = model.sd_model, model.loaded
    long, device = ", ".join([PROMPT] * 30), loaded.device
    with torch.no_grad():
        texts, pooled = [], []
        for prompt, skip in ((PROMPT, 1), (PROMPT, 2), (long, 1)):
            ours = model.encode_text([prompt], clip_skip=skip, chunks=9)
            with _clip_skip(sd_model, skip):
                theirs = _told(sd_model, [prompt])
            texts.append(float((ours.states - theirs["crossattn"].float()).abs().max()))
            if ours.pooled is not None:
                vector = theirs["vector"][:, : ours.pooled.shape[1]].float()
                pooled.append(float((ours.pooled - vector).abs().max()))
        cut = model.encode_text([long], chunks=1).states
        generator = torch.Generator().manual_seed(1)
        noisy = torch.randn(2, 4, 16, 16, generator=generator).to(device)
        steps = torch.tensor([37, 801], device=device)
        words = [PROMPT, "a square"]
        answer = model.predict(noisy, steps, model.encode_text(words))
        pixels = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
        mean, deviation = model.encode_pictures(pixels)
        torch.manual_seed(4)
        theirs = _encoded(sd_model, pixels).to(mean)
        torch.manual_seed(4)
        drawn = torch.randn(mean.shape).to(mean)
        return {
            "texts": max(texts),
            "pooled": max(pooled, default=0.0),
            "length": ours.states.shape[1],
            "cut": cut.shape[1],
            "unet": float((answer - _answered(sd_model, noisy, steps, words)).abs().max()),
            "moved": float((answer - noisy).abs().max()),
            "vae": float((mean + deviation * drawn - theirs).abs().max()),
            "vae alone": float((posterior(loaded.vae, pixels, 1.0)[0]).abs().max()),
        }


def _clip_skip(sd_model, skip: int):
    from modules import shared

    if hasattr(sd_model, "set_clip_skip"):
        sd_model.set_clip_skip(skip)
    else:
        shared.opts.data["CLIP_stop_at_last_layers"] = skip
    return nullcontext()


def _as_in_an_order(sd_model):
    """What AUTOMATIC1111's WebUI makes its pictures in: autocast, on a GPU."""
    from modules import devices

    return nullcontext() if hasattr(sd_model, "forge_objects") else devices.autocast()


def _told(sd_model, words: list[str], side: int = 128) -> dict:
    """What the WebUI tells its UNet of these words, and for SDXL of a picture of this size."""
    from modules.prompt_parser import SdConditioning

    # one by one: emphasis takes the mean of all that are encoded together
    each = [SdConditioning([word], width=side, height=side) for word in words]
    with _as_in_an_order(sd_model):
        told = [sd_model.get_learned_conditioning(one) for one in each]
    told = [one if isinstance(one, dict) else {"crossattn": one} for one in told]
    return {key: torch.cat([one[key] for one in told]) for key in told[0]}


def _answered(sd_model, noisy, steps, words: list[str]):
    """What the WebUI's own wrapper says of the same, as noise or v."""
    told = _told(sd_model, words, 8 * noisy.shape[-1])
    if not hasattr(sd_model, "forge_objects"):
        told = told if "vector" in told else {"c_crossattn": [told["crossattn"]]}
        return sd_model.apply_model(noisy, steps, told).float()
    wrapper = sd_model.forge_objects_original.unet.model
    sigmas = wrapper.predictor.sigmas[steps]
    scaled = noisy * (sigmas.view(-1, 1, 1, 1) ** 2 + 1) ** 0.5
    more = {"y": told["vector"]} if "vector" in told else {}
    clean = wrapper.apply_model(scaled, sigmas, c_crossattn=told["crossattn"], **more)
    return (scaled - clean) / sigmas.view(-1, 1, 1, 1)


def _encoded(sd_model, pixels):
    if hasattr(sd_model, "forge_objects"):
        return sd_model.encode_first_stage(pixels)
    from modules import devices

    given = pixels.to(devices.device, devices.dtype_vae)
    return sd_model.get_first_stage_encoding(sd_model.encode_first_stage(given))
