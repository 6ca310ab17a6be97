"""A folder to captions: right whatever happens in between, and the same whatever is beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from extensions_lib.datasets.journal import Journal
from extensions_lib.datasets.pictures import open_picture
from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.run import Run
from extensions_lib.tagging.runners import TaggerRunner
from extensions_lib.tagging.scores import sparse
from extensions_lib.tagging.selection import Selection, select, text
from extensions_lib.tagging.taggers import Tagger, load_tagger
from extensions_lib.tagging.writer import Output
from tests.tagging.sets import Counting, captions, expected, run, write_pictures

# --- what comes out ---------------------------------------------------------------------------


def test_every_picture_gets_the_caption_it_gets_alone(tmp_path: Path, tagger: Tagger) -> None:
    paths = write_pictures(tmp_path, 20)
    report = run(tmp_path, TaggerRunner(tagger))
    assert captions(tmp_path) == expected(tagger, paths)
    assert (report.total, report.done, report.written, report.inferred) == (20, 20, 20, 20)
    assert not (report.problems or report.stopped or report.changes)
    assert all(caption for caption in captions(tmp_path).values())


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
def test_captions_do_not_depend_on_the_batch(tmp_path: Path, tagger: Tagger, batch: int) -> None:
    paths = write_pictures(tmp_path, 10)
    run(tmp_path, TaggerRunner(tagger, batch))
    assert captions(tmp_path) == expected(tagger, paths)


def test_scores_do_not_depend_on_batch_mates(tmp_path: Path, tagger: Tagger) -> None:
    """The same picture among other pictures, at other places, and beside padding."""
    paths = write_pictures(tmp_path, 8)
    prepared = [tagger.prepare(open_picture(path)) for path in paths]
    whole = TaggerRunner(tagger, 8).run(prepared, lambda: False)
    turned = TaggerRunner(tagger, 8).run(prepared[::-1], lambda: False)[::-1]
    padded = [TaggerRunner(tagger, 8).run([each], lambda: False)[0] for each in prepared]
    for one, *others in zip(whole, turned, padded, strict=True):
        for other in others:
            assert np.array_equal(one[0], other[0])
            assert np.array_equal(one[1], other[1])
    alone = np.concatenate([tagger.score(each[None]) for each in prepared])
    assert np.abs(tagger.score(np.stack(prepared)) - alone).max() <= 1e-6


def test_a_file_of_fixed_batch_is_run_one_at_a_time(tmp_path: Path, taggers: Path) -> None:
    fixed = load_tagger("one-at-a-time", taggers, device="cpu", threads=1)
    paths = write_pictures(tmp_path, 5)
    runner = TaggerRunner(fixed, 8)
    assert runner.batch == 1
    run(tmp_path, runner)
    assert captions(tmp_path) == expected(fixed, paths)


def test_subfolders_only_when_asked_for(tmp_path: Path, tagger: Tagger) -> None:
    write_pictures(tmp_path, 2)
    write_pictures(tmp_path / "below", 3)
    assert run(tmp_path, TaggerRunner(tagger)).total == 2
    report = run(tmp_path, TaggerRunner(tagger), options=Run(subfolders=True))
    assert (report.total, report.inferred) == (5, 1)  # two have the content of others
    assert "below/002.txt" in captions(tmp_path)


def test_an_empty_folder(tmp_path: Path, tagger: Tagger) -> None:
    assert run(tmp_path, TaggerRunner(tagger)).total == 0


def test_several_models(tmp_path: Path, tagger: Tagger, taggers: Path) -> None:
    paths = write_pictures(tmp_path, 6)
    other = load_tagger("others", taggers, device="cpu", threads=1)
    chosen = Selection(general=0.5, character=0.5, sort="alphabet")
    runners = (TaggerRunner(tagger), TaggerRunner(other))
    run(tmp_path, *runners, selection=chosen)
    one, two = expected(tagger, paths, chosen), expected(other, paths, chosen)
    for name, caption in captions(tmp_path).items():
        assert set(caption.split(", ")) == set(one[name].split(", ")) | set(two[name].split(", "))

    output = Output(existing="overwrite")
    report = run(tmp_path, *runners, selection=chosen, output=output, options=Run(join="average"))
    assert report.inferred == 0
    for path in paths:
        batch = tagger.prepare(open_picture(path))[None]
        mean = np.zeros(len(tagger.labels), np.float32)
        for indices, values in (sparse(each.score(batch)[0]) for each in (tagger, other)):
            mean[indices] += values.astype(np.float32) / 2
        wanted = text(select(tagger.labels, mean, chosen), chosen)
        assert captions(tmp_path)[path.with_suffix(".txt").name] == wanted


def test_a_sentence_stands_between_trigger_and_tags(tmp_path: Path, tagger: Tagger) -> None:
    write_pictures(tmp_path, 2)
    run(tmp_path, TaggerRunner(tagger), Counting(), selection=Selection(trigger="smith"))
    for caption in captions(tmp_path).values():
        assert caption.startswith("smith, a picture of (")
        assert "tag" in caption


def test_most_frequent_tags_first(tmp_path: Path, tagger: Tagger) -> None:
    write_pictures(tmp_path, 12)
    run(tmp_path, TaggerRunner(tagger), selection=Selection(sort="frequency"))
    split = [caption.split(", ") for caption in captions(tmp_path).values()]
    count = {tag: sum(tag in each for each in split) for each in split for tag in each}
    for each in split:
        assert [count[tag] for tag in each] == sorted((count[t] for t in each), reverse=True)


# --- what is kept -----------------------------------------------------------------------------


def test_other_thresholds_need_no_model(tmp_path: Path, tagger: Tagger) -> None:
    paths = write_pictures(tmp_path, 9)
    run(tmp_path, TaggerRunner(tagger))
    high = Selection(general=0.9, character=0.9)
    report = run(tmp_path, TaggerRunner(tagger), selection=high)
    assert report.inferred == 0
    assert report.written > 0
    assert captions(tmp_path) == expected(tagger, paths, high)


def test_a_changed_picture_is_asked_about_again(tmp_path: Path, tagger: Tagger) -> None:
    paths = write_pictures(tmp_path, 4)
    run(tmp_path, TaggerRunner(tagger))
    paths[0].write_bytes(paths[3].read_bytes())  # the content of another, whose scores are kept
    other = write_pictures(tmp_path / "other", 12)[9]
    paths[1].write_bytes(other.read_bytes())
    report = run(tmp_path, TaggerRunner(tagger))
    assert report.inferred == 1
    assert captions(tmp_path)["000.txt"] == captions(tmp_path)["003.txt"]


def test_asked_again_when_told_so(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    runner = Counting()
    run(tmp_path, runner)
    run(tmp_path, runner)
    assert runner.asked == 3
    run(tmp_path, runner, options=Run(again=True))
    assert runner.asked == 6


def test_a_broken_store_is_set_aside_and_the_run_goes_on(tmp_path: Path, tagger: Tagger) -> None:
    paths = write_pictures(tmp_path, 3)
    (tmp_path / ".crucible").mkdir()
    (tmp_path / ".crucible" / "scores.sqlite").write_bytes(b"no database" * 500)
    run(tmp_path, TaggerRunner(tagger))
    assert captions(tmp_path) == expected(tagger, paths)
    assert (tmp_path / ".crucible" / "scores.sqlite.broken-1").exists()


# --- existing captions ------------------------------------------------------------------------


def test_existing_captions_are_asked_about_before_anything_runs(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    (tmp_path / "001.txt").write_text("by hand")
    runner = Counting()
    with pytest.raises(CrucibleError, match=r"1 of 3 pictures have captions already, 001\.jpg"):
        run(tmp_path, runner)
    assert runner.asked == 0
    assert captions(tmp_path) == {"001.txt": "by hand"}


@pytest.mark.parametrize(
    ("existing", "wanted"),
    [
        ("keep", "by hand, tag 1"),
        ("overwrite", "NEW"),
        ("append", "by hand, tag 1, NEW"),
        ("prepend", "NEW, by hand, tag 1"),
        ("copy", "NEW"),
    ],
)
def test_what_becomes_of_an_existing_caption(tmp_path: Path, existing: str, wanted: str) -> None:
    [path] = write_pictures(tmp_path, 1)
    file = path.with_suffix(".txt")
    file.write_bytes(b"\xef\xbb\xbfby hand, tag 1\r\n")
    for _ in range(2):  # a second run starts from what people wrote
        run(tmp_path, Counting(), output=Output(existing=existing))
        new = open_picture(path).getpixel((0, 0))
        got = file.read_bytes().decode("utf-8-sig").strip()
        assert got == wanted.replace("NEW", f"a picture of {new}")
    copies = sorted(tmp_path.glob("*.bak*"))
    assert len(copies) == (existing == "copy")
    if copies:
        assert copies[0].read_bytes() == b"\xef\xbb\xbfby hand, tag 1\r\n"


def test_appending_with_another_threshold_starts_from_the_text_by_hand(
    tmp_path: Path, tagger: Tagger
) -> None:
    paths = write_pictures(tmp_path, 5)
    for path in paths:
        path.with_suffix(".txt").write_text("smith")
    output = Output(existing="append")
    run(tmp_path, TaggerRunner(tagger), selection=Selection(general=0.2), output=output)
    high = Selection(general=0.95, character=0.95)
    run(tmp_path, TaggerRunner(tagger), selection=high, output=output)
    wanted = expected(tagger, paths, high)
    assert captions(tmp_path) == {
        name: f"smith, {added}" if added else "smith" for name, added in wanted.items()
    }


def test_our_own_caption_that_was_edited_counts_as_existing(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    run(tmp_path, Counting())
    (tmp_path / "000.txt").write_text("edited")
    with pytest.raises(CrucibleError, match="1 of 2 pictures have captions"):
        run(tmp_path, Counting())


def test_two_pictures_with_one_caption_file(tmp_path: Path) -> None:
    [first] = write_pictures(tmp_path, 1)
    open_picture(first).save(tmp_path / "000.bmp")
    report = run(tmp_path, Counting())
    assert [outcome.picture.name for outcome in report.problems] == ["000.png"]
    assert "same caption file as 000.bmp" in report.problems[0].problem
    named = Output(output_name="[name].[extension].[output_extension]")
    assert run(tmp_path, Counting(), output=named).written == 2
    assert {"000.bmp.txt", "000.png.txt"} <= set(captions(tmp_path))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    (tmp_path / "002.txt").write_text("by hand")
    report = run(tmp_path, Counting(), output=Output(existing="append", dry_run=True))
    assert captions(tmp_path) == {"002.txt": "by hand"}
    assert [outcome.picture.name for outcome in report.changes] == [
        "000.png",
        "001.jpg",
        "002.webp",
    ]
    assert report.changes[2].before == "by hand"
    assert report.changes[2].after.startswith("by hand, a picture of")
    assert Journal(tmp_path).history() == []


def test_a_run_is_one_step_that_can_be_undone(tmp_path: Path, tagger: Tagger) -> None:
    paths = write_pictures(tmp_path, 70)
    paths[5].with_suffix(".txt").write_text("by hand")
    run(tmp_path, TaggerRunner(tagger), output=Output(existing="overwrite"))
    [entry] = Journal(tmp_path).history()
    assert entry.title == "Tag 70 pictures with colours"
    assert (entry.count, entry.state) == (70, "done")
    Journal(tmp_path).undo()
    assert captions(tmp_path) == {"005.txt": "by hand"}
