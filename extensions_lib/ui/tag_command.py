"""`run.py tag`: a folder of pictures, or one, to captions, from the shell."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import add_arguments, from_arguments
from extensions_lib.tagging.pool import Models, Pool
from extensions_lib.tagging.ray_engine import Engine
from extensions_lib.tagging.run import Progress, Report, Run
from extensions_lib.tagging.selection import Selection
from extensions_lib.tagging.writer import Output
from extensions_lib.ui.terminal import Line, stopping

if TYPE_CHECKING:
    from extensions_lib.tagging.scores import ScoreStore

INTERRUPTED = 130
_PROBLEMS_SHOWN = 20


def tag_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tag`: every option of models, selection, output, run and engine."""
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="folder of pictures, or a picture; with --engine ray also Parquet files of pictures",
    )
    for kind in (Models, Selection, Output, Run, Engine):
        add_arguments(parser, kind)


def tag(options: argparse.Namespace) -> int:
    """Runs it: progress on stderr, what was done as the last line of stdout."""
    order = Order.of(options)
    if order.engine.engine == "ray" and is_parquet(options.folder):
        return _tag_parquet(options.folder.absolute(), order)
    folder, only = _place(options.folder)
    messages: list[str] = []
    store = _store(folder, order.output, messages)
    try:
        report, names = _run(folder, only, order, store)
    finally:
        store.close()
        order.pool.unload()
    for message in (*messages, *report.messages):
        print(f"note: {message}", file=sys.stderr)
    for change in report.changes:
        print(f"{change.picture.relative_to(folder)}: {change.after}")
    _show_problems(report)
    print(summary(report, names, order.output.dry_run))
    if report.stopped:
        return INTERRUPTED
    return 1 if report.problems and len(report.problems) == report.total else 0


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    models: Models
    selection: Selection
    output: Output
    run: Run
    engine: Engine
    pool: Pool

    @classmethod
    def of(cls, options: argparse.Namespace) -> Order:
        """Raises OptionProblem."""
        return cls(
            models=from_arguments(Models, options),
            selection=from_arguments(Selection, options),
            output=from_arguments(Output, options),
            run=from_arguments(Run, options),
            engine=from_arguments(Engine, options),
            pool=Pool(options.data / "models", options.data / "cache", options.threads),
        )

    def runners(self) -> list[Any]:
        """The models, loaded; says what is downloaded, and why one is not on the GPU."""
        found = self.pool.runners(self.models, self.run, _Downloading().show)
        for runner in found:
            _say_device(runner)
        return found


def _run(
    folder: Path, only: list[Path] | None, order: Order, store: ScoreStore
) -> tuple[Report, list[str]]:
    from extensions_lib.tagging.pipeline import plan, refuse_to_guess, tag

    planned = plan(folder, order.output, order.run, store, only)
    refuse_to_guess(planned, order.output)
    if not planned.pictures and not planned.problems:
        more = "" if order.run.subfolders else "; --subfolders looks below it too"
        raise FileProblem(f"{folder}: there are no pictures in it{more}.")
    runners = order.runners()
    if order.engine.engine == "ray":
        names = [path.relative_to(folder).as_posix() for path in planned.pictures]
        _spread(folder, names, order, runners, store)
    with stopping() as stop, Line() as line:
        report = tag(
            planned,
            runners,
            order.selection,
            order.output,
            replace(order.run, again=order.run.again and order.engine.engine == "local"),
            store,
            stop=stop,
            on_progress=lambda progress: line.show(_said(progress)),
        )
    return report, [runner.key.name for runner in runners]


# --- with Ray ---------------------------------------------------------------------------------


def is_parquet(path: Path) -> bool:
    """Whether it is a Parquet file, or a folder of such."""
    return path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet")))


def _spread(
    source: Path,
    names: list[str] | None,
    order: Order,
    runners: list[Any],
    store: ScoreStore | None,
) -> tuple[int, Path]:
    """Scores by Ray, put into the store; how many were asked about, and where the parts are."""
    from extensions_lib.datasets.journal import FOLDER
    from extensions_lib.tagging.ray_engine import keep, load_ray, score
    from extensions_lib.tagging.runners import TaggerRunner

    load_ray()
    if len(runners) != 1 or not isinstance(runners[0], TaggerRunner):
        raise CrucibleError("--engine ray runs one tagger; name just one, and no captioner.")
    [runner] = runners
    home = source if source.is_dir() else source.parent
    way = f"{runner.key.name}-{runner.key.revision}-{runner.key.preprocess}".replace("/", "-")
    parts = Path(order.engine.parts or home / FOLDER / "parts") / way.replace(" ", "-")
    load = {
        "name": runner.key.name,
        "models": order.pool.models.absolute(),
        "device": order.models.device,
        "threads": order.pool.threads or 1,
    }
    asked = score(source, names, runner, load, order.engine, parts, order.run.again)
    print(f"note: Ray asked about {asked} pictures; scores are in {parts}", file=sys.stderr)
    if store is not None:
        keep(parts, runner.key, store)
    return asked, parts


def _tag_parquet(source: Path, order: Order) -> int:
    """Scores of Parquet's pictures: there is no place beside them for captions."""
    try:
        started = time.monotonic()
        asked, parts = _spread(source, None, order, order.runners(), None)
    finally:
        order.pool.unload()
    seconds = time.monotonic() - started
    print(f"Done: {asked} pictures asked about in {seconds:.1f} s; scores are in {parts}.")
    return 0


def summary(report: Report, names: list[str], dry_run: bool) -> str:
    """One line: what a run did."""
    rate = f", {report.inferred / report.seconds:.1f}/s" if report.inferred else ""
    said = [f"{report.written} captions {'would be written' if dry_run else 'written'}"]
    for count, what in ((report.unchanged, "as they were"), (report.kept, "kept")):
        if count:
            said.append(f"{count} {what}")
    if report.problems:
        said.append(f"{len(report.problems)} left out with a reason")
    start = "Stopped" if report.stopped else "Done"
    return (
        f"{start}: {report.done} of {report.total} pictures with {' and '.join(names)} in "
        f"{report.seconds:.1f} s ({report.inferred} asked about{rate}): {', '.join(said)}."
    )


def _place(path: Path) -> tuple[Path, list[Path] | None]:
    """The folder, and the one picture if it is about one. Raises FileProblem."""
    path = path.absolute()
    if path.is_file():
        return path.parent, [path]
    if not path.is_dir():
        raise FileProblem(f"{path}: there is no such folder or picture; check the path.")
    return path, None


def _store(folder: Path, output: Output, messages: list[str]) -> ScoreStore:
    """The scores beside the set; in memory for a dry run where nobody may write."""
    from extensions_lib.datasets.journal import FOLDER
    from extensions_lib.tagging.scores import ScoreStore

    try:
        return ScoreStore(folder / FOLDER, messages)
    except FileProblem as problem:
        if not output.dry_run:
            raise
        messages.append(f"{problem} They are not kept.")
        return ScoreStore(None)


def _say_device(runner: Any) -> None:
    why = getattr(getattr(runner, "tagger", None) or runner.captioner, "why_not_gpu", None)
    if why:
        print(f"note: {runner.key.name} runs on the CPU: {why}", file=sys.stderr)


def _show_problems(report: Report) -> None:
    for outcome in report.problems[:_PROBLEMS_SHOWN]:
        print(f"left out: {outcome.problem}", file=sys.stderr)
    if (more := len(report.problems) - _PROBLEMS_SHOWN) > 0:
        print(f"left out: and {more} more", file=sys.stderr)


def _said(progress: Progress) -> str:
    from extensions_lib.ui.pieces import clock

    left = "" if progress.left is None else f"  {clock(progress.left)} left"
    return f"{progress.done}/{progress.total}  {progress.rate:.1f}/s{left}"


class _Downloading:
    """Says which file comes, in tenths."""

    def __init__(self) -> None:
        self._said: tuple[str, int] | None = None

    def show(self, progress: Any) -> None:
        tenth = int(10 * progress.done / progress.total) if progress.total else 0
        if self._said != (progress.file, tenth):
            self._said = (progress.file, tenth)
            print(f"{progress.file}: {10 * tenth} %", file=sys.stderr, flush=True)
