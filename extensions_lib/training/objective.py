"""What a step learns from: noise, the noisy latents, what the UNet should answer, and the loss.

Plain functions on latents [B, C, h, w] and timesteps [B] (int64), for both predictions of
`NoiseSchedule`. All randomness is drawn on the CPU from one generator, so that a run is the same on
every device. Names of options are those of kohya's sd-scripts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from extensions_lib.errors import CrucibleError
from extensions_lib.training.option_groups import ObjectiveOptions

if TYPE_CHECKING:
    from extensions_lib.models.loaded import NoiseSchedule, Prediction

_MOST_SNR = 1000.0  # as sd-scripts limits it in all weights but min-SNR's


# --- noise ------------------------------------------------------------------------------------


def normal(
    like: Tensor, generator: torch.Generator, shape: tuple[int, ...] | None = None
) -> Tensor:
    """Standard normal noise of the shape (of `like`), on its device, drawn in fp32 on the CPU."""
    drawn = torch.randn(shape or tuple(like.shape), generator=generator)
    return drawn.to(like.device, like.dtype)


def draw_timesteps(count: int, options: ObjectiveOptions, generator: torch.Generator) -> Tensor:
    """[count] int64 from min_timestep up to but not including max_timestep."""
    return torch.randint(options.min_timestep, options.max_timestep, (count,), generator=generator)


def draw_noise(latents: Tensor, options: ObjectiveOptions, generator: torch.Generator) -> Tensor:
    """The noise to be learnt: normal, with offset and coarser layers where asked for."""
    noise = normal(latents, generator)
    if options.noise_offset:
        strength = options.noise_offset
        if options.noise_offset_random_strength:
            strength *= torch.rand((), generator=generator).item()
        noise = offset(noise, latents, strength, options.adaptive_noise_scale, generator)
    if options.multires_noise_iterations:
        discount = options.multires_noise_discount
        noise = multires(noise, options.multires_noise_iterations, discount, generator)
    return noise


def offset(
    noise: Tensor,
    latents: Tensor,
    strength: float,
    adaptive: float | None,
    generator: torch.Generator,
) -> Tensor:
    """noise + o N(0, 1)[B, C, 1, 1], where o = max(0, strength + adaptive |mean of the latent|).

    Offset noise: Guttenberg 2023, "Diffusion with Offset Noise"; the adaptive part: sd-scripts.
    """
    amount = torch.full_like(latents[:, :, :1, :1], strength)
    if adaptive:
        amount = (amount + adaptive * latents.mean((2, 3), keepdim=True).abs()).clamp(min=0)
    return noise + amount * normal(latents, generator, (*latents.shape[:2], 1, 1))


def multires(noise: Tensor, iterations: int, discount: float, generator: torch.Generator) -> Tensor:
    """Adds ever coarser noise, each `discount` as strong, and brings the deviation back to 1.

    Layer i has 1/r^i of the size, r drawn from 2 to 4 for each; it ends where a side is one value.
    Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training", as sd-scripts does it.
    """
    height, width = noise.shape[-2:]
    for level in range(iterations):
        shrink = (2 + 2 * torch.rand((), generator=generator).item()) ** level
        size = (max(1, int(height / shrink)), max(1, int(width / shrink)))
        coarse = normal(noise, generator, (*noise.shape[:2], *size))
        noise = noise + F.interpolate(coarse, (height, width), mode="bilinear") * discount**level
        if 1 in size:
            break
    return noise / noise.std()


# --- what the UNet sees and should answer -----------------------------------------------------


def noisy(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """√ᾱ x + √(1 − ᾱ) ε (Ho et al. 2020, eq. 4)."""
    alpha = _of(alphas_cumprod, timesteps, latents)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def disturbed(noise: Tensor, options: ObjectiveOptions, generator: torch.Generator) -> Tensor:
    """The noise as it is put on the input: ε + γ times fresh noise (Ning et al. 2023)."""
    if not options.ip_noise_gamma:
        return noise
    gamma = options.ip_noise_gamma
    if options.ip_noise_gamma_random_strength:
        gamma *= torch.rand((), generator=generator).item()
    return noise + gamma * normal(noise, generator)


def target(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """What the UNet should answer: ε, or v = √ᾱ ε − √(1 − ᾱ) x (Salimans and Ho 2022, eq. 8)."""
    if schedule.prediction == "epsilon":
        return noise
    alpha = _of(schedule.alphas_cumprod, timesteps, latents)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def _of(values: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    """The value of each timestep as [B, 1, 1, 1]."""
    found = values.to(timesteps.device)[timesteps]
    return found.to(like.device, torch.promote_types(like.dtype, torch.float32))[
        :, None, None, None
    ]


def check_for(options: ObjectiveOptions, schedule: NoiseSchedule) -> None:
    """Raises CrucibleError where the options do not suit what the model predicts."""
    if options.v_pred_like_loss and schedule.prediction == "v_prediction":
        raise CrucibleError(
            "v_pred_like_loss: is for checkpoints that predict noise, and this one predicts v;"
            " leave it out."
        )


# --- the loss ---------------------------------------------------------------------------------


def difference(answer: Tensor, wanted: Tensor, kind: str = "l2", c: Tensor | float = 0.1) -> Tensor:
    """The loss of each value, of the shape of answer, in fp32 (fp64 for doubles).

    c [B, 1, 1, 1] or a number: huber is 2c (√(d² + c²) − c), smooth_l1 is 2 (√(d² + c²) − c)
    (pseudo-Huber; Song and Dhariwal 2023, and sd-scripts for their scale).
    """
    d = answer.to(torch.promote_types(answer.dtype, torch.float32)) - wanted
    if kind == "l2":
        return d.square()
    if kind == "l1":
        return d.abs()
    # √(d² + c²) − c without the difference of two near numbers
    bent = d.square() / ((d.square() + c * c).sqrt() + c)
    if kind == "smooth_l1":
        return 2 * bent
    if kind == "huber":
        return 2 * c * bent
    raise ValueError(f"no loss is called {kind!r}")


def huber_c(options: ObjectiveOptions, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """[B, 1, 1, 1]: c of each picture, falling from 1 (no noise) towards huber_c.

    snr: (1 − c₀) / (1 + σ)² + c₀; exponential: c₀^(t/T) times huber_scale; constant: c₀ times it.
    """
    least, scale = options.huber_c, options.huber_scale
    t = timesteps.cpu()
    if options.huber_schedule == "constant":
        c = torch.full((len(t),), least * scale)
    elif options.huber_schedule == "exponential":
        c = torch.exp(math.log(least) * t / schedule.steps) * scale
    else:
        c = (1 - least) / (1 + schedule.sigmas.cpu()[t]) ** 2 + least
    return c.to(timesteps.device)[:, None, None, None]


def snr(schedule: NoiseSchedule) -> Tensor:
    """[steps] float64: ᾱ / (1 − ᾱ), of the schedule as it is trained on."""
    alphas = schedule.alphas_cumprod.double()
    return alphas / (1 - alphas)


def step_weights(options: ObjectiveOptions, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """[B] fp32 on the CPU: what the loss of each picture is multiplied by for its timestep."""
    s = snr(schedule).cpu()[timesteps.cpu()]
    velocity = schedule.prediction == "v_prediction"
    weight = torch.ones_like(s)
    if options.min_snr_gamma:
        weight = weight * min_snr(s, options.min_snr_gamma, schedule.prediction)
    s = s.clamp(max=_MOST_SNR)
    if options.scale_v_pred_loss_like_noise_pred and velocity:
        weight = weight * s / (s + 1)
    if options.v_pred_like_loss:
        weight = weight * (1 + options.v_pred_like_loss * (s + 1) / s)
    if options.debiased_estimation_loss:
        weight = weight * debiased(s, schedule.prediction)
    return weight.float()


def min_snr(s: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """min(S, γ) / S for noise, min(S, γ) / (S + 1) for v (Hang et al. 2023, arXiv 2303.09556)."""
    return s.clamp(max=gamma) / (s if prediction == "epsilon" else s + 1)


def debiased(s: Tensor, prediction: Prediction) -> Tensor:
    """1 / √S for noise (Yu et al. 2023, arXiv 2310.08442), 1 / √(S + 1) for v as OneTrainer has it.

    The paper's own, told of v, is √S / (S + 1), which gives pure noise next to no weight;
    sd-scripts has 1 / (S + 1).
    """
    return (s if prediction == "epsilon" else s + 1).rsqrt()


def loss_of(
    answer: Tensor,
    wanted: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    options: ObjectiveOptions,
    *,
    mask: Tensor | None = None,
    regularisation: Tensor | None = None,
) -> Tensor:
    """[B]: the loss of each picture.

    mask [B, 1, H, W] in 0..1 weighs places, at any size; regularisation [B] bool names the
    pictures that count prior_loss_weight. The order is sd-scripts': values, mask, mean, prior,
    timestep.
    """
    values = difference(
        answer, wanted, options.loss_type, huber_c(options, timesteps, schedule).to(answer.device)
    )
    if mask is not None:
        values = values * F.interpolate(mask.to(values), values.shape[-2:], mode="area")
    loss = values.mean((1, 2, 3))
    weight = step_weights(options, timesteps, schedule)
    if regularisation is not None:
        weight = torch.where(regularisation.cpu(), weight * options.prior_loss_weight, weight)
    return loss * weight.to(loss.device)
