"""Networks are read for what they are, broken layers are named, and what is written comes back."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from extensions_lib.adapters import KINDS, Adapter, LoRA
from extensions_lib.errors import FileProblem
from extensions_lib.files import recognise
from extensions_lib.files.networks import network_key, read_network, write_network
from extensions_lib.files.peft_parts import PEFT_ALONE
from extensions_lib.files.safe import read_any_header, read_header, write_safetensors
from extensions_lib.models.families import SD15, SD21, SDXL_BASE, Family, Structure
from extensions_lib.models.names import canonical_layers
from tests.files.broken import SEEDS, valid_tensors
from tests.tiny import TINY

FAMILIES = pytest.mark.parametrize("structure", [SD15, SD21, SDXL_BASE], ids=["SD1", "SD2", "SDXL"])


def adapters(structure: Structure, text: str = "", width: int | None = None) -> dict[str, Adapter]:
    """Rank-2 LoRAs on linear and convolution layers whose names hold `text`."""
    made: dict[str, Adapter] = {}
    for layer, info in canonical_layers(structure).items():
        if info.kind in ("linear", "conv") and text in layer and not layer.startswith("vae"):
            out, inputs, *kernel = info.shape
            shape = (width or out, width or inputs, *kernel)
            made[layer] = LoRA.fresh(shape, 2, 1.5)
    return made


def pair(out: int = 320, inputs: int = 320, rank: int = 2) -> dict[str, torch.Tensor]:
    return {
        "lora_up.weight": torch.randn(out, rank),
        "lora_down.weight": torch.randn(rank, inputs),
    }


def keyed(**layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name}.{part}": t for name, parts in layers.items() for part, t in parts.items()}


Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
K = Q[:-1] + "k"
V = Q[:-1] + "v"
CANON = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_"


@FAMILIES
def test_round_trip(tmp_path: Path, structure: Structure) -> None:
    path = tmp_path / "sub" / "net.safetensors"
    given = adapters(structure, "attn2")
    given |= {k: a for k, a in adapters(structure, "conv1").items() if "down_blocks.1" in k}
    write_network(path, given, {"ss_output_name": "mine", "note": "x"}, dtype=torch.bfloat16)
    network = read_network(path)
    assert network.adapters.keys() == given.keys()
    for layer, adapter in given.items():
        back = network.adapters[layer].tensors()
        for part, tensor in adapter.tensors().items():
            expected = tensor if part == "alpha" else tensor.bfloat16()
            assert torch.equal(back[part], expected)
            assert back[part].dtype == expected.dtype
    assert (network.unmatched, network.problems) == ([], [])
    assert network.family is structure.family
    assert network.kinds == {"lora": len(given)}
    assert network.ranks == {2: len(given)}
    assert network.key == network_key(path)
    assert network.metadata["note"] == "x"
    facts = recognise.facts_of(read_header(path).shapes)
    assert (facts.title, facts.family, facts.layers) == ("LoCon", structure.family, len(given))


def test_hashes_and_modelspec_are_kohya_s(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    given: dict[str, Adapter] = {f"{CANON}q": LoRA.fresh((320, 320), 1000)}
    given |= adapters(SD15, "attn2")
    write_network(path, given, {"ss_steps": "10", "title": "t", "modelspec.title": "T"})
    metadata = read_header(path).metadata
    plain = safetensors.torch.save(safetensors.torch.load_file(path), {"ss_steps": "10"})
    start = 8 + int.from_bytes(plain[:8], "little")
    assert metadata["sshs_model_hash"] == hashlib.sha256(plain[start:]).hexdigest()
    window = plain[0x100000:0x110000]
    assert len(window) > 0, "the file is too small for this test"
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]
    assert metadata["modelspec.title"] == "T"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_metadata_edits_leave_the_hash(tmp_path: Path) -> None:
    given = {f"{CANON}q": LoRA.fresh((320, 320), 2)}
    hashes = []
    for note in ("a", "another"):
        write_network(tmp_path / "n.safetensors", given, {"ss_a": "1", "note": note})
        metadata = read_header(tmp_path / "n.safetensors").metadata
        hashes.append((metadata["sshs_model_hash"], metadata["sshs_legacy_hash"]))
    assert hashes[0] == hashes[1]


def test_writing_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no layer"):
        write_network(tmp_path / "n.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_bad_layers_are_named_and_the_others_load(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    lone = {"lora_up.weight": torch.ones(320, 2)}
    crooked = {**pair(), "lora_down.weight": torch.ones(3, 320)}
    stranger = {"mystery": torch.ones(2)}
    tensors = keyed(
        **{
            Q: pair(),
            K: lone,
            V: crooked,
            Q.replace("attn1", "attn2"): stranger,
            "lora_unet_double_blocks_0_img_attn_qkv": pair(),
        }
    )
    write_safetensors(path, {**tensors, "loose": torch.ones(1)})
    network = read_network(path)
    assert list(network.adapters) == [f"{CANON}q"]
    assert len(network.problems) == 2
    lone_said = next(problem for problem in network.problems if f"{CANON}k" in problem)
    assert "lora_up.weight without lora_down.weight" in lone_said
    crooked_said = next(problem for problem in network.problems if f"{CANON}v" in problem)
    assert "[3, 320]" in crooked_said
    assert "[320, 2]" in crooked_said
    assert len(network.unmatched) == 3
    assert any("double_blocks" in name for name in network.unmatched)
    assert "loose" in network.unmatched
    assert any("mystery" in name and "attn2" in name for name in network.unmatched)


def test_nothing_usable_is_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    for tensors, says in (
        (keyed(lora_unet_double_blocks_0_x=pair()), "made for Flux"),
        (keyed(lora_unet_nowhere=pair()), "lora_unet_nowhere"),
        (keyed(**{Q: {"lora_up.weight": torch.ones(2, 2)}}), "without"),
        ({"emb_params": torch.ones(2, 768)}, "embedding"),
    ):
        write_safetensors(path, tensors)
        with pytest.raises(FileProblem) as caught:
            read_network(path)
        assert says in str(caught.value)
        assert str(path) in str(caught.value)
    with pytest.raises(FileProblem, match=r"none\.safetensors"):
        read_network(tmp_path / "none.safetensors")


def test_pickled_network(tmp_path: Path) -> None:
    torch.save(keyed(**{Q: {**pair(), "alpha": 1.0}}), tmp_path / "n.pt")
    network = read_network(tmp_path / "n.pt")
    assert isinstance(network.adapters[f"{CANON}q"], LoRA)
    assert float(network.adapters[f"{CANON}q"].tensors()["alpha"]) == 1.0
    torch.save(keyed(**{Q: pair()}), tmp_path / "m.pt")
    assert recognise.facts_of(read_any_header(tmp_path / "m.pt").shapes).title == "LoRA"


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({"unet.lora_alpha": 8, "unet.r": 2}, 8.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 3}}, 3.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8.0 * 2**0.5),
        ({"text_encoder.lora_alpha": 8}, None),
    ],
)
def test_peft_alpha(tmp_path: Path, config: dict, alpha: float | None) -> None:
    layer = CANON.replace("unet.", "unet.", 1) + "q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 320), f"{layer}.lora_B.weight": torch.ones(320, 2)}  # fmt: skip  # noqa: E501
    path = tmp_path / "n.safetensors"
    write_safetensors(path, tensors, {"lora_adapter_metadata": json.dumps(config)})
    found = read_network(path).adapters[layer].tensors().get("alpha")
    assert (None if found is None else float(found)) == pytest.approx(alpha)


@FAMILIES
@pytest.mark.parametrize("part", ["attn2", "text_model"])
def test_family_is_told_by_shapes(structure: Structure, part: str) -> None:
    shapes = {
        layer: {name: tuple(tensor.shape) for name, tensor in adapter.tensors().items()}
        for layer, adapter in adapters(structure, part).items()
    }
    assert recognise.family_of(shapes, one_text_encoder=part != "attn2") is structure.family
    if structure is SD15 and part == "text_model":  # SDXL's first text encoder is the same
        assert recognise.family_of(shapes) is None


def test_family_of_small_and_strange_widths() -> None:
    def shapes(structure: Structure, text: str, width: int | None) -> dict:
        return {
            layer: {name: tuple(t.shape) for name, t in adapter.tensors().items()}
            for layer, adapter in adapters(structure, text, width).items()
        }

    assert recognise.family_of(shapes(SD15, "attn2", 64)) is Family.SD1
    assert recognise.family_of(shapes(SDXL_BASE, "attn2", 64)) is None
    assert recognise.family_of({}) is None
    # self-attention of the same widths fits SD1 and SD2 alike
    assert recognise.family_of(shapes(SD15, "down_blocks.0.attentions.0", None)) is Family.SD1
    assert recognise.family_of(shapes(SD15, "attn1.to_q", None)) is None


def test_family_of_a_small_model_that_is_loaded() -> None:
    shapes = {
        layer: {name: tuple(tensor.shape) for name, tensor in adapter.tensors().items()}
        for layer, adapter in adapters(TINY["SD2"], "attn2").items()
    }
    assert recognise.family_of(shapes) is Family.SD1  # by names, which both have
    assert recognise.family_of(shapes, loaded=TINY["SD2"]) is Family.SD2
    assert recognise.family_of(shapes, loaded=TINY["SDXL"]) is Family.SD1


@pytest.mark.parametrize(
    ("parts", "size"),
    [
        ({"hada_w1_a": (6, 2), "hada_w1_b": (2, 10)}, (6, 10)),
        ({"hada_t1": (2, 2, 3, 3), "hada_w1_a": (2, 6), "hada_w1_b": (2, 10)}, (6, 10)),
        ({"lokr_w1": (2, 5), "lokr_w2": (3, 2)}, (6, 10)),
        ({"lokr_w1": (2, 5), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 2)}, (6, 10)),
        (
            {"lokr_w1": (2, 5), "lokr_w2_a": (1, 3), "lokr_w2_b": (1, 2), "lokr_t2": (1, 1, 3, 3)},
            (6, 10),
        ),
        ({"diff": (6, 5, 2)}, (6, 10)),
        ({"on_input": (), "weight": (6,)}, None),
        ({"lora_up.weight": (), "lora_down.weight": (2,)}, None),
    ],
)
def test_sizes(parts: dict, size: tuple[int, int] | None) -> None:
    assert recognise.sizes(parts) == size


def test_kinds_without_torch_agree_with_the_adapters() -> None:
    for kind in KINDS:
        assert kind.kind in recognise.TITLES, f"{kind.kind} is not known to files.recognise"
    for name, needed in recognise.SIGNATURES:
        ways = list(itertools.product(*(entry.split("|") for entry in needed)))
        for parts in ways:
            assert recognise.kind_of(parts) == name
        # PEFT's own parts are brought to those of the adapters first
        for parts in (each for each in ways if not {*each} & {*PEFT_ALONE}):
            assert next(kind for kind in KINDS if kind.matches(parts)).kind == name


def test_a_change_of_a_norm_s_bias_alone(tmp_path: Path) -> None:
    layer = "lora_unet_down_blocks_0_resnets_0_norm1"
    write_safetensors(tmp_path / "n.safetensors", {f"{layer}.b_norm": torch.ones(320)})
    facts = recognise.facts_of(read_header(tmp_path / "n.safetensors").shapes)
    assert read_network(tmp_path / "n.safetensors").kinds == facts.kinds == {"norm": 1}


def test_an_edited_file_has_another_key(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    write_safetensors(path, keyed(**{Q: pair()}))
    first = read_network(path).key
    write_safetensors(path, keyed(**{Q: pair(rank=3)}))
    assert read_network(path).key != first


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_every_kind_comes_back_as_it_was_written(tmp_path: Path, number: int) -> None:
    tensors = valid_tensors(SEEDS[number], torch.Generator().manual_seed(number))
    write_safetensors(tmp_path / "given.safetensors", tensors)
    given = read_network(tmp_path / "given.safetensors")
    assert (given.unmatched, given.problems) == ([], [])
    write_network(tmp_path / "again.safetensors", given.adapters)
    again = read_network(tmp_path / "again.safetensors")
    assert (again.unmatched, again.problems) == ([], [])
    assert again.kinds == given.kinds
    for layer, adapter in given.adapters.items():
        parts, back = adapter.tensors(), again.adapters[layer].tensors()
        assert parts.keys() == back.keys()
        assert all(torch.equal(back[part], tensor) for part, tensor in parts.items())
    facts = recognise.facts_of(read_header(tmp_path / "again.safetensors").shapes)
    assert facts.kinds == given.kinds
    assert facts.ranks == given.ranks


def test_every_kind_of_adapter_is_in_the_files_above(tmp_path: Path) -> None:
    seen = set()
    for seed in SEEDS:
        tensors = valid_tensors(seed, torch.Generator().manual_seed(0))
        write_safetensors(tmp_path / "n.safetensors", tensors)
        seen |= set(read_network(tmp_path / "n.safetensors").kinds)
    assert {kind.kind for kind in KINDS} <= seen
