"""The noise schedule and the way from a layer's name to its parameter."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import nn

from extensions_lib.models import Structure, canonical_layers, places
from extensions_lib.models.loaded import LoadedModel, NoiseSchedule
from extensions_lib.models.names import Tree
from tests.tiny import TINY


def test_schedule_is_that_of_stable_diffusion() -> None:
    reference = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).alphas_cumprod
    schedule = NoiseSchedule.scaled_linear()
    assert schedule.steps == 1000 and schedule.alphas_cumprod.dtype == torch.float32
    torch.testing.assert_close(schedule.alphas_cumprod, reference, rtol=2e-5, atol=0)
    # Known ends of the k-diffusion range of this schedule.
    assert schedule.sigmas[0].item() == pytest.approx(0.0292, abs=1e-4)
    assert schedule.sigmas[-1].item() == pytest.approx(14.6146, abs=1e-3)


def test_zero_terminal_snr() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    reference = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
    found = NoiseSchedule.scaled_linear("v_prediction", zero_terminal_snr=True)
    torch.testing.assert_close(
        found.alphas_cumprod[:-1], reference[:-1].float(), rtol=1e-5, atol=1e-9
    )
    assert 0 < found.alphas_cumprod[-1] < 1e-7
    assert found.prediction == "v_prediction"


def stand_in(structure: Structure, tree: Tree, component: str) -> nn.Module:
    """A module tree with a bare parameter of the right shape at every place of a component."""
    root = nn.Module()
    layers = canonical_layers(structure)
    for canonical, place in places(structure, tree).items():
        if not canonical.startswith(f"{component}."):
            continue
        module = root
        for part in place.within.split(".") if place.within else ():
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        shape = (place.shape[0] * (3 if place.rows else 1), *place.shape[1:])
        module.register_parameter(place.parameter, nn.Parameter(torch.empty(shape)))
        assert layers[canonical].kind
    return root


def model(structure: Structure, tree: Tree) -> LoadedModel:
    return LoadedModel(
        name="stand-in",
        path=None,
        hash="",
        structure=structure,
        unet=stand_in(structure, tree, "unet"),
        text_encoders=tuple(stand_in(structure, tree, c) for c in structure.text_components),
        vae=stand_in(structure, tree, "vae"),
        tree=tree,
        schedule=NoiseSchedule.scaled_linear(),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.mark.parametrize("tree", ["diffusers", "ldm", "forge"])
@pytest.mark.parametrize("family", list(TINY))
def test_every_layer_is_found(family: str, tree: Tree) -> None:
    loaded = model(TINY[family], tree)
    assert loaded.family == family
    for canonical, place in loaded.layers.items():
        module, name, rows = loaded.layer(canonical)
        weight = module._parameters[name]
        assert weight is not None
        part = weight if rows is None else weight[rows]
        assert tuple(part.shape) == place.shape


def test_a_wrapped_module_is_looked_through() -> None:
    loaded = model(TINY["SD1"], "ldm")
    encoder = loaded.text_encoders[0]
    embeddings = encoder.get_submodule("text_model.embeddings")
    token = embeddings.get_submodule("token_embedding")
    wrapper = nn.Module()
    wrapper.wrapped = token
    embeddings.token_embedding = wrapper
    assert loaded.layer("te1.text_model.embeddings.token_embedding")[0] is token
    outer = nn.Module()
    outer.wrapped = encoder
    loaded.text_encoders = (outer,)
    assert loaded.layer("te1.text_model.embeddings.token_embedding")[0] is token


def test_an_unknown_layer_is_named() -> None:
    loaded = model(TINY["SD1"], "ldm")
    with pytest.raises(KeyError, match=r"te2\.text_projection"):
        loaded.layer("te2.text_projection")
    loaded.unet = nn.Module()
    with pytest.raises(KeyError, match=r"unet\.conv_in.*input_blocks"):
        loaded.layer("unet.conv_in")
    with pytest.raises(KeyError):
        loaded.component("te2")
