"""New files that replace nothing, and what killed programs leave of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extensions_lib import atomic
from extensions_lib.atomic import atomic_write, held, sweep, temporary_name
from extensions_lib.errors import FileProblem

WRITER = """
import sys, time
from extensions_lib.atomic import atomic_write
with atomic_write(sys.argv[1], fresh=True) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def writer(path: Path) -> subprocess.Popen[str]:
    """A program in the middle of writing a new file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "writing\n"
    return process


def aged(folder: Path) -> None:
    """Makes temporary files in a folder ten minutes old."""
    for each in folder.glob("*.tmp"):
        os.utime(each, (time.time() - 600,) * 2)


def test_a_name_that_is_taken_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    with pytest.raises(FileProblem, match="come to be there"):  # noqa: SIM117
        with atomic_write(path, fresh=True) as temporary:
            temporary.write_text("ours")
            path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_without_links_the_name_is_taken_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(atomic.os, "link", none)
    path = tmp_path / "out.pt"
    with atomic_write(path, fresh=True) as temporary:
        temporary.write_text("ours")
    assert path.read_text() == "ours" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileProblem, match="come to be there"):  # noqa: SIM117
        with atomic_write(path, fresh=True) as temporary:
            temporary.write_text("another")
    assert path.read_text() == "ours" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="locks of another kind")
def test_what_a_killed_program_left_goes_and_what_is_written_stays(tmp_path: Path) -> None:
    process = writer(tmp_path / "out.safetensors")
    foreign = [tmp_path / "a.12345678.tmp", tmp_path / "b.crucible-xyz.tmp", tmp_path / "c.tmp"]
    for each in foreign:
        each.write_text("another's")
    [ours] = tmp_path.glob("out.*.tmp")
    try:
        aged(tmp_path)
        assert sweep(tmp_path) == 0 and ours.exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ours.read_text() == "half" and not (tmp_path / "out.safetensors").exists()
    assert sweep(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted(foreign)
    assert sweep(tmp_path / "nowhere") == 0


@pytest.mark.skipif(os.name != "posix", reason="locks of another kind")
def test_a_folder_is_held_too_and_young_ones_stay(tmp_path: Path) -> None:
    folder = temporary_name(tmp_path / "model")
    (folder / "unet").mkdir(parents=True)
    assert sweep(tmp_path) == 0  # it was made just now
    with held(folder):
        aged(tmp_path)
        assert sweep(tmp_path) == 0
    aged(tmp_path)
    link = tmp_path / "x.crucible-00000000.tmp"
    link.symlink_to(tmp_path)
    assert sweep(tmp_path) == 1 and not folder.exists() and link.is_symlink()


def test_a_tool_leaves_a_file_that_came_while_it_ran(tmp_path: Path) -> None:
    from extensions_lib.toolbox.resize import Resizing, resize
    from extensions_lib.toolbox.work import Output, Watch
    from tests.toolbox.networks import Q, lora, written

    path = written(tmp_path / "n.safetensors", {Q: lora(Q, 4, 1.0, 1)})
    target = tmp_path / "small.safetensors"

    def come(done: int, total: int) -> None:
        if done == total:
            target.write_text("another's")

    with pytest.raises(FileProblem, match="come to be there"):
        resize(path, Resizing(rank=1), Output(str(target)), Watch(come))
    assert target.read_text() == "another's"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["n.safetensors", target.name]
