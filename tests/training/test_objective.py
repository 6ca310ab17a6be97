"""The pieces of the objective against their formulas, each alone, in float64."""

import math
from dataclasses import replace

import pytest
import torch

from extensions_lib.errors import CrucibleError
from extensions_lib.models.loaded import NoiseSchedule
from extensions_lib.training import objective
from extensions_lib.training.objective import ObjectiveOptions, check_for

STEPS = torch.tensor([0, 17, 500, 999])


def schedule(prediction="epsilon", **options):
    return NoiseSchedule.scaled_linear(prediction, **options)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def alphas(which):
    return which.alphas_cumprod.double()[STEPS]


def test_noisy_latents_and_target() -> None:
    x, noise = drawn(4, 4, 5, 6), drawn(4, 4, 5, 6, seed=1)
    plan = schedule("v_prediction")
    signal = alphas(plan).sqrt()[:, None, None, None]
    rest = (1 - alphas(plan)).sqrt()[:, None, None, None]
    got = objective.noisy(x, noise, STEPS, plan.alphas_cumprod.double())
    torch.testing.assert_close(got, signal * x + rest * noise, rtol=1e-12, atol=1e-12)
    plan.alphas_cumprod = plan.alphas_cumprod.double()
    wanted = objective.target(x, noise, STEPS, plan)
    torch.testing.assert_close(wanted, signal * noise - rest * x, rtol=1e-12, atol=1e-12)
    # From the noisy latents and v, both parts come back.
    torch.testing.assert_close(signal * got - rest * wanted, x, rtol=1e-10, atol=1e-10)
    assert objective.target(x, noise, STEPS, schedule()) is noise


def test_offset_is_the_same_over_a_channel() -> None:
    x, noise = drawn(3, 4, 6, 6), drawn(3, 4, 6, 6, seed=1)
    added = objective.offset(noise, x, 0.1, None, seeded(5)) - noise
    each = torch.randn(3, 4, 1, 1, generator=seeded(5)).double() * 0.1
    torch.testing.assert_close(added, each.expand_as(added), rtol=1e-6, atol=1e-9)


def test_adaptive_offset_follows_the_mean_and_is_never_negative() -> None:
    x, noise = drawn(3, 4, 6, 6), drawn(3, 4, 6, 6, seed=1)
    for scale in (0.5, -10.0):
        added = objective.offset(noise, x, 0.1, scale, seeded(5)) - noise
        amount = (0.1 + scale * x.mean((2, 3), keepdim=True).abs()).clamp(min=0)
        each = amount * torch.randn(3, 4, 1, 1, generator=seeded(5)).double()
        torch.testing.assert_close(added, each.expand_as(added), rtol=1e-6, atol=1e-9)


def test_multires_noise_is_the_sum_of_its_layers() -> None:
    noise = drawn(2, 4, 16, 12)
    got = objective.multires(noise, 6, 0.3, seeded(3))
    generator, total, layers = seeded(3), noise.clone(), 0
    for i in range(6):
        r = 2 + 2 * torch.rand((), generator=generator).item()
        h, w = max(1, int(16 / r**i)), max(1, int(12 / r**i))
        coarse = torch.randn(2, 4, h, w, generator=generator).double()
        up = torch.nn.Upsample(size=(16, 12), mode="bilinear")
        total += up(coarse) * 0.3**i
        layers += 1
        if h == 1 or w == 1:
            break
    assert 2 <= layers < 6
    torch.testing.assert_close(got, total / total.std(), rtol=1e-6, atol=1e-8)
    assert abs(got.std().item() - 1) < 1e-9


def test_input_noise_is_disturbed_but_not_the_target() -> None:
    noise = drawn(2, 4, 3, 3)
    options = ObjectiveOptions(ip_noise_gamma=0.1)
    added = objective.disturbed(noise, options, seeded(2)) - noise
    expected = 0.1 * torch.randn(2, 4, 3, 3, generator=seeded(2)).double()
    torch.testing.assert_close(added, expected, rtol=1e-6, atol=1e-9)
    assert objective.disturbed(noise, ObjectiveOptions(), seeded()) is noise


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "smooth_l1"])
def test_differences(kind: str) -> None:
    a, b = drawn(2, 4, 3, 3), drawn(2, 4, 3, 3, seed=1)
    d, c = a - b, 0.2
    expected = {
        "l2": d**2,
        "l1": d.abs(),
        "huber": 2 * c * ((d**2 + c**2).sqrt() - c),
        "smooth_l1": 2 * ((d**2 + c**2).sqrt() - c),
    }[kind]
    got = objective.difference(a, b, kind, c)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="l3"):
        objective.difference(a, b, "l3")


def test_small_differences_are_exact_in_fp32() -> None:
    d = torch.tensor([1e-5])
    got = objective.difference(d, torch.zeros(1), "smooth_l1", 0.1).double()
    exact = 2 * (math.sqrt(1e-10 + 0.01) - 0.1)
    assert abs(got.item() / exact - 1) < 1e-5


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["snr", "exponential", "constant"])
def test_huber_c(kind: str, scale: float) -> None:
    plan = schedule()
    options = ObjectiveOptions(huber_schedule=kind, huber_c=0.05, huber_scale=scale)
    got = objective.huber_c(options, STEPS, plan).double().flatten()
    sigma = ((1 - alphas(plan)) / alphas(plan)).sqrt()
    expected = {
        "snr": (1 - 0.05) / (1 + sigma) ** 2 + 0.05,
        "exponential": scale * 0.05 ** (STEPS.double() / 1000),
        "constant": torch.full((4,), 0.05 * scale, dtype=torch.float64),
    }[kind]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero", [False, True])
def test_weights_by_timestep(prediction: str, zero: bool) -> None:
    plan = schedule(prediction, zero_terminal_snr=zero)
    a = alphas(plan)
    raw = a / (1 - a)
    s = raw.clamp(max=1000)
    assert raw[0] > 1000
    velocity = prediction == "v_prediction"
    plus = s + 1 if velocity else s

    def weights(**options: object) -> torch.Tensor:
        return objective.step_weights(ObjectiveOptions(**options), STEPS, plan).double()

    def close(got: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)

    close(weights(), torch.ones(4, dtype=torch.float64))
    whole = raw + 1 if velocity else raw
    close(weights(min_snr_gamma=5.0), raw.clamp(max=5) / whole)
    close(weights(debiased_estimation_loss=True), plus**-0.5)
    like_noise = s / (s + 1) if velocity else torch.ones_like(s)
    close(weights(scale_v_pred_loss_like_noise_pred=True), like_noise)
    close(weights(v_pred_like_loss=0.5), 1 + 0.5 * (s + 1) / s)
    both = weights(min_snr_gamma=5.0, scale_v_pred_loss_like_noise_pred=True)
    close(both, raw.clamp(max=5) / whole * like_noise)


def test_the_weights_follow_the_schedule_that_is_trained_on() -> None:
    """With no signal left at the end, min-SNR weighs the last step of v-prediction as nothing."""
    options = ObjectiveOptions(min_snr_gamma=5.0)
    last = torch.tensor([999])
    plan = schedule("v_prediction", zero_terminal_snr=True)
    assert objective.step_weights(options, last, plan).item() < 1e-6
    assert objective.step_weights(options, last, schedule("v_prediction")).item() > 1e-3


def test_loss_of_a_batch() -> None:
    plan = schedule()
    a, b = drawn(4, 4, 6, 8), drawn(4, 4, 6, 8, seed=1)
    mask = torch.rand(4, 1, 48, 64, generator=seeded(4), dtype=torch.float64)
    regularisation = torch.tensor([False, True, False, True])
    options = ObjectiveOptions(min_snr_gamma=5.0, prior_loss_weight=0.25)
    got = objective.loss_of(a, b, STEPS, plan, options, mask=mask, regularisation=regularisation)
    small = mask.reshape(4, 1, 6, 8, 8, 8).mean((3, 5))
    each = ((a - b) ** 2 * small).mean((1, 2, 3))
    s = alphas(plan) / (1 - alphas(plan))
    prior = torch.tensor([1, 0.25, 1, 0.25]).double()
    torch.testing.assert_close(got, each * prior * s.clamp(max=5) / s, rtol=1e-6, atol=1e-9)
    # What a picture costs does not hang on the others of its batch.
    alone = objective.loss_of(a[1:2], b[1:2], STEPS[1:2], plan, ObjectiveOptions())
    whole = objective.loss_of(a, b, STEPS, plan, ObjectiveOptions())
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-12, atol=0)


def test_timesteps_lie_in_their_range_and_repeat_with_the_seed() -> None:
    options = ObjectiveOptions(min_timestep=10, max_timestep=13)
    got = objective.draw_timesteps(400, options, seeded())
    assert sorted(set(got.tolist())) == [10, 11, 12]
    assert torch.equal(got, objective.draw_timesteps(400, options, seeded()))


def test_noise_is_the_same_whatever_the_dtype() -> None:
    options = ObjectiveOptions(noise_offset=0.1, multires_noise_iterations=4)
    latents = torch.zeros(2, 4, 8, 8)
    fine = objective.draw_noise(latents.double(), options, seeded(9))
    coarse = objective.draw_noise(latents.half(), options, seeded(9))
    assert (fine - coarse.double()).abs().max() < 1e-2
    assert torch.equal(
        objective.draw_noise(latents, ObjectiveOptions(), seeded(9)),
        torch.randn(2, 4, 8, 8, generator=seeded(9)),
    )


def test_a_weight_for_noise_is_refused_where_v_is_predicted() -> None:
    plain = NoiseSchedule.scaled_linear()
    check_for(ObjectiveOptions(v_pred_like_loss=0.5), plain)
    with pytest.raises(CrucibleError, match="v_pred_like_loss: is for checkpoints that predict"):
        check_for(ObjectiveOptions(v_pred_like_loss=0.5), replace(plain, prediction="v_prediction"))
