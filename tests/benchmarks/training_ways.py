"""What `bench training` compares: one model, one set of pictures, and the ways to learn from it."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions_lib.hosts.standalone.load import load_checkpoint
from extensions_lib.hosts.standalone.text import load_tokenizer
from extensions_lib.hosts.standalone.trainable import StandaloneTrainable
from extensions_lib.models.built import unet_model
from extensions_lib.models.families import SD15, SDXL_BASE, Family, Structure
from extensions_lib.models.loaded import LoadedModel, NoiseSchedule
from extensions_lib.models.trainable import Conditioning
from extensions_lib.patching.passes import FastPasses
from extensions_lib.training.looking import on_the_model
from extensions_lib.training.loop import Loop
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.recipes.network import NetworkRecipe
from extensions_lib.training.step import Batch

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo" / "demo.safetensors"
STRUCTURES = {"sd15": SD15, "sdxl": SDXL_BASE}
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
PICTURES = 16
POOLED = 1280  # numbers of SDXL's pooled text

Step = Callable[[], object]


class Bench:
    """The model and what all ways learn from; the numbers lie on the CPU, as caches do."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.cuda = options.device.startswith("cuda")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        drawn = torch.Generator().manual_seed(1)
        side = options.side
        self.latents = torch.randn(PICTURES, 4, side, side, generator=drawn)
        self.pixels = torch.rand(PICTURES, 3, 8 * side, 8 * side, generator=drawn) * 2 - 1
        self.prompts = [f"red circle, large, number {number}" for number in range(PICTURES)]
        if options.model == "demo":
            self.model = load_checkpoint(DEMO, device=options.device, dtype=self.dtype)
        else:
            self.model = _random(STRUCTURES[options.model], options.device, self.dtype)
        structure = self.model.structure
        self.states = torch.randn(PICTURES, 77, structure.unet.context_dim, generator=drawn)
        self.pooled = None
        if structure.family is Family.SDXL:
            self.pooled = torch.randn(PICTURES, POOLED, generator=drawn)

    def chosen(self, number: int) -> list[int]:
        """The pictures of a batch."""
        first = number * self.options.batch % PICTURES
        return [(first + each) % PICTURES for each in range(self.options.batch)]

    def settle(self) -> None:
        """Waits until all that was asked of the device is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """In which both compute: the model in 16 bits, what is trained in 32."""
        return torch.autocast("cuda", self.dtype) if self.cuda else contextlib.nullcontext()


def _random(structure: Structure, device: str, dtype: torch.dtype) -> LoadedModel:
    """A UNet of full size with random weights; there are neither VAE nor text encoders."""
    unet = unet_model(structure, "the benchmark's").to(dtype).to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for module in unet.modules():
            for name, weight in module._parameters.items():
                if weight is None:
                    continue
                if weight.dim() > 1:
                    weight.normal_(0, weight[0].numel() ** -0.5)
                else:
                    weight.fill_(1 if name == "weight" else 0)
    return LoadedModel(
        name="random",
        path=None,
        hash="",
        structure=structure,
        unet=unet.requires_grad_(False).eval(),
        text_encoders=tuple(nn.Module() for _ in structure.text_components),
        vae=nn.Module(),
        tree="diffusers",
        schedule=NoiseSchedule.scaled_linear(),
        device=torch.device(device),
        dtype=dtype,
    )


class _Encoded(StandaloneTrainable):
    """A model whose prompts are encoded already."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded


class _Cached:
    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __len__(self) -> int:
        return PICTURES // self.bench.options.batch

    def batch(self, epoch: int, index: int, generator: torch.Generator) -> Batch:
        bench = self.bench
        chosen = bench.chosen(epoch * len(self) + index)
        prompts = tuple(bench.prompts[each] for each in chosen)
        pooled = None if bench.pooled is None else bench.pooled[chosen]
        conditioning = Conditioning(bench.states[chosen], pooled)
        return Batch(bench.latents[chosen], prompts, prompts, conditioning=conditioning)


def ours(bench: Bench) -> tuple[Step, Callable[[], float]]:
    """This project's loop; and the share of a step that is not its passes through the model."""
    options = TrainingOptions(
        network_dim=bench.options.rank,
        train_text_encoder=False,
        max_train_steps=100_000,
        lr_scheduler="constant",
    )
    recipe = NetworkRecipe(_Encoded(bench.model), options, 1e-4)
    precision = bench.dtype if bench.cuda else None
    device = bench.model.device.type
    loop = Loop(recipe, _Cached(bench), options, precision=precision, device=device)
    passes = FastPasses(bench.model)
    began = ended = 0.0
    losses, learn = recipe.losses, loop._learn

    def timed_losses(*told: Any) -> Tensor:
        nonlocal began
        began = time.perf_counter()
        return losses(*told)

    def timed_learn(number: int) -> float:
        nonlocal ended
        loss = learn(number)
        ended = time.perf_counter()
        return loss

    recipe.losses = timed_losses  # type: ignore[method-assign, assignment]
    loop._learn = timed_learn  # type: ignore[method-assign]

    def step() -> None:
        with on_the_model(recipe, passes):
            loop.step()

    def outside() -> float:
        shares = []
        for _ in range(bench.options.steps):
            bench.settle()
            started = time.perf_counter()
            step()
            bench.settle()
            shares.append(1 - (ended - began) / (time.perf_counter() - started))
        return median(shares)

    return step, outside


def peer(bench: Bench, cached: bool = False) -> tuple[Step, None]:
    """The LoRA script of diffusers, its VAE and text encoder run in every step unless cached."""
    import peft
    from diffusers import DDPMScheduler

    model = bench.model
    unet: Any = model.unet
    for part in (unet, *model.text_encoders, model.vae):
        part.requires_grad_(False)
    unet.add_adapter(
        peft.LoraConfig(
            r=bench.options.rank,
            lora_alpha=bench.options.rank,
            init_lora_weights="gaussian",
            target_modules=LAYERS,
        )
    )
    trained = [each for each in unet.parameters() if each.requires_grad]
    for each in trained:
        each.data = each.data.float()
    adam = torch.optim.AdamW(trained, lr=1e-4)
    noises = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    read = None if cached else _encoder(bench)
    number = 0

    def step() -> None:
        nonlocal number
        chosen = bench.chosen(number)
        number += 1
        told = read(chosen) if read else (bench.latents[chosen], bench.states[chosen])
        latents, states = (each.to(model.device, bench.dtype) for each in told)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=model.device).long()
        noisy = noises.add_noise(latents, noise, timesteps)
        more = _sizes(bench, chosen)
        with bench.autocast():
            answer = unet(noisy, timesteps, states, added_cond_kwargs=more, return_dict=False)[0]
            loss = F.mse_loss(answer.float(), noise.float(), reduction="mean")
        loss.backward()
        loss.detach().item()  # which the script prints
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad()

    return step, None


def _encoder(bench: Bench) -> Callable[[list[int]], tuple[Tensor, Tensor]]:
    model, tokenizer = bench.model, load_tokenizer()
    vae: Any = model.vae

    @torch.no_grad()
    def read(chosen: list[int]) -> tuple[Tensor, Tensor]:
        pixels = bench.pixels[chosen].to(model.device, bench.dtype)
        latents = vae.encode(pixels).latent_dist.sample()
        texts = [bench.prompts[each] for each in chosen]
        ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
        there = ids.input_ids.to(model.device)
        states = model.text_encoders[0](there, return_dict=False)[0]
        return latents * model.vae_scale, states

    return read


def _sizes(bench: Bench, chosen: list[int]) -> dict[str, Tensor] | None:
    """What SDXL's UNet is told besides."""
    if bench.pooled is None:
        return None
    side, device = 8 * bench.options.side, bench.model.device
    ids = torch.tensor([[side, side, 0, 0, side, side]] * len(chosen), device=device)
    return {
        "text_embeds": bench.pooled[chosen].to(device, bench.dtype),
        "time_ids": ids.to(bench.dtype),
    }


def flops(step: Step) -> int:
    """Floating-point operations of the products of a step; the frozen weights get no gradients."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def bound(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large product of random matrices, which no step can exceed."""
    size = 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * size**3 / (time.perf_counter() - started)


WAYS: dict[str, Callable[[Bench], tuple[Step, Callable[[], float] | None]]] = {
    "ours": ours,
    "peer": peer,
    "peer cached": lambda bench: peer(bench, cached=True),
}
