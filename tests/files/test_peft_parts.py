"""Kinds that PEFT alone writes: what is kept of them when written, and what is refused and why.

That they mean here what they mean there is in test_network_savers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from extensions_lib.errors import FileProblem
from extensions_lib.files.networks import Network, read_network, write_network
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import read_any_header, read_tensors, write_safetensors
from extensions_lib.models.families import Family

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"  # 320, with a bias
PROJ = "unet.down_blocks.0.attentions.0.proj_in"  # a 1 x 1 convolution of 320 channels
PLAIN = {"lora_A.weight": (2, 320), "lora_B.weight": (320, 2)}
OTHER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"  # 320 of 768
OFT: dict[str, Any] = {"peft_type": "OFT", "use_cayley_neumann": True, "coft": False}


def saved(
    folder: Path, parts: dict[str, tuple[int, ...]], config: Any = None, layer: str = LAYER
) -> Path:
    """A file of PEFT's with these parts on one layer, and a LoRA on another."""
    draw = torch.Generator().manual_seed(5)
    name, other = (each.replace("unet.", "base_model.model.") for each in (layer, OTHER))
    sizes = {f"{name}.{part}": size for part, size in parts.items()}
    sizes |= {f"{other}.lora_A.weight": (2, 768), f"{other}.lora_B.weight": (320, 2)}
    tensors = {key: 0.1 * torch.randn(size, generator=draw) for key, size in sizes.items()}
    path = folder / "adapter_model.safetensors"
    write_safetensors(path, tensors)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return path


GOOD: dict[str, tuple[dict[str, tuple[int, ...]], Any, str, str]] = {
    "oft": ({"oft_R.weight": (80, 6)}, OFT, LAYER, "OFT"),
    "oft of another name": ({"oft_R.mine.weight": (80, 6)}, OFT, LAYER, "OFT"),
    "oft shared": ({"oft_R.weight": (1, 6)}, {**OFT, "block_share": True}, LAYER, "OFT"),
    "boft": ({"boft_R": (2, 40, 8, 8), "boft_s": (320, 1)}, None, LAYER, "BOFT"),
    "ia3": ({"ia3_l": (320, 1)}, None, LAYER, "IA3"),
    "ia3 of inputs": ({"ia3_l": (1, 320)}, None, LAYER, "IA3"),
    "ia3 of a convolution": (
        {"ia3_l": (1, 320, 1, 1)}, {"feedforward_modules": r".*\.proj_in"}, PROJ, "IA3"
    ),
    "adalora": (
        {"lora_A": (3, 320), "lora_B": (320, 3), "lora_E": (3, 1)}, {"lora_alpha": 4}, LAYER, "LoRA"
    ),
    "with a bias": ({**PLAIN, "lora_B.bias": (320,)}, {"lora_alpha": 4}, LAYER, "LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_is_read_can_be_written_and_read_again(tmp_path: Path, name: str) -> None:
    parts, config, layer, title = GOOD[name]
    path = saved(tmp_path, parts, config, layer)
    facts = facts_of(read_any_header(path).shapes)
    assert (facts.layers, facts.problems, facts.unmatched) == (2, [], [])
    assert title in facts.title and facts.family is Family.SD1
    network = read_network(path)
    assert (network.problems, network.unmatched, network.family) == ([], [], Family.SD1)
    write_network(tmp_path / "again.safetensors", network.adapters)
    again = read_network(tmp_path / "again.safetensors")
    for each in (layer, *network.adapters):
        expected, found = (n.adapters[each].tensors() for n in (network, again))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[part], expected[part]) for part in found)
    assert facts_of(read_any_header(again.path).shapes).title == facts.title
    assert again.family is Family.SD1


def ia3_of(network: Network, layer: str) -> dict[str, Tensor]:
    return network.adapters[layer].tensors()


@pytest.mark.parametrize(
    ("named", "on_input"),
    [(["proj_in"], 1), (["j_in", "x"], 1), (["proj_out"], 0), ([], 0), (None, 0),
     (r".*proj_in", 1), ("proj_in", 0), (r"(a|a)*$", 0), (5, 0)],
)  # fmt: skip
def test_which_side_an_ia3_of_a_convolution_scales(
    tmp_path: Path, named: Any, on_input: int
) -> None:
    path = saved(tmp_path, {"ia3_l": (1, 320, 1, 1)}, {"feedforward_modules": named}, PROJ)
    found = ia3_of(read_network(path), PROJ)
    assert int(found["on_input"]) == on_input
    assert ("on_bias" in found) == (not on_input)


def test_a_layer_without_a_bias_has_none_to_scale(tmp_path: Path) -> None:
    layer = LAYER.replace("attn1.to_out.0", "attn2.to_v")
    assert "on_bias" not in ia3_of(
        read_network(saved(tmp_path, {"ia3_l": (320, 1)}, None, layer)), layer
    )
    again = ia3_of(read_network(saved(tmp_path, {"ia3_l": (320, 1)})), LAYER)
    assert "on_bias" in again


REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], Any, str]] = {
    "oft alone": ({"oft_R.weight": (80, 6)}, None, "is PEFT's OFT, which has no one meaning"),
    "oft size": ({"oft_R.weight": (80, 5)}, OFT, r"oft_R is \[80, 5\]: expected rows of b"),
    "oft dims": ({"oft_R.weight": (80,)}, OFT, r"oft_R is \[80\]"),
    "oft none": ({"oft_R.weight": (80, 0)}, OFT, r"oft_R is \[80, 0\]"),
    "oft terms": (
        {"oft_R.weight": (80, 6)}, {**OFT, "num_cayley_neumann_terms": "five"},
        "num_cayley_neumann_terms 'five' in its adapter_config.json: expected a number",
    ),
    "oft eps": (
        {"oft_R.weight": (80, 6)}, {**OFT, "coft": True, "eps": None}, "has eps None in its adapter"
    ),
    "oft too large": (
        {"oft_R.weight": (1, 321 * 320 // 2)}, OFT, "oft_R has blocks of 321, of a layer with 320"
    ),
    "boft too large": (
        {"boft_R": (1, 1, 322, 322), "boft_s": (320, 1)}, None, "boft_R has blocks of 322, of a l"
    ),
    "old oft": ({"oft_r": (8, 40, 40)}, None, "PEFT's OFT of before 0.16"),
    "boft alone": ({"boft_R": (1, 40, 8, 8)}, None, "has boft_R without boft_s"),
    "boft dims": ({"boft_R": (40, 8, 8), "boft_s": (320, 1)}, None, r"boft_R is \[40, 8, 8\]"),
    "boft stages": ({"boft_R": (4, 4, 80, 80), "boft_s": (320, 1)}, None, "a multiple of 8 for 4"),
    "ia3 convolution": ({"ia3_l": (1, 320, 1, 1)}, None, "of inputs or of outputs: unknown"),
    "ia3 square": ({"ia3_l": (320, 320)}, None, "expected one factor per channel"),
    "adalora alone": (
        {"lora_A": (3, 320), "lora_B": (320, 3), "lora_E": (3, 1)}, None, "is an AdaLoRA, whose str"
    ),
    "adalora parts": (
        {"lora_A": (3, 320), "lora_B": (320, 3), "lora_E": (2, 1)}, {"lora_alpha": 1},
        "with parts that do not fit one another",
    ),
    "bias alone": ({**PLAIN, "lora_B.bias": (320,)}, None, "a bias of its own, whose strength"),
    "ln tuning": ({"ln_tuning_layers.weight": (320,)}, None, "is PEFT's LN tuning"),
    "hra": ({"hra_u": (320, 4)}, None, "is HRA: not supported"),
    "vera": ({"vera_lambda_b": (320,), "vera_lambda_d": (4,)}, None, "is VeRA"),
    "fourier": ({"fourierft_spectrum": (9,)}, None, "is FourierFT: not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name_and_the_rest_loads(tmp_path: Path, name: str) -> None:
    parts, config, said = REFUSED[name]
    network = read_network(saved(tmp_path, parts, config))
    assert list(network.adapters) == [OTHER]
    with pytest.raises(FileProblem, match=said):
        raise FileProblem("\n".join(network.problems))
    assert network.problems[0].startswith(f"{LAYER}: ")


def test_complex_numbers_are_not_made_real(tmp_path: Path) -> None:
    path = saved(tmp_path, {"boft_R": (1, 40, 8, 8), "boft_s": (320, 1)})
    tensors = dict(read_tensors(path))
    key = next(key for key in tensors if key.endswith("boft_s"))
    write_safetensors(path, {**tensors, key: tensors[key].to(torch.complex64)})
    assert read_network(path).problems == [f"{LAYER}: has boft_R with complex numbers"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("alpha", [5, 0])
def test_adalora_after_its_ranks_were_pruned(tmp_path: Path, alpha: int) -> None:
    """PEFT saves fewer ranks than it began with, and divides by the number of those."""
    from peft import AdaLoraConfig, PeftModel, get_peft_model
    from torch import nn

    path = LAYER.removeprefix("unet.")
    model = nn.ModuleDict()
    inner: nn.Module = model
    for step in path.split(".")[:-1]:
        inner.add_module(step, nn.ModuleDict())
        inner = inner.get_submodule(step)
    inner.add_module("0", nn.Linear(320, 320))
    config = AdaLoraConfig(init_r=6, lora_alpha=alpha, total_step=9, target_modules=[path])
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    kept = [True, False, True, True, False, True]
    wrapped.peft_config["default"].rank_pattern = {f"{path}.lora_E": kept}
    wrapped.save_pretrained(tmp_path)
    clean = model.get_submodule(path).base_layer.weight.detach().clone()
    expected = _loaded_again(model, path, tmp_path, PeftModel) - clean
    network = read_network(tmp_path / "adapter_model.safetensors")
    assert network.problems == [] and network.ranks == {4: 1}
    assert torch.allclose(network.adapters[LAYER].delta(clean), expected, atol=1e-4, rtol=1e-5)


def _loaded_again(model: Any, path: str, folder: Path, peft_model: Any) -> Tensor:
    """The weight after PEFT has loaded the saved file onto the same base and merged it."""
    import copy

    base = copy.deepcopy(model)
    parent, _, last = path.rpartition(".")
    wrapped = base.get_submodule(path)
    setattr(base.get_submodule(parent), last, wrapped.base_layer)
    merged = peft_model.from_pretrained(base, folder).merge_and_unload()
    return merged.get_submodule(path).weight.detach()
