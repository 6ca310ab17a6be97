"""Embeddings and hypernetworks in a real WebUI: what appears while it runs, and what it misses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from extensions_lib.files.hashes import sha256_file
from extensions_lib.hosts.standalone.text import tokens
from extensions_lib.prompts.infotext import read_hashes, read_infotext
from tests.hyper import hyper_file
from tests.webui.conftest import HOST, WebUI, furthest, limit

pytestmark = [pytest.mark.webui, pytest.mark.slow]

TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
REST = ", large, center, blue background"


@pytest.fixture(scope="module")
def table(data: Path) -> torch.Tensor:
    """The vectors of all tokens."""
    found = load_file(data / "models" / "Stable-diffusion" / "demo.safetensors")[TABLE]
    return found.float()


def put(path: Path, table: torch.Tensor, words: str) -> Path:
    """Writes an embedding that means just these words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": table[tokens([words])[0]].clone()}, path)
    return path


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    return furthest(one, other) <= limit(1, half=2)


def test_a_file_that_appears_and_is_replaced(webui: WebUI, data: Path, table: torch.Tensor) -> None:
    red, green = (webui.pictures(f"{word} circle{REST}")[0] for word in ("red", "green"))
    before = webui.pictures(f"zorble circle{REST}")[0]
    assert not alike(red, green)
    path = put(data / "embeddings" / "sub" / "zorble.safetensors", table, "red")
    assert alike(webui.pictures(f"zorble circle{REST}")[0], red)
    stated = read_infotext(webui.infotext())
    assert read_hashes(stated["TI hashes"]) == {"zorble": sha256_file(path)[:12]}
    put(path, table, "green")
    assert alike(webui.pictures(f"zorble circle{REST}")[0], green)
    path.unlink()
    assert alike(webui.pictures(f"zorble circle{REST}")[0], before)


def test_one_that_the_webuis_reader_refuses(webui: WebUI, data: Path, table: torch.Tensor) -> None:
    """A file of today's PyTorch, which AUTOMATIC1111's own unpickler does not take."""
    red = webui.pictures(f"red circle{REST}")[0]
    vectors = table[tokens(["red"])[0]].clone()
    path = data / "embeddings" / "grindle.pt"
    torch.save({"string_to_param": {"*": vectors}, "name": "grindle"}, path)
    assert alike(webui.pictures(f"grindle circle{REST}")[0], red)


def test_another_width_is_said(webui: WebUI, data: Path) -> None:
    (data / "embeddings").mkdir(exist_ok=True)
    save_file({"emb_params": torch.zeros(2, 1024)}, data / "embeddings" / "wumple.safetensors")
    webui.pictures(f"wumple circle{REST}")
    assert "Embedding 'wumple': its vectors are 1024 wide, the loaded" in webui.said()


def test_one_inside_a_network_while_it_is_in_use(
    webui: WebUI, data: Path, table: torch.Tensor
) -> None:
    folder = data / "models" / "Lora"
    network = load_file(folder / "star.safetensors")
    network["bundle_emb.snorgle.string_to_param.*"] = table[tokens(["green"])[0]].clone()
    save_file(network, folder / "bundle.safetensors")
    tag, other = "<lora:bundle:0>", "<lora:star:0>"
    green = webui.pictures(f"green circle{REST} {other}")[0]
    plain = webui.pictures(f"snorgle circle{REST}")[0]
    assert alike(webui.pictures(f"snorgle circle{REST} {tag}")[0], green)
    assert alike(webui.pictures(f"snorgle circle{REST}")[0], plain)
    assert not alike(plain, green)


def test_hypernetworks(webui: WebUI, data: Path, table: torch.Tensor) -> None:
    prompt, width = f"red circle{REST}", table.shape[1]
    plain = webui.pictures(prompt)[0]
    hyper_file(data / "models" / "hypernetworks" / "hyper.pt", [width, 320], activation="relu")
    if HOST != "Forge":  # its own handler works: it lists the files when asked
        webui.call("/sdapi/v1/refresh-embeddings", {})
        return
    full, half = (webui.pictures(f"{prompt} <hypernet:hyper:{w}>")[0] for w in (1, 0.5))
    assert furthest(full, plain) > 10 and furthest(full, half) > 2
    assert alike(webui.pictures(prompt)[0], plain)
    webui.pictures(f"{prompt} <hypernet:nowhere:1>")
    assert "no hypernetwork named 'nowhere'" in webui.said()
