"""`run.py tag` as people run it: in a process of its own, also killed and started again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from extensions_lib.datasets.journal import Journal
from tests.tagging.sets import captions, environment, write_pictures, write_tagger


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tagger(folder / "models" / "colours")
    return folder


def command(data: Path, folder: Path, *options: str) -> list[str]:
    start = [sys.executable, "-m", "extensions_lib.cli", "tag", str(folder), "--data", str(data)]
    return [*start, "--threads", "1", *options]


def run(data: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    asked = command(data, folder, *options)
    return subprocess.run(asked, env=environment(), capture_output=True, text=True, timeout=120)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.strip().splitlines()[-1]


def test_a_folder(tmp_path: Path, data: Path) -> None:
    write_pictures(tmp_path, 5)
    (tmp_path / "bad.png").write_text("no picture")
    done = run(data, tmp_path, "--trigger", "smith_v1", "--max-tags", "3")
    assert done.returncode == 0, done.stderr
    assert last_line(done).startswith("Done: 6 of 6 pictures with colours in ")
    assert last_line(done).endswith("5 captions written, 1 left out with a reason.")
    assert "left out: bad.png: " in done.stderr
    for caption in captions(tmp_path).values():
        assert caption.startswith("smith_v1, ")
        assert len(caption.split(", ")) == 4


def test_one_picture_and_a_dry_run(tmp_path: Path, data: Path) -> None:
    first, _ = write_pictures(tmp_path, 2)
    done = run(data, first, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("000.png: tag")
    assert captions(tmp_path) == {}
    assert run(data, first).returncode == 0
    assert list(captions(tmp_path)) == ["000.txt"]


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--general", "2"), 1, "crucible: general: takes a number from 0 to 1"),
        (("--tagger", "nobody"), 1, "crucible: There is no tagger 'nobody'"),
        (("--existing", "maybe"), 1, "crucible: existing: takes one of ask, keep"),
        (("--caption", "promt=a"), 0, ""),  # nobody is asked for a sentence
        (("--captioner", "nobody"), 1, "crucible: There is no model 'nobody'"),
        (("--no-such-option",), 2, "unrecognized arguments"),
        (("--output-name", "../[name]"), 1, "makes no file name"),
    ],
)
def test_exit_status(
    tmp_path: Path, data: Path, options: tuple[str, ...], status: int, said: str
) -> None:
    write_pictures(tmp_path, 1)
    done = run(data, tmp_path, *options)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert bool(captions(tmp_path)) == (status == 0)


def test_refusals_name_the_folder(tmp_path: Path, data: Path) -> None:
    done = run(data, tmp_path / "nowhere")
    assert (done.returncode, "there is no such folder" in done.stderr) == (1, True)
    done = run(data, tmp_path)
    assert (done.returncode, "there are no pictures in it; --subfolders" in done.stderr) == (
        1,
        True,
    )
    (tmp_path / "a.png").write_text("no picture")
    assert run(data, tmp_path).returncode == 1


def test_existing_captions_stop_it_until_somebody_chose(tmp_path: Path, data: Path) -> None:
    write_pictures(tmp_path, 2)
    (tmp_path / "001.txt").write_text("by hand")
    done = run(data, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "1 of 2 pictures have captions already" in done.stderr
    assert captions(tmp_path) == {"001.txt": "by hand"}
    assert last_line(run(data, tmp_path, "--existing", "keep")).endswith(
        "1 captions written, 1 kept."
    )


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_it_with_what_is_done(tmp_path: Path, data: Path) -> None:
    write_large_pictures(tmp_path, 60)
    process = subprocess.Popen(
        command(data, tmp_path), env=environment(), stdout=subprocess.PIPE, text=True
    )
    wait_for_captions(process, tmp_path, 3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.startswith("Stopped: ")
    assert 0 < len(captions(tmp_path)) < 60
    done = run(data, tmp_path)
    assert last_line(done).startswith("Done: 60 of 60 ")
    assert len(captions(tmp_path)) == 60


def write_large_pictures(folder: Path, count: int) -> None:
    """Slow to decode, so that a run takes its time."""
    for path in write_pictures(folder, count):
        with Image.open(path) as image:
            large = image.resize((900, 900), Image.Resampling.NEAREST)
        large.save(path)


def wait_for_captions(process: subprocess.Popen, folder: Path, count: int) -> None:
    end = time.monotonic() + 60
    while len(list(folder.glob("*.txt"))) < count and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("existing", ["overwrite", "append"])
def test_killed_at_any_moment_every_caption_comes_out_right(
    tmp_path: Path, data: Path, existing: str
) -> None:
    """Killed while it starts, decodes, writes; captions by hand beside; then other thresholds."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    write_large_pictures(killed, 60)
    for number in range(0, 60, 2):
        (killed / f"{number:03}.txt").write_text(f"hand {number}")
    shutil.copytree(killed, whole)
    before = captions(killed)
    options = ("--existing", existing, "--trigger", "smith")
    assert run(data, whole, *options).returncode == 0
    wanted = captions(whole)

    draw = random.Random(existing)
    seen = 0
    for _ in range(6):
        process = subprocess.Popen(
            command(data, killed, *options),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_captions(process, killed, min(60, 30 + draw.randrange(25)))
        time.sleep(draw.random() * 0.2)
        process.kill()
        process.wait()
        for name, text in captions(killed).items():
            assert text in (before.get(name), wanted[name]), name
        seen = max(seen, len(captions(killed)))
    assert seen > 30
    done = run(data, killed, *options)
    assert done.returncode == 0, done.stderr
    assert captions(killed) == wanted

    process = subprocess.Popen(
        command(data, killed, *options, "--general", "0.9"), env=environment()
    )
    time.sleep(0.8 + draw.random())
    process.kill()
    process.wait()
    for folder in (killed, whole):
        assert run(data, folder, *options, "--general", "0.9").returncode == 0
    assert captions(killed) == captions(whole) != wanted

    for _ in Journal(killed).history():
        Journal(killed).undo()
    assert captions(killed) == before
