"""Embeddings in every form that they come in, and the pictures that carry them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from extensions_lib.errors import FileProblem
from extensions_lib.files.embedding_pictures import MAX_PIXELS, list_shape
from extensions_lib.files.embeddings import (
    Embedding,
    embedding_facts,
    embedding_of,
    misfit,
    read_embedding,
    write_embedding,
)

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VECTORS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def webui(tensor: torch.Tensor = VECTORS) -> dict:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": tensor},
        "name": "inner",
        "step": 500,
        "sd_checkpoint": "abcd1234",
        "sd_checkpoint_name": "base",
    }


def same(found: Embedding, expected: torch.Tensor = VECTORS) -> bool:
    return torch.equal(found.parts[""], expected)


# --- tensor files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_the_webuis_own_file(tmp_path: Path, zipped: bool) -> None:
    torch.save(webui(), tmp_path / "word.pt", _use_new_zipfile_serialization=zipped)
    found = read_embedding(tmp_path / "word.pt")
    assert same(found) and found.name == "word" and found.vectors == 2 and found.widths == {"": 8}
    assert (found.step, found.checkpoint_hash, found.checkpoint) == (500, "abcd1234", "base")
    facts = embedding_facts(tmp_path / "word.pt")
    assert facts is not None and (facts.widths, facts.vectors) == ({"": 8}, 2)


def test_the_first_files_hold_a_parameter_dict_and_tensors_as_tokens(tmp_path: Path) -> None:
    holder = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})
    data = webui() | {"string_to_param": holder, "string_to_token": {"*": torch.tensor(265)}}
    torch.save(data, tmp_path / "word.pt")
    found = read_embedding(tmp_path / "word.pt")
    assert same(found) and not found.parts[""].requires_grad


@pytest.mark.parametrize("name", ["<token>", "emb_params", "a.b"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_diffusers_one_tensor_under_any_name(tmp_path: Path, name: str, suffix: str) -> None:
    for tensor in (VECTORS.half(), VECTORS[0].clone()):
        path = tmp_path / f"word{suffix}"
        if suffix == ".bin":
            torch.save({name: tensor}, path)
        else:
            save_file({name: tensor}, path)
        found = read_embedding(path)
        assert same(found, tensor.float().reshape(-1, 8))
        assert found.parts[""].dtype == torch.float32


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_sdxls_pair(tmp_path: Path, names: tuple[str, str]) -> None:
    wide = torch.randn(2, 12)
    save_file(dict(zip(names, (VECTORS, wide), strict=True)), tmp_path / "xl.safetensors")
    found = read_embedding(tmp_path / "xl.safetensors")
    assert torch.equal(found.parts["clip_l"], VECTORS) and torch.equal(found.parts["clip_g"], wide)
    assert misfit(found.widths, (8, 12)) is None
    assert misfit(found.widths, (8,)) == (
        "its vectors are 8 (clip_l) + 12 (clip_g) wide, the loaded checkpoint needs 8"
    )
    assert misfit({"": 8}, (8, 12)) is not None and misfit({"": 9}, (8,)) is not None
    save_file({names[0]: VECTORS, names[1]: wide[:1].clone()}, tmp_path / "xl.safetensors")
    for read in (read_embedding, embedding_facts):
        with pytest.raises(FileProblem, match="unlike numbers of vectors"):
            read(tmp_path / "xl.safetensors")


def test_what_is_no_embedding_is_said(tmp_path: Path) -> None:
    def refused(tensors: dict, match: str) -> None:
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(FileProblem, match=match):
            read_embedding(tmp_path / "x.safetensors")

    stem = "lora_unet_mid"
    up = {f"{stem}.lora_up.weight": VECTORS, f"{stem}.lora_down.weight": VECTORS.clone()}
    refused(up, "is no embedding.*looks like a network")
    refused({"a": torch.randn(2, 3, 4)}, r"has the shape \[2, 3, 4\]")
    refused({"a": torch.zeros(0, 4)}, r"has the shape \[0, 4\]")
    refused({"a": torch.full((1, 4), float("nan"))}, "no numbers")
    refused({"a": torch.zeros(1, 4, dtype=torch.int64)}, "torch.int64, expected numbers")
    torch.save(webui() | {"string_to_param": {"a": VECTORS, "b": VECTORS}}, tmp_path / "x.pt")
    with pytest.raises(FileProblem, match="holds one tensor, or clip_l and clip_g"):
        read_embedding(tmp_path / "x.pt")
    with pytest.raises(FileProblem, match="check the name"):
        read_embedding(tmp_path / "none.safetensors")


def test_one_inside_a_network() -> None:
    assert same(embedding_of("word", {"string_to_param.*": VECTORS}))
    pair = embedding_of("word", {"clip_l": VECTORS, "clip_g": VECTORS}, ("file", 1, 2))
    assert set(pair.parts) == {"clip_l", "clip_g"} and pair.key == ("file", 1, 2)
    with pytest.raises(FileProblem, match="embedding 'word': is no embedding"):
        embedding_of("word", {"a": VECTORS, "b": VECTORS})


def test_vectors_for_the_output_of_a_text_encoder_are_refused(tmp_path: Path) -> None:
    """OneTrainer's output embeddings must not stand among the tokens."""
    for names in (["clip_l_out"], ["clip_l_out", "clip_g_out"], ["emp_params_out"]):
        save_file({name: VECTORS.clone() for name in names}, tmp_path / "x.safetensors")
        for read in (read_embedding, embedding_facts):
            with pytest.raises(FileProblem, match="for the output of a text encoder"):
                read(tmp_path / "x.safetensors")
    both = embedding_of("word", {"clip_l": VECTORS, "clip_l_out": VECTORS + 1})
    assert same(both)


def test_facts_need_no_torch(tmp_path: Path) -> None:
    save_file({"a": VECTORS}, tmp_path / "a.safetensors")
    torch.save(webui(), tmp_path / "b.pt")
    picture(tmp_path / "c.png")
    code = (
        "import sys; from extensions_lib.files.embeddings import embedding_facts as facts;"
        "found = [facts(path) for path in sys.argv[1:]];"
        "assert all(dict(f.widths) == {'': 8} and f.vectors == 2 for f in found), found;"
        "assert 'torch' not in sys.modules"
    )
    paths = [str(tmp_path / name) for name in ("a.safetensors", "b.pt", "c.png")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=Path(__file__).parents[2])


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("pair", [False, True])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str, pair: bool) -> None:
    parts = {"clip_l": VECTORS, "clip_g": torch.randn(2, 12)} if pair else {"": VECTORS}
    made = Embedding("word", parts, step=7, checkpoint_hash="ab", checkpoint="base")
    write_embedding(tmp_path / f"word{suffix}", made)
    found = read_embedding(tmp_path / f"word{suffix}")
    assert found.parts.keys() == parts.keys() and found.name == "word"
    assert all(torch.equal(found.parts[part], parts[part]) for part in parts)
    if not (pair and suffix == ".pt"):  # there a WebUI would take anything else for vectors
        assert (found.step, found.checkpoint_hash, found.checkpoint) == (7, "ab", "base")
    if suffix == ".pt" and not pair:
        stated = torch.load(tmp_path / "word.pt", weights_only=True)
        assert stated["name"] == "word" and stated["string_to_param"]["*"].shape == (2, 8)


# --- pictures -------------------------------------------------------------------------------------


def as_json(data: dict) -> bytes:
    def plain(tensor: torch.Tensor) -> dict:
        return {"TORCHTENSOR": tensor.tolist()}

    return json.dumps(data, default=plain).encode()


def picture(path: Path, data: bytes | None = None, kind: str = "tEXt", size: int = 32) -> Path:
    """A PNG with the embedding in a text chunk, as the WebUI writes it."""
    text = base64.b64encode(as_json(webui()) if data is None else data).decode()
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat")
    if kind == "iTXt":
        info.add_itxt("sd-ti-embedding", text, zip=True)
    else:
        info.add_text("sd-ti-embedding", text, zip=kind == "zTXt")
    Image.new("RGB", (size, size), (200, 10, 10)).save(path, pnginfo=info)
    return path


def hidden(path: Path, data: bytes, height: int = 64) -> Path:
    """A picture with the embedding in its pixels, written down from the form's description."""
    packed = np.frombuffer(zlib.compress(data, 9), np.uint8)
    columns = -(-len(packed) // (3 * height)) + 1
    packed = np.resize(packed, 3 * height * columns).reshape(height, columns, 3)
    state, mask = 0, []
    for _ in range(packed.size):
        state = (state * 1664525 + 1013904223) % 2**32
        mask.append(state % 255 & 0x0F)
    noise = np.array(mask, np.uint8).reshape(packed.shape)
    # the upper bits of the blocks are a pattern for the eye
    low, high = ((part ^ noise) | 0x50 for part in (packed & 0x0F, packed >> 4))
    middle = np.full((height, height, 3), 0x8F, np.uint8)
    black = np.zeros((height, 1, 3), np.uint8)
    Image.fromarray(np.concatenate([low, black, middle, black, high], 1)).save(path, lossless=True)
    return path


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_a_picture_with_text(tmp_path: Path, kind: str) -> None:
    found = read_embedding(picture(tmp_path / "shown.png", kind=kind))
    assert found.name == "inner" and found.step == 500
    assert torch.allclose(found.parts[""], VECTORS, atol=1e-7)
    facts = embedding_facts(tmp_path / "shown.png")
    assert facts is not None and facts.name == "inner" and facts.widths == {"": 8}


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_picture_with_it_in_the_pixels(tmp_path: Path, suffix: str) -> None:
    found = read_embedding(hidden(tmp_path / f"shown{suffix}", as_json(webui())))
    assert found.name == "inner" and torch.allclose(found.parts[""], VECTORS, atol=1e-7)


def test_plain_pictures_hold_none(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    striped = noise.copy()
    striped[:, (10, 50)] = 0
    for pixels in (noise, striped, np.zeros_like(noise)):
        Image.fromarray(pixels).save(tmp_path / "plain.png")
        assert embedding_facts(tmp_path / "plain.png") is None
    with pytest.raises(FileProblem, match="without an embedding"):
        read_embedding(tmp_path / "plain.png")


def test_broken_pictures_are_said(tmp_path: Path) -> None:
    nested = as_json({"string_to_param": {"*": [[1.0, [2.0]]]}})
    huge = json.dumps({"string_to_param": {"*": [[10**400]]}}).encode()
    for data in (b"not json", b"[]", b"{}", nested, huge, b'{"string_to_param": {"*": [[NaN]]}}'):
        with pytest.raises(FileProblem):
            read_embedding(picture(tmp_path / "x.png", data))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(FileProblem, match="not a readable picture"):
        embedding_facts(tmp_path / "x.png")
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "x.png")
    with pytest.raises(FileProblem, match="at most"):
        embedding_facts(tmp_path / "x.png")
    # text that unpacks to far more than it is
    bomb = hidden(tmp_path / "x.png", b" " * 50_000_000)
    assert embedding_facts(bomb) is None


def test_shapes_of_lists() -> None:
    assert list_shape([1, 2.0]) == (2,) and list_shape([[1], [2]]) == (2, 1)
    for other in ([], [[]], [1, [2]], [[1], [2, 3]], ["a"], [True], [[[1]]], 3, None):
        assert list_shape(other) is None


# --- anything at all ------------------------------------------------------------------------------


@FUZZ
@given(st.data())
def test_mutated_files_are_refused_in_words(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, overwritten and lengthened files are read or refused, never anything else."""
    name = data.draw(st.sampled_from(["a.pt", "old.pt", "a.safetensors", "a.png", "b.png"]))
    path = tmp_path / name
    if name == "a.safetensors":
        save_file({"clip_l": VECTORS, "clip_g": VECTORS.clone()}, path)
    elif name == "a.png":
        picture(path)
    elif name == "b.png":
        hidden(path, as_json(webui()), height=16)
    else:
        torch.save(webui(), path, _use_new_zipfile_serialization=name == "a.pt")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path.write_bytes(raw)
    for read in (read_embedding, embedding_facts):
        try:
            read(path)
        except FileProblem as problem:
            assert str(path) in str(problem)
