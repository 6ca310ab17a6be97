"""Files are told by what is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from extensions_lib.adapters import Adapter, LoRA
from extensions_lib.errors import FileProblem
from extensions_lib.files.networks import write_network
from extensions_lib.files.safe import write_safetensors
from extensions_lib.models.families import SD15, SD21, SDXL_BASE, Structure
from extensions_lib.models.names import canonical_layers, checkpoint_shapes
from extensions_lib.toolbox.inspect import inspect


def network(structure: Structure) -> dict[str, Adapter]:
    return {
        layer: LoRA.fresh(info.shape, 2, 1.0)
        for layer, info in canonical_layers(structure).items()
        if "attn2.to" in layer and info.kind == "linear"
    }


def hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A safetensors file of this plan whose data is a hole in the disk."""
    header: dict[str, object] = {}
    reached = 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * 2
        offsets = [reached, reached + size]
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": offsets}
        reached += size
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + reached)
    return path


@pytest.mark.parametrize("structure", [SD15, SD21, SDXL_BASE], ids=["SD1", "SD2", "SDXL"])
def test_checkpoints(tmp_path: Path, structure: Structure) -> None:
    path = hollow(tmp_path / "model.safetensors", checkpoint_shapes(structure))
    report = inspect(path, hashes=False)
    assert report.what == f"Checkpoint {structure.family}"
    assert report.family is structure.family
    assert not report.problems
    assert f"context {structure.unet.context_dim}" in report.text()


def test_a_checkpoint_with_a_part_missing(tmp_path: Path) -> None:
    shapes = checkpoint_shapes(SD15)
    for key in [key for key in shapes if key.startswith("cond_stage_model")]:
        del shapes[key]
    report = inspect(hollow(tmp_path / "model.safetensors", shapes), hashes=False)
    assert report.what == "Checkpoint"
    assert report.problems


@pytest.mark.parametrize("structure", [SD15, SDXL_BASE], ids=["SD1", "SDXL"])
def test_networks(tmp_path: Path, structure: Structure) -> None:
    path = tmp_path / "n.safetensors"
    given = network(structure)
    write_network(path, given, {"ss_output_name": "mine"}, dtype=torch.float16)
    report = inspect(path)
    assert (report.what, report.family) == ("LoRA", structure.family)
    assert report.kinds == {"LoRA": len(given)}
    assert (report.ranks, report.alphas) == ({2: len(given)}, {1.0: len(given)})
    assert (report.matched, report.unmatched, report.problems) == (len(given), [], [])
    assert report.components == {"unet": len(given)}
    assert report.hashes["AutoV3"] == report.metadata["sshs_model_hash"][:12]
    parsed = json.loads(report.to_json())
    assert parsed["family"] == structure.family.value
    assert parsed["path"] == str(path)
    assert "mine" in report.text()


def test_what_would_not_load_is_said(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    given = network(SD15)
    first = next(iter(given))
    given[first] = LoRA.fresh((11, 13), 2)
    write_network(path, given, {"sshs_model_hash": "x"})
    report = inspect(path)
    assert len(report.problems) == 1
    assert first in report.problems[0]
    assert "[11, 13]" in report.problems[0]
    tensors = {
        "lora_unet_conv_in.lora_up.weight": torch.ones(320, 1),
        "lora_unet_nowhere.alpha": torch.ones(()),
    }
    write_safetensors(path, tensors, {"sshs_model_hash": "ab" * 32})
    report = inspect(path)
    assert report.matched == 0
    assert any("without lora_down" in problem for problem in report.problems)
    assert any("hash in its metadata" in problem for problem in report.problems)
    assert "lora_unet_nowhere" in report.unmatched
    assert "Problems:" in report.text()


def test_kinds_are_named_by_keys(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    parts = {
        "LoHa": ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
        "LoKr": ["lokr_w1", "lokr_w2"],
        "IA3": ["weight", "on_input"],
        "OFT": ["oft_blocks"],
        "LoRA (DoRA)": ["lora_up.weight", "lora_down.weight", "dora_scale"],
    }
    for what, names in parts.items():
        path = tmp_path / "n.safetensors"
        write_safetensors(path, {f"{name}.{part}": torch.ones(4, 4) for part in names})
        report = inspect(path)
        assert report.what == what
        assert report.matched or report.problems


@pytest.mark.parametrize(
    ("tensors", "what", "detail"),
    [
        ({"emb_params": torch.ones(3, 768)}, "Embedding", "3 vectors, width 768"),
        (
            {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
            "Embedding",
            "2 vectors, width 768 + 1280",
        ),
        ({"<word>": torch.ones(1024)}, "Embedding", "1 vectors, width 1024"),
        ({"emb_params": torch.ones(3, 5)}, "Embedding", "Its width is 5"),
        ({"decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}, "VAE", "VAE"),
        ({"768.0.linear.0.weight": torch.ones(2, 2)}, "Hypernetwork", "widths 768"),
        ({"something": torch.ones(2, 2, 2)}, "Unknown", "something"),
    ],
)
def test_other_files(tmp_path: Path, tensors: dict, what: str, detail: str) -> None:
    write_safetensors(tmp_path / "n.safetensors", tensors)
    report = inspect(tmp_path / "n.safetensors")
    assert report.what.startswith(what)
    assert detail in report.text()
    torch.save(tensors, tmp_path / "n.pt")
    assert inspect(tmp_path / "n.pt").what == report.what


def test_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "n.safetensors").write_bytes(b"<html>")
    with pytest.raises(FileProblem, match="web page"):
        inspect(tmp_path / "n.safetensors")


def test_a_file_of_many_kinds_is_told_part_by_part(tmp_path: Path) -> None:
    q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_"
    tensors = {
        f"lora_{q[:-1].replace('.', '_')}_q.lora_up.weight": torch.randn(320, 4),
        f"lora_{q[:-1].replace('.', '_')}_q.lora_down.weight": torch.randn(4, 320),
        f"lora_{q[:-1].replace('.', '_')}_q.dora_scale": torch.ones(320, 1),
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": torch.randn(320, 2, 1, 1),
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": torch.randn(2, 320, 3, 3),
        "lora_unet_conv_norm_out.w_norm": torch.randn(320),
        "lora_unet_conv_norm_out.b_norm": torch.randn(320),
        f"{q}k.lora_A.weight": torch.randn(3, 320),
        f"{q}k.lora_B.weight": torch.full((320, 3), float("nan")),
        "lora_unet_mid_block_resnets_0_conv1.oft_blocks": torch.randn(4, 320, 4, 4),
        "bundle_emb.word.emb_params": torch.randn(1, 768),
        "lora_unet_nowhere.alpha": torch.ones(()),
    }
    write_safetensors(tmp_path / "n.safetensors", tensors)
    report = inspect(tmp_path / "n.safetensors")
    assert report.what == "LoCon + Norm + BOFT (DoRA)"
    assert report.kinds == {"LoRA": 3, "Norm": 1, "BOFT": 1}
    assert report.ranks == {2: 1, 3: 1, 4: 1}
    assert report.names == {"kohya": 4, "PEFT": 1}
    assert (report.dora, report.matched, report.embeddings) == (1, 5, ["word"])
    assert report.unmatched == ["lora_unet_nowhere"]
    assert any(f"{q}k" in problem and "NaN" in problem for problem in report.problems)
    assert any("alpha is stated nowhere" in note for note in report.notes)
    text = report.text()
    for said in ("LoRA × 3", "DoRA in 1", "kohya × 4", "Embeddings in it", "word", "NaN"):
        assert said in text
    parsed = json.loads(report.to_json())
    assert parsed["names"] == {"kohya": 4, "PEFT": 1}
    assert parsed["foreign"] is None


def test_a_network_for_another_family_is_named(tmp_path: Path) -> None:
    tensors = {f"lora_unet_double_blocks_{i}_img_attn_qkv.alpha": torch.ones(()) for i in range(3)}
    write_safetensors(tmp_path / "n.safetensors", tensors)
    report = inspect(tmp_path / "n.safetensors")
    assert (report.what, report.foreign, report.matched) == ("Network for Flux", "Flux", 0)
    assert any("made for Flux" in problem for problem in report.problems)
    assert len(report.unmatched) == 3


def test_layers_of_two_families_in_one_file_are_said(tmp_path: Path) -> None:
    given = network(SD15)
    given["unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k"] = LoRA.fresh(
        (1280, 2048), 2
    )
    write_network(tmp_path / "n.safetensors", given, family=SD15.family)
    report = inspect(tmp_path / "n.safetensors", hashes=False)
    assert report.family is SD15.family
    assert any("1 layers are in no SD1 model" in problem for problem in report.problems)


def test_a_long_list_is_cut_unless_all_of_it_is_asked_for(tmp_path: Path) -> None:
    odd = {f"lora_unet_nowhere_{i}.alpha": torch.ones(()) for i in range(30)}
    write_network(tmp_path / "n.safetensors", network(SD15), family=SD15.family)
    write_safetensors(tmp_path / "m.safetensors", {**load_file(tmp_path / "n.safetensors"), **odd})
    report = inspect(tmp_path / "m.safetensors", hashes=False)
    text, whole = report.text(), report.text(everything=True)
    assert "30 not known" in text and "… and 10 more (--all)" in text
    assert text.count("nowhere_") == 20 and whole.count("nowhere_") == 30 and "--all" not in whole
