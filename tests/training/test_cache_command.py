"""`run.py cache`: what a run would encode first, written ahead and found by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.cli import main
from tests.training.test_train_command import config, root  # noqa: F401


def run(root: Path, *arguments: str) -> int:  # noqa: F811
    return main([*arguments, "--data", str(root), "--threads", "1"])


def kept(root: Path) -> dict[Path, int]:  # noqa: F811
    """The files of caches, with when they were written."""
    return {
        path: path.stat().st_mtime_ns
        for path in (root / "set").rglob("*.safetensors")
        if ".crucible" in path.parts
    }


def test_a_run_finds_what_was_written_ahead(
    root: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = config(root, "cache_latents_to_disk = true\ncache_text_encoder_outputs_to_disk = true\n")
    assert run(root, "cache", told) == 0
    first = capsys.readouterr().out
    written = kept(root)
    assert first.startswith("5 pictures, ") and f"; {len(written)} newly written" in first
    assert {path.parent.name for path in written} == {"latents", "prompts"}
    assert run(root, "cache", told) == 0
    assert "; 0 newly written" in capsys.readouterr().out
    assert run(root, "train", told, "--sample-every-n-steps", "99", "--no-sample-at-first") == 0
    assert kept(root) == written
    first_of_all = next(path for path in written if path.parent.name == "latents")
    first_of_all.write_bytes(b"spoilt")
    assert run(root, "cache", told) == 0
    said = capsys.readouterr()
    assert "; 1 newly written" in said.out and "made again" in said.err


def test_other_options_are_other_files_and_text_is_asked_for(
    root: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = config(root)
    assert run(root, "cache", told) == 0
    assert {path.parent.name for path in kept(root)} == {"latents"}
    assert ", 0 prompts; 5 newly written" in capsys.readouterr().out
    assert run(root, "cache", told, "--flip-aug") == 0
    assert "; 5 newly written" in capsys.readouterr().out and len(kept(root)) == 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "train_data_dir: name the folder"),
        (("--train-data-dir", "/no/such"), "/no/such"),
        (("--clip-skip", "0"), "clip_skip: takes"),
        (("--train-data-dir", "set", "--color-aug"), "switch one off"),
    ],
)
def test_wrong_orders_are_refused(
    root: Path,  # noqa: F811
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(root)
    assert run(root, "cache", *arguments) == 1
    assert said in capsys.readouterr().err
    assert kept(root) == {}
