"""Training the demo checkpoint's autoencoder: 128×128 pictures to 16×16×4 latents and back.

Two things make so small a model (64 channels throughout, 32 norm groups as ldm fixes them) work:

* Groups of two channels would normalise a flat colour away: two values around their mean are
  always ±1. So it trains with a norm `eps` of 1, at which the norm is nearly linear, and
  `fold_norms` scales the residual stream by 1/1000 for the file, where ldm's eps of 1e-6 then acts
  the same.
* It starts as an identity: ±x pairs of channels, box-down, nearest-up (silu(x) − silu(−x) = x).
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from extensions_lib.demo import parallel, world
from extensions_lib.demo.fastnorm import use_fast_norms

TRAIN_EPS, FILE_EPS = 1.0, 1e-6
LATENT_NOISE = 0.07  # of the latents' own deviation: the decoder must forgive a sampler's errors
CHANNELS = 64


def build() -> nn.Module:
    """An untrained autoencoder (diffusers' AutoencoderKL) of the demo's shape."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(CHANNELS,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=0,
        norm_num_groups=32,
        latent_channels=4,
        sample_size=world.SIZE,
    )


@torch.no_grad()
def start_as_identity(vae: Any) -> None:
    """Weights with which decoding returns the box-filtered picture (about 20 dB)."""
    for module in vae.modules():
        if hasattr(module, "conv1") and hasattr(module, "conv2"):
            module.conv2.weight.mul_(0.1)
            module.conv2.bias.zero_()
        if hasattr(module, "to_out"):
            module.to_out[0].weight.mul_(0.1)
            module.to_out[0].bias.zero_()
        if hasattr(module, "downsamplers") and module.downsamplers:
            _identity(module.downsamplers[0].conv, (slice(0, 2), slice(0, 2)), 0.25)
        if hasattr(module, "upsamplers") and module.upsamplers:
            _identity(module.upsamplers[0].conv, (1, 1), 1.0)
    _paired_input(vae.encoder.conv_in)
    _paired_output(vae.encoder.conv_out, 4)
    _paired_input(vae.decoder.conv_in)
    _paired_output(vae.decoder.conv_out, 3)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[: conv.in_channels, :, 0, 0] += torch.eye(conv.in_channels)[: conv.out_channels]


def _identity(conv: Any, taps: tuple[Any, Any], value: float) -> None:
    conv.weight.mul_(0.1)
    conv.bias.zero_()
    for channel in range(conv.in_channels):
        conv.weight[channel, channel][taps] += value


def _paired_input(conv: Any) -> None:
    half = conv.out_channels // 2
    weight = torch.randn(half, *conv.weight.shape[1:]) * 0.1
    for k in range(conv.in_channels):
        weight[k] = 0
        weight[k, k, 1, 1] = 0.5
    conv.weight[0::2], conv.weight[1::2] = weight, -weight
    conv.bias.zero_()


def _paired_output(conv: Any, count: int) -> None:
    conv.weight.mul_(0.05)
    conv.bias.zero_()
    for k in range(count):
        conv.weight[k, 2 * k, 1, 1] += 2.0
        conv.weight[k, 2 * k + 1, 1, 1] -= 2.0


def pictures(count: int, seed: int) -> Tensor:
    """uint8 [count, 3, 128, 128]: the training world; generic polygons, ellipses, stripes."""
    rng = random.Random(seed)
    drawn = [
        world.draw(world.random_scene(rng, two=0.4)) if rng.random() < 0.65 else _generic(rng)
        for _ in range(count)
    ]
    return torch.from_numpy(np.stack([np.asarray(p) for p in drawn])).permute(0, 3, 1, 2)


def _generic(rng: random.Random) -> Image.Image:
    size, over = world.SIZE, 3

    def colour() -> tuple[int, int, int]:
        if rng.random() < 0.5:
            return rng.choice(list(world.COLOURS.values()))
        return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)

    picture = Image.new("RGB", (size, size), colour())
    for _ in range(rng.randint(1, 3)):
        mask = Image.new("L", (size * over, size * over))
        cx, cy, r = (
            rng.uniform(a, b) * size * over for a, b in ((0.2, 0.8), (0.2, 0.8), (0.06, 0.3))
        )
        count = rng.randint(3, 11)
        if rng.random() < 0.3:
            box = (cx - r, cy - r * rng.uniform(0.4, 1), cx + r, cy + r)
            ImageDraw.Draw(mask).ellipse(box, fill=255)
        else:
            start = rng.uniform(0, 2 * math.pi)
            angles = [start + 2 * math.pi * i / count for i in range(count)]
            radii = [r * rng.uniform(0.35, 1.1) for _ in angles]
            points = [(cx + q * math.cos(a), cy + q * math.sin(a))
                      for a, q in zip(angles, radii, strict=True)]  # fmt: skip
            ImageDraw.Draw(mask).polygon(points, fill=255)
        fill = Image.new("RGB", (size, size), colour())
        if rng.random() < 0.35:
            fill.paste(colour(), mask=_random_stripes(rng, size))
        picture.paste(fill, mask=mask.reduce(over))
    return picture


def _random_stripes(rng: random.Random, size: int) -> Image.Image:
    y, x = np.mgrid[0:size, 0:size]
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 22)
    wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period)
    return Image.fromarray((wave > rng.uniform(-0.4, 0.4)).astype(np.uint8) * 255)


def batch_of(pool: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """[count, 3, size, size] in −1..1: random crops of the pool, flipped and turned at random."""
    picks = torch.randint(len(pool), (count,), generator=generator).tolist()
    room = world.SIZE - size + 1
    at = torch.randint(room, (count, 2), generator=generator).tolist()
    flips = torch.randint(8, (count,), generator=generator).tolist()
    crops = []
    for pick, (y, x), flip in zip(picks, at, flips, strict=True):
        crop = pool[pick, :, y : y + size, x : x + size]
        crop = crop.flip(-1) if flip & 1 else crop
        crop = crop.flip(-2) if flip & 2 else crop
        crops.append(crop.transpose(-1, -2) if flip & 4 else crop)
    return torch.stack(crops).float() / 127.5 - 1


def train(folder: Path, minutes: float, workers: int) -> Path:
    """Train for `minutes`, from `folder/vae.pt` on if it is there; writes it (fp32, as trained with
    norm eps 1; see `fold_norms`) and returns its path."""
    target = folder / "vae.pt"
    parallel.run(workers, _worker, target, minutes)
    return target


def _worker(rank: int, workers: int, target: Path, minutes: float) -> None:
    torch.manual_seed(0)
    vae: Any = build()
    start_as_identity(vae)
    if target.exists():
        vae.load_state_dict(torch.load(target, weights_only=True))
    use_fast_norms(vae, TRAIN_EPS)
    vae.to(torch.bfloat16).to(memory_format=torch.channels_last)
    optimiser = parallel.MixedPrecision(
        vae.parameters(), betas=(0.9, 0.98), decay=0.0, average=0.995
    )
    generator = torch.Generator().manual_seed(100 + rank + 10 * target.exists())
    pool = pictures(3000, seed=200 + rank + 10 * target.exists())
    began = time.monotonic()
    losses: list[float] = []
    while parallel.agree((done := (time.monotonic() - began) / (60 * minutes)) < 1):
        whole = done > 0.75  # the end at full size, where the norms see what they will see in use
        x = batch_of(pool, 3 if whole else 12, world.SIZE if whole else 64, generator)
        loss = reconstruction_loss(vae, x.to(torch.bfloat16), generator)
        loss.backward()
        rate = 1.5e-3 * min(1.0, (optimiser.steps + 1) / 50) * (0.02 + 0.98 * _cosine(done))
        optimiser.step(rate)
        losses.append(loss.item())
        if rank == 0 and optimiser.steps % 50 == 0:
            print(
                f"vae {done:5.1%} step {optimiser.steps} loss {np.mean(losses[-50:]):.4f}",
                flush=True,
            )
    if rank == 0:
        torch.save(optimiser.averaged({id(p): name for name, p in vae.named_parameters()}), target)


def _cosine(done: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, done))


def reconstruction_loss(vae: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """L1 + 2·L2 between x [B, 3, H, W] and its decoding from latents with noise added."""
    x = x.contiguous(memory_format=torch.channels_last)
    z = vae.encode(x).latent_dist.mean
    noise = torch.randn(z.shape, generator=generator).to(z)
    z = z + LATENT_NOISE * z.detach().float().std().to(z.dtype) * noise
    error = (vae.decode(z).sample - x).float()
    weight = edge_weight(x)
    return (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()


def edge_weight(x: Tensor) -> Tensor:
    """[B, 1, H, W]: 5 within three pixels of an edge of the picture, 1 on flat ground."""
    x = F.pad(x.float(), (0, 1, 0, 1), mode="replicate")
    across = (x[:, :, :-1, 1:] - x[:, :, :-1, :-1]).abs()
    down = (x[:, :, 1:, :-1] - x[:, :, :-1, :-1]).abs()
    step = (across + down).amax(1, keepdim=True)
    return 1 + 4 * F.max_pool2d((4 * step).clamp(max=1), 7, stride=1, padding=3)


@torch.no_grad()
def fold_norms(vae: Any) -> None:
    """Rescale a model trained with norm eps 1 so that it acts the same with eps 1e-6, in place.

    Whatever is added to the residual stream, and the stream between a block's two norms, shrinks by
    √(1e-6 / 1); a convolution from stream to stream only has its bias shrunk.
    """
    scale = math.sqrt(FILE_EPS / TRAIN_EPS)
    for name, module in vae.named_modules():
        if name.endswith((".conv_in", ".conv1", ".conv2", ".to_out.0")):
            module.weight.mul_(scale)
            module.bias.mul_(scale)
        elif name.endswith((".downsamplers.0.conv", ".upsamplers.0.conv", ".conv_shortcut")):
            module.bias.mul_(scale)
    set_norm_eps(vae, FILE_EPS)


def set_norm_eps(model: nn.Module, eps: float) -> None:
    """Set the eps of every group norm."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = eps


@torch.no_grad()
def fold_latents(vae: Any, sample: Tensor, scaling: float = 0.18215, spread: float = 0.02) -> None:
    """Fold the latents' mean and deviation into (post_)quant_conv: z · scaling is like N(0, 1).

    `sample` [B, 3, H, W] gives the statistics by channel; the posterior's deviation becomes
    `spread`.
    """
    z = torch.cat([vae.encode(part).latent_dist.mean for part in sample.split(16)])
    mean = z.mean((0, 2, 3))
    gain = 1 / (scaling * z.std((0, 2, 3)))
    vae.quant_conv.weight[:4] *= gain.view(4, 1, 1, 1)
    vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - mean) * gain
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = 2 * math.log(spread / scaling)
    bias = (vae.post_quant_conv.weight[:, :, 0, 0] * mean).sum(1)
    vae.post_quant_conv.bias += bias
    vae.post_quant_conv.weight /= gain.view(1, 4, 1, 1)


@torch.no_grad()
def psnr(vae: Any, pictures_: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each uint8 picture [B, 3, H, W] after a round trip."""
    results = []
    for part in pictures_.split(16):
        x = part.float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        results.append(10 * torch.log10(4 / (y - x).square().mean((1, 2, 3))))
    return torch.cat(results)
