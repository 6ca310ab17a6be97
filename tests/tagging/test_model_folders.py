"""Captioners by the real huggingface_hub from a hub on this machine, and never without asking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from extensions_lib.tagging import hub
from extensions_lib.tagging.captioners import KNOWN, CaptionOptions, load_captioner
from extensions_lib.tagging.hub import DownloadProblem, NotHere, Progress
from extensions_lib.tagging.model_folders import is_here
from tests.tagging.test_captioners import pictures
from tests.tagging.tiny_captioners import tiny_captioner, tiny_clip
from tests.tagging.tiny_hub import Hub

ROOT = Path(__file__).resolve().parents[2]
REPO = "microsoft/git-base"
OPTIONS = CaptionOptions(device="cpu", max_length=8)


class ListingHub(Hub):
    """A hub that also tells which files a repository has."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path.strip("/")
        repo = path.removeprefix("api/models/")
        names = [key[len(repo) + 1 :] for key in self.files if key.startswith(repo + "/")]
        if repo == path or self.gated or not names:
            super().answer(handler)
            return
        siblings = [{"rfilename": name} for name in names]
        body = json.dumps({"id": repo, "_id": "0", "siblings": siblings}).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of one's own, and a network."""
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    # Read from the environment when huggingface_hub was imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_captioner(tmp_path_factory.mktemp("git"), "git")


@pytest.fixture
def served(folder: Path) -> Iterator[Hub]:
    made = ListingHub({f"{REPO}/{file.name}": file.read_bytes() for file in folder.iterdir()})
    for extra in ("README.md", "tf_model.h5", "onnx/model.onnx", ".gitattributes", "trainer.json"):
        made.files[f"{REPO}/{extra}"] = b"not asked for"
    yield made
    made.close()


def test_downloads_what_is_needed_and_finds_it_again(tmp_path: Path, served: Hub) -> None:
    known = next(model for model in KNOWN if model.repo == REPO)
    assert not is_here(known, tmp_path)
    told: list[Progress] = []
    first = load_captioner(
        "git-base",
        tmp_path,
        OPTIONS,
        download=True,
        endpoint=served.endpoint,
        on_progress=told.append,
    )
    said = first.caption(pictures(2))
    assert "model.safetensors" in {each.file for each in told}
    got = {path.rpartition("/")[2] for method, path, _ in served.asked if method == "GET"}
    unwanted = {"README.md", "tf_model.h5", "model.onnx", ".gitattributes", "trainer.json"}
    assert "model.safetensors" in got and not got & unwanted
    assert is_here(known, tmp_path)
    served.close()
    again = load_captioner("git-base", tmp_path, OPTIONS)
    assert again.caption(pictures(2)) == said and again.revision == first.revision


def test_pickles_are_taken_where_there_is_nothing_else(tmp_path: Path, served: Hub) -> None:
    served.files.pop(f"{REPO}/model.safetensors")
    with pytest.raises(DownloadProblem, match="has no weights that can be read here"):
        load_captioner("git-base", tmp_path, OPTIONS, download=True, endpoint=served.endpoint)
    served.files[f"{REPO}/pytorch_model.bin"] = b"a pickle"
    with pytest.raises(hub.FileProblem, match=r"pytorch_model\.bin: is damaged"):
        load_captioner("git-base", tmp_path, OPTIONS, download=True, endpoint=served.endpoint)


def test_weights_in_parts_are_downloaded_whole(tmp_path: Path, served: Hub) -> None:
    from safetensors.torch import load, save

    weights = load(served.files.pop(f"{REPO}/model.safetensors"))
    names, index = sorted(weights), {}
    for number, held in enumerate((names[::2], names[1::2]), 1):
        part = f"model-0000{number}-of-00002.safetensors"
        served.files[f"{REPO}/{part}"] = save({name: weights[name] for name in held})
        index |= dict.fromkeys(held, part)
    told = json.dumps({"weight_map": index}).encode()
    served.files[f"{REPO}/model.safetensors.index.json"] = told
    found = load_captioner("git-base", tmp_path, OPTIONS, download=True, endpoint=served.endpoint)
    assert found.caption(pictures(1))[0]


def test_a_download_that_was_not_finished_is_not_here(tmp_path: Path, served: Hub) -> None:
    small = [key[len(REPO) + 1 :] for key in served.files if key.endswith((".json", ".txt"))]
    hub.fetch(REPO, small, endpoint=served.endpoint)
    with pytest.raises(NotHere):
        load_captioner("git-base", tmp_path, OPTIONS)
    served.close()
    with pytest.raises(DownloadProblem, match="cannot be asked"):
        load_captioner("git-base", tmp_path, OPTIONS, download=True, endpoint=served.endpoint)


def test_refusals_say_what_to_do(
    tmp_path: Path, served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(said: str, name: str = "git-base") -> None:
        with pytest.raises(DownloadProblem, match=said):
            load_captioner(name, tmp_path, OPTIONS, download=True, endpoint=served.endpoint)

    refused("no such repository", "git-large")
    served.gated = True
    refused("its author's terms .* set HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("switched off by HF_HUB_OFFLINE")
    where = tmp_path / "captioners" / "git-base"
    with pytest.raises(NotHere) as raised:
        load_captioner("git-base", tmp_path, OPTIONS)
    for part in (str(where), "model.safetensors", f"https://huggingface.co/{REPO}", "0.71 GB"):
        assert part in str(raised.value)


def test_nothing_is_asked_of_a_network(tmp_path: Path, folder: Path) -> None:
    """Loading and captioning with downloads allowed by the environment, and sockets watched."""
    shelf = tmp_path / "models" / "captioners"
    for kind in ("blip", "blip-2", "git", "vision-encoder-decoder"):
        tiny_captioner(shelf / kind, kind)
    tiny_clip(tmp_path / "models" / "interrogator" / "small")
    code = """
        import socket, subprocess, sys
        from pathlib import Path
        import torch  # looks for libraries of its own by other programs
        asked = []
        def refuse(*args, **kwargs):
            asked.append(args)
            raise OSError("no network")
        socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
        subprocess.Popen = refuse
        from PIL import Image
        from extensions_lib.tagging.captioners import CaptionOptions, load_captioner
        from extensions_lib.tagging.hub import NotHere
        from extensions_lib.tagging.interrogator import InterrogateOptions, load_interrogator
        models, picture = Path(sys.argv[1]), Image.new("RGB", (40, 30), "red")
        options = CaptionOptions(device="cpu", max_length=4)
        for name in ("blip", "blip-2", "git", "vision-encoder-decoder"):
            assert load_captioner(name, models, options).caption([picture])
        wanted = InterrogateOptions(captioner="git", device="cpu")
        assert load_interrogator("small", models, wanted, options).caption([picture])
        try:
            load_captioner("blip-base", models)
        except NotHere:
            print("asked", asked)
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "models")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["asked []"], done.stdout + done.stderr
