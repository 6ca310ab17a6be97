"""The store of scores: exact, shared between processes, and never lost to a broken file."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from extensions_lib.errors import FileProblem
from extensions_lib.tagging.scores import FLOOR, Identity, ModelKey, ScoreStore, Written, sparse

KEY = ModelKey("wd", "abc", "1")
ROOT = Path(__file__).resolve().parents[2]


def content(number: int) -> bytes:
    return number.to_bytes(32, "big")


def values(number: int, labels: int = 300) -> np.ndarray:
    return np.random.default_rng(number).random(labels, np.float32) ** 4


def equal(one: object, other: object) -> bool:
    assert isinstance(one, tuple) and isinstance(other, tuple)
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_scores_come_back_as_they_were_kept(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    kept = sparse(values(1))
    store.put(KEY, [(content(1), kept), (content(2), "a red star on a hill")])
    store.close()
    store = ScoreStore(tmp_path)
    found = store.get(KEY, content(1))
    assert equal(found, kept)
    assert store.get(KEY, content(2)) == "a red star on a hill"
    assert store.get(KEY, content(3)) is None
    assert store.known(KEY) == {content(1), content(2)}


def test_another_revision_or_preprocessing_is_another_model(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    store.put(KEY, [(content(1), sparse(values(1)))])
    for other in (KEY._replace(revision="b"), KEY._replace(preprocess="2"), KEY._replace(name="x")):
        assert store.get(other, content(1)) is None
        assert store.known(other) == set()


def test_half_floats_above_a_floor() -> None:
    draw = values(3)
    indices, scores = sparse(draw)
    assert scores.dtype == np.float16
    assert set(indices) == set(np.flatnonzero(draw >= FLOOR))
    assert np.abs(scores.astype(np.float32) - draw[indices]).max() <= 2.0**-12


def test_hashes_and_captions_by_path(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    odd = os.fsdecode(b"\xff.png")  # a name that is no UTF-8
    store.put_contents([("a.png", Identity(5, 6), content(1)), (odd, Identity(1, 1), content(3))])
    store.put_contents([("a.png", Identity(7, 8), content(2))])
    assert store.content("a.png", Identity(7, 8)) == content(2)
    assert store.content("a.png", Identity(5, 6)) is None
    assert store.content(odd, Identity(1, 1)) == content(3)
    store.put_written([("a.txt", Written(None, "1girl")), ("b.txt", Written("old", "new", "mid"))])
    assert store.written("a.txt") == Written(None, "1girl")
    assert store.written("b.txt") == Written("old", "new", "mid")
    assert store.written("c.txt") is None


@pytest.mark.parametrize("damage", ["start", "middle", "text", "cut"])
def test_a_broken_database_is_set_aside_with_a_message(tmp_path: Path, damage: str) -> None:
    store = ScoreStore(tmp_path)
    store.put(KEY, [(content(i), sparse(values(i))) for i in range(400)])
    store.close()
    path = tmp_path / "scores.sqlite"
    raw = bytearray(path.read_bytes())
    if damage == "start":
        raw[:64] = b"x" * 64
    elif damage == "middle":
        raw[4096:] = b"x" * (len(raw) - 4096)
    elif damage == "cut":
        raw = raw[: len(raw) // 2]
    else:
        raw = bytearray(b"1girl, solo\n" * 100)
    path.write_bytes(raw)

    messages: list[str] = []
    store = ScoreStore(tmp_path, messages)
    store.known(KEY)
    store.put(KEY, [(content(i), sparse(values(i))) for i in range(400)])
    assert store.known(KEY) == {content(i) for i in range(400)}
    assert equal(store.get(KEY, content(7)), sparse(values(7)))
    assert len(messages) == 1
    assert "scores.sqlite.broken-1" in messages[0]
    assert (tmp_path / "scores.sqlite.broken-1").read_bytes() == bytes(raw)


def test_a_second_broken_one_takes_the_next_name(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "scores.sqlite").write_text("no database at all" * 50)
        ScoreStore(tmp_path).close()
        assert (tmp_path / f"scores.sqlite.broken-{number}").exists()


def test_use_after_close_is_a_mistake_not_a_broken_file(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        store.known(KEY)
    assert [path.name for path in tmp_path.glob("*broken*")] == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileProblem, match=r"scores\.sqlite"):
        ScoreStore(tmp_path / "file" / "below")


WRITER = """
import sys, numpy as np
from extensions_lib.tagging.scores import ModelKey, ScoreStore, sparse
folder, first = sys.argv[1], int(sys.argv[2])
store = ScoreStore(folder)
for i in range(first, first + 200):
    store.put(ModelKey("wd", "abc", "1"),
              [(i.to_bytes(32, "big"), sparse(np.random.default_rng(i).random(300, "f") ** 4))])
"""


def test_processes_write_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    running = [
        subprocess.Popen(
            [*command, str(first)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        for first in (0, 200, 400)
    ]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    store = ScoreStore(tmp_path)
    assert store.known(KEY) == {content(i) for i in range(600)}
    assert equal(store.get(KEY, content(599)), sparse(values(599)))


def test_threads_share_one_store(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)

    def write(first: int) -> None:
        for i in range(first, first + 50):
            store.put(KEY, [(content(i), sparse(values(i)))])
            assert store.get(KEY, content(i)) is not None

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 50, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.known(KEY)) == 150
