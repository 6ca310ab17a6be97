"""`run.py convert|merge|resize|extract|bake`, and `inspect` of a folder: tools from the shell.

What was done goes to stdout, its path last; progress and notes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.options import add_arguments, from_arguments
from extensions_lib.ui.terminal import Line, stopping

if TYPE_CHECKING:
    from extensions_lib.toolbox.spectrum import LayerFigures
    from extensions_lib.toolbox.work import Watch, Written

WORDS = {
    "convert": "another file format, layout, naming or precision",
    "merge": "several networks as one",
    "resize": "a network with fewer ranks, or as a LoRA",
    "extract": "the difference of two checkpoints as a network",
    "bake": "networks and other checkpoints into a checkpoint",
}
_NETWORK = "network file, with weights as in a tag: FILE:te:unet:dyn:lbw=…"
_SHOWN = 20  # lines of a list


def tool_options(parser: argparse.ArgumentParser, word: str) -> None:
    """The arguments of a tool; imports no torch."""
    from extensions_lib.toolbox.work import Output

    add_inputs, kind = _inputs(word)
    add_inputs(parser)
    add_arguments(parser, kind)
    add_arguments(parser, Output)
    parser.add_argument("--layers-kept", action="store_true", help="list what each layer keeps")
    parser.set_defaults(action=run_tool, threads=None)


def _inputs(word: str) -> tuple[Callable[[argparse.ArgumentParser], Any], type]:
    """What adds a tool's inputs, and its options."""
    if word == "convert":
        from extensions_lib.toolbox.convert import Converting

        return lambda p: p.add_argument(
            "file", type=Path, help="file or diffusers folder"
        ), Converting
    if word == "merge":
        from extensions_lib.toolbox.merge import Merging

        return lambda p: p.add_argument("networks", nargs="+", help=_NETWORK), Merging
    if word == "resize":
        from extensions_lib.toolbox.resize import Resizing

        return lambda p: p.add_argument("file", type=Path, help="network file"), Resizing
    if word == "extract":
        from extensions_lib.toolbox.extract import Extracting

        return _two_checkpoints, Extracting
    from extensions_lib.toolbox.bake import Baking

    return _checkpoint_and_networks, Baking


def _two_checkpoints(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base_file", type=Path, metavar="BASE", help="checkpoint to start from")
    parser.add_argument("tuned_file", type=Path, metavar="TUNED", help="checkpoint to arrive at")


def _checkpoint_and_networks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="CHECKPOINT", help="checkpoint A")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=_NETWORK)


def run_tool(options: argparse.Namespace) -> int:
    """Runs a tool: what it wrote, what it left out, what it kept."""
    from extensions_lib.toolbox.work import Watch

    with stopping() as stop, Line() as line:
        result = _RUN[options.command](options, Watch(line.count, stop))
    _say(result, options.layers_kept)
    return 0


def _convert(options: argparse.Namespace, watch: Watch) -> Written:
    from extensions_lib.toolbox.convert import Converting, convert
    from extensions_lib.toolbox.work import Output

    how, order = from_arguments(Converting, options), from_arguments(Output, options)
    return convert(options.file, how, order, watch)


def _merge(options: argparse.Namespace, watch: Watch) -> Written:
    from extensions_lib.toolbox.merge import Merging, merge
    from extensions_lib.toolbox.weighted import Weighted
    from extensions_lib.toolbox.work import Output

    wanted = [Weighted.read(text) for text in options.networks]
    return merge(wanted, from_arguments(Merging, options), from_arguments(Output, options), watch)


def _resize(options: argparse.Namespace, watch: Watch) -> Written:
    from extensions_lib.toolbox.resize import Resizing, resize
    from extensions_lib.toolbox.work import Output

    how, order = from_arguments(Resizing, options), from_arguments(Output, options)
    return resize(options.file, how, order, watch)


def _extract(options: argparse.Namespace, watch: Watch) -> Written:
    from extensions_lib.toolbox.extract import Extracting, extract
    from extensions_lib.toolbox.work import Output

    how, order = from_arguments(Extracting, options), from_arguments(Output, options)
    return extract(options.base_file, options.tuned_file, how, order, watch)


def _bake(options: argparse.Namespace, watch: Watch) -> Written:
    from extensions_lib.toolbox.bake import Baking, bake
    from extensions_lib.toolbox.weighted import Weighted
    from extensions_lib.toolbox.work import Output

    networks = [Weighted.read(text) for text in options.networks]
    how, order = from_arguments(Baking, options), from_arguments(Output, options)
    result = bake(options.file, networks, how, order, watch)
    print(f"{result.changed} of {result.tensors} tensors changed", file=sys.stderr)
    return result


_RUN: dict[str, Callable[[argparse.Namespace, Watch], Written]] = {
    "convert": _convert,
    "merge": _merge,
    "resize": _resize,
    "extract": _extract,
    "bake": _bake,
}


def _say(result: Written, every_layer: bool) -> None:
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    for line in result.left_out[:_SHOWN]:
        print(f"left out: {line}", file=sys.stderr)
    if (more := len(result.left_out) - _SHOWN) > 0:
        print(f"left out: and {more} more", file=sys.stderr)
    layers: Sequence[LayerFigures] = getattr(result, "layers", None) or ()
    if layers and not isinstance(layers, dict):
        _say_kept(layers, every_layer)
    print(result.path)


def _say_kept(layers: Sequence[LayerFigures], every_layer: bool) -> None:
    """The energy kept, of all and of the layer that keeps least."""
    if every_layer:
        for each in layers:
            before = "" if each.before is None else f" of {each.before}"
            print(f"{each.layer}: rank {each.rank}{before}, {each.kept:.2%} of the energy")
    total = sum(each.energy for each in layers)
    kept = sum(each.kept * each.energy for each in layers) / total if total else 1.0
    least = min(layers, key=lambda each: each.kept)
    said = f"{len(layers)} layers, {kept:.2%} of the energy kept"
    print(f"{said}; least: {least.layer} {least.kept:.2%}")


# --- inspect ----------------------------------------------------------------------------------


def inspect_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `inspect`."""
    parser.set_defaults(action=inspect, threads=None)
    parser.add_argument("file", type=Path, help="file, diffusers folder, or a folder of files")
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    parser.add_argument("--all", action="store_true", help="long lists in full")
    parser.add_argument(
        "--against", type=Path, metavar="CHECKPOINT", help="which layers of a network would fit it"
    )
    parser.add_argument(
        "--move-to", type=Path, metavar="WEBUI", help="move it where it belongs in that WebUI"
    )


def inspect(options: argparse.Namespace) -> int:
    """What a file is: a page of text, or JSON; of a folder its files, and those that are alike."""
    from extensions_lib.toolbox.inspect import inspect as report_on
    from extensions_lib.toolbox.sorts import is_diffusers_folder

    if options.file.is_dir() and not is_diffusers_folder(options.file):
        return _inspect_folder(options)
    report = report_on(options.file, checkpoint=options.against)
    print(report.to_json() if options.json else report.text(everything=options.all))
    if options.move_to is not None:
        from extensions_lib.toolbox.places import move_there

        print(f"moved to {move_there(report, options.move_to)}", file=sys.stderr)
    return 0


def _inspect_folder(options: argparse.Namespace) -> int:
    import json

    from extensions_lib.toolbox.survey import survey
    from extensions_lib.toolbox.work import Watch

    with stopping() as stop, Line() as line:
        found = survey(options.file, Watch(line.count, stop))
    print(json.dumps(found.to_dict(), indent=2) if options.json else "\n".join(found.lines()))
    return 0
