"""Tags that change over the steps or by block, on a picture's whole way through the standalone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.hosts.a1111 import loaded_model
from extensions_lib.hosts.networks import Networks
from extensions_lib.library import Library
from extensions_lib.models.names import unet_blocks
from extensions_lib.prompts.tags import network_requests
from tests.hosts.conftest import tiny_lora
from tests.hosts.test_a1111 import sd_model


@pytest.fixture
def networks(tmp_path: Path) -> Networks:
    tiny_lora(tmp_path / "lora" / "some.safetensors", seed=1)
    library = Library([tmp_path / "lora"], tmp_path / "cache")
    library.refresh()
    return Networks(loaded_model(sd_model("SD1")), library)


def weights(networks: Networks) -> dict[str, torch.Tensor]:
    """A copy of every weight as it is now, by layer."""
    found = {}
    for canonical in networks.model.layers:
        module, name, _ = networks.model.layer(canonical)
        weight = module._parameters[name]
        assert weight is not None
        found[canonical] = weight.detach().clone()
    return found


def wants(networks: Networks, tag: str, **how: Any) -> list[str]:
    applied = networks.apply(network_requests(tag)[1], **how)
    return applied.messages


def test_each_step_has_its_weight(networks: Networks) -> None:
    plain = weights(networks)
    alone = {}
    for weight in (0.25, 0.5, 1):
        assert wants(networks, f"<lora:some:0.25:{weight}>") == []
        alone[weight] = weights(networks)
    assert wants(networks, "<lora:some:0.25:0.25@0,0.5@1,1@2>") == []
    for step, weight in enumerate((0.25, 0.5, 1)):
        networks.at(step, 3)
        now = weights(networks)
        assert all(torch.equal(now[name], alone[weight][name]) for name in now)
    networks.park()
    assert all(torch.equal(now, plain[name]) for name, now in weights(networks).items())


def test_a_network_can_begin_and_end_on_the_way(networks: Networks) -> None:
    plain = weights(networks)
    wants(networks, "<lora:some:1:step=1-2>")
    changed = []
    for step in range(3):
        networks.at(step, 3)
        now = weights(networks)
        changed.append(any(not torch.equal(now[name], plain[name]) for name in now))
    assert changed == [False, True, False]


def test_the_hires_pass_has_its_own_weights(networks: Networks) -> None:
    wants(networks, "<lora:some:0.5>")
    half = weights(networks)
    wants(networks, "<lora:some:1:hr=0.5>", hires=True)
    assert all(torch.equal(now, half[name]) for name, now in weights(networks).items())
    wants(networks, "<lora:some:1:hr=0.5>")
    assert any(not torch.equal(now, half[name]) for name, now in weights(networks).items())


def test_blocks_have_their_share(networks: Networks) -> None:
    plain = weights(networks)
    blocks = unet_blocks(networks.model.structure)
    assert {"IN00", "IN04", "M00", "OUT03"} <= set(blocks.values())
    assert wants(networks, "<lora:some:1:lbw=INALL>") == []
    now = weights(networks)
    touched = {name for name in now if not torch.equal(now[name], plain[name])}
    assert {blocks.get(name, "BASE")[:2] for name in touched} == {"IN", "BA"}
    wants(networks, "<lora:some:1:in=0:mid=0.5:out=0>")
    now = weights(networks)
    touched = {name for name in now if not torch.equal(now[name], plain[name])}
    assert {blocks.get(name, "BASE") for name in touched} == {"M00", "BASE"}
    wants(networks, "<lora:some:0.5:in=0:out=0>")
    half = weights(networks)
    middle = [name for name in touched if blocks.get(name) == "M00"]
    assert middle and all(torch.equal(half[name], now[name]) for name in middle)


def test_elements_of_blocks_have_their_share(networks: Networks) -> None:
    plain = weights(networks)
    tag = "<lora:some:1:lbw=INALL:lbwe=NOT BASE::0,IN:attn2:0.5>"
    assert wants(networks, tag) == []
    now = weights(networks)
    touched = {name for name in now if not torch.equal(now[name], plain[name])}
    parts = {name for name in touched if name.startswith("unet.")}
    blocks = unet_blocks(networks.model.structure)
    assert parts and all("attn2" in name and blocks[name].startswith("IN") for name in parts)
    assert wants(networks, "<lora:some:0.5>") == []
    half = weights(networks)
    assert all(torch.equal(now[name], half[name]) for name in parts)
    assert wants(networks, "<lora:some:1:lbw=INALL>") == []  # the same block weights are another
    now = weights(networks)
    assert any(not torch.equal(now[name], half[name]) for name in parts)
