"""Broken and hostile network files: a refusal, or a network that says what is wrong with it."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from extensions_lib.adapters import Adapter, AdapterError, merged
from extensions_lib.errors import FileProblem
from extensions_lib.files.networks import read_network
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import read_any_header
from extensions_lib.toolbox.inspect import inspect
from tests.files.broken import Spread, broken_file, laughs
from tests.tiny import TINY

CHUNK = 250
QUICK = 1500  # of the 10,000; the rest is slow
TOTAL = 10_000
SLOW = pytest.mark.slow
PATIENCE = 5.0  # seconds for one small file; a loaded machine takes some ms


def tried(adapter: Adapter) -> None:
    """What a model would do with it."""
    for shape in ((8, 6), (8, 6, 3, 3), (8,), adapter.shape):
        # -1: a length that the adapter does not know
        if -1 in shape or adapter.misfit(shape) or torch.Size(shape).numel() > 100_000:
            continue
        with contextlib.suppress(AdapterError):  # it says why
            merged(torch.ones(shape), [(adapter, 0.7)])


@pytest.mark.parametrize(
    "first",
    [pytest.param(first, marks=() if first < QUICK else SLOW) for first in range(0, TOTAL, CHUNK)],
)
def test_nothing_breaks(tmp_path: Path, first: int) -> None:
    marker = tmp_path / "ran.txt"
    loaded = refused = 0
    for number in range(first, first + CHUNK):
        path = broken_file(number, tmp_path, marker)
        start = time.monotonic()
        try:
            facts_of(read_any_header(path).shapes)
        except FileProblem as problem:
            assert str(path) in str(problem), number
        try:
            network = read_network(path, structure=TINY["SD1"] if number % 7 == 0 else None)
        except FileProblem as problem:
            assert str(path) in str(problem), number
            assert "\n" not in str(problem), number
            refused += 1
        else:
            loaded += 1
            assert network.adapters or network.embeddings, number
            for adapter in network.adapters.values():
                tried(adapter)
        if number % 10 == 0:
            try:
                report = inspect(path)
                json.loads(report.to_json())
                assert report.text(), number
            except FileProblem as problem:
                assert str(path) in str(problem), number
        assert time.monotonic() - start < PATIENCE, number
        assert not marker.exists(), number
        path.unlink()
    assert loaded > CHUNK // 10
    assert refused > CHUNK // 10


# --- memory -----------------------------------------------------------------------------------

_MEASURE = """
import pathlib, sys
from extensions_lib.errors import FileProblem
from extensions_lib.files.networks import read_network
from extensions_lib.files.recognise import facts_of
from extensions_lib.files.safe import read_any_header
import torch, torch.serialization

def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

for path in sys.argv[1:]:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = status("VmRSS")
    for read in (lambda: facts_of(read_any_header(path).shapes), lambda: read_network(path)):
        try:
            read()
            said = "loaded"
        except FileProblem as problem:
            said = "refused"
    print(path, status("VmHWM") - before, pathlib.Path(path).stat().st_size, said, sep="|")
"""
FLOOR = 160_000_000  # bytes that a small file may take: torch's own buffers, the free header
MB = 1_000_000


def huge_header(path: Path, piece: bytes, size: int) -> Path:
    body = b'{"a":[' + piece * (size // len(piece)) + b"1]}"
    path.write_bytes(len(body).to_bytes(8, "little") + body)
    return path


def greedy_files(folder: Path) -> list[Path]:
    """Files that are small for what they would unfold to."""
    made = [
        huge_header(folder / "lists.safetensors", b"[],", 40 * MB),
        huge_header(folder / "numbers.safetensors", b"1234567,", 40 * MB),
        huge_header(folder / "objects.safetensors", b'{"a":1},', 40 * MB),
        huge_header(folder / "small.safetensors", b"[],", MB),
    ]
    torch.save({"a": laughs(10, 14), "b": torch.ones(2)}, folder / "laughs.pt")
    torch.save({"x" * 100_000: laughs(10, 5, torch.ones(1))}, folder / "names.pt")
    torch.save({"a": Spread((2**18, 2**18))}, folder / "spread.pt")
    made += [folder / name for name in ("laughs.pt", "names.pt", "spread.pt")]
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(100 * MB // 4)}, stream)
    with (
        zipfile.ZipFile(io.BytesIO(stream.getvalue())) as old,
        zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return [*made, folder / "bomb.pt"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_stays_within_four_times_the_file(tmp_path: Path) -> None:
    paths = greedy_files(tmp_path)
    paths += [broken_file(number, tmp_path, tmp_path / "ran.txt") for number in range(40)]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, paths)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for line in lines:
        path, grown, size, _ = line.split("|")
        assert int(grown) <= 4 * int(size) + FLOOR, path
