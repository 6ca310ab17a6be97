"""ControlNet-LLLite: it learns to follow condition pictures, and the file does what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.adapters.base import AdapterError
from extensions_lib.adapters.lllite import LLLite
from extensions_lib.errors import CrucibleError
from extensions_lib.files.lllite import read_lllite
from extensions_lib.hosts.standalone.trainable import StandaloneTrainable
from extensions_lib.models.families import SDXL_BASE
from extensions_lib.patching.checkpointing import Checkpointing
from extensions_lib.patching.lllite import LLLites
from extensions_lib.training.recipe_options import LLLiteTraining
from extensions_lib.training.recipes.lllite import LLLiteRecipe, depths
from tests.lllite import targets
from tests.tiny import TINY
from tests.training.recipes import fixed_loss, resumes, trained, two
from tests.training.small import trainable

RATE = 0.02
CONTROL = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(8)) * 2 - 1
BATCH = two(control=CONTROL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StandaloneTrainable:
    """One for all tests: none leaves a trace on it."""
    return trainable(tmp_path_factory.mktemp("models"), "SDXL")


def make(model: StandaloneTrainable, **other: Any) -> LLLiteRecipe:
    return LLLiteRecipe(model, LLLiteTraining(cond_emb_dim=16, mlp_dim=16), RATE, **other)


def answer(model: StandaloneTrainable) -> torch.Tensor:
    with torch.no_grad():
        told = model.encode_text(["a thing"])
        return model.predict(torch.ones(1, 4, 8, 8), torch.tensor([300]), told)


def test_it_learns_and_its_file_does_the_same(model: StandaloneTrainable, tmp_path: Path) -> None:
    run = trained(model, make, 20, BATCH, rate=RATE)
    assert run.after < run.before - 0.002
    recipe: LLLiteRecipe = run.recipe
    path = tmp_path / "learnt.safetensors"
    recipe.save(path, {"modelspec.title": "x"}, torch.float32)
    read = read_lllite(path, structure=model.loaded.structure)
    assert not (read.unmatched or read.problems) and read.metadata == {"modelspec.title": "x"}
    base = answer(model)
    recipe.put_in()
    assert torch.equal(answer(model), base)  # nothing has been shown
    recipe._set.show(CONTROL[:1])
    expected = answer(model)
    recipe.take_out()
    active = LLLites(model.loaded)
    assert active.apply([read], lambda width, height: CONTROL[:1]) == [[]]
    active.weigh([1.0])
    found = answer(model)
    active.clear()
    assert torch.allclose(found, expected, atol=1e-6) and not torch.allclose(found, base, atol=1e-3)
    again = make(model, layers=read.layers)
    assert all(torch.equal(t, recipe.tensors()[n]) for n, t in again.tensors().items())


def test_it_resumes_to_the_bit(model: StandaloneTrainable, tmp_path: Path) -> None:
    resumes(lambda: model, make, BATCH, tmp_path, RATE)


def test_gradients_reach_every_part_also_with_checkpointing(model: StandaloneTrainable) -> None:
    recipe = make(model)
    with torch.no_grad():
        for name, tensor in recipe.tensors().items():
            if ".up." in name:
                tensor.fill_(0.01)
    checkpointing = Checkpointing(model.loaded)
    parameters = list(recipe.tensors().values())
    found = []
    recipe.put_in()
    for again in (False, True):
        if again:
            checkpointing.put_in()
        losses = recipe.losses(BATCH, torch.Generator().manual_seed(0))
        found.append(torch.autograd.grad(losses.sum(), parameters))
    checkpointing.take_out()
    recipe.take_out()
    assert all(each.any() for each in found[0])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_layers_are_those_of_sd_scripts() -> None:
    own = {canonical: depth for canonical, _, _, depth in targets(TINY["SDXL"])}
    assert depths(TINY["SDXL"]) == own
    full = depths(SDXL_BASE)
    assert len(full) == 136 and set(full.values()) == {2, 3}


def test_each_picture_follows_its_own(model: StandaloneTrainable) -> None:
    """And one of another size is brought to the size of its picture."""
    recipe = make(model)
    with torch.no_grad():
        for name, tensor in recipe.tensors().items():
            if ".up." in name:
                tensor.fill_(0.05)
    large = torch.nn.functional.interpolate(CONTROL, scale_factor=2, mode="nearest")
    recipe.put_in()
    with torch.no_grad():

        def losses(control: torch.Tensor) -> torch.Tensor:
            return recipe.losses(two(control=control), torch.Generator().manual_seed(0))

        both, swapped, other = losses(CONTROL), losses(CONTROL.flip(0)), losses(large)
    recipe.take_out()
    assert not torch.allclose(both, swapped, atol=1e-5)
    assert torch.allclose(both, other, atol=1e-2)


def test_what_is_missing_is_said(model: StandaloneTrainable, tmp_path: Path) -> None:
    recipe = make(model)
    with pytest.raises(CrucibleError, match=r"0\.png: has no condition picture"):
        fixed_loss(recipe, two())
    with pytest.raises(CrucibleError, match="is for SDXL; SD1 is SD1"):
        make(trainable(tmp_path, "SD1"))
    strange = {"unet.mid_block.attentions.0.proj_in": LLLite.fresh(7, 2)}
    with pytest.raises(AdapterError, match=r"proj_in: made for an input 7 wide"):
        make(model, layers=strange)
