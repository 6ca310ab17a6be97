"""The same stages on Ray Data, for sets that one machine is too slow for: scores to Parquet.

    pictures of a folder, or rows of Parquet → decode (tasks) → score (actors) → part-….parquet

Each part is written whole or not at all, and what stands in parts is not asked about again, so a
run that was killed goes on where it was. A part has the columns `name`, `size`, `changed` (the
file's, 0 for rows), `content` (sha256), `indices` and `values` (the scores above the store's floor
in half floats), `problem` (why there are none). Ray is not among the project's packages:
`pip install "ray[data]"`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import option
from extensions_lib.tagging.scores import Identity, ModelKey, ScoreStore, identity

if TYPE_CHECKING:
    from extensions_lib.tagging.manifest import Contract
    from extensions_lib.tagging.runners import TaggerRunner

ROOT = Path(__file__).resolve().parents[2]
PICTURE_COLUMNS = ("image", "bytes", "jpg", "png", "webp", "content")
NAME_COLUMNS = ("name", "path", "key", "id", "__key__")
_ROWS_A_PART = 1024
_AT_ONCE = 1000  # rows put into the store in one write
Row = dict[str, Any]
Batch = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """What runs the stages."""

    engine: str = option(
        "local", "ray spreads one tagger over workers (Ray Data)", choices=("local", "ray"),
        group="Engine",
    )  # fmt: skip
    workers: int = option(2, "copies of the model that Ray runs", low=1, group="Engine")
    parts: str = option(
        "", "folder for Ray's Parquet parts; empty: .crucible/parts in the set", group="Engine"
    )


def load_ray() -> Any:
    """The module ray with Ray Data. Raises CrucibleError with the command that installs it."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        from extensions_lib.tagging.providers import pip_command

        raise CrucibleError(
            f"--engine ray needs Ray, which cannot be loaded here ({error})."
            f" Run: {pip_command('install', 'ray[data]')}"
        ) from error
    return ray


def score(
    source: Path,
    names: Sequence[str] | None,
    runner: TaggerRunner,
    load: Mapping[str, Any],
    engine: Engine,
    parts: Path,
    again: bool = False,
) -> int:
    """Scores what is not in `parts` yet; how many were asked about.

    `source` is a folder, whose pictures `names` are, or a Parquet file or folder of them, where
    `names` is None. `load` is what `load_tagger` takes, for the actors. Raises CrucibleError.
    """
    ray = load_ray()
    known = set() if again else {name for name, *_ in _seen(parts, source if names else None)}
    if not ray.is_initialized():
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    if names is None:
        rows, count = _parquet_rows(ray, source, known)
    else:
        missing = [name for name in names if name not in known]
        rows, count = _folder_rows(ray, source, missing, engine), len(missing)
    if not count:
        return 0
    tagger = runner.tagger
    place = {"num_gpus": 1} if tagger.provider != "CPU" else {"num_cpus": _share(ray, engine)}
    scored = rows.map(_Prepare(tagger.contract, tagger.size, runner.least)).map_batches(
        _Scorer,
        fn_constructor_kwargs={"load": dict(load), "batch": runner.batch},
        batch_size=max(runner.batch, 16),
        concurrency=engine.workers,
        **place,
    )
    try:
        written = scored.map_batches(
            _write_part, fn_kwargs={"folder": str(parts)}, batch_size=_ROWS_A_PART
        )
        return sum(int(row["rows"]) for row in written.iter_rows())
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise CrucibleError(f"Ray stopped: {reason} What is in {parts} is kept.") from error


def _share(ray: Any, engine: Engine) -> float:
    """CPUs for each actor, so that one is left for the tasks before and after them."""
    there = float(ray.cluster_resources().get("CPU", 1))
    return max(0.1, min(1.0, (there - 1) / engine.workers))


def keep(parts: Path, key: ModelKey, store: ScoreStore) -> list[str]:
    """Puts the parts' scores into the store, from which captions are made; the problems."""
    problems = []
    contents: list[tuple[str, Identity, bytes]] = []
    scores: list[tuple[bytes, Any]] = []

    def flush() -> None:
        store.put(key, scores)
        store.put_contents(contents)
        contents.clear()
        scores.clear()

    for row in _rows(parts):
        if row["problem"]:
            problems.append(f"{row['name']}: {row['problem']}")
            continue
        indices = np.asarray(row["indices"], np.uint32)
        scores.append((row["content"], (indices, np.asarray(row["values"], np.float16))))
        contents.append((row["name"], Identity(row["size"], row["changed"]), row["content"]))
        if len(scores) >= _AT_ONCE:
            flush()
    flush()
    return problems


# --- what is there ----------------------------------------------------------------------------


def _rows(parts: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of all parts. Raises FileProblem for a part that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part in sorted(parts.glob("part-*.parquet")):
        try:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(columns=columns):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise FileProblem(f"{part}: cannot be read ({error}); remove it.") from error


def _seen(parts: Path, folder: Path | None) -> Iterator[tuple[str, int, int]]:
    """Names in parts; of a folder's pictures those that are the same files still."""
    for row in _rows(parts, ("name", "size", "changed")):
        name, known = row["name"], Identity(row["size"], row["changed"])
        try:
            if folder is None or identity(folder / name) == known:
                yield name, *known
        except OSError:  # it is gone
            continue


def _folder_rows(ray: Any, folder: Path, names: Sequence[str], engine: Engine) -> Any:
    blocks = max(2 * engine.workers, -(-len(names) // _ROWS_A_PART))
    items = [{"folder": str(folder), "name": name} for name in names]
    return ray.data.from_items(items, override_num_blocks=min(blocks, max(1, len(items))))


def _parquet_rows(ray: Any, source: Path, known: set[str]) -> tuple[Any, int]:
    """Rows of `raw` pictures by `name`. Raises FileProblem where no column has them."""
    import pyarrow.dataset as pads

    try:
        data = pads.dataset(source, format="parquet")
    except (OSError, ValueError) as error:
        raise FileProblem(f"{source}: is no Parquet ({error}).") from error
    picture = next((name for name in PICTURE_COLUMNS if name in data.schema.names), None)
    name = next((name for name in NAME_COLUMNS if name in data.schema.names), None)
    if picture is None or name is None:
        raise FileProblem(
            f"{source}: has the columns {', '.join(data.schema.names)}; name the pictures' bytes"
            f" one of {', '.join(PICTURE_COLUMNS)} and their names one of"
            f" {', '.join(NAME_COLUMNS)}."
        )
    rows = ray.data.read_parquet(str(source), columns=[picture, name])
    rows = rows.map(_Renamed(picture, name)).filter(_Unknown(frozenset(known)))
    there = sum(
        value not in known
        for batch in data.to_batches(columns=[name])
        for value in map(str, batch.column(0).to_pylist())
    )
    return rows, there


# --- stages; each is sent to workers ----------------------------------------------------------


@dataclass(frozen=True)
class _Renamed:
    """A row of somebody's Parquet in our columns; pictures also as Hugging Face nests them."""

    picture: str
    name: str

    def __call__(self, row: Row) -> Row:
        raw = row[self.picture]
        return {"name": str(row[self.name]), "raw": raw["bytes"] if isinstance(raw, dict) else raw}


@dataclass(frozen=True)
class _Unknown:
    known: frozenset[str]

    def __call__(self, row: Row) -> bool:
        return row["name"] not in self.known


@dataclass(frozen=True)
class _Prepare:
    """Reads and decodes one picture; a broken one becomes a row with its problem."""

    contract: Contract
    size: int
    least: int | None

    def __call__(self, row: Row) -> Row:
        from extensions_lib.datasets.pictures import open_picture
        from extensions_lib.tagging import pixels

        raw, known, problem = row.get("raw"), Identity(0, 0), ""
        made = np.zeros((self.size, self.size, 3), np.uint8)
        try:
            if raw is None:
                path = Path(row["folder"], row["name"])
                known, raw = identity(path), path.read_bytes()
            made = pixels.prepare(open_picture(raw, least=self.least), self.contract, self.size)
        except (FileProblem, OSError) as error:
            problem = str(error).removeprefix("the picture: ")
        return {
            "name": row["name"],
            "size": known.size,
            "changed": known.changed,
            "content": hashlib.sha256(raw or b"").digest(),
            "pixels": made,
            "problem": problem,
        }


class _Scorer:
    """An actor with a tagger of its own."""

    def __init__(self, load: Mapping[str, Any], batch: int) -> None:
        from extensions_lib.tagging.runners import TaggerRunner
        from extensions_lib.tagging.taggers import load_tagger

        self.runner = TaggerRunner(load_tagger(**load), batch)

    def __call__(self, batch: Batch) -> Batch:
        pixels = batch.pop("pixels")
        indices, values = [], []
        for start in range(0, len(pixels), self.runner.batch):
            some = list(pixels[start : start + self.runner.batch])
            for answer in self.runner.run(some, lambda: False):
                assert not isinstance(answer, str)
                indices.append(answer[0].tolist())
                values.append(answer[1].astype(np.float32).tolist())
        rows = {name: list(column) for name, column in batch.items()}
        return {**rows, "indices": _ragged(indices), "values": _ragged(values)}


def _ragged(rows: Sequence[Any]) -> Any:
    column = np.empty(len(rows), object)
    column[:] = [list(row) for row in rows]
    return column


def _write_part(batch: Batch, folder: str) -> Batch:
    """One Parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from extensions_lib.atomic import atomic_write

    broken = [bool(problem) for problem in batch["problem"]]

    def lists(name: str, kind: Any) -> Any:
        rows = zip(batch[name], broken, strict=True)
        made: list[Any] = [[] if lost else np.asarray(row).astype(kind) for row, lost in rows]
        return pa.array(made, pa.list_(pa.from_numpy_dtype(kind)))

    table = pa.table(
        {
            "name": pa.array([str(name) for name in batch["name"]]),
            "size": pa.array([int(size) for size in batch["size"]]),
            "changed": pa.array([int(changed) for changed in batch["changed"]]),
            "content": pa.array([bytes(content) for content in batch["content"]], pa.binary()),
            "indices": lists("indices", np.dtype(np.uint32)),
            "values": lists("values", np.dtype(np.float16)),
            "problem": pa.array([str(problem) for problem in batch["problem"]]),
        }
    )
    with atomic_write(Path(folder) / f"part-{secrets.token_hex(8)}.parquet") as temporary:
        pq.write_table(table, temporary)
    return {"rows": np.array([len(broken)])}
