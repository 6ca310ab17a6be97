"""Broken and hostile files: a tool writes a file that loads, or says what is wrong and nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.errors import CrucibleError
from extensions_lib.files.safe import read_any_header
from extensions_lib.toolbox.bake import Baking, bake
from extensions_lib.toolbox.convert import Converting, convert
from extensions_lib.toolbox.extract import extract
from extensions_lib.toolbox.merge import Merging, merge
from extensions_lib.toolbox.resize import Resizing, resize
from extensions_lib.toolbox.weighted import Weighted
from extensions_lib.toolbox.work import Output
from tests.files.broken import broken_file
from tests.tiny import tiny_checkpoint

QUICK, TOTAL, CHUNK = 160, 4000, 80
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "first",
    [pytest.param(first, marks=() if first < QUICK else SLOW) for first in range(0, TOTAL, CHUNK)],
)
def test_networks(tmp_path: Path, first: int) -> None:
    marker, target = tmp_path / "ran.txt", tmp_path / "out.safetensors"
    order = Output(str(target))
    tools = (
        lambda path: convert(path, order=order),
        lambda path: convert(path, Converting(naming="comfyui"), order),
        lambda path: convert(path, Converting(naming="peft"), order),
        lambda path: convert(path, Converting(to="pt"), Output(str(tmp_path / "out.pt"))),
        lambda path: merge([Weighted(path), Weighted(path, 0.5)], order=order),
        lambda path: merge([Weighted(path)], Merging(rank=1), order),
        lambda path: resize(path, Resizing(rank=1), order),
        lambda path: resize(path, Resizing(rank=4, rule="sv_fro", target=0.9), order),
    )
    done = refused = 0
    for number in range(first, first + CHUNK):
        path = broken_file(number, tmp_path, marker)
        before = path.read_bytes()
        try:
            made = tools[number % len(tools)](path).path
        except CrucibleError as problem:
            assert "\n" not in str(problem), number
            refused += 1
        else:
            read_any_header(made)
            made.unlink()
            done += 1
        assert path.read_bytes() == before
        assert not marker.exists(), number
        path.unlink()
        assert not list(tmp_path.iterdir()), number
    assert done > 5 < refused


@pytest.mark.parametrize("cut", [9, 1000, 60_000, 3_000_000, 9_000_000])
def test_checkpoints_that_are_cut_off(tmp_path: Path, cut: int) -> None:
    good = tiny_checkpoint(tmp_path / "good.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[:cut])
    order = Output(str(tmp_path / "out.safetensors"))
    for tool in (
        lambda: convert(bad, order=order),
        lambda: convert(bad, Converting(to="diffusers"), Output(str(tmp_path / "out"))),
        lambda: extract(good, bad, order=order),
        lambda: bake(good, how=Baking(other=str(bad)), order=order),
        lambda: bake(bad, how=Baking(other=str(good)), order=order),
        lambda: bake(good, how=Baking(vae=str(bad)), order=order),
        lambda: bake(good, [Weighted(bad)], order=order),
    ):
        with pytest.raises(CrucibleError, match=r"bad\.safetensors"):
            tool()
    assert sorted(each.name for each in tmp_path.iterdir()) == [bad.name, good.name]
