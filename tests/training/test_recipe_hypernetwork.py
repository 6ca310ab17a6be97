"""Hypernetworks: every structure learns, and the file does what was trained."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.errors import CrucibleError
from extensions_lib.files.hypernetworks import (
    ACTIVATIONS,
    hypernetwork_widths,
    read_hypernetwork,
    write_hypernetwork,
)
from extensions_lib.hosts.standalone.trainable import StandaloneTrainable
from extensions_lib.patching.hypernetwork import Hypernetworks, changed
from extensions_lib.training.recipes.hypernetwork import (
    HypernetworkRecipe,
    HypernetworkTraining,
    fresh_hypernetwork,
)
from tests.hyper import hyper_file
from tests.patching.test_hypernetwork import THEIRS
from tests.training.recipes import resumes, trained, two
from tests.training.small import trainable

RATE = 0.01
BATCH = two()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StandaloneTrainable:
    """One for all tests: none leaves a trace on it."""
    return trainable(tmp_path_factory.mktemp("models"))


def make(model: StandaloneTrainable, **options: Any) -> HypernetworkRecipe:
    return HypernetworkRecipe(model, HypernetworkTraining(**options), RATE)


def answer(model: StandaloneTrainable) -> torch.Tensor:
    with torch.no_grad():
        told = model.encode_text(["a thing"])
        return model.predict(torch.ones(1, 4, 8, 8), torch.tensor([300]), told)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "layer_structure": (1.0, 2.0, 0.5, 1.0),
            "activation_func": "prelu",
            "is_layer_norm": True,
            "use_dropout": True,
            "last_layer_dropout": True,
            "activate_output": True,
            "weight_initialization": "KaimingNormal",
        },
        {
            "layer_structure": (1.0, 1.5, 2.0, 1.0),
            "activation_func": "swish",
            "use_dropout": True,
            "weight_initialization": "XavierUniform",
        },
    ],
    ids=["plain", "all", "dropout"],
)
def test_it_learns_and_its_file_does_the_same(
    model: StandaloneTrainable, tmp_path: Path, options: dict[str, Any]
) -> None:
    base = answer(model)
    run = trained(model, partial(make, **options), 20, BATCH, rate=RATE)
    assert run.after < run.before - 0.002
    recipe: HypernetworkRecipe = run.recipe
    recipe.put_in()
    expected = answer(model)
    recipe.take_out()
    path = tmp_path / "learnt.pt"
    recipe.save(path, {"ss_steps": "20", "ss_training_comment": "a test"}, torch.float16)
    read = read_hypernetwork(path)
    told = (read.name, read.step, read.info, read.checkpoint_hash, read.checkpoint)
    assert told == ("learnt", 20, "a test", model.loaded.hash[:10], model.loaded.name)
    assert hypernetwork_widths(path) == tuple(sorted(Hypernetworks(model.loaded).widths()))
    active = Hypernetworks(model.loaded)
    assert active.apply([(read, 1.0)]) == []
    found = answer(model)
    active.clear()
    assert torch.equal(found, expected) and not torch.equal(found, base)
    again = HypernetworkRecipe(model, HypernetworkTraining(), RATE, hypernetwork=read)
    names = recipe.tensors()
    assert all(torch.equal(tensor, names[name]) for name, tensor in again.tensors().items())
    assert again.learnt().dropout == recipe.learnt().dropout


def test_it_resumes_to_the_bit(model: StandaloneTrainable, tmp_path: Path) -> None:
    options = {"layer_structure": (1.0, 2.0, 1.0, 1.0), "use_dropout": True}
    resumes(lambda: model, partial(make, **options), BATCH, tmp_path, RATE)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_can_be_written_and_read(tmp_path: Path, activation: str) -> None:
    options = HypernetworkTraining(activation_func=activation, activate_output=True)
    generator = torch.Generator().manual_seed(0)
    fresh = fresh_hypernetwork([32], options, generator)
    write_hypernetwork(tmp_path / "x.pt", fresh)
    read = read_hypernetwork(tmp_path / "x.pt")
    assert [type(layer) for layer in read.mlps[32][1]] == [type(each) for each in fresh.mlps[32][1]]
    assert torch.equal(read.mlps[32][0][0].weight, fresh.mlps[32][0][0].weight)


def test_numbers_are_those_of_the_webui(tmp_path: Path) -> None:
    """What the WebUI's own saving gives (tests.hyper), read and written, has the same keys."""
    for dropout in (None, [0, 0.3, 0.3, 0]):
        path = hyper_file(
            tmp_path / "webui.pt", [32], structure=(1, 2, 1, 1), activation="prelu",
            layer_norm=True, dropout=dropout,
        )  # fmt: skip
        write_hypernetwork(tmp_path / "ours.pt", read_hypernetwork(path))
        theirs, ours = (
            torch.load(each, weights_only=True) for each in (path, tmp_path / "ours.pt")
        )
        assert theirs.keys() == ours.keys()
        for one, other in zip(theirs[32], ours[32], strict=True):
            assert list(one) == list(other)
            assert all(torch.equal(one[name], other[name]) for name in one)
        shares = dropout or [0, 0, 0, 0]
        assert ours["dropout_structure"] == shares and ours["use_dropout"] == any(shares)
        assert ours["last_layer_dropout"] == bool(shares[-2])


@pytest.mark.parametrize("way", ["Normal", "KaimingUniform", "KaimingNormal", "XavierUniform",
                                 "XavierNormal"])  # fmt: skip
def test_weights_begin_with_the_spread_of_torch(way: str) -> None:
    options = HypernetworkTraining(weight_initialization=way, layer_structure=(1.0, 3.0, 1.0))
    layer = fresh_hypernetwork([200], options, torch.Generator().manual_seed(0)).mlps[200][0][0]
    torch.manual_seed(0)
    theirs = torch.empty(600, 200)
    begin = {
        "Normal": partial(torch.nn.init.normal_, std=0.01),
        "KaimingUniform": partial(torch.nn.init.kaiming_uniform_, nonlinearity="relu"),
        "KaimingNormal": partial(torch.nn.init.kaiming_normal_, nonlinearity="relu"),
        "XavierUniform": torch.nn.init.xavier_uniform_,
        "XavierNormal": torch.nn.init.xavier_normal_,
    }[way]
    begin(theirs)
    assert float(layer.weight.std()) == pytest.approx(float(theirs.std()), rel=0.02)
    assert float(layer.weight.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.2)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer_structure": (1.0, 2.0)}, "has to go from 1 to 1"),
        ({"layer_structure": (1.0, -2.0, 1.0)}, "has to go from 1 to 1"),
        ({"use_dropout": True, "dropout_structure": (0.0, 0.3)}, "needs 3 shares"),
        ({"use_dropout": True, "dropout_structure": (0.0, 0.0, 0.3)}, "needs 3 shares"),
        ({"enable_sizes": (768,)}, r"contexts \(768,\) wide; SD1 has \(32, 64\)"),
    ],
)
def test_what_cannot_be_built_is_said(
    model: StandaloneTrainable, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(CrucibleError, match=said):
        make(model, **options)


@pytest.mark.webui
@pytest.mark.slow
def test_a1111s_own_class_does_the_same(model: StandaloneTrainable, tmp_path: Path) -> None:
    checkout = Path(os.environ["WEBUI_DIR"])
    if (checkout / "modules_forge").is_dir():
        pytest.skip("Forge does nothing with hypernetworks")
    options: dict[str, Any] = {
        "layer_structure": (1.0, 2.0, 2.0, 1.0), "activation_func": "prelu",
        "is_layer_norm": True, "use_dropout": True,
    }  # fmt: skip
    run = trained(model, partial(make, **options), 3, BATCH, rate=RATE)
    run.recipe.save(tmp_path / "h.pt", {}, torch.float32)
    x = torch.randn(2, 5, 32)
    torch.save(x, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    paths = [str(tmp_path / name) for name in ("h.pt", "x.pt", "out.pt")]
    python = os.environ.get("WEBUI_PYTHON") or str(checkout / "venv" / "bin" / "python")
    subprocess.run(
        [python, "-c", THEIRS.replace("8", "32").replace("PATHS", repr(paths))], check=True,
        cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)},
    )  # fmt: skip
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    for mlp, expected in zip(run.recipe.learnt().mlps[32], theirs, strict=True):
        assert torch.allclose(changed(mlp, 0.6, x), expected, atol=1e-6)
