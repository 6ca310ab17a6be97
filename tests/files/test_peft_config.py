"""PEFT's options beside a file: alpha, its patterns, rank-stabilised scales."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from extensions_lib.files.networks import read_network
from extensions_lib.files.safe import write_safetensors
from extensions_lib.models.families import SD15
from extensions_lib.models.names import flat
from tests.files.spelled import (
    KOHYA_ENDS,
    PEFT_ENDS,
    check,
    pairs,
    wrote,
)

PEFT_LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({"lora_alpha": 8, "r": 2}, 8.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 * 2**0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 3}, "rank_pattern": {"to_q": 2}}, 3.0),
        ({"lora_alpha": 8, "alpha_pattern": {"tn1.to_q": 3}}, 8.0),
        ({"lora_alpha": 8, "alpha_pattern": {r"^down_blocks\.0.*\.to_q$": 3}}, 3.0),
        ({"lora_alpha": 8, "alpha_pattern": {"^attn1.to_q": 3, "(a|a)*$": 4}}, 8.0),
        ({"lora_alpha": "8"}, None),
        ({"lora_alpha": float("nan")}, None),
        ({}, None),
    ],
)
def test_a_config_beside_the_file(tmp_path: Path, config: dict, alpha: float | None) -> None:
    path = tmp_path / "adapter_model.safetensors"
    name = PEFT_LAYER.replace("unet.", "base_model.model.")
    tensors = {f"{name}.{end}": torch.ones(2, 320) for end in PEFT_ENDS[1:]}
    tensors[f"{name}.lora_B.weight"] = torch.ones(320, 2)
    write_safetensors(path, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    network = read_network(path)
    found = network.adapters[PEFT_LAYER].tensors().get("alpha")
    assert (None if found is None else float(found)) == pytest.approx(alpha)
    assert bool(network.notes) == (alpha is None)


def test_patterns_that_are_not_understood_are_said(tmp_path: Path) -> None:
    """A wrong strength is not to pass in silence."""
    path = tmp_path / "n.safetensors"
    tensors = {f"{PEFT_LAYER}.lora_A.weight": torch.ones(2, 320)}
    tensors[f"{PEFT_LAYER}.lora_B.weight"] = torch.ones(320, 2)
    options = {"lora_alpha": 8, "alpha_pattern": {"to_q|to_k": 3, "attn2.to_v": 2, r"b\.\d+": 1}}
    named = {f"unet.{key}": value for key, value in options.items()}
    write_safetensors(path, tensors, {"lora_adapter_metadata": json.dumps(named)})
    (problem,) = read_network(path).problems
    assert problem.startswith("the metadata: 2 patterns for alpha are not understood, such as '")
    write_safetensors(path, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    (problem,) = read_network(path).problems
    assert problem.startswith("adapter_config.json: 2 patterns")
    assert float(read_network(path).adapters[PEFT_LAYER].tensors()["alpha"]) == 8


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{", '{"lora_alpha": 1e999}', "\x00"])
def test_broken_configs_are_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "n.safetensors"
    tensors = {f"{PEFT_LAYER}.lora_A.weight": torch.ones(2, 320)}
    tensors[f"{PEFT_LAYER}.lora_B.weight"] = torch.ones(320, 2)
    (tmp_path / "adapter_config.json").write_text(text)
    write_safetensors(path, tensors)
    network = read_network(path)
    assert network.problems or network.notes
    write_safetensors(path, tensors, {"lora_adapter_metadata": text})
    network = read_network(path)
    assert network.problems or network.notes


def test_another_s_config_is_not_taken(tmp_path: Path) -> None:
    """A config in the folder is PEFT's and says nothing of a kohya file."""
    given = pairs(SD15, "attn2")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 100}')
    check(wrote(tmp_path / "n.safetensors", given, flat, KOHYA_ENDS), given)
