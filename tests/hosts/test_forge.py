"""Forge's objects, as far as Crucible touches them, in the shape in which it holds a model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from extensions_lib.adapters.merge import merged
from extensions_lib.errors import NetworkProblem
from extensions_lib.files.networks import read_network
from extensions_lib.hosts import forge
from extensions_lib.models import Family, canonical_layers
from extensions_lib.models.names import component_of, places
from extensions_lib.patching import Wanted, together
from tests.hosts.conftest import tiny_lora
from tests.tiny import TINY, tiny_tensors

ENCODERS = {"SD1": ["clip_l"], "SD2": ["clip_h"], "SDXL": ["clip_g", "clip_l"]}


class Patcher:
    """What Forge's ModelPatcher does with patches until it loads its model."""

    def __init__(self, model: Any) -> None:
        self.model, self.lora_patches = model, {}

    def clone(self) -> Patcher:
        other = type(self)(self.model)
        other.lora_patches = dict(self.lora_patches)
        return other

    def add_patches(self, *, filename: str, patches: Any, online_mode: bool) -> None:
        known = dict(self.model.named_parameters())
        assert not patches.keys() - known.keys()
        self.lora_patches[filename, online_mode] = dict(patches)


class ClipPatcher(Patcher):
    """Forge's CLIP, which holds its model under another name."""

    @property
    def cond_stage_model(self) -> Any:
        return self.model


class Objects(SimpleNamespace):
    """Forge's bundle of patchers."""

    def shallow_copy(self) -> Objects:
        return Objects(**vars(self))


def grown(tensors: dict[str, torch.Tensor]) -> Any:
    """Modules under the names of the tensors."""
    root = nn.Module()
    for key, tensor in tensors.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return root


def engine(family: str) -> Any:
    """A loaded model as Forge holds it: text encoders in transformers' layout, split from ldm's."""
    structure, tensors = TINY[family], tiny_tensors(family)
    here = places(structure, "ldm")
    parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "vae": {}, "text": {}}
    for canonical, place in places(structure, "forge").items():
        tensor = tensors[here[canonical].key]
        tensor = tensor[here[canonical].rows] if here[canonical].rows else tensor
        tensor = tensor.t() if here[canonical].transposed else tensor
        component = component_of(canonical)
        name = component if component in parts else "text"
        parts[name][place.key] = tensor.clone()
    text = grown(parts["text"])
    ordered = nn.Module()
    for name in ENCODERS[family]:  # in an order of Forge's own
        ordered.add_module(name, text.get_submodule(name))
    unet = nn.Module()
    unet.diffusion_model = grown(parts["unet"])
    made: Any = unet
    made.predictor = SimpleNamespace(
        alphas_cumprod=torch.linspace(0.99, 0.01, 1000), prediction_type="epsilon"
    )
    made.storage_dtype = torch.float32
    vae = SimpleNamespace(first_stage_model=grown(parts["vae"]))
    objects = Objects(unet=Patcher(unet), clip=ClipPatcher(ordered), vae=vae, clipvision=None)
    return SimpleNamespace(
        forge_objects=objects.shallow_copy(),
        forge_objects_original=objects,
        forge_objects_after_applying_lora=objects.shallow_copy(),
        current_lora_hash="[]",
        sd_checkpoint_info=SimpleNamespace(name="x.safetensors", filename="/m/x", sha256="ab"),
    )


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Forge's own modules that are asked for; the answer is its table of ways to merge."""
    table: dict[str, Any] = {}
    names = ("backend", "backend.args", "backend.patcher", "backend.patcher.lora",
             "backend.memory_management")  # fmt: skip
    made: dict[str, Any] = {name: ModuleType(name) for name in names}
    made["backend.args"].dynamic_args = {}
    made["backend.patcher.lora"].extra_weight_calculators = table
    made["backend.memory_management"].get_torch_device = lambda: torch.device("cpu")
    made["backend.patcher"].lora = made["backend.patcher.lora"]
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    return table


@pytest.mark.parametrize("family", ENCODERS)
def test_every_layer_is_found(family: str) -> None:
    model = forge.loaded_model(engine(family))
    assert model.family is Family(family) and model.structure.unet == TINY[family].unet
    tensors, here = tiny_tensors(family), places(TINY[family], "ldm")
    names = set(places(TINY[family], "forge"))
    assert set(model.layers) == names <= set(canonical_layers(TINY[family]))
    for canonical in names:
        module, parameter, rows = model.layer(canonical)
        weight = module._parameters[parameter]
        assert weight is not None and rows is None
        expected = tensors[here[canonical].key]
        expected = expected[here[canonical].rows] if here[canonical].rows else expected
        assert torch.equal(weight, expected.t() if here[canonical].transposed else expected)


def test_models_of_another_kind_are_refused() -> None:
    flux = engine("SD1")
    flux.forge_objects_original.clip.model.add_module("t5xxl", flux_part := nn.Module())
    flux_part.transformer = nn.Module()
    with pytest.raises(NetworkProblem, match="SD1, SD2 and SDXL"):
        forge.loaded_model(flux)
    with pytest.raises(NetworkProblem, match="not loaded a checkpoint"):
        forge.loaded_model(SimpleNamespace())


def test_patchers_carry_the_set_and_come_clean(tmp_path: Path, backend: dict[str, Any]) -> None:
    loaded = engine("SD1")
    model = forge.loaded_model(loaded)
    path = tiny_lora(tmp_path / "some.safetensors", seed=1)
    network = read_network(path, structure=model.structure, name="some")
    active = forge.PatcherSet(loaded, model)
    original = loaded.forge_objects_original
    report = active.apply([Wanted(network, te=0.5, unet=0.8)])
    assert report.layers == len(network.adapters) and report.unfit == []
    carried = loaded.forge_objects_after_applying_lora
    assert original.unet.lora_patches == {} == original.clip.lora_patches
    calculate = backend[forge.KIND]
    seen = 0
    for patcher, prefix in ((carried.unet, "unet"), (carried.clip, "te1")):
        weights = dict(patcher.model.named_parameters())
        ((patches),) = patcher.lora_patches.values()
        for key, (kind, payload) in patches.items():
            assert kind == forge.KIND
            canonical = payload[0].signature[0][0]
            assert canonical.startswith(prefix)
            adapter = network.adapters[canonical]
            expected = merged(weights[key], [(adapter, 0.5 if prefix == "te1" else 0.8)])
            assert torch.equal(calculate(weights[key], 1.0, payload), expected)
            assert not torch.equal(expected, weights[key])
            seen += 1
    assert seen == len(network.adapters)
    assert active.apply([Wanted(network, te=0.5, unet=0.8)]) is report  # nothing is built twice
    assert loaded.forge_objects.unet is carried.unet
    name = loaded.current_lora_hash
    active.apply([Wanted(network, te=0.5, unet=0.7)])
    assert loaded.current_lora_hash != name and loaded.forge_objects.unet is not carried.unet
    active.park()
    assert loaded.forge_objects_after_applying_lora.unet is original.unet
    assert loaded.forge_objects.clip is original.clip and loaded.current_lora_hash == "[]"


def test_pictures_have_networks_beside_the_layers(tmp_path: Path) -> None:
    loaded = engine("SD1")
    model = forge.loaded_model(loaded)
    path = tiny_lora(tmp_path / "some.safetensors", seed=1)
    network = read_network(path, structure=model.structure, name="some")
    layers = [model.layer(name)[0] for name in network.adapters if name.startswith("unet")]
    each = together([[Wanted(network, te=0.5, unet=0.8)], [Wanted(network, te=1, unet=0.2)]])
    active = forge.PatcherSet(loaded, model)
    # Layers that nothing can be computed beside are merged for each group in each pass.
    for beside in (False, True):
        for layer in layers if beside else ():
            layer.in_features = layer.out_features = 1  # type: ignore[assignment]
        report = active.apply(each)
        assert report.notes == report.unfit == [] and report.layers == len(network.adapters)
        assert all("forward" in vars(layer) for layer in layers)
        ((_, patches),) = loaded.forge_objects.unet.lora_patches.items()
        assert patches == {}
        if not beside:
            active.clear()
            assert not any("forward" in vars(layer) for layer in layers)
    clip, unet = loaded.forge_objects.clip, loaded.forge_objects.unet
    active.encode(together([[Wanted(network, te=0.5, unet=0.8)], [Wanted(network, te=1)]], 1))
    assert loaded.forge_objects.clip is not clip and loaded.forge_objects.unet is unet
    active.park()
    assert not any("forward" in vars(layer) for layer in layers)


def test_packed_weights_are_merged_once_for_a_batch(tmp_path: Path) -> None:
    loaded = engine("SD1")
    model = forge.loaded_model(loaded)
    network = read_network(
        tiny_lora(tmp_path / "some.safetensors", seed=1), structure=model.structure, name="some"
    )
    layers = [model.layer(name)[0] for name in network.adapters if name.startswith("unet")]
    for layer in layers:
        plain = layer.weight
        assert isinstance(plain, torch.Tensor)
        packed = torch.nn.Parameter(torch.zeros(7, dtype=torch.uint8), requires_grad=False)
        packed.real_shape = plain.shape  # type: ignore[attr-defined]
        layer._parameters["weight"] = packed
    report = forge.PatcherSet(loaded, model).apply(
        together([[Wanted(network, te=0.5, unet=0.8)], [Wanted(network, te=1, unet=0.2)]])
    )
    (note,) = report.notes
    assert note.startswith(f"some: {len(layers)} layers have the first picture's weight")
    assert len(loaded.forge_objects.unet.lora_patches) == 1
    assert not any("forward" in vars(layer) for layer in layers)


def test_packed_weights_tell_their_own_shape() -> None:
    packed = torch.zeros(7, dtype=torch.uint8)
    assert "floating-point" in forge.held_shape(packed)
    packed.real_shape = torch.Size((3, 4))  # type: ignore[attr-defined]
    assert forge.held_shape(packed) == (3, 4)
    assert forge.held_shape(torch.zeros(2, 5)) == (2, 5)
