"""Every way of naming in which a network may come leads to the same adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from extensions_lib.adapters import LoRA
from extensions_lib.errors import FileProblem
from extensions_lib.files.networks import read_network
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import read_any_header, write_safetensors
from extensions_lib.files.schemes import listed_names
from extensions_lib.models.families import SD15, SD21, SDXL_BASE, Structure
from extensions_lib.models.names import canonical_layers, flat, flat_ldm
from tests.files.spelled import (
    EVERY,
    KOHYA_ENDS,
    PEFT_ENDS,
    STRUCTURES,
    TREES,
    Pairs,
    check,
    dotted,
    pairs,
    wrote,
)
from tests.tiny import TINY


def ldm(layer: str) -> str:
    return flat_ldm(layer, SDXL_BASE)


@EVERY
@pytest.mark.parametrize(
    ("way", "name", "ends", "alpha"),
    [
        ("kohya", None, KOHYA_ENDS, 1.0),
        ("diffusers", dotted, ("lora.up.weight", "lora.down.weight"), None),
        ("PEFT", lambda n: f"base_model.model.{dotted(n)}", PEFT_ENDS, None),
        ("PEFT", dotted, ("lora_B.mine.weight", "lora_A.mine.weight"), None),
        ("PEFT", dotted, ("lora_B.my-own.weight", "lora_A.my-own.weight"), None),
        ("kohya, half-dotted", lambda n: f"lora_{n.replace('.', '_', 1)}", KOHYA_ENDS, 4.0),
    ],
)
def test_ways_with_whole_names(
    tmp_path: Path,
    family: str,
    way: str,
    name: Callable[[str], str] | None,
    ends: tuple[str, str],
    alpha: float | None,
) -> None:
    structure = STRUCTURES[family]
    given = pairs(structure, r"attn|mlp\.fc|ff\.net|conv|time_emb|proj_in")
    path = wrote(
        tmp_path / "n.safetensors",
        given,
        name or (lambda layer: flat(layer, structure.family)),
        ends,
        alpha,
    )
    network = check(path, given, 1.0 if alpha is None else alpha / 2)
    assert network.family is structure.family
    # (a layer at the top has no path to be dotted)
    assert facts_of(read_any_header(path).shapes).ways.most_common(1)[0][0] == way


def test_the_unet_of_sdxl_after_ldm(tmp_path: Path) -> None:
    given = pairs(SDXL_BASE, r"^unet\.", 80)
    for name in (ldm, lambda n: ldm(n).replace("lora_unet_", "lycoris_")):
        check(wrote(tmp_path / "n.safetensors", given, name, KOHYA_ENDS, 2.0), given, 1.0)


@EVERY
def test_old_diffusers(tmp_path: Path, family: str) -> None:
    structure = STRUCTURES[family]
    unet, text = pairs(structure, r"^unet.*attn\d"), pairs(structure, r"^te.*self_attn")
    tensors = {}
    for layer, (up, down) in unet.items():
        name = dotted(layer).replace(".to_out.0", ".to_out")
        stem, _, part = name.rpartition(".")
        tensors[f"{stem}.processor.{part}_lora.up.weight"] = up
        tensors[f"{stem}.processor.{part}_lora.down.weight"] = down
    for layer, (up, down) in text.items():
        tensors[f"{dotted(layer)}.lora_linear_layer.up.weight"] = up
        tensors[f"{dotted(layer)}.lora_linear_layer.down.weight"] = down
    write_safetensors(tmp_path / "n.safetensors", tensors)
    check(tmp_path / "n.safetensors", unet | text)
    ways = facts_of(read_any_header(tmp_path / "n.safetensors").shapes).ways
    assert set(ways) == {"diffusers (old)"}


@EVERY
@pytest.mark.parametrize("inner", ["transformer.", ""])
def test_comfyui(tmp_path: Path, family: str, inner: str) -> None:
    structure = STRUCTURES[family]
    clips = {"te1": "clip_h" if family == "SD2" else "clip_l", "te2": "clip_g"}
    from extensions_lib.models.names import places

    where = places(structure, "ldm")

    def name(layer: str) -> str:
        component, _, path = layer.partition(".")
        if component == "unet":
            return f"diffusion_model.{where[layer].within}"
        return f"text_encoders.{clips[component]}.{inner}{path}"

    given = pairs(structure, r"attn|conv|mlp")
    check(wrote(tmp_path / "n.safetensors", given, name, KOHYA_ENDS, 1.0), given, 0.5)


@EVERY
def test_simpletuner(tmp_path: Path, family: str) -> None:
    structure = STRUCTURES[family]
    given = pairs(structure, r"^unet.*(attn|conv)") | pairs(structure, r"^te1.*mlp")

    def name(layer: str) -> str:
        return "lycoris_" + layer.partition(".")[2].replace(".", "_")

    network = check(wrote(tmp_path / "n.safetensors", given, name, KOHYA_ENDS, 1.0), given, 0.5)
    assert network.family is structure.family


def test_a_text_encoder_alone_and_unnamed_is_told_by_its_width(tmp_path: Path) -> None:
    for structure, component in ((SD15, "te1"), (SD21, "te1"), (SDXL_BASE, "te2")):
        given = pairs(structure, rf"^{component}.*(self_attn|mlp)")

        def name(layer: str) -> str:
            return f"base_model.model.{layer.partition('.')[2]}"

        check(wrote(tmp_path / "n.safetensors", given, name, PEFT_ENDS), given)


@EVERY
@pytest.mark.parametrize("way", ["diffusers", "kohya", "comfyui", "peft", "lycoris"])
def test_the_text_encoder_of_transformers_since_5_6(tmp_path: Path, family: str, way: str) -> None:
    """Without the `text_model` around it; SDXL's second, of another class, keeps that."""
    structure = STRUCTURES[family]
    text = r"^te1.*(self_attn|mlp|token_embedding)" if way in ("peft", "lycoris") else r"^te.*mlp"
    given = pairs(structure, text)

    def name(layer: str) -> str:
        component, _, path = layer.partition(".")
        path = path.removeprefix("text_model.") if component == "te1" else path
        if way == "kohya":
            number = component if family == "SDXL" else "te"
            return f"lora_{number}_{path.replace('.', '_')}"
        if way == "comfyui":
            return (
                f"text_encoders.{'clip_l' if component == 'te1' else 'clip_g'}.transformer.{path}"
            )
        if way == "lycoris":
            return f"lycoris_{path.replace('.', '_')}"
        return f"base_model.model.{path}" if way == "peft" else f"{TREES[component]}.{path}"

    ends = PEFT_ENDS if way in ("diffusers", "peft") else KOHYA_ENDS
    check(wrote(tmp_path / "n.safetensors", given, name, ends), given)


@EVERY
@pytest.mark.parametrize("around", ["_orig_mod", "module", "base_model.model", "module._orig_mod"])
def test_what_was_around_the_model_when_it_was_saved(
    tmp_path: Path, family: str, around: str
) -> None:
    given = pairs(STRUCTURES[family], r"attn|conv|mlp")
    path = tmp_path / "n.safetensors"

    def inner(layer: str) -> str:
        component, _, rest = dotted(layer).partition(".")
        return f"{component}.{around}.{rest}"

    check(wrote(path, given, inner, PEFT_ENDS), given)
    check(wrote(path, given, lambda layer: f"{around}.{dotted(layer)}", PEFT_ENDS), given)
    if "." not in around:

        def marked(layer: str) -> str:
            first, second, rest = flat(layer, STRUCTURES[family].family).split("_", 2)
            return f"{first}_{second}_{around}_{rest}"

        check(wrote(path, given, marked, KOHYA_ENDS), given)


# --- cloneofsimo ------------------------------------------------------------------------------


def walked(structure: Structure, ff: str, resnets: bool = False) -> list[str]:
    """Written here from diffusers' construction order, not from the code under test."""
    made = []
    blocks = [(f"down_blocks.{i}", i) for i in range(structure.unet.levels)]
    blocks += [(f"up_blocks.{i}", i) for i in range(structure.unet.levels)]
    layers = canonical_layers(structure)
    for block in [name for name, _ in blocks] + ["mid_block"]:
        for i in range(9):
            for j in range(99):
                stem = f"unet.{block}.attentions.{i}.transformer_blocks.{j}"
                if f"{stem}.attn1.to_q" not in layers:
                    break
                ends = [[f"attn{a}.to_{x}" for x in ("q", "k", "v", "out.0")] for a in (1, 2)]
                geglu = ["ff.net.0.proj"]
                order = {"between": [ends[0], geglu, ends[1]], "last": [*ends, geglu]}
                made += [f"{stem}.{e}" for part in order.get(ff, ends) for e in part]
        for i in range(9) if resnets else ():
            stem = f"unet.{block}.resnets.{i}"
            ends = ("conv1", "time_emb_proj", "conv2", "conv_shortcut")
            made += [f"{stem}.{end}" for end in ends if f"{stem}.{end}" in layers]
    return made


def ordered(structure: Structure, layers: list[str]) -> Pairs:
    weights = canonical_layers(structure)
    made: Pairs = {}
    for layer in layers:
        out, *rest = weights[layer].shape
        made[layer] = torch.randn(out, 2, *[1] * (len(rest) - 1)), torch.randn(2, *rest)
    return made


@pytest.mark.parametrize("structure", [SD15, SD21], ids=["SD1", "SD2"])
@pytest.mark.parametrize(("ff", "resnets"), [("between", False), ("last", False), ("none", False), ("between", True)])  # fmt: skip  # noqa: E501
def test_a_flat_list_of_pairs(tmp_path: Path, structure: Structure, ff: str, resnets: bool) -> None:
    given = ordered(structure, walked(structure, ff, resnets))
    flat_list = [tensor.half() for pair in given.values() for tensor in pair]
    torch.save(flat_list, tmp_path / "n.pt")
    halves = {layer: (up.half(), down.half()) for layer, (up, down) in given.items()}
    assert check(tmp_path / "n.pt", halves).family is structure.family


@pytest.mark.parametrize(("structure", "run"), [(SD15, 12), (SD21, 23)], ids=["SD1", "SD2"])
def test_a_flat_list_of_a_text_encoder(tmp_path: Path, structure: Structure, run: int) -> None:
    layers = [
        f"te1.text_model.encoder.layers.{i}.self_attn.{p}_proj"
        for i in range(run)
        for p in ("k", "v", "q", "out")
    ]
    given = ordered(structure, layers)
    torch.save([t for pair in given.values() for t in pair], tmp_path / "n.text_encoder.pt")
    check(tmp_path / "n.text_encoder.pt", given)


def test_cloneofsimo_s_safetensors(tmp_path: Path) -> None:
    unet = ordered(SD15, walked(SD15, "between"))
    text = ordered(SD15, [f"te1.text_model.encoder.layers.{i}.self_attn.{p}_proj" for i in range(12) for p in ("k", "v", "q", "out")])  # fmt: skip  # noqa: E501
    metadata = {"unet": '["CrossAttention", "GEGLU"]', "text_encoder": '["CLIPAttention"]'}
    tensors = {}
    for name, given in (("unet", unet), ("text_encoder", text)):
        for i, (up, down) in enumerate(given.values()):
            tensors |= {f"{name}:{i}:up": up, f"{name}:{i}:down": down}
            metadata[f"{name}:{i}:rank"] = "2"
    tensors["<s1>"], metadata["<s1>"] = torch.randn(768), "<embed>"
    path = tmp_path / "n.safetensors"
    write_safetensors(path, tensors, metadata)
    network = read_network(path)
    assert network.adapters.keys() == unet.keys() | text.keys()
    assert (network.unmatched, network.problems) == ([], [])
    assert torch.equal(network.embeddings["<s1>"]["emb_params"], tensors["<s1>"])
    for layer, (up, down) in (unet | text).items():
        found = network.adapters[layer]
        assert isinstance(found, LoRA)
        assert torch.equal(found.up, up)
        assert torch.equal(found.down, down)


def test_a_list_that_fits_no_order_is_said(tmp_path: Path) -> None:
    given = ordered(SD15, walked(SD15, "between"))
    flat_list = [t for pair in given.values() for t in pair]
    for spoilt in (flat_list[:-2], flat_list[:-1], flat_list[2:], flat_list[::-1]):
        torch.save(spoilt, tmp_path / "n.pt")
        with pytest.raises(FileProblem, match="numbered pairs"):
            read_network(tmp_path / "n.pt")
    assert listed_names({"0": (2, 2), "word": (2,)}, [SD15]) is None


# --- HCP-Diffusion ----------------------------------------------------------------------------


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_hcp(tmp_path: Path, pickled: bool, old: bool) -> None:
    """Its alpha is the whole scale; the text encoders have a file of their own."""
    ends = ("layer.lora_up.weight", "layer.lora_down.weight") if old else ("layer.W_up", "layer.W_down")  # fmt: skip  # noqa: E501
    for structure, text, name in (
        (SD15, r"^unet.*attn", {"unet": ""}),
        (SD15, r"^te1.*mlp", {"te1": ""}),
        (SDXL_BASE, r"^te.*attn", {"te1": "clip_B.", "te2": "clip_bigG."}),
    ):
        given = pairs(structure, text)
        state = {}
        for layer, (up, down) in given.items():
            component, _, path = layer.partition(".")
            stem = f"{name[component]}{path}.___"
            state |= {f"{stem}.{ends[0]}": up, f"{stem}.{ends[1]}": down}
            state[f"{stem}.alpha"] = torch.tensor(0.25)
        if pickled:
            file = tmp_path / "unet-100.ckpt"
            torch.save({"lora": state, "lora_ema": state}, file)
        else:
            file = tmp_path / "unet-100.safetensors"
            write_safetensors(file, {f"lora:{key}": tensor for key, tensor in state.items()})
        network = check(file, given, 0.25)
        assert bool(network.notes) == pickled
        assert set(facts_of(read_any_header(file).shapes).ways) == {"HCP-Diffusion"}


def test_the_loaded_model_s_own_orders_and_widths(tmp_path: Path) -> None:
    """A small model: its list of pairs, and its second text encoder by its own width."""
    structure = TINY["SD1"]
    given = ordered(structure, walked(structure, "last"))
    torch.save([t for pair in given.values() for t in pair], tmp_path / "n.pt")
    check(tmp_path / "n.pt", given, structure=structure)
    structure = TINY["SDXL"]
    given = pairs(structure, r"^te2.*self_attn")
    path = wrote(tmp_path / "n.safetensors", given, lambda n: n.partition(".")[2], PEFT_ENDS)
    check(path, given, structure=structure)


def test_widened_input_layers_keep_their_family(tmp_path: Path) -> None:
    wide = dataclasses.replace(SD15.unet, in_channels=9)
    given = pairs(dataclasses.replace(SD15, unet=wide), r"conv_in$|attn2")
    path = wrote(tmp_path / "n.safetensors", given, flat, KOHYA_ENDS)
    assert check(path, given).family is SD15.family
