"""Where models come from, by the real huggingface_hub against a hub on this machine."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from extensions_lib.errors import Stopped
from extensions_lib.tagging import hub
from extensions_lib.tagging.hub import DownloadProblem, NotHere, Progress, cached, fetch, locate
from extensions_lib.tagging.manifest import find_entry
from tests.tagging.tiny_hub import COMMIT, Hub

REPO = "SmilingWolf/wd-vit-tagger-v3"
MODEL = np.random.default_rng(0).bytes(34_000_000)
CHUNK = 10 << 20  # huggingface_hub writes as much at once
TAGS = b"tag_id,name,category,count\n1,general,9,5\n2,1girl,0,3\n"
VERSION = tuple(int(part) for part in importlib.metadata.version("huggingface_hub").split(".")[:2])


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of one's own, and a network."""
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")


@pytest.fixture
def served() -> Iterator[Hub]:
    made = Hub({f"{REPO}/model.onnx": MODEL, f"{REPO}/selected_tags.csv": TAGS})
    yield made
    made.close()


def blobs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/blobs/*"))


def test_a_download_is_told_checked_and_found_again(tmp_path: Path, served: Hub) -> None:
    told: list[Progress] = []
    entry = find_entry("wd-vit-tagger-v3", tmp_path)
    assert not hub.is_here(entry)
    files = locate(
        entry, tmp_path, download=True, endpoint=served.endpoint, on_progress=told.append
    )
    assert files.model.read_bytes() == MODEL and files.tags.read_bytes() == TAGS
    assert files.place == "downloaded" and files.model.parent == files.tags.parent
    assert files.model.parent.name == COMMIT
    model = [each for each in told if each.file == "model.onnx"]
    assert model[-1] == Progress("model.onnx", len(MODEL), len(MODEL), 0, 2)
    assert [each.done for each in model] == sorted(each.done for each in model)
    assert told[-1] == Progress("selected_tags.csv", len(TAGS), len(TAGS), 1, 2)
    served.close()
    again = locate(entry, tmp_path)
    assert again.place == "cache" and again.model == files.model
    assert hub.is_here(entry)


def test_the_cache_is_the_hubs_own(tmp_path: Path, served: Hub) -> None:
    """Other programs find what was downloaded here, and the other way round."""
    import huggingface_hub

    [path] = fetch(REPO, ["model.onnx"], endpoint=served.endpoint)
    found = huggingface_hub.try_to_load_from_cache(
        REPO, "model.onnx", cache_dir=str(tmp_path / "cache")
    )
    assert found == str(path)
    assert hub.cache_folder() == tmp_path / "cache"


def test_a_cut_connection_is_gone_on_with(tmp_path: Path, served: Hub) -> None:
    served.cut_after, served.cuts = CHUNK + 1_000_000, 2
    [path] = fetch(REPO, ["model.onnx"], endpoint=served.endpoint)
    assert path.read_bytes() == MODEL
    assert len(served.gets()) >= 3
    if VERSION < (1, 0):  # newer ones begin again, or go on within one call
        assert served.gets() == ["", f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]


def test_a_connection_that_brings_nothing_is_given_up(tmp_path: Path, served: Hub) -> None:
    served.cut_after, served.cuts = 0, 1000
    with pytest.raises(DownloadProblem, match=r"was cut while model\.onnx was downloaded"):
        fetch(REPO, ["model.onnx"], endpoint=served.endpoint)
    served.cuts = 0
    assert fetch(REPO, ["model.onnx"], endpoint=served.endpoint)[0].read_bytes() == MODEL


def test_a_stopped_download_ends_at_once_and_goes_on_later(tmp_path: Path, served: Hub) -> None:
    served.slow = 0.002
    seen: list[float] = []

    def stop(progress: Progress) -> None:
        if progress.done >= CHUNK:
            seen.append(time.monotonic())
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        fetch(REPO, ["model.onnx"], endpoint=served.endpoint, on_progress=stop)
    assert seen
    left = [path for path in blobs(tmp_path) if path.suffix == ".incomplete"]
    assert left and cached(REPO, ["model.onnx"]) is None
    served.slow, arrived = 0, left[0].stat().st_size
    served.asked.clear()
    [path] = fetch(REPO, ["model.onnx"], endpoint=served.endpoint)
    assert path.read_bytes() == MODEL
    if VERSION < (1, 0):
        assert served.gets() == [f"bytes={arrived}-"] and arrived >= CHUNK


def test_a_wrong_checksum_is_removed(tmp_path: Path, served: Hub) -> None:
    served.spoilt.add(f"{REPO}/model.onnx")
    with pytest.raises(DownloadProblem, match=r"model\.onnx: arrived with another checksum"):
        fetch(REPO, ["model.onnx"], endpoint=served.endpoint)
    assert cached(REPO, ["model.onnx"]) is None and not blobs(tmp_path)
    served.spoilt.clear()
    assert fetch(REPO, ["model.onnx"], endpoint=served.endpoint)[0].read_bytes() == MODEL


def test_offline_says_what_to_do(
    tmp_path: Path, served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.close()
    with pytest.raises(DownloadProblem, match="cannot be reached") as caught:
        fetch(REPO, ["model.onnx"], endpoint=served.endpoint)
    assert served.endpoint in str(caught.value) and "put the files under models/" in str(
        caught.value
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadProblem, match="switched off by HF_HUB_OFFLINE"):
        fetch(REPO, ["model.onnx"], endpoint=served.endpoint)


def test_what_is_not_asked_for_is_not_downloaded(tmp_path: Path, served: Hub) -> None:
    entry = find_entry("wd-vit-tagger-v3", tmp_path)
    with pytest.raises(NotHere, match="allow its download, or put"):
        locate(entry, tmp_path, endpoint=served.endpoint)
    assert served.asked == []


def test_refusals_of_the_hub(tmp_path: Path, served: Hub) -> None:
    with pytest.raises(DownloadProblem, match=r"has no file other\.onnx at"):
        fetch(REPO, ["other.onnx"], endpoint=served.endpoint)
    with pytest.raises(DownloadProblem, match="there is no such repository"):
        fetch("nobody/nothing", ["model.onnx"], endpoint=served.endpoint)
    served.gated = True
    with pytest.raises(DownloadProblem, match="accept terms first"):
        fetch(REPO, ["model.onnx"], endpoint=served.endpoint)


@pytest.mark.parametrize("address", ["huggingface.co", "ftp://x", "http://a b", ""])
def test_a_mirror_that_is_no_address(address: str) -> None:
    with pytest.raises(DownloadProblem, match="is no address; write it as https://hugg"):
        fetch(REPO, ["model.onnx"], endpoint=address)


def test_the_mirror_of_the_environment_is_used(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
    assert fetch(REPO, ["selected_tags.csv"])[0].read_bytes() == TAGS


def test_files_of_two_revisions_are_no_model(tmp_path: Path) -> None:
    snapshots = tmp_path / "cache" / "models--SmilingWolf--wd-vit-tagger-v3" / "snapshots"
    for revision, name in (("a" * 40, "model.onnx"), ("b" * 40, "selected_tags.csv")):
        (snapshots / revision).mkdir(parents=True)
        (snapshots / revision / name).write_bytes(b"x")
    assert cached(REPO, ["model.onnx", "selected_tags.csv"]) is None
    (snapshots / ("b" * 40) / "model.onnx").write_bytes(b"x")
    found = cached(REPO, ["model.onnx", "selected_tags.csv"])
    assert found is not None and found[0].parent.name == "b" * 40


def test_a_full_disk_is_said(tmp_path: Path, served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache lies below a file, where no folder can be made."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DownloadProblem) as caught:
        fetch(REPO, ["model.onnx"], endpoint=served.endpoint)
    assert str(tmp_path / "file") in str(caught.value)


def test_no_process_is_left_behind(tmp_path: Path, served: Hub) -> None:
    served.slow = 0.2

    def fail(progress: Progress) -> None:
        raise ValueError("a bug in a face")

    with pytest.raises(ValueError, match="a bug"):
        fetch(REPO, ["model.onnx"], endpoint=served.endpoint, on_progress=fail)
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if mine.exists():
        commands = [Path(f"/proc/{each}/cmdline").read_bytes() for each in mine.read_text().split()]
        assert not any(b"tagging.fetch" in command for command in commands)
