"""The pieces of the demo's training: exact where they claim to be, and able to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from extensions_lib.demo import autoencoder, diffusion, pack, parallel, world
from extensions_lib.demo.fastnorm import use_fast_norms
from extensions_lib.hosts.standalone.load import load_checkpoint
from extensions_lib.hosts.standalone.text import load_tokenizer


def test_the_fast_norm_is_torchs() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8, eps=1e-3).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 8, 5, 4, dtype=torch.double, requires_grad=True)
    weights = torch.randn(3, 8, 5, 4, dtype=torch.double)
    inputs = (x, norm.weight, norm.bias)
    expected = norm(x)
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    use_fast_norms(norm)
    found = norm(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad((found * weights).sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_folding_the_norms_changes_nothing() -> None:
    torch.manual_seed(0)
    vae: Any = autoencoder.build().eval()
    autoencoder.start_as_identity(vae)
    autoencoder.set_norm_eps(vae, autoencoder.TRAIN_EPS)
    x = autoencoder.pictures(2, seed=1).float() / 127.5 - 1
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mean
        y = vae.decode(z).sample
        autoencoder.fold_norms(vae)
        assert {m.eps for m in vae.modules() if isinstance(m, nn.GroupNorm)} == {1e-6}
        torch.testing.assert_close(vae.encode(x).latent_dist.mean, z, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(vae.decode(z).sample, y, rtol=1e-3, atol=1e-3)


def test_folding_the_latents_makes_them_standard_and_keeps_the_picture() -> None:
    torch.manual_seed(0)
    vae: Any = autoencoder.build().eval()
    autoencoder.start_as_identity(vae)
    x = autoencoder.pictures(8, seed=1).float() / 127.5 - 1
    with torch.no_grad():
        y = vae.decode(vae.encode(x).latent_dist.mean).sample
        autoencoder.fold_latents(vae, x)
        z = vae.encode(x).latent_dist.mean
        torch.testing.assert_close(vae.decode(z).sample, y, rtol=1e-3, atol=1e-3)
    scaled = z * diffusion.SCALING
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_the_untrained_autoencoder_begins_near_the_identity() -> None:
    torch.manual_seed(0)
    vae: Any = autoencoder.build().eval()
    autoencoder.start_as_identity(vae)
    autoencoder.set_norm_eps(vae, autoencoder.TRAIN_EPS)
    assert autoencoder.psnr(vae, autoencoder.pictures(8, seed=2)).mean() > 14


def test_mixed_precision_follows_adamw() -> None:
    torch.manual_seed(0)
    model, peer = nn.Linear(6, 5), nn.Linear(6, 5)
    peer.load_state_dict(model.state_dict())
    mine = parallel.MixedPrecision(model.parameters(), betas=(0.9, 0.98), decay=0.1, average=0.5)
    theirs = torch.optim.AdamW(
        [
            {"params": [peer.weight], "weight_decay": 0.1},
            {"params": [peer.bias], "weight_decay": 0},
        ],
        lr=0.01,
        betas=(0.9, 0.98),
    )
    for _ in range(5):
        x = torch.randn(8, 6)
        for each in (model, peer):
            each(x).square().mean().backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        mine.step(0.01)
        theirs.step()
        theirs.zero_grad()
    torch.testing.assert_close(model.weight, peer.weight)
    torch.testing.assert_close(model.bias, peer.bias)
    again = parallel.MixedPrecision(peer.parameters(), betas=(0.9, 0.98), decay=0.1, average=0.5)
    again.load_state_dict(mine.state_dict())
    assert torch.equal(again.average, mine.average) and again.steps == 5


def test_captions_use_the_checkpoints_own_token_numbers() -> None:
    captions = diffusion.Captions(load_tokenizer())
    row = captions.rows(["red circle"])[0]
    full = [captions.used[i] for i in row.tolist()]
    assert full[:4] == [49406, 736, 7117, 49407] and set(full[4:]) == {49407}


@pytest.mark.slow
def test_training_resumes_and_its_checkpoint_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae: Any = autoencoder.build().eval().requires_grad_(False)
    autoencoder.start_as_identity(vae)
    autoencoder.fold_latents(vae, autoencoder.pictures(16, 3).float() / 127.5 - 1)
    batch = diffusion.lesson(0.9).batch
    torch.manual_seed(0)
    first: Any = diffusion.build_unet()
    diffusion.start_unet(first)
    for total in (batch, 2 * batch):
        state = diffusion.train(tmp_path, vae, load_tokenizer(), total, workers=1, pool=40)
        unet, text, seen = diffusion.load_average(state)
        assert total <= seen < total + batch  # a step that was begun is finished
    target = tmp_path / "new.safetensors"
    pack.pack({"unet": unet, "te1": text, "vae": vae.float()}, target, {"crucible.size": "128"})
    model = load_checkpoint(target)
    assert model.structure == pack.STRUCTURE and model.schedule.prediction == "v_prediction"
    for name, value in unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], value.half().float()), name
    # Every layer has learned: weight decay alone would leave all its weights in one proportion.
    matrices = [(name, p.detach()) for name, p in first.named_parameters() if p.dim() > 1]
    for name, weight in matrices:
        change = unet.state_dict()[name] - weight
        rest = change - weight * (change * weight).sum() / weight.square().sum()
        assert rest.norm() > 1e-5 * weight.norm(), name


def test_a_perfect_model_has_no_loss_and_a_blind_one_has() -> None:
    x = torch.randn(4, 4, 8, 8)

    class Oracle:
        def __init__(self, known: torch.Tensor) -> None:
            self.known = known

        def __call__(self, noisy: torch.Tensor, t: torch.Tensor, _: torch.Tensor) -> Any:
            a = diffusion.alphas_cumprod()[t].view(-1, 1, 1, 1)
            noise = (noisy - a.sqrt() * self.known) / (1 - a).sqrt()
            self.sample = a.sqrt() * noise - (1 - a).sqrt() * self.known
            return self

    def loss(known: torch.Tensor) -> float:
        states, masks = torch.zeros(4, 77, 64), torch.ones(4, 1, 8, 8)
        generator = torch.Generator().manual_seed(0)
        how = diffusion.Lesson(batch=4, emphasis=1.0, late=0.5, since=400)
        return float(diffusion.velocity_loss(Oracle(known), states, x, masks, how, generator))

    assert loss(x) < 1e-6 < 0.1 < loss(torch.zeros_like(x))


def test_the_world_fits_the_size_it_says() -> None:
    assert world.SIZE % 64 == 0 and pack.STRUCTURE.unet.context_dim == diffusion.TEXT_WIDTH
