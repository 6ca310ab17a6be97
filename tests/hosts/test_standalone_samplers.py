"""Every sampler against the formulas of k-diffusion (or of DDIM, PLMS) written out plainly."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
import torch
from torch import Tensor

from extensions_lib.errors import CrucibleError
from extensions_lib.hosts.standalone.samplers import SAMPLERS, Levels, Plan, find_sampler
from extensions_lib.models.loaded import NoiseSchedule

# numpy's about how diffusers converts its tensors
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SEEDS = (1, 2)
SHAPE = (4, 8, 8)
MIX = torch.randn(8, 8, generator=torch.Generator().manual_seed(3)) * 0.4


def clean(sample: Tensor, sigma: float) -> Tensor:
    """A model: some smooth guess of the finished sample, given one with this much noise."""
    return torch.tanh(sample @ MIX.to(sample.dtype) / (1 + sigma**2) ** 0.5)


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def drawn(pictures: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(SHAPE, generator=each) for each in pictures])


def sampled(name: str, kind: str, steps: int, prediction: str) -> Tensor:
    sampler, resolved = find_sampler(name, kind)
    schedule = NoiseSchedule.scaled_linear(prediction)  # type: ignore[arg-type]
    plan = Plan(sampler, resolved, steps, schedule)
    pictures = generators()
    sample = drawn(pictures) * plan.start
    for index in range(len(plan)):
        scaled = plan.scale(sample, index)
        sigma = float(plan.levels.sigma(plan.timesteps[index].reshape(1)))
        guess = clean(scaled * (1 + sigma**2) ** 0.5, sigma)
        signal = (1 + sigma**2) ** -0.5
        output = (scaled - signal * guess) / (sigma * signal)
        if prediction == "v_prediction":
            output = signal * output - sigma * signal * guess
        assert torch.allclose(plan.finished(scaled, output, index), guess, atol=1e-3)
        sample = plan.advance(output, index, sample, pictures)
    return sample


def ancestral(now: float, following: float) -> tuple[float, float]:
    up = following * ((now**2 - following**2) / now**2) ** 0.5
    return (following**2 - up**2) ** 0.5, up


def lms_weight(sigmas: list[float], order: int, index: int, which: int) -> float:
    """By Gauss-Legendre quadrature, which is exact for these polynomials too."""
    low, high = sigmas[index], sigmas[index + 1]
    total = 0.0
    for node, weight in zip(*numpy.polynomial.legendre.leggauss(6), strict=True):
        at, product = (high - low) / 2 * node + (low + high) / 2, 1.0
        for back in range(order):
            if back != which:
                product *= at - sigmas[index - back]
                product /= sigmas[index - which] - sigmas[index - back]
        total += (high - low) / 2 * weight * product
    return total


def k_diffusion(name: str, sigmas: list[float]) -> Tensor:
    pictures = generators()
    x = drawn(pictures).double() * sigmas[0]
    slopes: list[Tensor] = []
    before: Tensor | None = None
    for index, (now, after) in enumerate(itertools.pairwise(sigmas)):
        guess = clean(x, now)
        slope = (x - guess) / now
        down, up = ancestral(now, after) if name.endswith(" a") else (after, 0.0)
        if name == "LMS":
            slopes = [slope, *slopes][:4]
            order = len(slopes)
            for which, each in enumerate(slopes):
                x = x + lms_weight(sigmas, order, index, which) * each
        elif name == "DPM++ 2M" and after:
            h = math.log(now / after)
            best = guess
            if before is not None:
                ratio = math.log(sigmas[index - 1] / now) / h
                best = guess + (guess - before) / (2 * ratio)
            x = after / now * x - math.expm1(-h) * best
        elif name == "Heun" and after:
            ahead = x + slope * (after - now)
            x = x + (slope + (ahead - clean(ahead, after)) / after) / 2 * (after - now)
        elif name.startswith("DPM2") and down:
            middle = (now * down) ** 0.5
            ahead = x + slope * (middle - now)
            x = x + (ahead - clean(ahead, middle)) / middle * (down - now)
        else:
            x = x + slope * (down - now)
        if up:
            x = x + drawn(pictures) * up
        before = guess
    return x


def timestep_reference(name: str, steps: int) -> Tensor:
    alphas = NoiseSchedule.scaled_linear().alphas_cumprod.double()
    times = [min(each + 1, 999) for each in range(0, 1000, 1000 // steps)]

    def noise(x: Tensor, time: int) -> Tensor:
        alpha = float(alphas[time])
        sigma = ((1 - alpha) / alpha) ** 0.5
        return (x - alpha**0.5 * clean(x / alpha**0.5, sigma)) / (1 - alpha) ** 0.5

    def moved(x: Tensor, direction: Tensor, index: int) -> Tensor:
        now, after = alphas[times[index]], alphas[times[index - 1]]
        guess = (x - (1 - now).sqrt() * direction) / now.sqrt()
        return after.sqrt() * guess + (1 - after).sqrt() * direction

    x, old = drawn(generators()).double(), []
    for index in range(len(times) - 1, 0, -1):
        here = noise(x, times[index])
        if name == "DDIM":
            direction = here
        elif not old:
            direction = (here + noise(moved(x, here, index), times[index - 1])) / 2
        else:
            weights = {1: (3, -1), 2: (23, -16, 5), 3: (55, -59, 37, -9)}[len(old)]
            recent = [here, *old]
            direction = sum(w * e for w, e in zip(weights, recent, strict=True)) / sum(weights)
        x, old = moved(x, direction, index), [here, *old][:3]
    return x


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("kind", ["Uniform", "Karras", "Exponential"])
@pytest.mark.parametrize("name", [n for n, s in SAMPLERS.items() if s.spacing == "sigmas"])
def test_k_diffusion_formulas(name: str, kind: str, steps: int) -> None:
    levels = Levels(NoiseSchedule.scaled_linear().alphas_cumprod)
    discard = name.startswith("DPM2")
    sigmas = [*levels.spaced(kind, steps + discard)[:steps].tolist(), 0.0]
    expected = k_diffusion(name, sigmas)
    # With few steps, single precision at the first, large sigma shows.
    bound = 1e-3 if steps < 5 else 3e-5
    for prediction in ("epsilon", "v_prediction"):
        actual = sampled(name, kind, steps, prediction)
        assert (actual - expected).abs().max() < bound, prediction


@pytest.mark.parametrize("steps", [3, 7, 20, 30])
@pytest.mark.parametrize("name", ["DDIM", "PLMS"])
def test_timestep_formulas(name: str, steps: int) -> None:
    expected = timestep_reference(name, steps)
    for prediction in ("epsilon", "v_prediction"):
        actual = sampled(name, "Automatic", steps, prediction)
        assert (actual - expected).abs().max() < 5e-5, prediction


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_unipc_nears_the_exact_solution(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For normally distributed pictures the best guess and the whole path are known."""
    mean, spread = 0.3, 0.5

    def best(sample: Tensor, sigma: float) -> Tensor:
        return (mean * sigma**2 + sample * spread**2) / (sigma**2 + spread**2)

    monkeypatch.setattr(f"{__name__}.clean", best)
    levels = Levels(NoiseSchedule.scaled_linear().alphas_cumprod)
    start = drawn(generators()).double() * (1 + levels.highest**2) ** 0.5
    shrunk = (spread**2 + levels.lowest**2) / (spread**2 + levels.highest**2)
    exact = (mean + (start - mean) * shrunk**0.5) / (1 + levels.lowest**2) ** 0.5
    errors = [
        float((sampled("UniPC", "Automatic", steps, prediction) - exact).abs().max())
        for steps in (10, 20, 40)
    ]
    assert errors[0] / 2 > errors[1] > errors[2] * 2 and errors[2] < 0.06


@pytest.mark.parametrize("steps", [1, 2, 3, 40])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_number_of_steps(name: str, steps: int) -> None:
    actual = sampled(name, "Automatic", steps, "v_prediction")
    assert torch.isfinite(actual).all()


def test_levels_are_their_own_inverse() -> None:
    levels = Levels(NoiseSchedule.scaled_linear().alphas_cumprod)
    times = torch.tensor([0.0, 0.25, 17.5, 500.0, 998.9, 999.0], dtype=torch.double)
    assert torch.allclose(levels.timestep(levels.sigma(times)), times, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("DPM++ 2M", "Automatic", ("DPM++ 2M", "Karras")),
        ("dpm++ 2m karras", "Automatic", ("DPM++ 2M", "Karras")),
        ("DPM++ 2M Karras", "Exponential", ("DPM++ 2M", "Exponential")),
        ("Euler a", "automatic", ("Euler a", "Uniform")),
        (" Euler ", "Karras", ("Euler", "Karras")),
        ("LMS Karras", "", ("LMS", "Karras")),
        ("DPM2 a", "Automatic", ("DPM2 a", "Karras")),
        ("DDIM", "Karras", ("DDIM", "Automatic")),
    ],
)
def test_names(name: str, kind: str, expected: tuple[str, str]) -> None:
    sampler, resolved = find_sampler(name, kind)
    assert (sampler.name, resolved) == expected


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(CrucibleError, match=r"'Eular'.*Euler a"):
        find_sampler("Eular")
    with pytest.raises(CrucibleError, match=r"'Beta'.*Karras"):
        find_sampler("Euler", "Beta")
