"""How fast a network learns, and in which memory, beside diffusers and peft.

    run.py bench training [--full] [--rounds N] [--steps N] [--batch N] [--rank N]

Each way trains LoRA of one rank on the same layers of the same UNet (attention, feed-forward,
projections), on the same pictures, in the same precision, with AdamW and clipped gradients, in a
process of its own:

    ours         this project's loop, latents and text states cached
    peer         the LoRA script of diffusers: peft's layers; VAE and text encoder run every step
    peer cached  the same, with latents and text states cached

`--full`: a UNet of SD1.5's size with random weights, in place of the demo checkpoint; latents are
small there, and there are neither VAE nor text encoder to run, so both peers are one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.timing import load

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo" / "demo.safetensors"
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
PICTURES = 16
WARM = 3


def main(arguments: Sequence[str]) -> int:
    """Runs each way in turn, `rounds` times, and prints the ratios."""
    parser = argparse.ArgumentParser(prog="run.py bench training", description=__doc__)
    parser.add_argument("--full", action="store_true", help="a UNet of SD1.5's size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="timed steps (20; 3 with --full)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--side", type=int, default=16, help="of the latents")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=sorted(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.steps = options.steps or (3 if options.full else 20)
    if options.way:
        print(json.dumps(_one(options)))
        return 0
    ways = [way for way in WAYS if not (options.full and way == "peer")]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for turn in range(options.rounds):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            found[way].append(_apart(way, arguments))
    _tell(options, found)
    return 0


def _apart(way: str, arguments: Sequence[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_training", *arguments, "--way", way]
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def _tell(options: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> None:
    what = "SD1.5's UNet, random" if options.full else "the demo checkpoint"
    print(
        f"LoRA of rank {options.rank} on {what}, batch {options.batch}, latents "
        f"{options.side}×{options.side}, fp32, {options.threads} threads, "
        f"{options.rounds} rounds of {options.steps} steps; {load()}"
    )
    for way, rounds in found.items():
        step = median(each["step"] for each in rounds)
        memory = median(each["memory"] for each in rounds)
        print(f"{way:12} {1000 * step:8.1f} ms a step  {memory / 2**20:8.0f} MB beyond the model")
    for way in found:
        if way == "ours":
            continue
        pairs = list(zip(found[way], found["ours"], strict=True))
        speed = median(peer["step"] / ours["step"] for peer, ours in pairs)
        memory = median(ours["memory"] / peer["memory"] for peer, ours in pairs)
        print(f"against {way}: {speed:.2f} × its steps/s, {memory:.2f} × its memory")
    outside = median(each["outside"] for each in found["ours"])
    print(f"ours: {outside:.1%} of a step is outside of its forward and backward pass")


def _one(options: argparse.Namespace) -> dict[str, float]:
    """One way, in this process. Memory is the peak above what the model takes."""
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    bench = _Bench(options)
    step, outside = WAYS[options.way](bench)
    before = _peak()
    for _ in range(WARM):
        step()
    times = []
    for _ in range(options.steps):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {
        "step": median(times),
        "memory": _peak() - before,
        "outside": outside() if outside else 0.0,
    }


def _peak() -> int:
    """Bytes that this process has had at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Bench:
    """The model and what all ways learn from."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        self.options = options
        drawn = torch.Generator().manual_seed(1)
        side = options.side
        self.latents = torch.randn(PICTURES, 4, side, side, generator=drawn)
        self.pixels = torch.rand(PICTURES, 3, 8 * side, 8 * side, generator=drawn) * 2 - 1
        self.prompts = [f"red circle, large, number {number}" for number in range(PICTURES)]
        self.model = _full() if options.full else _demo()
        width = self.model.structure.unet.context_dim
        self.states = torch.randn(PICTURES, 77, width, generator=drawn)

    def chosen(self, number: int) -> list[int]:
        first = number * self.options.batch % PICTURES
        return [(first + each) % PICTURES for each in range(self.options.batch)]


def _demo() -> Any:
    import torch

    from extensions_lib.hosts.standalone.load import load_checkpoint

    return load_checkpoint(DEMO, device="cpu", dtype=torch.float32)


def _full() -> Any:
    """A loaded model whose UNet has SD1.5's size; its other parts are the demo's."""
    from dataclasses import replace

    import torch
    from diffusers import UNet2DConditionModel

    from extensions_lib.models.families import SD15

    unet = UNet2DConditionModel(
        cross_attention_dim=768, attention_head_dim=8, sample_size=64
    ).requires_grad_(False)
    model = replace(_demo(), unet=unet, structure=SD15)
    assert all(model.layer(name) for name in model.layers if name.startswith("unet."))
    torch.manual_seed(0)
    return model


Step = Callable[[], object]
Way = Callable[[_Bench], tuple[Step, Callable[[], float] | None]]


def _ours(bench: _Bench) -> tuple[Step, Callable[[], float]]:
    import torch

    from extensions_lib.hosts.standalone.trainable import StandaloneTrainable
    from extensions_lib.models.trainable import Conditioning
    from extensions_lib.patching.passes import FastPasses
    from extensions_lib.training.looking import on_the_model
    from extensions_lib.training.loop import Loop
    from extensions_lib.training.options import TrainingOptions
    from extensions_lib.training.recipes.network import NetworkRecipe
    from extensions_lib.training.step import Batch

    class Cached:
        def __len__(self) -> int:
            return PICTURES // bench.options.batch

        def batch(self, epoch: int, index: int, generator: torch.Generator) -> Batch:
            chosen = bench.chosen(epoch * len(self) + index)
            prompts = tuple(bench.prompts[each] for each in chosen)
            conditioning = Conditioning(bench.states[chosen])
            return Batch(bench.latents[chosen], prompts, prompts, conditioning=conditioning)

    options = TrainingOptions(
        network_dim=bench.options.rank,
        train_text_encoder=False,
        max_train_steps=100_000,
        lr_scheduler="constant",
    )
    recipe = NetworkRecipe(StandaloneTrainable(bench.model), options, 1e-4)
    data = Cached()
    loop = Loop(recipe, data, options)
    passes = FastPasses(bench.model)
    began = ended = 0.0
    losses, learn = recipe.losses, loop._learn

    def timed_losses(*told: Any) -> torch.Tensor:
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
        """The share of a step that is not its passes through the model."""
        shares = []
        for _ in range(bench.options.steps):
            started = time.perf_counter()
            step()
            shares.append(1 - (ended - began) / (time.perf_counter() - started))
        return median(shares)

    return step, outside


def _peer(bench: _Bench, cached: bool = False) -> tuple[Step, None]:
    import peft
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler

    from extensions_lib.hosts.standalone.text import load_tokenizer

    options, model = bench.options, bench.model
    unet: Any = model.unet
    for part in (unet, *model.text_encoders, model.vae):
        part.requires_grad_(False)
    unet.add_adapter(
        peft.LoraConfig(
            r=options.rank,
            lora_alpha=options.rank,
            init_lora_weights="gaussian",
            target_modules=LAYERS,
        )
    )
    trained = [each for each in unet.parameters() if each.requires_grad]
    adam = torch.optim.AdamW(trained, lr=1e-4)
    noises = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    tokenizer = load_tokenizer()
    number = 0

    def inputs(chosen: list[int]) -> tuple[Any, Any]:
        if cached or options.full:
            return bench.latents[chosen], bench.states[chosen]
        with torch.no_grad():
            latents = model.vae.encode(bench.pixels[chosen]).latent_dist.sample()
            texts = [bench.prompts[each] for each in chosen]
            ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
            states = model.text_encoders[0](ids.input_ids, return_dict=False)[0]
        return latents * model.vae_scale, states

    def step() -> None:
        nonlocal number
        latents, states = inputs(bench.chosen(number))
        number += 1
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),)).long()
        noisy = noises.add_noise(latents, noise, timesteps)
        answer = unet(noisy, timesteps, states, return_dict=False)[0]
        F.mse_loss(answer.float(), noise.float(), reduction="mean").backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad()

    return step, None


WAYS: dict[str, Way] = {
    "ours": _ours,
    "peer": _peer,
    "peer cached": lambda bench: _peer(bench, cached=True),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
