"""Tagging a folder where something goes wrong or is stopped: what is done stays, and it is said."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extensions_lib.datasets.captions import CaptionProblem
from extensions_lib.datasets.journal import Journal
from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.pipeline import plan
from extensions_lib.tagging.run import Progress, Run
from extensions_lib.tagging.runners import TaggerRunner
from extensions_lib.tagging.scores import ScoreStore
from extensions_lib.tagging.taggers import Tagger
from extensions_lib.tagging.writer import TEMPLATE, Output
from tests.tagging.sets import Counting, captions, expected, run, write_pictures

# --- what goes wrong --------------------------------------------------------------------------


def test_broken_pictures_are_listed_and_stop_nothing(tmp_path: Path, tagger: Tagger) -> None:
    paths = write_pictures(tmp_path, 9)
    whole = paths[3].read_bytes()
    paths[3].write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "003.txt").write_text("by hand")
    report = run(tmp_path, TaggerRunner(tagger), output=Output(existing="overwrite"))
    assert [outcome.picture.name for outcome in report.problems] == [
        "003.png",
        "empty.jpg",
        "text.png",
    ]
    assert all(o.problem.startswith(o.picture.name + ": ") for o in report.problems)
    good = [path for path in paths if path != paths[3]]
    assert captions(tmp_path) == {**expected(tagger, good), "003.txt": "by hand"}
    assert report.done == report.total == 11


def test_a_caption_that_cannot_be_read_is_left_and_listed(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    (tmp_path / "000.txt").write_bytes("1girl".encode("utf-16"))
    report = run(tmp_path, Counting(), output=Output(existing="append"))
    assert (report.written, len(report.problems)) == (1, 1)
    assert "UTF-16" in report.problems[0].problem
    assert (tmp_path / "000.txt").read_bytes() == "1girl".encode("utf-16")


def test_a_failing_model_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    write_pictures(tmp_path, 30)
    asked = iter(range(100))

    def fail_late() -> None:
        if next(asked) == 10:
            raise CrucibleError("the model has had enough")

    with pytest.raises(CrucibleError, match="had enough"):
        run(tmp_path, Counting(fail_late))
    kept = len(captions(tmp_path))
    assert kept <= 10
    runner = Counting()
    assert run(tmp_path, runner).written == 30 - kept
    assert len(captions(tmp_path)) == 30


def test_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CrucibleError, match="Choose at least one"):
        run(tmp_path)


class Memory(Exception):
    pass


class SmallMemory:
    """A tagger that takes two pictures at once and no more."""

    def __init__(self, tagger: Tagger, most: int) -> None:
        self.real, self.most, self.calls = tagger, most, []
        self.provider, self.batch = "CUDA", None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def score(self, batch: np.ndarray) -> np.ndarray:
        self.calls.append(len(batch))
        if len(batch) > self.most:
            raise Memory("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer")
        return self.real.score(batch)


def test_out_of_memory_halves_the_batch(tmp_path: Path, tagger: Tagger) -> None:
    paths = write_pictures(tmp_path, 11)
    small = SmallMemory(tagger, 2)
    report = run(tmp_path, TaggerRunner(small))
    assert small.calls[:4] == [16, 8, 4, 2]
    assert set(small.calls[4:]) == {2}
    assert report.written == 11
    assert captions(tmp_path) == expected(tagger, paths)


def test_out_of_memory_for_one_picture_is_said(tmp_path: Path, tagger: Tagger) -> None:
    write_pictures(tmp_path, 2)
    with pytest.raises(CrucibleError, match="too small for one picture"):
        run(tmp_path, TaggerRunner(SmallMemory(tagger, 0)))


# --- stop and progress ------------------------------------------------------------------------


def test_stop_does_not_wait_for_the_model(tmp_path: Path) -> None:
    """The model is held until the run has returned: what it was asked then is left undone."""
    write_pictures(tmp_path, 30)
    stop, held, asked = threading.Event(), threading.Event(), iter(range(100))

    def hold() -> None:
        if next(asked) == 5:
            stop.set()
            held.wait(60)

    report = run(tmp_path, Counting(hold), stop=stop)
    done = captions(tmp_path)
    assert report.stopped
    assert not held.is_set()
    assert report.done == len(done) <= 5
    held.set()
    resumed = Counting()
    assert not run(tmp_path, resumed).stopped
    assert len(captions(tmp_path)) == 30
    assert resumed.asked <= 30 - len(done)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    write_pictures(tmp_path, 12)
    seen: list[Progress] = []
    run(tmp_path, Counting(lambda: time.sleep(0.03)), on_progress=seen.append)
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert seen[-1].done == seen[-1].total == 12
    assert any(each.left is not None and each.rate > 0 for each in seen)
    assert seen[-1].left == 0


def test_an_error_of_the_listener_ends_the_run(tmp_path: Path) -> None:
    write_pictures(tmp_path, 12)

    def fail(_: Progress) -> None:
        raise RuntimeError("the page is gone")

    with pytest.raises(RuntimeError, match="page is gone"):
        run(tmp_path, Counting(lambda: time.sleep(0.05)), on_progress=fail)
    assert not Journal(tmp_path).history() or Journal(tmp_path).history()[0].state == "done"


def test_the_longest_names_get_captions(tmp_path: Path, tagger: Tagger) -> None:
    [path] = write_pictures(tmp_path, 1)
    path.rename(tmp_path / f"{'あ' * 83}.png")
    report = run(tmp_path, TaggerRunner(tagger))
    assert report.written == 1 and not report.problems
    assert (tmp_path / f"{'あ' * 83}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", ["", ".", "a/b", "../x", "png", ".JPG"])
def test_what_is_no_suffix_for_captions(suffix: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    before = sorted(tmp_path.iterdir())
    for name in (TEMPLATE, "[name]_tags.[output_extension]"):
        output = Output(output_extension=suffix, output_name=name)
        with pytest.raises(CaptionProblem, match=r"output_extension: .* take txt or caption"):
            plan(tmp_path, output, Run(), ScoreStore(None))
    assert sorted(tmp_path.iterdir()) == before
