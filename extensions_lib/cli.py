"""The command line: `python run.py [command]`. Each command loads what it needs when it runs.

Exit codes: 0 done, 1 refused with a one-line reason, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib import __version__
from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.ui.toolbox_commands import WORDS as TOOLS
from extensions_lib.ui.toolbox_commands import inspect_options, tool_options

if TYPE_CHECKING:
    from extensions_lib.hosts.base import Progress

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = "Fine-tuned networks for Stable Diffusion. Without a command: the WebUI."
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status. A CrucibleError becomes one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # what takes all its arguments itself
        whole = {"test": run_tests, "build-demo": build_demo, "build-tagger": build_tagger}
        if given and given[0] in whole:
            return whole[given[0]](given[1:])
        if given[:1] == ["bench"] and given[1:2] and given[1] in BENCHES:
            return bench(given[1], given[2:])
        options = make_parser(given).parse_args(given)  # says what is wrong, exit status 2
        set_threads(options.threads)
        action: Callable[[argparse.Namespace], int] = options.action
        return action(options)
    except BrokenPipeError:
        # The reader, `head` for one, has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Stopped as stopped:
        print(f"crucible: {stopped}", file=sys.stderr)
        return INTERRUPTED
    except CrucibleError as problem:
        print(f"crucible: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("crucible: stopped", file=sys.stderr)
        return INTERRUPTED


# --- arguments --------------------------------------------------------------------------------


def make_parser(given: Sequence[str] = ()) -> argparse.ArgumentParser:
    """All commands and their options; those that are slow to load only where `given` names them."""
    parser = argparse.ArgumentParser(prog="run.py", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"Crucible {__version__}")
    web_options(parser)
    common_options(parser)
    parser.set_defaults(action=web)
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("test", help="the whole test suite [pytest arguments]")
    generate_options(commands.add_parser("generate", help="a picture from a prompt"))
    inspect_options(commands.add_parser("inspect", help="what a file is, and what would not load"))
    for word, said in TOOLS.items():
        tool_parser = commands.add_parser(word, help=said)
        if word in given:
            tool_options(tool_parser, word)
    tag_parser = commands.add_parser("tag", help="captions for a folder of pictures")
    if "tag" in given:
        tag_options(tag_parser)
    train_parser = commands.add_parser("train", help="train a network on a checkpoint")
    if "train" in given:
        from extensions_lib.ui.train_command import train_options

        train_options(train_parser)
        common_options(train_parser)
    cache_parser = commands.add_parser("cache", help="latents and text states, ahead of training")
    if "cache" in given:
        from extensions_lib.ui.cache_command import cache_options

        cache_options(cache_parser)
        common_options(cache_parser)
    bench_parser = commands.add_parser("bench", help="a benchmark; its own options follow the name")
    bench_parser.add_argument("name", choices=sorted(BENCHES), metavar="|".join(sorted(BENCHES)))
    commands.add_parser("build-demo", help="train the demo checkpoint and its networks anew")
    commands.add_parser("build-tagger", help="train the demo tagger anew")
    return parser


def common_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that uses a model."""
    parser.add_argument("--checkpoint", type=Path, metavar="F", help="checkpoint file (the demo)")
    parser.add_argument(
        "--originals-gb",
        type=float,
        metavar="GB",
        help="clean weights that stay on the GPU beside networks; the rest is in RAM (automatic)",
    )
    data_options(parser)


def data_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that uses any model."""
    parser.add_argument("--threads", type=whole(1), metavar="N", help="CPU threads (all cores)")
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="folder that holds models/, outputs/ and cache/ (this one)",
    )


def web_options(parser: argparse.ArgumentParser) -> None:
    """Options of the WebUI."""
    parser.add_argument("--port", type=whole(1, 65535), help="port (7861, or the next free one)")
    parser.add_argument("--listen", action="store_true", help="open to the whole network")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument(
        "--api-auth", default="", metavar="USER:PASSWORD", help="what programs must send to the API"
    )
    parser.add_argument("--lang", default="", help="language, such as zh_CN (the browser's own)")


def generate_options(parser: argparse.ArgumentParser) -> None:
    """Options of `generate`, after WebUI's names."""
    parser.set_defaults(action=generate)
    add = parser.add_argument
    prompts = "with <lora:name:weight> tags; several of them make a picture each"
    add("--prompt", required=True, action="append", help=prompts)
    add("--negative", default="", help="what should not be there")
    add("--steps", type=whole(1), default=20)
    add("--cfg", type=float, help="how closely to follow the prompt (the checkpoint's own, or 7)")
    add("--seed", type=whole(-1), default=-1, help="-1: a new one")
    add("--size", type=size, metavar="WxH", help="pixels (the checkpoint's own size)")
    add("--sampler", default="DPM++ 2M")
    add("--schedule", default="Automatic", help="schedule type")
    add("--batch-size", type=whole(1), default=1, metavar="N")
    add("--batch-count", type=whole(1), default=1, metavar="N")
    add("--clip-skip", type=whole(1), default=1, metavar="N")
    add("--control", type=Path, metavar="F", help="picture that <lllite:name:weight> tags follow")
    add("--out", type=Path, default=Path("out.png"), metavar="F.png", help="(out.png)")
    common_options(parser)


def tag_options(parser: argparse.ArgumentParser) -> None:
    """Options of `tag`."""
    from extensions_lib.ui.tag_command import tag_options as add_options

    parser.set_defaults(action=tag)
    add_options(parser)
    data_options(parser)


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number within bounds."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            wanted = f"at least {low}" if high is None else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"{value} is out of range; it must be {wanted}")
        return value

    return read


def size(text: str) -> tuple[int, int]:
    """An argparse type: 512x768."""
    width, cross, height = text.lower().replace("×", "x").partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it as 512x768")
    return int(width), int(height)


def set_threads(count: int | None) -> None:
    """Limits torch's threads; has to happen before torch is loaded."""
    if count:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)


# --- commands ---------------------------------------------------------------------------------


def web(options: argparse.Namespace) -> int:
    """The standalone WebUI."""
    from extensions_lib.ui.standalone import Options, serve

    started = os.environ.pop("CRUCIBLE_STARTED", "")
    return serve(
        Options(
            port=options.port,
            listen=options.listen,
            browser=not options.no_browser,
            checkpoint=options.checkpoint,
            lang=options.lang,
            data=options.data,
            threads=options.threads,
            originals=options.originals_gb,
            api_auth=options.api_auth,
            started=float(started) if started else None,
        )
    )


def generate(options: argparse.Namespace) -> int:
    """Pictures from a prompt; progress on stderr, the paths on stdout."""
    from extensions_lib.datasets.pictures import open_picture
    from extensions_lib.hosts.base import GenerationRequest
    from extensions_lib.hosts.standalone import StandaloneHost
    from extensions_lib.hosts.standalone.png import save_png
    from extensions_lib.ui.pictures import numbered

    width, height = options.size or (None, None)
    host = StandaloneHost(
        options.checkpoint,
        options.data,
        threads=options.threads,
        originals=options.originals_gb,
    )
    request = GenerationRequest(
        prompt=options.prompt[0],
        prompts=tuple(options.prompt) if len(options.prompt) > 1 else (),
        negative=options.negative,
        steps=options.steps,
        sampler=options.sampler,
        schedule=options.schedule,
        cfg=host.default_cfg() if options.cfg is None else options.cfg,
        seed=options.seed,
        width=width,
        height=height,
        batch_size=options.batch_size,
        batch_count=max(options.batch_count, -(-len(options.prompt) // options.batch_size)),
        clip_skip=options.clip_skip,
        control=open_picture(options.control) if options.control else None,
    )
    result = host.generate(request, show_progress)
    for message in result.messages:
        print(f"note: {message}", file=sys.stderr)
    paths = numbered(options.out, len(result.images))
    for image, infotext, path in zip(result.images, result.infotexts, paths, strict=True):
        save_png(image, infotext, path)
        print(path)
    return 0


def show_progress(progress: Progress) -> None:
    """One line on stderr that rewrites itself; plain lines where stderr is a file."""
    from extensions_lib.ui.pieces import clock

    left = "" if progress.eta_seconds is None else f"  {clock(progress.eta_seconds)} left"
    picture = f"  picture {min(progress.image + 1, progress.images)}/{progress.images}"
    line = f"step {progress.step}/{progress.steps}{picture if progress.images > 1 else ''}{left}"
    if sys.stderr.isatty():
        done = progress.step >= progress.steps
        print(f"\r{line:<50}", end="\n" if done else "", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def tag(options: argparse.Namespace) -> int:
    """Captions for a folder of pictures."""
    from extensions_lib.ui.tag_command import tag as run

    return run(options)


def run_tests(arguments: list[str]) -> int:
    """pytest over the whole suite, in a process of its own working folder."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import pytest

    os.chdir(ROOT)
    return int(pytest.main(arguments))


def build_demo(arguments: list[str]) -> int:
    """Trains the demo checkpoint and its networks."""
    from extensions_lib.demo.build import main as build

    return build(arguments)


def build_tagger(arguments: list[str]) -> int:
    """Trains the demo tagger."""
    from extensions_lib.demo.tagger import main as build

    return build(arguments)


def bench_apply(arguments: list[str]) -> int:
    """How long networks take to apply."""
    from tests.benchmarks.bench_apply import main as run

    return int(run(arguments))


def bench_demo(arguments: list[str]) -> int:
    """How good the demo's pictures are."""
    from extensions_lib.demo.bench import main as run

    return run(arguments)


def bench_library(arguments: list[str]) -> int:
    """How long thousands of network files take to index, search and show."""
    from tests.benchmarks.bench_library import main as run

    return int(run(arguments))


def bench_networks(arguments: list[str]) -> int:
    """How long each kind of network takes on full-size models, beside peft and the bounds."""
    from tests.benchmarks.bench_networks import main as run

    return int(run(arguments))


def bench_webui(arguments: list[str]) -> int:
    """How long a WebUI waits for changed networks, beside its own handler."""
    from tests.benchmarks.bench_webui import main as run

    return int(run(arguments))


def bench_side_path(arguments: list[str]) -> int:
    """What networks beside the layers cost while sampling."""
    from tests.benchmarks.bench_side_path import main as run

    return int(run(arguments))


def bench_tagger(arguments: list[str]) -> int:
    """How well the demo tagger reads drawn pictures."""
    from extensions_lib.demo.tagger_bench import main as run

    return run(arguments)


def bench_tagging(arguments: list[str]) -> int:
    """How fast a folder is tagged, and in which memory."""
    from tests.benchmarks.bench_tagging import main as run

    return int(run(arguments))


def bench_tagset(arguments: list[str]) -> int:
    """How long the editor of captions waits for a set of pictures."""
    from tests.benchmarks.bench_tagset import main as run

    return int(run(arguments))


def bench_toolbox(arguments: list[str]) -> int:
    """How fast a difference is extracted and networks are baked in."""
    from tests.benchmarks.bench_toolbox import main as run

    return int(run(arguments))


def bench_lesson(arguments: list[str]) -> int:
    """How well the demo checkpoint learns a new shape, and how fast."""
    from extensions_lib.demo.lesson_bench import main as run

    return run(arguments)


def bench_training(arguments: list[str]) -> int:
    """How fast a network learns, and in which memory, beside diffusers and peft."""
    from tests.benchmarks.bench_training import main as run

    return int(run(arguments))


BENCHES: dict[str, Callable[[list[str]], int]] = {
    "apply": bench_apply,
    "demo": bench_demo,
    "lesson": bench_lesson,
    "library": bench_library,
    "networks": bench_networks,
    "side_path": bench_side_path,
    "tagger": bench_tagger,
    "tagging": bench_tagging,
    "tagset": bench_tagset,
    "toolbox": bench_toolbox,
    "training": bench_training,
    "webui": bench_webui,
}


def bench(name: str, arguments: list[str]) -> int:
    """Runs a benchmark by name."""
    return BENCHES[name](arguments)


if __name__ == "__main__":
    sys.exit(main())
