"""The journal: steps, undo and redo over a restart, edits from outside, versions, refusals."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from extensions_lib.datasets.journal import EditedOutside, Journal
from extensions_lib.datasets.journal_store import JournalProblem


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.txt")}


def write(journal: Journal, title: str, **changes: bytes | None) -> list[str]:
    with journal.step(title) as step:
        return step.write({f"{name}.txt": content for name, content in changes.items()})


def states(journal: Journal) -> list[tuple[str, str]]:
    return [(entry.title, entry.state) for entry in reversed(journal.history())]


def test_a_step_is_undone_and_redone_over_a_restart(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"old\r\n")
    (tmp_path / "gone.txt").write_bytes(b"\xff")
    assert write(Journal(tmp_path), "One", a=b"new", b=b"made", gone=None) == [
        "a.txt", "b.txt", "gone.txt"
    ]  # fmt: skip
    assert held(tmp_path) == {"a.txt": b"new", "b.txt": b"made"}
    undone = Journal(tmp_path).undo()
    assert undone is not None and set(undone.names) == {"a.txt", "b.txt", "gone.txt"}
    assert held(tmp_path) == {"a.txt": b"old\r\n", "gone.txt": b"\xff"}
    redone = Journal(tmp_path).redo()
    assert redone is not None and redone.entry.title == "One" and redone.entry.count == 3
    assert held(tmp_path) == {"a.txt": b"new", "b.txt": b"made"}
    assert Journal(tmp_path).redo() is None


def test_nothing_is_made_before_the_first_change(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.history() == [] and journal.versions("a.txt") == []
    assert journal.last_known() == {}
    assert journal.undo() is None and journal.redo() is None and journal.finish() is None
    assert os.listdir(tmp_path) == []
    (tmp_path / "a.txt").write_bytes(b"x")
    assert write(journal, "Nothing new", a=b"x") == []
    assert journal.history() == []


def test_a_new_step_drops_what_was_undone_but_loses_no_text(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for content in (b"1", b"2", b"3"):
        write(journal, content.decode(), a=content)
    journal.undo()
    journal.undo()
    write(journal, "4", a=b"4")
    assert states(journal) == [("1", "done"), ("2", "dropped"), ("3", "dropped"), ("4", "done")]
    assert journal.redo() is None
    texts = [version.content for version in journal.versions("a.txt")]
    assert texts == [None, b"1", b"2", b"3", b"1", b"4"]
    assert journal.last_known() == {"a.txt": b"4"}


def test_a_failing_step_leaves_redo_possible(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    write(journal, "1", a=b"1")
    journal.undo()
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(Exception, match=r"b\.txt"):
        write(journal, "2", a=b"2", b=b"2")
    assert journal.redo() is not None
    assert (tmp_path / "a.txt").read_bytes() == b"1"


def test_outside_edits_are_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    write(journal, "One", a=b"a", b=b"b")
    (tmp_path / "a.txt").write_bytes(b"outside")
    before = held(tmp_path)
    with pytest.raises(EditedOutside) as refused:
        journal.undo()
    assert refused.value.names == ("a.txt",) and "a.txt" in str(refused.value)
    assert held(tmp_path) == before
    with pytest.raises(EditedOutside), journal.step("Two") as step:
        step.write({"a.txt": b"x", "b.txt": b"x"}, expected={"a.txt": b"a", "b.txt": b"b"})
    assert held(tmp_path) == before
    assert states(journal) == [("One", "done")]


def test_outside_edits_can_be_kept_or_written_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    write(journal, "One", a=b"a", b=b"b")
    (tmp_path / "a.txt").write_bytes(b"outside")
    moved = journal.undo("keep")
    assert moved is not None and moved.kept == ("a.txt",) and moved.names == ("b.txt",)
    assert held(tmp_path) == {"a.txt": b"outside"}
    moved = journal.redo("overwrite")
    assert moved is not None and not moved.kept
    assert held(tmp_path) == {"a.txt": b"a", "b.txt": b"b"}
    assert b"outside" in [version.content for version in journal.versions("a.txt")]
    assert states(journal) == [("One", "done")]
    with pytest.raises(JournalProblem, match="none of refuse"):
        journal.undo("ignore")


def test_a_step_may_write_in_many_goes(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with journal.step("Tag 3 pictures") as step:
        step.write({"a.txt": b"1"})
        assert journal.history()[0].state == "running"
        assert Journal(tmp_path).history()[0].state == "running"
        step.write({"b.txt": b"1"})
        step.write({"a.txt": b"2"})
    [entry] = journal.history()
    assert (entry.title, entry.count, entry.interrupted) == ("Tag 3 pictures", 2, False)
    journal.undo()
    assert held(tmp_path) == {}
    journal.redo()
    assert held(tmp_path) == {"a.txt": b"2", "b.txt": b"1"}


def test_an_error_in_a_step_keeps_what_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)

    def fail() -> None:
        with journal.step("Half") as step:
            step.write({"a.txt": b"1"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert journal.history()[0].interrupted
    journal.undo()
    assert held(tmp_path) == {} and not journal.history()[0].interrupted


def test_one_at_a_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    inside, leave = threading.Event(), threading.Event()

    def long() -> None:
        with journal.step("Long") as step:
            step.write({"a.txt": b"1"})
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=long)
    thread.start()
    assert inside.wait(20)
    try:
        for other in (journal, Journal(tmp_path)):
            with pytest.raises(JournalProblem, match="being changed by another"):
                write(other, "Other", a=b"2")
    finally:
        leave.set()
        thread.join()
    assert states(journal) == [("Long", "done")]
    with journal.step("Outer"), pytest.raises(JournalProblem, match="being changed by another"):
        write(Journal(tmp_path), "Inner", a=b"2")


@pytest.mark.parametrize("name", ["../a.txt", "/tmp/a.txt", "a/../../b.txt", "", "a//b.txt", "."])
def test_only_files_of_the_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "set").mkdir()
    with (
        pytest.raises(JournalProblem, match="no file within"),
        Journal(tmp_path / "set").step("x") as s,
    ):
        s.write({name: b"x"})
    assert os.listdir(tmp_path) == ["set"]


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    journal = Journal(tmp_path)
    with journal.step("One") as step:
        step.write({name: b"x"})
    assert os.listdir(os.fsencode(tmp_path)).count(b"caf\xe9.txt") == 1
    assert journal.last_known() == {name: b"x"}
    journal.undo()
    assert b"caf\xe9.txt" not in os.listdir(os.fsencode(tmp_path))


def test_a_linked_caption_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "real.txt").write_bytes(b"old")
    (tmp_path / "set" / "a.txt").symlink_to(tmp_path / "real.txt")
    journal = Journal(tmp_path / "set")
    write(journal, "One", a=b"new")
    assert (tmp_path / "real.txt").read_bytes() == b"new"
    journal.undo()
    assert (tmp_path / "real.txt").read_bytes() == b"old"


def test_a_damaged_journal_is_named_and_the_captions_stay(tmp_path: Path) -> None:
    write(Journal(tmp_path), "One", a=b"1")
    path = tmp_path / ".crucible" / "journal.sqlite"
    path.write_bytes(b"no database, but long enough to be read as one" * 100)
    journal = Journal(tmp_path)
    with pytest.raises(JournalProblem, match=r"damaged.*move the file away"):
        journal.history()
    with pytest.raises(JournalProblem, match="damaged"):
        write(journal, "Two", a=b"2")
    assert held(tmp_path) == {"a.txt": b"1"}
    path.unlink()
    assert write(journal, "Two", a=b"2") == ["a.txt"]


def test_a_newer_journal_is_left_alone(tmp_path: Path) -> None:
    write(Journal(tmp_path), "One", a=b"1")
    with sqlite3.connect(tmp_path / ".crucible" / "journal.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(JournalProblem, match="newer Crucible"):
        write(Journal(tmp_path), "Two", a=b"2")
    assert held(tmp_path) == {"a.txt": b"1"}


def test_a_set_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / ".crucible").write_bytes(b"")  # a file in its way, which stops root, too
    with pytest.raises(JournalProblem, match="cannot be written"):
        write(Journal(tmp_path), "One", a=b"1")
    assert held(tmp_path) == {}


class Edits(RuleBasedStateMachine):
    """Any order of steps, undo, redo and restarts ends where a list of states says."""

    @initialize()
    def begin(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name)
        self.journal = Journal(self.folder)
        self.past: list[dict[str, bytes]] = [{}]
        self.future: list[dict[str, bytes]] = []

    @rule(
        changes=st.dictionaries(
            st.sampled_from(["a.txt", "b.txt", "c.txt"]),
            st.one_of(st.none(), st.binary(max_size=3)),
            min_size=1,
        )
    )
    def step(self, changes: dict[str, bytes | None]) -> None:
        now = self.past[-1]
        made = {n: c for n, c in {**now, **changes}.items() if c is not None}
        with self.journal.step("Step") as step:
            written = step.write(changes)
        assert bool(written) == (made != now)
        if written:
            self.past.append(made)
            self.future.clear()

    @rule()
    def undo(self) -> None:
        assert (self.journal.undo() is not None) == (len(self.past) > 1)
        if len(self.past) > 1:
            self.future.append(self.past.pop())

    @rule()
    def redo(self) -> None:
        assert (self.journal.redo() is not None) == bool(self.future)
        if self.future:
            self.past.append(self.future.pop())

    @precondition(lambda self: len(self.past) > 1)
    @rule()
    def restart(self) -> None:
        self.journal = Journal(self.folder)

    @invariant()
    def holds(self) -> None:
        assert held(self.folder) == self.past[-1]
        known = {n: c for n, c in self.journal.last_known().items() if c is not None}
        assert known == self.past[-1]

    def teardown(self) -> None:
        self.place.cleanup()


TestEdits = Edits.TestCase
TestEdits.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
