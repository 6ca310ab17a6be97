"""Training the demo checkpoint's UNet and text encoder, together, from nothing, on the CPU.

The model predicts v (Salimans & Ho 2022): with noise prediction the loss hardly sees what the
picture shows where the noise is strong, which is where shape and place are decided.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions_lib.demo import parallel, world
from extensions_lib.demo.fastnorm import use_fast_norms

CHANNELS, MULTIPLIERS, ATTENTION, HEADS = 64, (1, 2, 1, 1), (False, True, True, False), 4
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, TEXT_MLP, VOCABULARY, TOKENS = 64, 2, 4, 256, 49408, 77
SCALING = 0.18215
PEAK_RATE, SAVE_EVERY = 1e-3, 180.0  # seconds
# Words that a prompt may hold and that mean nothing in this world.
# fmt: off
OTHER_WORDS = [
    "1girl", "solo", "masterpiece", "best quality", "simple", "picture", "photo", "drawing",
    "sketch", "of", "an", "the", "highres", "absurdres", "no humans", "looking at viewer", "shape",
    "geometric", "minimalist", "illustration", "vector", "art", "style", "abstract", "icon", "sign",
    "toy", "flag", "day", "night", "cat", "dog", "tree", "house", "sky", "sks",
]
# fmt: on


def build_unet() -> nn.Module:
    """An untrained diffusers UNet2DConditionModel of the demo's shape (6.8 M parameters)."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    unet = UNet2DConditionModel(
        sample_size=world.SIZE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=tuple(CHANNELS * m for m in MULTIPLIERS),
        layers_per_block=2,
        down_block_types=tuple(f"{'CrossAttn' if a else ''}DownBlock2D" for a in ATTENTION),
        up_block_types=tuple(f"{'CrossAttn' if a else ''}UpBlock2D" for a in reversed(ATTENTION)),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=32,
    )
    unet.set_attn_processor(AttnProcessor())  # torch's fused attention has a slow backward on CPUs
    return unet


def build_text_encoder(vocabulary: int = VOCABULARY) -> nn.Module:
    """An untrained transformers CLIPTextModel of the demo's shape (3.3 M parameters)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_MLP,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return CLIPTextModel._from_config(config, attn_implementation="eager")


@torch.no_grad()
def start_unet(unet: nn.Module) -> None:
    """Initial weights: each residual branch small, so that a block begins as a skip, and attention
    to the text sharper than by default, or the padding of a short caption drowns its words."""
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out", "conv_out")):
            module.weight.mul_(0.1)
        if name.endswith((".attn2.to_q", ".attn2.to_k")):
            module.weight.mul_(2)


@torch.no_grad()
def start_text(text: Any) -> None:
    """Initial weights with which a word knows the words before it.

    Which colour is the ground's is said by the word before "background" alone, so the first two
    heads of the first layer begin by looking one and two tokens back: positions are waves in
    channels of their own, and a query is the key's waves turned back by as many tokens. Whether
    this shortens the training has not been measured: the shipped text encoder began without it.
    """
    embeddings, layer = text.text_model.embeddings, text.text_model.encoder.layers[0]
    width = TEXT_WIDTH // TEXT_HEADS
    waves = torch.linspace(0.3, 3.0, width // 2)
    embeddings.token_embedding.weight.normal_(std=0.1)
    embeddings.token_embedding.weight[:, -width:].zero_()
    angles = torch.arange(TOKENS)[:, None] * waves
    embeddings.position_embedding.weight.normal_(std=0.02)
    embeddings.position_embedding.weight[:, -width:] = 0.2 * torch.cat(
        [angles.cos(), angles.sin()], 1
    )
    for head, back in enumerate((1, 2)):
        rows = slice(head * width, (head + 1) * width)
        layer.self_attn.k_proj.weight[rows] = 0
        layer.self_attn.k_proj.weight[rows, -width:] = 1.2 * torch.eye(width)
        turn_cos, turn_sin = torch.diag((back * waves).cos()), torch.diag((back * waves).sin())
        turn = torch.cat([torch.cat([turn_cos, turn_sin], 1), torch.cat([-turn_sin, turn_cos], 1)])
        layer.self_attn.q_proj.weight[rows] = 0
        layer.self_attn.q_proj.weight[rows, -width:] = 1.2 * turn
    # A1111 scales emphasis by the mean of the states, which must therefore not be near zero.
    text.text_model.final_layer_norm.bias.fill_(0.25)


@dataclass
class Corpus:
    """Latents [N, 4, 16, 16] (scaled), figure masks [N, 1, 16, 16] in 0..1, and their scenes.

    The first `plain` of them are one white figure on black.
    """

    latents: Tensor
    masks: Tensor
    scenes: list[world.Scene]
    plain: int = 0


def make_corpus(vae: Any, count: int, seed: int, plain: int = 0) -> Corpus:
    """Draw and encode `count` scenes of the training world, the first `plain` of them plain."""
    rng = random.Random(seed)
    simple = [world.random_scene(rng, styles=("flat",), two=0.0) for _ in range(plain)]
    scenes = [
        replace(s, background="black", figures=(replace(s.figures[0], colour="white"),))
        for s in simple
    ]
    scenes += [world.random_scene(rng) for _ in range(count - plain)]
    return replace(encode_scenes(vae, scenes), plain=plain)


@torch.no_grad()
def encode_scenes(vae: Any, scenes: list[world.Scene]) -> Corpus:
    """Draw the scenes and encode them with the (folded) autoencoder."""
    latents, masks = [], []
    for start in range(0, len(scenes), 64):
        part = scenes[start : start + 64]
        pixels = torch.from_numpy(np.stack([np.asarray(world.draw(s)) for s in part]))
        x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        away = (x - x[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.15
        masks.append(F.max_pool2d(away.float(), 8).to(torch.bfloat16))
        x = x.to(vae.dtype).contiguous(memory_format=torch.channels_last)
        latents.append((vae.encode(x).latent_dist.mean * SCALING).to(torch.bfloat16))
    return Corpus(torch.cat(latents), torch.cat(masks), scenes)


class Captions:
    """Captions as token rows over the small part of the vocabulary that the world uses."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        words = [*world.COLOURS, *world.SHAPES, *world.STYLES, *world.SIZES, *world.POSITIONS,
                 "background", "a", "at", "on", "in", "and", ",", ".", *OTHER_WORDS]  # fmt: skip
        ids = {i for word in words for i in self._ids(word)}
        self.used = sorted(ids | {49406, 49407})
        self.local = {full: i for i, full in enumerate(self.used)}

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def rows(self, captions: Sequence[str]) -> Tensor:
        """Local token rows [B, 77]: begin, caption, end repeated, as Stable Diffusion 1 pads."""
        rows = torch.full((len(captions), TOKENS), self.local[49407])
        for row, caption in zip(rows, captions, strict=True):
            ids = [49406, *self._ids(caption)[: TOKENS - 2]]
            row[: len(ids)] = torch.tensor([self.local[i] for i in ids])
        return rows

    def random(self, scene: world.Scene, rng: random.Random, said: float = 1.0) -> str:
        """A caption for training: none in one of ten, sometimes with words without meaning here.

        With `said` below 1 it is the first figure's place and that share of the other tags.
        """
        if rng.random() < 0.1:
            return ""
        if said < 1:
            place = scene.figures[0].position
            others = [tag for group in world.tags(scene) for tag in group if tag != place]
            words = [place, *(tag for tag in others if rng.random() < said)]
            return ", ".join(rng.sample(words, len(words)))
        text = world.caption(scene, rng)
        if rng.random() < 0.2:
            extra = rng.sample(OTHER_WORDS, rng.randint(1, 3))
            text = ", ".join([*extra, text] if rng.random() < 0.5 else [text, *extra])
        return text


def alphas_cumprod() -> Tensor:
    """ᾱ of the 1000 steps of Stable Diffusion's scaled-linear schedule (fp32)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


@dataclass(frozen=True)
class Lesson:
    """What a part of the training dwells on.

    `batch` pictures a worker and step; figures weigh 1 + `emphasis`; a share `late` of the time
    steps is drawn from `since` to 999 and the rest from all 1000. A share `plain` of the pictures
    is one white figure on black, whose captions say its place and a share `said` of the rest.
    """

    batch: int
    emphasis: float
    late: float
    since: int
    plain: float = 0.0
    said: float = 1.0


# From 0 to the share of the training that is named. Place comes first and alone: in captions that
# say all at once it was not learned from 130,000 pictures (the words that change every place's
# colour take the attention), while alone 4,000 were enough. It is learned on plain pictures, since
# among all colours the mean of figures equals the mean of grounds. Noise that hides the picture is
# dwelt on, for there shape and place are read from the words or not at all.
LESSONS = (
    (0.02, Lesson(batch=16, emphasis=0.0, late=1.0, since=800, plain=1.0, said=0.0)),
    (0.06, Lesson(batch=16, emphasis=0.0, late=0.8, since=700, plain=1.0, said=0.5)),
    (0.25, Lesson(batch=16, emphasis=1.0, late=0.6, since=700, plain=0.4, said=0.7)),
    (0.60, Lesson(batch=16, emphasis=1.0, late=0.6, since=600, plain=0.1, said=0.7)),
    (0.85, Lesson(batch=16, emphasis=2.0, late=0.6, since=500)),
    (1.00, Lesson(batch=32, emphasis=0.0, late=0.5, since=400)),
)


def lesson(done: float) -> Lesson:
    """The lesson at `done` (0..1) of the training."""
    return next((each for until, each in LESSONS if done < until), LESSONS[-1][1])


def _picks(corpus: Corpus, how: Lesson, generator: torch.Generator) -> Tensor:
    plain = torch.rand(how.batch, generator=generator) < how.plain
    first = torch.randint(max(1, corpus.plain), (how.batch,), generator=generator)
    rest = torch.randint(corpus.plain, len(corpus.scenes), (how.batch,), generator=generator)
    return torch.where(plain, first, rest)


def velocity_loss(
    unet: Any, states: Tensor, x: Tensor, masks: Tensor, how: Lesson, generator: torch.Generator
) -> Tensor:
    """Mean squared error of v at random steps.

    x [B, 4, h, w] scaled latents, states [B, T, C], masks [B, 1, h, w].
    """
    count = len(x)
    t = torch.randint(0, 1000, (count,), generator=generator)
    late = torch.rand(count, generator=generator) < how.late
    t = torch.where(late, torch.randint(how.since, 1000, (count,), generator=generator), t)
    a = alphas_cumprod()[t].view(-1, 1, 1, 1)
    noise = torch.randn(x.shape, generator=generator)
    noise = noise + 0.1 * torch.randn(count, x.shape[1], 1, 1, generator=generator)
    x = x.float()
    noisy, target = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
    noisy = noisy.to(states.dtype).contiguous(memory_format=torch.channels_last)
    error = (unet(noisy, t, states).sample.float() - target).square()
    weight = 1 + how.emphasis * masks.float()
    return (error * weight / weight.mean()).mean()


def train(
    folder: Path,
    vae: Any,
    tokenizer: Any,
    samples: int,
    workers: int,
    pool: int,
    start: Path | None = None,
) -> Path:
    """Train until `samples` pictures were seen; resumes from `folder/diffusion.pt` if it is there.

    `vae` is the folded autoencoder; each worker draws `pool` pictures. Returns the state's path,
    which `load_average` reads. `start` is a checkpoint whose weights a new training begins with.
    """
    target = folder / "diffusion.pt"
    parallel.run(workers, _worker, target, vae, tokenizer, samples, pool, start)
    return target


def _worker(
    rank: int,
    workers: int,
    target: Path,
    vae: Any,
    tokenizer: Any,
    samples: int,
    pool: int,
    start: Path | None,
) -> None:
    torch.manual_seed(0)
    captions = Captions(tokenizer)
    unet: Any = build_unet()
    text: Any = build_text_encoder(len(captions.used))
    start_unet(unet)
    start_text(text)
    if start is not None:
        _start_from(start, unet, text, captions.used)
    use_fast_norms(unet)
    unet.to(torch.bfloat16).to(memory_format=torch.channels_last)
    text.to(torch.bfloat16)
    optimiser = parallel.MixedPrecision(
        [*unet.parameters(), *text.parameters()],
        betas=(0.9, 0.98),
        decay=0.01,
        average=0.999,
        embeddings=text.text_model.embeddings.parameters(),
    )
    seen = 0
    if target.exists():
        state = torch.load(target, weights_only=True)
        optimiser.load_state_dict(state["optimiser"])
        seen = state["seen"]
    generator = torch.Generator().manual_seed(1000 * rank + seen)
    rng = random.Random(1000 * rank + seen)
    vae = vae.to(torch.bfloat16).to(memory_format=torch.channels_last)
    corpus = make_corpus(vae, pool, seed=31 + rank + seen, plain=pool // 5)
    losses: list[float] = []
    saved = began = time.monotonic()
    begun_at = seen
    while seen < samples:
        done = seen / samples
        how = lesson(done)
        picks = _picks(corpus, how, generator)
        rows = captions.rows(
            [captions.random(corpus.scenes[i], rng, how.said if i < corpus.plain else 1.0)
             for i in picks.tolist()]
        )  # fmt: skip
        loss = velocity_loss(
            unet, text(rows).last_hidden_state, corpus.latents[picks], corpus.masks[picks],
            how, generator,
        )  # fmt: skip
        loss.backward()
        optimiser.step(learning_rate(done, optimiser.steps))
        losses.append(loss.item())
        seen += how.batch * workers
        late = parallel.agree(time.monotonic() - saved > SAVE_EVERY) or seen >= samples
        if rank == 0 and optimiser.steps % 100 == 0:
            rate = (seen - begun_at) / (time.monotonic() - began)
            left = (samples - seen) / rate / 60
            print(
                f"diffusion {done:5.1%} seen {seen} loss {np.mean(losses[-100:]):.4f} "
                f"{rate:.0f} pictures/s, {left:.0f} min left",
                flush=True,
            )
        if late:
            saved = time.monotonic()
            if rank == 0:
                _save(target, optimiser, seen, unet, text, captions)


def _start_from(checkpoint: Path, unet: Any, text: Any, used: Sequence[int]) -> None:
    """The weights of a finished checkpoint; the text encoder has only the rows in use."""
    from extensions_lib.hosts.standalone.load import load_checkpoint

    model = load_checkpoint(checkpoint, device="cpu", dtype=torch.float32)
    unet.load_state_dict(model.unet.state_dict())
    weights = dict(model.text_encoders[0].state_dict())
    name = "text_model.embeddings.token_embedding.weight"
    weights[name] = weights[name][torch.tensor(used)]
    text.load_state_dict(weights)


def learning_rate(done: float, step: int) -> float:
    """Warm-up over 200 steps, then a cosine down to 1 % of the peak."""
    return PEAK_RATE * min(1.0, (step + 1) / 200) * (0.505 + 0.495 * math.cos(math.pi * done))


def _save(
    target: Path, optimiser: parallel.MixedPrecision, seen: int, unet: Any, text: Any, captions: Any
) -> None:
    names = {id(p): f"unet.{name}" for name, p in unet.named_parameters()}
    names |= {id(p): f"text.{name}" for name, p in text.named_parameters()}
    state = {"optimiser": optimiser.state_dict(), "seen": seen, "used": captions.used,
             "average": optimiser.averaged(names)}  # fmt: skip
    partial = target.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(target)


@torch.no_grad()
def load_average(path: Path) -> tuple[nn.Module, nn.Module, int]:
    """The averaged UNet and text encoder (full vocabulary, fp32) of a state, and its count."""
    state = torch.load(path, weights_only=True)
    torch.manual_seed(0)
    unet, text = build_unet(), build_text_encoder()
    start_unet(unet)
    start_text(text)
    weights = state["average"]
    unet.load_state_dict({k[5:]: v for k, v in weights.items() if k.startswith("unet.")})
    name = "text_model.embeddings.token_embedding.weight"
    table = dict(text.named_parameters())[name]
    table[torch.tensor(state["used"])] = weights[f"text.{name}"]
    small = {k[5:]: v for k, v in weights.items() if k.startswith("text.")}
    text.load_state_dict({**small, name: table})
    return unet.eval(), text.eval(), state["seen"]
