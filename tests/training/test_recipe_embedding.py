"""Textual inversion and DreamArtist: new vectors learn, nothing else; the file says the same."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import CrucibleError
from extensions_lib.files.embeddings import Embedding, read_embedding
from extensions_lib.hosts.embeddings import Embeddings
from extensions_lib.hosts.standalone.text import tokens
from extensions_lib.hosts.standalone.trainable import StandaloneTrainable
from extensions_lib.library import EMBEDDINGS, Library
from extensions_lib.training import objective
from extensions_lib.training.recipes.embedding import (
    EmbeddingRecipe,
    EmbeddingTraining,
    vectors_of,
)
from tests.training.recipes import resumes, trained, two
from tests.training.small import trainable

RATE = 0.1
ONE = EmbeddingTraining(token_string="zorble", num_vectors_per_token=3, init_word="red circle")
BATCH = two(prompts=("a zorble", "nothing of the kind"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder: Path) -> StandaloneTrainable:
    """One for all tests: none leaves a trace on it."""
    return trainable(folder)


def make(model: StandaloneTrainable, options: EmbeddingTraining = ONE) -> EmbeddingRecipe:
    return EmbeddingRecipe(model, options, RATE)


@pytest.mark.parametrize("family", ["SD1", "SD2", "SDXL"])
def test_it_learns_and_its_file_says_the_same(folder: Path, tmp_path: Path, family: str) -> None:
    model = trainable(folder, family)
    run = trained(model, make, 25, BATCH, rate=RATE)
    assert run.after < run.before - 0.002
    parts = {"SD1": [""], "SD2": [""], "SDXL": ["clip_l", "clip_g"]}[family]
    assert [name.split(".")[1] for name in run.recipe.tensors()] == [
        part or "emb_params" for part in parts
    ]
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / "embeddings" / f"zorble{suffix}"
        run.recipe.save(path, {"ss_steps": "25"}, torch.float16)
        read = read_embedding(path)
        assert read.vectors == 3 and list(read.parts) == parts
        if suffix == ".safetensors" or family != "SDXL":
            assert read.step == 25 and read.checkpoint_hash == model.loaded.hash[:10]
        library = Library([path.parent], tmp_path / "cache", EMBEDDINGS)
        with_file = StandaloneTrainable(
            model.loaded, Embeddings(model.loaded.structure, library, tokens)
        )
        prompts = ["a zorble, zorble", "(zorble:1.2) on a hill"]
        run.recipe.put_in()
        expected = model.encode_text(prompts)
        run.recipe.take_out()
        found = with_file.encode_text(prompts)
        assert torch.equal(found.states, expected.states.detach())
        assert not torch.equal(model.encode_text(prompts).states, found.states)
        if family == "SDXL":
            assert torch.equal(found.pooled, expected.pooled.detach())
        path.unlink()


def test_it_resumes_to_the_bit(model: StandaloneTrainable, tmp_path: Path) -> None:
    resumes(lambda: model, make, BATCH, tmp_path, RATE)


def test_vectors_begin_as_those_of_words(model: StandaloneTrainable) -> None:
    table = model.loaded.layer("te1.text_model.embeddings.token_embedding")[0].weight
    [first, second] = tokens(["red circle"])[0]
    found = vectors_of(model, "red circle", 3)[""]
    assert torch.equal(found, table[[first, second, first]])
    assert torch.equal(vectors_of(model, "red circle", 1)[""], table[[first]])
    assert not model.loaded.text_encoders[0].get_input_embeddings()._forward_pre_hooks
    with pytest.raises(CrucibleError, match="init_word: '' has no tokens"):
        vectors_of(model, "", 2)


def test_a_pair_learns_what_guidance_makes_of_both(
    model: StandaloneTrainable, tmp_path: Path
) -> None:
    options = EmbeddingTraining(
        token_string="zorble", num_vectors_per_token=2, negative_embedding=True,
        negative_vectors=1, guidance=4.0, negative_lr_ratio=0.5, clip_skip=2,
    )  # fmt: skip
    run = trained(model, partial(make, options=options), 20, BATCH, rate=RATE)
    recipe: EmbeddingRecipe = run.recipe
    assert run.after < run.before - 0.002
    assert [group["lr"] for group in recipe.groups()] == [RATE, RATE / 2]
    one = replace(BATCH, latents=BATCH.latents[:1], prompts=("zorble",), names=("0.png",))
    recipe.put_in()
    with torch.no_grad():
        found = recipe.losses(one, torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(1)
        noise = objective.draw_noise(one.latents, options, generator)
        at = objective.draw_timesteps(1, options, generator)
        noisy = objective.noisy(one.latents, noise, at, model.loaded.schedule.alphas_cumprod)
        answers = [
            model.predict(noisy, at, model.encode_text([name], clip_skip=2))
            for name in ("zorble", "zorble-neg")
        ]
    recipe.take_out()
    by_hand = answers[1] + 4.0 * (answers[0] - answers[1])
    assert torch.allclose(found, (by_hand - noise).square().mean(), rtol=1e-4)
    recipe.save(tmp_path / "hero.safetensors", {}, torch.float32)
    files = {path.stem: read_embedding(path) for path in tmp_path.glob("*.safetensors")}
    assert {name: each.vectors for name, each in files.items()} == {"hero": 2, "hero-neg": 1}
    assert torch.equal(files["hero-neg"].parts[""], recipe.tensors()["zorble-neg.emb_params"])


def test_prompts_name_it(model: StandaloneTrainable) -> None:
    recipe = make(model)
    assert recipe.named("a Zorble on a hill") == "a Zorble on a hill"
    assert recipe.named("many zorbles") == "zorble, many zorbles"
    assert recipe.named("") == "zorble"


@pytest.mark.parametrize("name", ["", " zorble", "a:b", "(x)", "this AND that", "<lora>"])
def test_names_that_no_prompt_can_say(model: StandaloneTrainable, name: str) -> None:
    with pytest.raises(CrucibleError, match="token_string"):
        make(model, EmbeddingTraining(token_string=name))


def test_one_to_go_on_with(model: StandaloneTrainable) -> None:
    given = Embedding("zorble", {"": torch.full((5, 32), 0.1)})
    recipe = EmbeddingRecipe(model, ONE, RATE, embeddings=[given])
    assert torch.equal(recipe.tensors()["zorble.emb_params"], given.parts[""])
    assert not given.parts[""].requires_grad
    wide = Embedding("zorble", {"": torch.zeros(5, 768)})
    with pytest.raises(CrucibleError, match=r"cannot be trained further: .*768 wide"):
        EmbeddingRecipe(model, ONE, RATE, embeddings=[wide])
