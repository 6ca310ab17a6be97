"""Hashes are those the WebUI and model sites show; the cache never outlives a change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FileProblem
from extensions_lib.files import hashes
from extensions_lib.files.cache import FileCache, identity
from extensions_lib.files.safe import read_header, write_safetensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.randn(400_000)}, {"k": "v"})
    return path


def test_what_is_hashed(file: Path) -> None:
    content = file.read_bytes()
    data = hashlib.sha256(content[read_header(file).data_start :]).hexdigest()
    assert hashes.sha256_file(file) == hashlib.sha256(content).hexdigest()
    assert hashes.data_hash(file) == hashes.network_hash(file) == data
    expected = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert hashes.legacy_hash(file) == expected
    assert hashes.short_network_hash(data) == data[:12]
    assert hashes.short_checkpoint_hash(data) == data[:10]


def test_the_stated_hash_is_trusted_if_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for stated, trusted in (("AB" * 32, True), ("ab" * 31, False), ("", False), ("xy" * 32, False)):
        write_safetensors(path, {"a": torch.ones(2)}, {"sshs_model_hash": stated})
        expected = stated.lower() if trusted else hashes.data_hash(path)
        assert hashes.network_hash(path) == expected


def test_a_pickle_is_hashed_whole(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    assert hashes.network_hash(tmp_path / "a.pt") == hashes.sha256_file(tmp_path / "a.pt")
    with pytest.raises(FileProblem, match=r"none\.pt"):
        hashes.network_hash(tmp_path / "none.pt")


def test_a_file_is_hashed_once_until_it_changes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    real = hashes._sha256_from

    def counted(path: Path, start: int) -> str:
        read.append(path)
        return real(path, start)

    monkeypatch.setattr(hashes, "_sha256_from", counted)
    for _ in range(2):  # the second cache finds what the first left on disk
        cache = FileCache(tmp_path / "cache")
        first = hashes.network_hash(file, cache)
        assert hashes.network_hash(file, cache) == first
        cache.close()
    assert len(read) == 1
    write_safetensors(file, {"a": torch.randn(400_000)}, {"k": "v"})
    os.utime(file, ns=(1, 1))
    assert hashes.network_hash(file, FileCache(tmp_path / "cache")) != first
    assert len(read) == 2


@pytest.mark.parametrize("damage", [b"not a database at all" * 100, b"", b"SQLite format 3\x00bad"])
def test_a_broken_cache_is_started_anew(file: Path, tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "files.sqlite").write_bytes(damage)
    cache = FileCache(folder)
    assert hashes.sha256_file(file, cache) == hashes.sha256_file(file)
    assert cache.get("sha256", file) == hashes.sha256_file(file)
    cache.close()
    assert FileCache(folder).get("sha256", file) == hashes.sha256_file(file)


def test_a_cache_broken_while_in_use(file: Path, tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache")
    cache.put("kind", file, {"a": 1})
    assert cache.path is not None
    cache.path.write_bytes(b"x" * cache.path.stat().st_size)
    assert cache.get("kind", file) in (None, {"a": 1})
    cache.put("kind", file, {"a": 2})
    cache.put("kind", file, {"a": 3})
    assert cache.get("kind", file) == {"a": 3}


def test_a_cache_that_cannot_be_written_lives_in_memory(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = FileCache(tmp_path / "cache")
    cache.put("kind", file, [1])
    assert cache.get("kind", file) == [1]
    assert cache.all("kind") == {str(file): (identity(file), [1])}
    cache.forget("kind", [str(file)])
    assert cache.get("kind", file) is None
