"""`run.py train CONFIG.toml`: a training from the shell, of our own config or one of sd-scripts.

The look ahead and the end go to stdout, progress to stderr. Ctrl+C stops and saves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.datasets.dataset_file import read_toml
from extensions_lib.errors import CrucibleError
from extensions_lib.options import add_arguments, checked, options_of
from extensions_lib.ui.terminal import Line, stopping

if TYPE_CHECKING:
    from extensions_lib.training.options import TrainingOptions
    from extensions_lib.training.preflight import Preflight
    from extensions_lib.training.run import Run, Status
    from extensions_lib.training.runs import Runs

_POLL = 0.2  # seconds
_SHOWN = 5


def train_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `train`; imports no torch."""
    from extensions_lib.training.options import TrainingOptions

    add = parser.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.toml", help="options, also of sd-scripts")
    add("--preset", default="", metavar="NAME", help="begin with the values of a preset")
    add("--resume", default="", metavar="NAME", help="go on with a run")
    add("--check", action="store_true", help="look ahead, and train nothing")
    add_arguments(parser, TrainingOptions)
    parser.set_defaults(action=train)


def train(arguments: argparse.Namespace) -> int:
    """Looks ahead, trains, and says what came of it: 0 where a network was written."""
    from extensions_lib.hosts.standalone import StandaloneHost
    from extensions_lib.hosts.standalone.place import StandalonePlace
    from extensions_lib.training import ranks
    from extensions_lib.training.preflight import look_ahead
    from extensions_lib.training.runs import Runs

    options, checkpoint, notes = (None, None, []) if arguments.resume else told_options(arguments)
    with ranks.joined() as rank:
        host = StandaloneHost(
            arguments.checkpoint or checkpoint,
            arguments.data,
            threads=arguments.threads,
            device=rank.device,
            originals=arguments.originals_gb,
        )
        place = StandalonePlace(host)
        runs = Runs(place, host.root / "outputs" / "training")
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        if options is not None:
            with stopping() as stop, Line() as line:
                found = look_ahead(
                    place, options, measured=arguments.check, on_progress=line.count, stop=stop
                )
            for text in _told(found) if rank.is_first else ():
                print(text)
            if found.problems:
                raise CrucibleError("\n".join(found.problems))
            if arguments.check:
                return 0
        status = _followed(runs, options, arguments.resume)
    if rank.is_first:
        print(status.message)
    return 0 if status.state in ("done", "stopped") and status.step else 1


def told_options(
    arguments: argparse.Namespace,
) -> tuple[TrainingOptions, str | None, Sequence[str]]:
    """The options of config, preset and arguments, the later before the earlier."""
    from extensions_lib.training.kohya import is_kohya, read_kohya
    from extensions_lib.training.options import TrainingOptions

    told: dict[str, Any] = {}
    checkpoint, notes = None, list[str]()
    if arguments.config is not None:
        held = read_toml(arguments.config)
        if is_kohya(held):
            config = read_kohya(arguments.config)
            checkpoint, notes = config.checkpoint, config.notes
            # all of it: what a config of theirs does not name is as their program has it
            told |= vars(config.options)
        else:
            told |= held
    if arguments.preset:
        told = {**_preset(arguments, checkpoint), **told}
    names = {each.name for each in options_of(TrainingOptions)}
    told |= {name: value for name, value in vars(arguments).items() if name in names}
    return checked(TrainingOptions, told), checkpoint, notes


def _preset(arguments: argparse.Namespace, checkpoint: str | None) -> Mapping[str, Any]:
    """The values of the preset, as they are for the family of the checkpoint that is trained on."""
    from extensions_lib.files.checkpoints import checkpoint_structure
    from extensions_lib.hosts.standalone import StandaloneHost
    from extensions_lib.training.presets import family_of, presets_for

    host = StandaloneHost(arguments.checkpoint or checkpoint, arguments.data)
    path = host.checkpoint
    host.close()
    fitting = presets_for(family_of(checkpoint_structure(path)))
    for each in fitting:
        if each.name.lower() == arguments.preset.lower():
            return each.options
    known = ", ".join(each.name for each in fitting) or "nothing"
    raise CrucibleError(f"--preset: {arguments.preset!r} is none of {known} for {path.name}.")


def _followed(runs: Runs, options: TrainingOptions | None, name: str) -> Status:
    """Runs it to its end, with progress. A first Ctrl+C stops and saves."""
    run: Run = runs.start(options) if options is not None else runs.resume(name)
    with stopping() as stop, Line() as line:
        while True:
            run.join(_POLL)
            status = run.status()
            if stop.is_set():
                run.stop()
            if status.state in ("done", "stopped", "failed"):
                break
            line.show(_progress(status))
        run.join()
    for entry in run.record.entries("said")[:-1]:
        print(f"note: {entry['said']}", file=sys.stderr)
    if status.state == "failed":
        raise CrucibleError(status.message)
    return status


def _progress(status: Status) -> str:
    from extensions_lib.ui.pieces import clock

    if status.doing:
        count = f" {status.done}/{status.of}" if status.of else ""
        return f"step {status.step}/{status.steps}  {status.doing}{count}"
    if status.loss is None or status.per_second is None or status.seconds_left is None:
        return status.state
    speed = status.per_second
    pace = f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step"
    return (
        f"step {status.step}/{status.steps}  loss {status.loss:.4f}  {pace}  "
        f"{clock(status.seconds_left)} left"
    )


def _told(found: Preflight) -> Iterator[str]:
    """What is known before the start."""
    from extensions_lib.ui.pieces import clock

    if (data := found.data) is not None:
        regular = f", {data.regular} of regularisation" if data.regular else ""
        captions = ", ".join(f"{count} {suffix}" for suffix, count in data.suffixes.items())
        yield f"{data.pictures} pictures ({data.items} in an epoch{regular})"
        yield f"captions: {captions or 'none'}" + (
            f"; {len(data.uncaptioned)} pictures have none" if data.uncaptioned else ""
        )
        sizes = ", ".join(f"{w}×{h}: {count}" for (w, h), count in data.buckets)
        yield f"buckets: {sizes}"
        for name, prompt in data.prompts[:_SHOWN]:
            yield f"  {name}: {prompt}"
        yield f"{found.steps} steps, {found.epochs:.1f} epochs"
    if (cost := found.cost) is not None:
        yield (
            f"{cost.trained:,} numbers are trained; about "
            f"{clock(cost.seconds)} ({cost.step_seconds:.2f} s a step), "
            f"{cost.bytes_needed / 2**30:.2f} GB more memory"
        )
    for note in found.notes:
        yield f"note: {note}"
