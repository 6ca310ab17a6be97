"""Killed at any moment, and on a full disk: every caption is its old or its new text, whole."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.datasets import edits
from extensions_lib.datasets.journal import Journal
from extensions_lib.datasets.journal_store import JournalProblem
from extensions_lib.datasets.tag_set import TagSet
from tests.datasets.sets import make, texts

ROOT = Path(__file__).resolve().parents[2]
COUNT = 120

# Changes captions until it is killed; says when it begins and after each step.
WORKER = """
import sys
from extensions_lib.datasets import edits
from extensions_lib.datasets.tag_set import TagSet
photos = TagSet(sys.argv[1])
print("ready", flush=True)
for number in range(10_000):
    photos.do(edits.replace(r"v\\d+", f"v{number}", "regex"))
    print(number, flush=True)
    if number % 3 == 2:
        photos.undo()
        photos.redo()
"""


def killed_after(folder: Path, seconds: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        worker.send_signal(signal.SIGKILL)
    assert worker.returncode == -signal.SIGKILL


def values(folder: Path) -> dict[str, int]:
    """The number in each caption, which is otherwise as it was made."""
    found = {}
    for name, raw in texts(folder).items():
        if name.endswith(".tmp"):  # left until the set is opened again
            continue
        body, _, number = raw.partition(b", v")
        assert body == b"1girl, " + Path(name).stem.encode() * 50, name
        found[name] = int(number)
    return found


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    pictures = {f"{i}.png": f"1girl, {str(i) * 50}, v0" for i in range(COUNT)}
    folder = make(tmp_path / "set", pictures)
    draw = random.Random(7)
    interrupted = 0
    for _ in range(12):
        killed_after(folder, draw.uniform(0.0, 0.4))
        found = values(folder)
        assert len(found) == COUNT
        assert len(set(found.values())) <= 2
        photos = TagSet(folder)
        assert not list(folder.glob("*.tmp"))
        [newest, *_] = photos.history() or [None]
        if newest is not None and newest.interrupted:
            interrupted += 1
            moved = photos.finish() if draw.random() < 0.5 else photos.undo()
            assert moved is not None
            assert len(set(values(folder).values())) == 1
            assert not any(entry.interrupted for entry in photos.history())
        assert texts(folder).keys() == found.keys()
    photos = TagSet(folder)
    while photos.undo():
        pass
    assert set(values(folder).values()) == {0}
    assert interrupted, "no kill hit a step: the moments are badly drawn"


def test_killed_between_any_two_writes(tmp_path: Path) -> None:
    """As a kill leaves it: only the first so many files of a step were replaced."""
    names = [f"{i}.txt" for i in range(6)]
    for count in range(7):
        folder = tmp_path / str(count)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"old")
        code = (
            "import os, sys\n"
            "from extensions_lib.datasets.journal import Journal\n"
            "replace, left = os.replace, [int(sys.argv[2])]\n"
            "def dying(*paths):\n"
            "    if not left[0]:\n"
            "        os.kill(os.getpid(), 9)\n"
            "    left[0] -= 1\n"
            "    replace(*paths)\n"
            "os.replace = dying\n"
            "with Journal(sys.argv[1]).step('Step') as step:\n"
            "    step.write({name: b'new' for name in sys.argv[3:]})\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        subprocess.run([sys.executable, "-c", code, str(folder), str(count), *names], cwd=ROOT)
        new = [path for path in folder.glob("*.txt") if path.read_bytes() == b"new"]
        assert len(new) == count and len(list(folder.glob("*.txt"))) == 6
        journal = Journal(folder)
        assert not list(folder.glob("*.tmp")), "a dead program's temporary file stayed"
        [entry] = journal.history()
        assert entry.interrupted and entry.state == "done"
        moved = journal.finish()
        assert moved is not None and len(moved.names) == 6 - count
        assert {path.read_bytes() for path in folder.glob("*.txt")} == {b"new"}
        journal.undo()
        assert {path.read_bytes() for path in folder.glob("*.txt")} == {b"old"}


def test_killed_while_the_journal_is_made(tmp_path: Path) -> None:
    """An empty database, or one that is rolled back on opening, is a journal without steps."""
    (tmp_path / ".crucible").mkdir()
    (tmp_path / ".crucible" / "journal.sqlite").touch()
    journal = Journal(tmp_path)
    assert journal.history() == [] and journal.undo() is None
    with journal.step("One") as step:
        step.write({"a.txt": b"x"})
    assert len(journal.history()) == 1


@pytest.fixture
def photos(tmp_path: Path) -> TagSet:
    return TagSet(make(tmp_path / "set", {f"{i}.png": f"a, {i}" for i in range(8)}))


@pytest.mark.parametrize("good", range(8))
def test_a_disk_that_fills_up_while_captions_are_written(
    photos: TagSet, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    before, left = texts(photos.folder), [good]
    replace = os.replace

    def full(*paths: Any) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(JournalProblem, match=r"disk is full.*No caption was changed"):
        photos.do(edits.add("x"))
    assert texts(photos.folder) == before and photos.history() == []
    assert photos.item("0.png").text == "a, 0"
    assert photos.do(edits.add("x")) == 8


def test_a_disk_on_which_nothing_can_be_put_back(
    photos: TagSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, left = texts(photos.folder), [3]
    replace = os.replace

    def full(*paths: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(JournalProblem, match="3 captions could not be put back"):
        photos.do(edits.add("x"))
    monkeypatch.undo()
    [entry] = photos.history()
    assert entry.interrupted and entry.count == 3
    moved = TagSet(photos.folder).undo()
    assert moved is not None and len(moved.names) == 3
    assert texts(photos.folder) == before


def test_a_disk_that_fills_up_while_undoing(
    photos: TagSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = texts(photos.folder)
    photos.do(edits.add("x"))
    after, left = texts(photos.folder), [4]
    replace = os.replace

    def full(*paths: Any) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(JournalProblem, match="disk is full"):
        photos.undo()
    assert texts(photos.folder) == after
    assert [(e.state, e.interrupted) for e in photos.history()] == [("done", False)]
    assert photos.undo() is not None
    assert texts(photos.folder) == before


def test_a_journal_that_cannot_grow(photos: TagSet) -> None:
    """The journal comes first: where it cannot be written, no caption is touched."""
    resource = pytest.importorskip("resource")
    photos.do(edits.add("x"))
    before = texts(photos.folder)
    size = (photos.folder / ".crucible" / "journal.sqlite").stat().st_size
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        with pytest.raises(JournalProblem, match="cannot be written"):
            photos.do(edits.add("y" * 200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert texts(photos.folder) == before
    assert len(photos.history()) == 1
    with sqlite3.connect(photos.folder / ".crucible" / "journal.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.skipif(not shutil.which("mount") or os.name != "posix", reason="needs mount")
def test_a_small_disk(tmp_path: Path) -> None:
    """A real file system of 1 MB that fills up, where it may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        photos = TagSet(make(disk / "set", {f"{i}.png": "a" for i in range(50)}))
        photos.do(edits.add("x"))
        last = 0
        with pytest.raises(JournalProblem, match="disk is full"):
            for last in range(200):
                photos.do(edits.write(dict.fromkeys(photos.names, f"{last:05}" * 100)))
        found = set(texts(disk / "set").values())
        assert len(found) == 1, "some captions have the new text, some the old"
        assert TagSet(disk / "set").undo() is not None
    finally:
        subprocess.run(["umount", str(disk)], check=True)
