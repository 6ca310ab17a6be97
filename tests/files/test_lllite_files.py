"""ControlNet-LLLite files: what is read, what is refused, and with which words."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from extensions_lib.errors import FileProblem
from extensions_lib.files.lllite import lllite_facts, lllite_header, read_lllite
from extensions_lib.models import Family, flat
from extensions_lib.models.families import SDXL_BASE
from extensions_lib.toolbox.inspect import inspect
from tests.files.broken import SPOILS, Calls, _reshaped, _typed, _valued
from tests.lllite import lllite_file, side_parts, targets
from tests.tiny import TINY

TINY_XL = TINY["SDXL"]
FIRST = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def some_of_sdxl(path: Path, count: int = 3, **sizes: int) -> Path:
    """A file for the first layers of a full-size SDXL."""
    tensors = {
        f"{name}.{part}": tensor
        for _, name, width, depth in list(targets(SDXL_BASE))[:count]
        for part, tensor in side_parts(width, depth, **sizes).items()
    }
    save_file(tensors, path)
    return path


def test_the_layers_of_sd_scripts() -> None:
    """As its own documentation counts them: 4 blocks and the middle, attn1 q, k, v and attn2 q."""
    assert len(list(targets(SDXL_BASE))) == 136


def test_every_layer_is_read(tmp_path: Path) -> None:
    path = lllite_file(tmp_path / "canny.safetensors", TINY_XL)
    found = read_lllite(path, structure=TINY_XL)
    expected = {canonical: (width, 4 << depth) for canonical, _, width, depth in targets(TINY_XL)}
    assert {n: (e.width, e.stride) for n, e in found.layers.items()} == expected
    assert (found.name, found.problems, found.unmatched) == ("canny", [], [])
    assert found.metadata == {"modelspec.title": "made by a test"}
    raw = load_file(path)
    key = f"{next(name for layer, name, *_ in targets(TINY_XL) if layer == FIRST)}.up.0.weight"
    assert torch.equal(found.layers[FIRST].up.weight, raw[key])


def test_pickles_and_the_names_of_diffusers(tmp_path: Path) -> None:
    name = flat(FIRST, Family.SDXL).replace("lora_", "lllite_")
    parts = {f"{name}.{part}": tensor for part, tensor in side_parts(640, 2).items()}
    torch.save(parts, tmp_path / "a.pth")
    assert list(read_lllite(tmp_path / "a.pth").layers) == [FIRST]


def test_the_family_is_told_by_widths(tmp_path: Path) -> None:
    path = some_of_sdxl(tmp_path / "a.safetensors", 136, cond=8, mlp=2)
    assert read_lllite(path).family is Family.SDXL
    facts = lllite_header(path)
    assert facts is not None and facts.family is Family.SDXL and facts.layers == 136
    assert (dict(facts.cond_dims), dict(facts.mlp_dims)) == ({8: 136}, {2: 136})
    small = lllite_header(lllite_file(tmp_path / "small.safetensors", TINY_XL))
    assert small is not None and small.family is None and small.layers


def test_another_kind_of_file_is_refused_by_name(tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({f"{flat(FIRST, Family.SDXL)}.lora_up.weight": torch.ones(4, 2)}, lora)
    with pytest.raises(FileProblem, match=r"is no ControlNet-LLLite: it looks like a network"):
        read_lllite(lora)
    assert lllite_header(lora) is None
    control = tmp_path / "control.safetensors"
    save_file({"control_model.input_blocks.0.0.weight": torch.ones(4, 4)}, control)
    with pytest.raises(FileProblem, match=r"is no ControlNet-LLLite: it looks like a ControlNet"):
        read_lllite(control)
    with pytest.raises(FileProblem, match="cannot be read"):
        read_lllite(tmp_path / "nowhere.safetensors")


def test_what_cannot_be_used_is_listed_and_the_rest_loads(tmp_path: Path) -> None:
    path = lllite_file(tmp_path / "a.safetensors", TINY_XL)
    tensors = load_file(path)
    names = {layer: name for layer, name, *_ in targets(TINY_XL)}
    second, third = list(names)[1:3]
    tensors[f"{names[FIRST]}.up.0.weight"][0, 0] = float("nan")
    tensors[f"{names[second]}.down.0.bias"] = torch.zeros(3)
    del tensors[f"{names[third]}.mid.0.weight"]
    text = names[FIRST].replace("attn1_to_q", "attn2_to_k")
    tensors |= {f"{text}.{part}": tensor for part, tensor in side_parts(80, 2).items()}
    tensors |= {"lllite_unet_nowhere.up.0.weight": torch.ones(2, 2), "stray": torch.ones(1)}
    save_file(tensors, path)
    found = read_lllite(path, structure=TINY_XL)
    assert set(found.layers) == set(names) - {FIRST, second, third}
    said = "\n".join(found.problems)
    assert f"{FIRST}: up.0.weight holds values that are no numbers" in said
    assert f"{second}: down.0 is [4, " in said and f"{third}: an LLLite needs mid.0.weight" in said
    assert "attn2.to_k: its input has no place in the picture" in said
    assert found.unmatched == ["lllite_unet_nowhere.up.0.weight", "stray"]


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"lllite_unet_nowhere.up.0.weight": torch.ones(2, 2)}, path)
    with pytest.raises(FileProblem, match=r"none of its layers can be used.*lllite_unet_nowhere"):
        read_lllite(path)


def spoilt(rng: random.Random, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A few of its tensors lost, renamed, of another shape, type or value."""
    ways = (_reshaped, _reshaped, _typed, _valued)
    for _ in range(rng.randint(1, 12)):
        key = rng.choice(list(tensors))
        value = tensors.pop(key)
        if rng.random() < 0.8:
            other = key if rng.random() < 0.7 else rng.choice(list(tensors))[:-3] + key[-6:]
            tensors[other] = rng.choice(ways)(rng, value).contiguous()
    return tensors


def test_broken_files(tmp_path: Path) -> None:
    """A refusal that names the file, or side paths that can be applied: nothing else."""
    marker = tmp_path / "ran.txt"
    whole = some_of_sdxl(tmp_path / "whole.safetensors", cond=4, mlp=2)
    loaded = refused = 0
    for number in range(300):
        rng = random.Random(number)
        path = tmp_path / f"n{number}.safetensors"
        if number % 10 == 0:
            path = path.with_suffix(".pth")
            torch.save({**load_file(whole), "evil": Calls(marker)}, path)
        elif number % 3 == 0:
            path.write_bytes(rng.choice(SPOILS)(rng, whole.read_bytes()))
        else:
            save_file(spoilt(rng, load_file(whole)), path)
        try:
            lllite_header(path)
            found = read_lllite(path)
        except FileProblem as problem:
            assert str(path) in str(problem), number
            refused += 1
        else:
            for layer in found.layers.values():
                told = layer.to("cpu", torch.float32).told(torch.ones(1, 3, 32, 32))
                assert told.shape == (1, (32 // layer.stride) ** 2, layer.mlp_dim), number
            loaded += 1
        path.unlink()
    assert loaded > 50 and refused > 50
    assert not marker.exists()


def test_facts_need_no_whole_layer() -> None:
    name = next(name for layer, name, *_ in targets(SDXL_BASE) if layer == FIRST)
    facts = lllite_facts({f"{name}.up.0.weight": (640, 4)})
    assert facts.layers == 0 and facts.problems == [f"{FIRST}: lacks mid.0.weight"]


def test_inspect_names_it_with_its_sizes(tmp_path: Path) -> None:
    path = some_of_sdxl(tmp_path / "canny.safetensors", 136, cond=8, mlp=4)
    report = inspect(path)
    text = report.text()
    assert "Is:        ControlNet-LLLite for SDXL" in text
    assert "136 layers of the UNet" in text
    assert "picture 8 wide, hidden layer 4 wide" in text
    assert not report.problems and not report.unmatched
    assert len(report.hashes["sha256"]) == 64
    tensors = load_file(path)
    tensors["lllite_unet_nowhere.up.0.weight"] = torch.ones(2, 2)
    save_file(tensors, path)
    assert inspect(path).unmatched == ["lllite_unet_nowhere.up.0.weight"]
