"""Networks as OneTrainer writes them, in each of its formats, by the formulas of its training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.adapters import merged
from extensions_lib.files.keys import flat_names
from extensions_lib.files.networks import Network, read_network, write_network
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import read_any_header, write_safetensors
from extensions_lib.models.families import SD15, SDXL_BASE, Family
from extensions_lib.models.names import canonical_layers, flat, flat_ldm, places

FORMATS = ("kohya", "legacy", "diffusers", "comfyui", "original", "omi")
BRANCH = {"ot_branch": "master", "ot_revision": "abc"}
ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # linear
PROJ = "unet.down_blocks.1.attentions.0.proj_in"  # a convolution in SD1 alone
CONV = "unet.down_blocks.1.resnets.0.conv2"
CROSS = ATTENTION.replace("attn1.to_q", "attn2.to_k")  # its width tells the family


def spelled(layer: str, way: str) -> str:
    """A layer of SDXL's UNet, whose naming differs between the formats."""
    if way in ("legacy", "diffusers"):
        return flat(layer, Family.SDXL) if way == "legacy" else layer
    if way == "kohya":
        return flat_ldm(layer, SDXL_BASE)
    inner = places(SDXL_BASE, "ldm")[layer].path.removeprefix("model.diffusion_model.")
    return {"comfyui": "diffusion_model.", "original": "", "omi": "unet."}[way] + inner


def saved(folder: Path, tensors: dict[str, Tensor]) -> Network:
    path = folder / "network.safetensors"
    write_safetensors(path, tensors, BRANCH)
    network = read_network(path)
    assert (network.problems, network.unmatched) == ([], [])
    facts = facts_of(read_any_header(path).shapes)
    assert (facts.problems, facts.unmatched, facts.layers) == ([], [], len(network.adapters))
    return network


def turned(weight: Tensor, rows: Tensor, *, conv: bool, scaled: bool = False) -> Tensor:
    """Each block of the inputs times its rotation, written out in float64."""
    size = round((1 + math.sqrt(1 + 8 * rows.shape[1])) / 2)
    flat_weight = weight.double().flatten(1)
    result = torch.zeros_like(flat_weight)
    for block in range(flat_weight.shape[1] // size):
        numbers = iter(rows.double()[block % len(rows)].tolist())
        skew = torch.zeros(size, size, dtype=torch.float64)
        for i in range(size):
            for j in range(i + 1, size):
                skew[i, j] = next(numbers)
                skew[j, i] = -skew[i, j]
        if scaled:
            skew /= 2 * math.sqrt(size - 1)
        one = torch.eye(size, dtype=torch.float64)
        square = skew @ skew
        turn = one + 2 * skew + 2 * square + 2 * square @ skew + square @ square
        here = slice(block * size, (block + 1) * size)
        result[:, here] = flat_weight[:, here] @ (turn if conv else turn.T)
    return result.view(weight.shape)


def check(network: Network, layer: str, weight: Tensor, expected: Tensor) -> None:
    found = merged(weight, [(network.adapters[layer], 1.0)])
    error = (found.double() - expected).norm() / (expected - weight.double()).norm()
    assert error <= 1e-5, layer


def base(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", FORMATS)
def test_oft(tmp_path: Path, way: str) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {
        ATTENTION: (640, 640), PROJ: (640, 640), CONV: (640, 640, 3, 3), CROSS: (640, 2048)
    }  # fmt: skip
    # blocks of 4, 10 (one for all), 8 and 4
    rows = {ATTENTION: (160, 6), PROJ: (1, 45), CONV: (720, 28), CROSS: (512, 6)}
    given = {layer: 0.1 * torch.randn(rows[layer], generator=draw) for layer in shapes}
    tensors = {f"{spelled(layer, way)}.oft_R.weight": given[layer] for layer in shapes}
    network = saved(tmp_path, tensors)
    assert network.kinds == {"oft": 4} and network.family is Family.SDXL
    for layer, shape in shapes.items():
        weight = base(shape)
        check(network, layer, weight, turned(weight, given[layer], conv=len(shape) == 4))
    write_network(tmp_path / "again.safetensors", network.adapters)
    again = read_network(tmp_path / "again.safetensors")
    weight = base(shapes[CONV])
    check(again, CONV, weight, turned(weight, given[CONV], conv=True))


@pytest.mark.parametrize("marked", [True, False])
def test_oft_of_sd1_scaled(tmp_path: Path, marked: bool) -> None:
    """Its proj_in is a convolution; told from SDXL's by the widths of the other layers."""
    draw = torch.Generator().manual_seed(0)
    shapes = {CROSS: (640, 768), PROJ: (640, 640, 1, 1)}
    given = {layer: torch.randn(s[1] // 4, 6, generator=draw) for layer, s in shapes.items()}
    tensors = {f"{flat(layer)}.oft_R.weight": rows for layer, rows in given.items()}
    if marked:  # saved in the type of the others
        tensors |= {f"{flat(layer)}.oft_R.scaled_oft": torch.ones(()) for layer in shapes}
    network = saved(tmp_path, tensors)
    assert network.family is Family.SD1
    for layer, shape in shapes.items():
        weight = base(shape)
        expected = turned(weight, given[layer], conv=len(shape) == 4, scaled=marked)
        check(network, layer, weight, expected)


def test_loha_of_convolutions(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    expected = {}
    for layer, kernel in ((PROJ, (1, 1)), (CONV, (3, 3))):
        change = torch.ones((), dtype=torch.float64)
        for n in (1, 2):
            a = torch.randn(640, 4, 1, 1, generator=draw)
            b = torch.randn(4, 640, *kernel, generator=draw)
            tensors |= {f"{flat(layer)}.hada_w{n}_a": a, f"{flat(layer)}.hada_w{n}_b": b}
            change = change * (a.double().flatten(1) @ b.double().flatten(1))
        tensors[f"{flat(layer)}.alpha"] = torch.tensor(1.0, dtype=torch.bfloat16)
        expected[layer] = (change / 4).view(640, 640, *kernel)
    network = saved(tmp_path, tensors)
    assert network.kinds == {"loha": 2}
    for layer, change in expected.items():
        check(network, layer, torch.zeros(change.shape), change)


@pytest.mark.parametrize("way", FORMATS)
@pytest.mark.parametrize("out", [True, False], ids=["out", "in"])
def test_dora(tmp_path: Path, way: str, out: bool) -> None:
    """The alpha folded in and PEFT's magnitude with diffusers' names; else its own, on one axis."""
    draw = torch.Generator().manual_seed(0)
    name = spelled(ATTENTION, way)
    up, down = torch.randn(640, 4, generator=draw), torch.randn(4, 640, generator=draw)
    scale = 3 + torch.randn((640, 1) if out else (1, 640), generator=draw)
    ends = ("lora_up", "lora_down") if way in ("kohya", "legacy", "omi") else ("lora_B", "lora_A")
    tensors = {f"{name}.{ends[0]}.weight": up, f"{name}.{ends[1]}.weight": down}
    if way == "diffusers":
        tensors[f"{name}.lora_B.weight"] = up * 0.25
    else:
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    if way == "diffusers" and out:
        tensors[f"{name}.lora_magnitude_vector.weight"] = scale.flatten()
    else:
        tensors[f"{name}.dora_scale"] = scale
    network = saved(tmp_path, tensors)
    weight = base((640, 640))
    whole = weight.double() + 0.25 * up.double() @ down.double()
    check(
        network, ATTENTION, weight, scale.double() * whole / whole.norm(dim=int(out), keepdim=True)
    )


def test_layers_of_two_kinds() -> None:
    """What is a convolution in SD1 is linear in SDXL for these alone, so that families matter."""
    kinds = [canonical_layers(structure) for structure in (SD15, SDXL_BASE)]
    unlike = {n for n in kinds[0].keys() & kinds[1].keys() if kinds[0][n].kind != kinds[1][n].kind}
    assert {name.rpartition(".")[2] for name in unlike} == {"proj_in", "proj_out"}
    assert set(flat_names().values()) >= unlike
