"""How fast a folder is tagged, beside the bare model, beside dghs-imgutils, and in which memory.

model    wd-vit-tagger-v3's architecture with random weights: pictures/s of the whole pipeline over
         those of the bare onnxruntime session on all cores, at the same batch size, by turns
peer     a small model, where decoding is the limit: the pipeline over a loop of dghs-imgutils'
         `get_wd14_tags` on the same file and the same pictures, by turns
memory   ten thousand small pictures: the process' memory on the way, and the time in which another
         threshold rewrites all captions

    python run.py bench tagging [--pictures 200] [--threads N] [--rounds 2] [--only model,memory]

The peer has packages of its own: make it an environment and name its Python,

    python -m venv peer && peer/bin/pip install dghs-imgutils onnxruntime
    python run.py bench tagging --peer peer/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.benchmarks.standin import write_tagger

ROOT = Path(__file__).resolve().parents[2]

LARGE, SMALL = "wd-vit-v3-standin", "small-standin"
KINDS = ("model", "peer", "memory")
MB = 1 << 20


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """The bench's own options."""
    parser = argparse.ArgumentParser(
        prog="run.py bench tagging",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pictures", type=int, default=200, help="(200)")
    add("--many", type=int, default=10_000, help="small pictures for the memory (10000)")
    add("--threads", type=int, default=os.cpu_count(), help="of the model and decoders (all cores)")
    add("--rounds", type=int, default=2, help="by turns; the median ratio counts (2)")
    add("--batch", type=int, help="pictures at once (1 on the CPU, 16 on a GPU)")
    add("--draft", action="store_true", help="decode JPEGs at a part of their size")
    add("--peer", type=Path, metavar="PYTHON", help="a Python that has dghs-imgutils")
    add("--only", default=",".join(KINDS), help="of model,peer,memory")
    add("--keep", type=Path, default=ROOT / "cache" / "bench-tagging", help="where models lie")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Runs what was asked for and prints the ratios."""
    asked = options(arguments)
    chosen = asked.only.split(",")
    write_tagger(asked.keep / LARGE)
    write_tagger(asked.keep / SMALL, width=192, depth=4, size=224)
    print(f"{asked.threads} threads, {cpu()}, onnxruntime {ort_version()}")
    with tempfile.TemporaryDirectory(prefix="bench-tagging-") as scratch:
        folder = Path(scratch)
        if "model" in chosen or "peer" in chosen:
            make_pictures(folder / "set", asked.pictures)
        if "model" in chosen:
            bench_model(asked, folder / "set")
        if "peer" in chosen:
            bench_peer(asked, folder / "set")
        if "memory" in chosen:
            bench_memory(asked, folder / "many")
    return 0


# --- pictures ---------------------------------------------------------------------------------


def make_pictures(folder: Path, count: int) -> None:
    """Photo-like: 6 of 10 JPEGs of 1536×2304, 2 PNGs and 2 WEBPs of 1024×1536."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        draw = np.random.default_rng(number)
        kind = ("jpg",) * 6 + ("png",) * 2 + ("webp",) * 2
        suffix = kind[number % 10]
        size = (1536, 2304) if suffix == "jpg" else (1024, 1536)
        smooth = Image.fromarray(draw.integers(0, 256, (size[1] // 32, size[0] // 32, 3), np.uint8))
        grain = draw.integers(-8, 9, (size[1], size[0], 1), np.int16)
        pixels = np.asarray(smooth.resize(size, Image.Resampling.BICUBIC), np.int16) + grain
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        how: dict[str, Any] = {"compress_level": 4} if suffix == "png" else {"quality": 92}
        image.save(folder / f"{number:04}.{suffix}", **how)


def make_small_pictures(folder: Path, count: int) -> None:
    """JPEGs of 96×128, every one another."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        draw = np.random.default_rng(number)
        small = Image.fromarray(draw.integers(0, 256, (8, 6, 3), np.uint8))
        small.resize((96, 128)).save(folder / f"{number:05}.jpg")


# --- the pipeline -----------------------------------------------------------------------------


@contextmanager
def loaded(asked: argparse.Namespace, name: str) -> Iterator[Any]:
    """A stand-in, as the shell loads it."""
    from extensions_lib.tagging.pool import Models, Pool
    from extensions_lib.tagging.run import Run

    pool = Pool(asked.keep, threads=asked.threads)
    [runner] = pool.runners(Models(tagger=(name,)), Run(batch=asked.batch, draft=asked.draft))
    yield runner
    pool.unload()


def tag_folder(
    asked: argparse.Namespace,
    runner: Any,
    folder: Path,
    listen: Callable[[Any], None] | None = None,
    **selection: Any,
) -> Any:
    """One run; its report."""
    from extensions_lib.tagging.pipeline import plan, tag
    from extensions_lib.tagging.run import Run
    from extensions_lib.tagging.scores import ScoreStore
    from extensions_lib.tagging.selection import Selection
    from extensions_lib.tagging.writer import Output

    run = Run(decoders=asked.threads)
    output = Output(existing="overwrite")
    store = ScoreStore(folder / ".crucible")
    try:
        planned = plan(folder, output, run, store)
        return tag(
            planned, [runner], Selection(**selection), output, run, store, on_progress=listen
        )
    finally:
        store.close()


def forget(folder: Path) -> None:
    """Takes captions and scores away again."""
    shutil.rmtree(folder / ".crucible", ignore_errors=True)
    for caption in folder.glob("*.txt"):
        caption.unlink()


def rate_of(asked: argparse.Namespace, runner: Any, folder: Path) -> float:
    """Pictures/s of a run from nothing."""
    forget(folder)
    report = tag_folder(asked, runner, folder)
    assert report.written == report.total, report.problems
    return float(report.total / report.seconds)


def raw_rate(asked: argparse.Namespace, runner: Any, count: int) -> float:
    """Pictures/s of the bare session on all cores, fed one array over and over."""
    import onnxruntime

    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = asked.threads
    providers = runner.tagger._session.get_providers()
    session = onnxruntime.InferenceSession(str(runner.tagger.file), how, providers=providers)
    side = runner.tagger.size
    pixels = np.random.default_rng(0).random((runner.batch, side, side, 3), np.float32) * 255
    session.run(None, {"input": pixels})
    started = time.perf_counter()
    calls = -(-count // runner.batch)
    for _ in range(calls):
        session.run(None, {"input": pixels})
    return calls * runner.batch / (time.perf_counter() - started)


# --- what is measured -------------------------------------------------------------------------


def bench_model(asked: argparse.Namespace, folder: Path) -> None:
    """The pipeline over the bare session."""
    ratios = []
    with loaded(asked, LARGE) as runner:
        tag_one(asked, runner, folder)
        for number in range(asked.rounds):
            raw = raw_rate(asked, runner, asked.pictures)
            whole = rate_of(asked, runner, folder)
            ratios.append(whole / raw)
            print(
                f"model   round {number + 1}: session {raw:.3f}/s, pipeline {whole:.3f}/s, "
                f"ratio {ratios[-1]:.3f}  ({runner.tagger.provider}, batch {runner.batch})"
            )
    print(f"model   pipeline / bare session: {median(ratios):.3f} (goal: at least 0.95 on a CPU)")


def tag_one(asked: argparse.Namespace, runner: Any, folder: Path) -> None:
    """So that the first round finds everything warm."""
    from extensions_lib.datasets.pictures import open_picture

    image = open_picture(next(iter(sorted(folder.glob("*.jpg")))))
    runner.run([runner.prepare(image)] * runner.batch, lambda: False)


def bench_peer(asked: argparse.Namespace, folder: Path) -> None:
    """The pipeline over dghs-imgutils."""
    if asked.peer is None:
        print("peer    left out: name a Python that has dghs-imgutils by --peer (see --help)")
        return
    ratios = []
    with loaded(asked, SMALL) as runner:
        tag_one(asked, runner, folder)
        for number in range(asked.rounds):
            forget(folder)
            peer = peer_rate(asked, runner.tagger.file.parent, folder)
            ours = rate_of(asked, runner, folder)
            ratios.append(ours / peer)
            print(
                f"peer    round {number + 1}: dghs-imgutils {peer:.2f}/s, pipeline {ours:.2f}/s, "
                f"ratio {ratios[-1]:.2f}"
            )
    print(f"peer    pipeline / dghs-imgutils: {median(ratios):.2f} (goal: at least 1.5)")


PEER = """
import json, sys, time
from pathlib import Path
from imgutils.tagging import wd14
from imgutils.utils import open_onnx_model

model, folder = Path(sys.argv[1]), Path(sys.argv[2])

class WithEmbedding:
    # its own files have a second output, which is not used here
    def __init__(self, session):
        self.session = session
        self.get_inputs = session.get_inputs
    def get_outputs(self):
        return self.session.get_outputs() * 2
    def run(self, names, feed):
        return self.session.run(names[:1], feed) * 2

session = WithEmbedding(open_onnx_model(str(model / "model.onnx")))
wd14._get_wd14_model = lambda name: session
wd14.hf_hub_download = lambda *_, **__: str(model / "selected_tags.csv")

paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png", ".webp"))
wd14.get_wd14_tags(str(paths[0]))
started = time.perf_counter()
for path in paths:
    rating, general, characters = wd14.get_wd14_tags(str(path), no_underline=True)
    path.with_suffix(".txt").write_text(", ".join([*characters, *general]))
print(json.dumps(len(paths) / (time.perf_counter() - started)))
"""


def peer_rate(asked: argparse.Namespace, model: Path, folder: Path) -> float:
    """Pictures/s of the peer: a loop over the folder that writes captions."""
    command = [str(asked.peer), "-c", PEER, str(model), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def bench_memory(asked: argparse.Namespace, folder: Path) -> None:
    """Memory over many pictures, and captions rewritten by another threshold."""
    import psutil

    process = psutil.Process()
    seen: dict[int, float] = {}
    make_small_pictures(folder, asked.many)
    marks = [asked.many * part // 10 for part in (1, 3, 5, 7, 9)]

    def listen(progress: Any) -> None:
        for mark in marks:
            if progress.done >= mark:
                seen.setdefault(mark, process.memory_info().rss / MB)

    with loaded(asked, SMALL) as runner:
        report = tag_folder(asked, runner, folder, listen)
        marked = ", ".join(f"{rss:.0f} MB at {mark}" for mark, rss in seen.items())
        rate = report.total / report.seconds
        print(f"memory  {report.total} small pictures: {rate:.0f}/s, {marked}")
        first, *_, last = seen.values()
        print(f"memory  growth from {marks[0]} to {marks[-1]} pictures: {last - first:+.0f} MB")
        report = tag_folder(asked, runner, folder, general=0.5)
        assert report.inferred == 0
        print(
            f"memory  another threshold for {report.total} captions: {report.seconds:.1f} s, "
            f"{report.written} written"
        )


def cpu() -> str:
    """The processor's name and how busy the machine is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} × {names[0] if names else 'CPU'}{busy}"


def ort_version() -> str:
    """onnxruntime's."""
    import onnxruntime

    return str(onnxruntime.__version__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
