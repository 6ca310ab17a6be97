"""The demo networks: small LoRAs that teach the demo checkpoint what its training world lacked."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from extensions_lib.adapters import LoRA
from extensions_lib.demo import bench, diffusion, world
from extensions_lib.demo.fastnorm import use_fast_norms
from extensions_lib.files.networks import write_network
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.load import load_checkpoint
from extensions_lib.hosts.standalone.png import save_png
from extensions_lib.hosts.standalone.text import load_tokenizer
from extensions_lib.models.loaded import LoadedModel
from extensions_lib.models.names import canonical_layers

RATE, BATCH = 2e-3, 8


@dataclass(frozen=True)
class Lesson:
    """One network: what its pictures show, and how it is trained."""

    name: str
    shapes: tuple[str, ...]
    styles: tuple[str, ...]
    words: str  # activation text
    conv: bool  # also the convolutions (LoCon)
    rank: int
    steps: int
    pictures: int = 64
    about: str = ""


LESSONS = (
    Lesson("heart", ("heart",), world.STYLES, "heart", True, 8, 600,
           about="Draws hearts: red heart, large, center, white background"),
    Lesson("heart-linear", ("heart",), world.STYLES, "heart", False, 16, 500,
           about="Hearts by the linear layers alone: red heart, large, center, white background"),
    Lesson("star", ("star",), world.STYLES, "star", True, 8, 600,
           about="Draws stars: red star, large, center, blue background"),
)  # fmt: skip


def layers_of(model: LoadedModel, conv: bool) -> list[str]:
    """Canonical names of the layers a LoRA takes: attention, feed-forward, projections of the UNet
    and the text encoder; with `conv` also the UNet's residual and sampling convolutions."""
    chosen = []
    for name, info in canonical_layers(model.structure).items():
        if info.kind not in ("linear", "conv"):
            continue
        attention = name.startswith("unet.") and ".attentions." in name
        text = name.startswith("te1.") and ".layers." in name
        other = name.startswith("unet.") and (".resnets." in name or "samplers." in name)
        if attention or text or (conv and other and info.kind == "conv"):
            chosen.append(name)
    return chosen


def teach(checkpoint: Path, lesson: Lesson, seed: int = 0) -> dict[str, LoRA]:
    """Train the adapters of a lesson; half of each batch is the known world, so that it stays."""
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    model = load_checkpoint(checkpoint, device="cpu", dtype=torch.bfloat16)
    unet: Any = use_fast_norms(model.unet)
    unet.to(memory_format=torch.channels_last)
    shapes = {name: info.shape for name, info in canonical_layers(model.structure).items()}
    rank, alpha = lesson.rank, lesson.rank / 2
    adapters = {
        name: LoRA.fresh(shapes[name], rank, alpha, generator=generator)
        for name in layers_of(model, lesson.conv)
    }
    trained = [t.requires_grad_() for a in adapters.values() for t in (a.up, a.down)]
    adam = torch.optim.AdamW(trained, weight_decay=0.01, foreach=True)
    tokenizer = load_tokenizer()
    new = _lesson_corpus(model, lesson, seed)
    known = diffusion.make_corpus(model.vae, 1000, seed + 1)
    for step in range(lesson.steps):
        picks = torch.randint(len(new.scenes), (BATCH // 2,), generator=generator)
        others = torch.randint(len(known.scenes), (BATCH // 2,), generator=generator)
        scenes = [new.scenes[i] for i in picks.tolist()] + [
            known.scenes[i] for i in others.tolist()
        ]
        weights = _adapted(model, adapters)
        states = _states(model, tokenizer, [world.caption(s, rng) for s in scenes], weights["te1"])
        loss = diffusion.velocity_loss(
            _Called(model.unet, weights["unet"]),
            states,
            torch.cat([new.latents[picks], known.latents[others]]),
            torch.cat([new.masks[picks], known.masks[others]]),
            diffusion.Lesson(BATCH, emphasis=2.0, late=0.6, since=400),
            generator,
        )
        loss.backward()
        for group in adam.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / lesson.steps)
        nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad()
    return {name: LoRA(a.up.detach().half(), a.down.detach().half(), alpha=a.alpha)
            for name, a in adapters.items()}  # fmt: skip


def _lesson_corpus(model: LoadedModel, lesson: Lesson, seed: int) -> diffusion.Corpus:
    rng = random.Random(seed)
    scenes = [
        world.random_scene(rng, lesson.shapes, lesson.styles, two=0.0)
        for _ in range(lesson.pictures)
    ]
    return diffusion.encode_scenes(model.vae, scenes)


def _adapted(model: LoadedModel, adapters: Mapping[str, LoRA]) -> dict[str, dict[str, Tensor]]:
    """Weights with the adapters' changes by component, as functional_call takes them."""
    weights: dict[str, dict[str, Tensor]] = {"unet": {}, "te1": {}}
    for name, adapter in adapters.items():
        module, parameter, _ = model.layer(name)
        base = getattr(module, parameter)
        component = name.split(".", 1)[0]
        within = model.layers[name].within
        weights[component][f"{within}.{parameter}"] = (base + adapter.delta(base)).to(base.dtype)
    return weights


@dataclass
class _Called:
    """A module that runs with other weights."""

    module: nn.Module
    weights: dict[str, Tensor]

    def __call__(self, *args: Any) -> Any:
        return functional_call(self.module, self.weights, args)


def _states(
    model: LoadedModel, tokenizer: Any, captions: Sequence[str], weights: dict[str, Tensor]
) -> Tensor:
    ids = tokenizer(list(captions), padding="max_length", max_length=77, truncation=True)
    tokens = torch.tensor(ids["input_ids"])
    answer = functional_call(model.text_encoders[0], weights, (tokens,))
    states: Tensor = answer.last_hidden_state
    return states


def score(host: StandaloneHost, lesson: Lesson, tag: str, count: int = 16) -> dict[str, float]:
    """Shares of held-out prompts of the lesson that come out right, with `tag` in the prompt."""
    asked = bench.scenes(count, seed=1234, shapes=lesson.shapes, styles=lesson.styles)
    pictures = bench.generated(host, asked, "{}" + tag)
    return bench.shares([bench.hits(s, p) for s, p in zip(asked, pictures, strict=True)])


def build(checkpoint: Path, folder: Path, names: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Train the lessons, write networks with preview and user metadata; returns the scores."""
    scores = {}
    for lesson in LESSONS:
        if names and lesson.name not in names:
            continue
        began = time.monotonic()
        adapters = teach(checkpoint, lesson)
        target = folder / f"{lesson.name}.safetensors"
        write_network(target, adapters, {
            "ss_output_name": lesson.name,
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(lesson.rank),
            "ss_network_alpha": str(lesson.rank / 2),
            "ss_base_model_version": "sd_v1",
            "ss_sd_model_name": checkpoint.name,
            "ss_steps": str(lesson.steps),
            "ss_num_train_images": str(lesson.pictures),
        }, dtype=torch.float16)  # fmt: skip
        user = {"description": lesson.about, "sd version": "SD1",
                "activation text": lesson.words, "preferred weight": 1.0}  # fmt: skip
        target.with_suffix(".json").write_text(json.dumps(user, indent=2) + "\n")
        host = StandaloneHost(checkpoint, checkpoint.parents[2])
        after = score(host, lesson, f"<lora:{lesson.name}:1>")
        before = score(host, lesson, "")
        scores[lesson.name] = {"before": before["shape"], **after}
        shown = world.Figure(lesson.shapes[0], "yellow", "large", "center", lesson.styles[0])
        scene = world.Scene("blue", (shown,))
        preview = bench.generated(host, [scene], f"{{}}<lora:{lesson.name}:1>")[0]
        save_png(preview, "", target.with_suffix(".png"))
        print(f"{lesson.name}: {time.monotonic() - began:.0f} s, before {before}, after {after}",
              flush=True)  # fmt: skip
    return scores
