"""The tools from the shell: the same words as the options, one line for what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib import cli
from extensions_lib.files.networks import read_network
from extensions_lib.options import options_of
from extensions_lib.toolbox.bake import Baking
from extensions_lib.toolbox.convert import Converting
from extensions_lib.toolbox.extract import Extracting
from extensions_lib.toolbox.merge import Merging
from extensions_lib.toolbox.resize import Resizing
from extensions_lib.toolbox.work import Output
from tests.tiny import TINY, tiny_checkpoint
from tests.toolbox.networks import K, Q, lora, written


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("convert", Converting), ("merge", Merging), ("resize", Resizing),
        ("extract", Extracting), ("bake", Baking),
    ],
)  # fmt: skip
def test_help_has_every_option(word: str, kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(word, "--help")
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    for each in (*options_of(kind), *options_of(Output)):
        assert "--" + each.name.replace("_", "-") in told


def test_from_two_checkpoints_to_a_third(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """extract, resize, merge, convert, bake, one after the other."""
    base = tiny_checkpoint(tmp_path / "base.safetensors")
    tuned = tiny_checkpoint(tmp_path / "tuned.safetensors", seed=1)
    assert run("extract", base, tuned, "--rank", 8, "--layers", "attention") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == str(tmp_path / "tuned-extracted.safetensors")
    assert "of the energy kept; least: " in told[-2]
    assert run("resize", told[-1], "--rule", "sv_fro", "--target", 0.9, "--layers-kept") == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) > 100 and " of 8, " in told[0]
    small = told[-1]
    first = tmp_path / "tuned-extracted.safetensors"
    assert run("merge", f"{first}:0.5:1:lbw=MIDD", f"{small}:-0.2", "--out", tmp_path / "both") == 0
    both = capsys.readouterr().out.splitlines()[-1]
    assert read_network(Path(both), structure=TINY["SD1"]).adapters
    assert run("convert", both, "--naming", "peft", "--precision", "bf16") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("both-peft-bf16.safetensors")
    assert run("bake", base, f"{both}:0.7", "--other", tuned, "--alpha", 0.2) == 0
    done = capsys.readouterr()
    assert "tensors changed" in done.err
    assert run("inspect", done.out.splitlines()[-1]) == 0
    assert "Checkpoint SD1" in capsys.readouterr().out


def test_what_is_refused_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "n.safetensors", {Q: lora(Q, 2, 1.0, 1), K: lora(K, 2, 1.0, 3)})
    other = written(tmp_path / "n-r1.safetensors", {Q: lora(Q, 2, 1.0, 1)})
    before = other.read_bytes()
    for words, said in (
        (("resize", path, "--rank", 1), "--number"),
        (("resize", path, "--rank", 0), "rank"),
        (("resize", path, "--rule", "sv_fr"), "sv_fro"),
        (("merge", tmp_path / "gone.safetensors"), "no such file"),
        (("convert", path, "--to", "zip"), "takes one of"),
        (("bake", path, other), "not a Stable Diffusion checkpoint"),
        (("extract", path, other), "not a Stable Diffusion checkpoint"),
    ):
        assert run(*words) == 1, words
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1, told
    assert other.read_bytes() == before
    assert run("resize", path, "--rank", 1, "--number") == 0
    assert (tmp_path / "n-r1-2.safetensors").is_file()
    with pytest.raises(SystemExit) as stopped:
        run("resize", path, "--nonsense")
    assert stopped.value.code == 2


def test_a_folder_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.safetensors", {Q: lora(Q, 2, 1.0, 1)})
    assert run("inspect", tmp_path) == 0
    assert "the same content: a.safetensors, b.safetensors" in capsys.readouterr().out
