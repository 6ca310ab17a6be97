"""Ray Data on this machine with two workers: the scores are those of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.tagging import ray_engine
from extensions_lib.tagging.pool import Models, Pool
from extensions_lib.tagging.ray_engine import Engine, keep, score
from extensions_lib.tagging.run import Run
from extensions_lib.tagging.scores import ScoreStore
from tests.tagging.sets import captions, write_pictures, write_tagger
from tests.tagging.test_tag_command import last_line, run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tagger(folder / "models" / "colours")
    return folder


@pytest.fixture(scope="module")
def with_ray() -> Iterator[None]:
    pytest.importorskip("ray.data", reason="ray is not installed: pip install 'ray[data]'")
    import ray

    yield
    ray.shutdown()


def test_without_ray_the_command_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CrucibleError, match=r"pip install .*ray\[data\]"):
        ray_engine.load_ray()


def test_a_folder_by_two_workers(tmp_path: Path, data: Path, with_ray: None) -> None:
    spread, alone = tmp_path / "spread", tmp_path / "alone"
    for folder in (spread, alone):
        write_pictures(folder, 40)
        (folder / "bad.png").write_text("no picture")
    asked = ("--engine", "ray", "--workers", "2")
    done = run(data, spread, *asked)
    assert done.returncode == 0, done.stderr
    assert "left out: bad.png" in done.stderr
    assert "40 captions written" in last_line(done)
    assert run(data, alone).returncode == 0
    assert captions(spread) == captions(alone)
    parts = list((spread / ".crucible" / "parts").rglob("part-*.parquet"))
    assert parts

    [lost, *_] = parts  # what a killed run has not written
    lost.unlink()
    again = run(data, spread, *asked, "--trigger", "smith")
    assert again.returncode == 0, again.stderr
    assert all(text.startswith("smith, ") for text in captions(spread).values())
    assert len(list((spread / ".crucible" / "parts").rglob("part-*.parquet"))) >= len(parts)


def test_rows_of_parquet(tmp_path: Path, data: Path, with_ray: None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = write_pictures(tmp_path / "pictures", 12)
    table = {"key": [path.name for path in paths], "jpg": [path.read_bytes() for path in paths]}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    pool = Pool(data / "models", threads=1)
    [runner] = pool.runners(Models(tagger=("colours",), device="cpu"), Run())
    load = {"name": "colours", "models": data / "models", "device": "cpu", "threads": 1}
    for count in (12, 0):  # the second time everything is there
        found = score(tmp_path / "set.parquet", None, runner, load, Engine(), tmp_path / "parts")
        assert found == count
    store = ScoreStore(None)
    assert keep(tmp_path / "parts", runner.key, store) == []
    assert len(store.known(runner.key)) == 12

    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(FileProblem, match="has the columns a"):
        score(tmp_path / "other.parquet", None, runner, load, Engine(), tmp_path / "parts")
