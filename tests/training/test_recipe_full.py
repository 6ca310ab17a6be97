"""Full fine-tuning: copies of the weights learn, the base stays, the checkpoint says the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.files.checkpoints import read_checkpoint
from extensions_lib.hosts.standalone.load import load_checkpoint
from extensions_lib.hosts.standalone.trainable import StandaloneTrainable
from extensions_lib.training.recipes.full import FullRecipe, FullTraining
from tests.tiny import tiny_checkpoint
from tests.training.recipes import Same, Trained, fixed_loss, resumes, trained, two
from tests.training.small import trainable

RATE = 1e-3
BATCH = two()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder: Path) -> StandaloneTrainable:
    """One for all tests: none leaves a trace on it."""
    return trainable(folder)


def make(model: StandaloneTrainable, **options: Any) -> FullRecipe:
    return FullRecipe(model, FullTraining(**options), RATE)


def answer(model: StandaloneTrainable) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        told = model.encode_text(["a (thing:1.2)"])
        return told.states, model.predict(torch.ones(1, 4, 8, 8), torch.tensor([300]), told)


def same_as_the_file(run: Trained, model: StandaloneTrainable, path: Path) -> None:
    """The checkpoint, loaded anew, answers as the model did with what was trained in it."""
    run.recipe.put_in()
    expected = answer(model)
    run.recipe.take_out()
    found = answer(StandaloneTrainable(load_checkpoint(path, device="cpu", dtype=torch.float32)))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize(("family", "texts"), [("SD1", False), ("SD2", True), ("SDXL", True)])
def test_it_learns_and_its_checkpoint_does_the_same(
    folder: Path, tmp_path: Path, family: str, texts: bool
) -> None:
    model = trainable(folder, family)
    base = answer(model)
    run = trained(model, partial(make, train_text_encoder=texts), 4, BATCH, rate=RATE)
    assert run.after < run.before - 0.05
    path = tmp_path / "tuned.safetensors"
    run.recipe.save(path, {"ss_steps": "4"}, torch.float32)
    same_as_the_file(run, model, path)
    old, new = load_file(model.loaded.path), load_file(path)
    assert new.keys() == read_checkpoint(model.loaded.path).tensors.keys()
    assert all(new[key].shape == old[key].shape for key in new)
    moved = {key for key in new if not torch.equal(new[key], old[key].float())}
    unet = {key for key in new if key.startswith("model.diffusion_model.")}
    assert unet <= moved and not any(key.startswith("first_stage_model.") for key in moved)
    assert any(key.startswith(("cond_stage_model.", "conditioner.")) for key in moved) == texts
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "ss_steps": "4"}
    assert all(torch.equal(one, other) for one, other in zip(answer(model), base, strict=True))


def test_it_resumes_to_the_bit(model: StandaloneTrainable, tmp_path: Path) -> None:
    resumes(lambda: model, partial(make, train_text_encoder=True), BATCH, tmp_path, RATE)


def test_a_half_precision_model_learns_what_its_own_numbers_cannot_hold(
    folder: Path, tmp_path: Path
) -> None:
    """Steps too small for bfloat16 add up in the copies."""
    path = trainable(folder).loaded.path
    loaded = load_checkpoint(path, device="cpu", dtype=torch.bfloat16)
    model = StandaloneTrainable(loaded)
    recipe = make(model)
    name = "unet.mid_block.resnets.0.conv1.weight"
    start = recipe.tensors()[name].detach().clone()
    run = trained(model, lambda _: recipe, 3, BATCH, rate=1e-6)
    now = run.recipe.tensors()[name].detach()
    lost = (now != start) & (now.to(torch.bfloat16) == start.to(torch.bfloat16))
    assert now.dtype == torch.float32 and float(lost.float().mean()) > 0.5
    assert all(p.dtype == torch.bfloat16 for p in loaded.unet.parameters())


def test_precision_markers_and_yaml_of_the_base_are_kept(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base.safetensors", "SD2", v_pred=True)
    beside = base.with_suffix(".yaml")
    beside.write_text("model:\n  params:\n    parameterization: v\n")
    model = StandaloneTrainable(load_checkpoint(base, device="cpu", dtype=torch.float32))
    recipe = make(model)
    path = tmp_path / "folder" / "tuned.safetensors"
    recipe.save(path, {}, None)
    assert path.with_suffix(".yaml").read_bytes() == beside.read_bytes()
    old, new = load_file(base), load_file(path)
    assert "v_pred" in new and "cond_stage_model.model.logit_scale" not in new
    assert all(torch.equal(new[key], old[key]) and new[key].dtype == old[key].dtype for key in new)
    recipe.save(path, {}, torch.bfloat16)
    assert {t.dtype for name, t in load_file(path).items() if name != "v_pred"} == {torch.bfloat16}


def test_values_of_a_moving_mean_are_saved(model: StandaloneTrainable, tmp_path: Path) -> None:
    recipe = make(model)
    values = {name: tensor.detach() + 1 for name, tensor in recipe.tensors().items()}
    recipe.save(tmp_path / "mean.safetensors", {}, torch.float32, values)
    key = "model.diffusion_model.out.2.bias"
    old, new = load_file(model.loaded.path), load_file(tmp_path / "mean.safetensors")
    assert torch.equal(new[key], old[key].float() + 1)


def test_regularisation_pictures_weigh_what_is_asked(model: StandaloneTrainable) -> None:
    batch = two(regularisation=torch.tensor([False, True]))
    both = []
    for weight in (1.0, 0.25):
        recipe = make(model, prior_loss_weight=weight)
        recipe.put_in()
        with torch.no_grad():
            both.append(recipe.losses(batch, torch.Generator().manual_seed(0)))
        recipe.take_out()
    assert torch.allclose(both[1], both[0] * torch.tensor([1, 0.25]))


def test_rates_and_what_is_trained(model: StandaloneTrainable) -> None:
    groups = make(model, train_text_encoder=True, text_encoder_lr=(1e-5,)).groups()
    assert {group["name"]: group["lr"] for group in groups} == {"unet": RATE, "te1": 1e-5}
    only = make(model, train_unet=False, train_text_encoder=True)
    assert only.reads and all(name.startswith("te1.") for name in only.tensors())
    assert not make(model).reads
    with pytest.raises(CrucibleError, match="nothing is trained"):
        make(model, unet_lr=0.0)


def test_a_failed_write_leaves_the_old_file(model: StandaloneTrainable, tmp_path: Path) -> None:
    recipe = make(model)
    path = tmp_path / "old.safetensors"
    path.write_bytes(b"old")
    kept, model.loaded.path = model.loaded.path, tmp_path / "gone.safetensors"
    try:
        with pytest.raises(FileProblem, match=r"gone\.safetensors"):
            recipe.save(path, {}, torch.float32)
        model.loaded.path = None
        with pytest.raises(FileProblem, match="was not loaded from a file"):
            recipe.save(path, {}, torch.float32)
    finally:
        model.loaded.path = kept
    with pytest.raises(FileProblem, match=r"written as \.safetensors"):
        recipe.save(tmp_path / "x.ckpt", {}, torch.float32)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_what_is_learnt_answers_only_while_it_is_in(model: StandaloneTrainable) -> None:
    recipe, batch = make(model), Same(BATCH).one
    recipe.put_in()
    with torch.no_grad():
        for tensor in recipe.tensors().values():
            tensor.mul_(1.1)
    recipe.after_step()
    inside = fixed_loss(recipe, batch)
    recipe.take_out()
    clean = make(model)
    clean.put_in()
    outside = fixed_loss(clean, batch)
    clean.take_out()
    assert abs(inside - outside) > 1e-3


def test_blocks_learn_at_rates_of_their_own(folder: Path) -> None:
    model = trainable(folder, "SDXL")
    weights = (0.0,) * 10 + (0.5, 1.0, 1.0) + (1.0,) * 10
    recipe = make(model, block_lr_weight=weights)
    rates = {group["name"]: group["lr"] for group in recipe.groups()}
    assert rates == {"unet × 0.5": RATE / 2, "unet": RATE}
    names = recipe.tensors().keys()
    assert any("mid_block" in name for name in names)
    assert not any("down_blocks" in name or "time_embedding" in name for name in names)
    with pytest.raises(CrucibleError, match="block_lr_weight"):
        make(model, block_lr_weight=(1.0,) * 7)
