"""`run.py convert|merge|resize|extract|bake`, and `inspect` of a folder: tools from the shell.

What was done goes to stdout, its path last; progress and notes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.options import add_arguments, from_arguments
from extensions_lib.ui.terminal import Line, stopping

if TYPE_CHECKING:
    from extensions_lib.toolbox.work import Written

WORDS = {
    "convert": "another file format, layout, naming or precision",
    "merge": "several networks as one",
    "resize": "a network with fewer ranks, or as a LoRA",
    "extract": "the difference of two checkpoints as a network",
    "bake": "networks and other checkpoints into a checkpoint",
}
_SHOWN = 20  # lines of a list


def tool_options(parser: argparse.ArgumentParser, word: str) -> None:
    """The arguments of a tool; imports no torch."""
    from extensions_lib.toolbox.tools import TOOLS
    from extensions_lib.toolbox.work import Output

    tool = TOOLS[word]
    for each in tool.inputs:
        many: dict[str, Any] = {"nargs": "+" if each.least else "*"} if each.many else {}
        metavar = each.metavar or each.name
        parser.add_argument(each.name, metavar=metavar, help=each.help, **many)
    add_arguments(parser, tool.options)
    add_arguments(parser, Output)
    parser.add_argument("--layers-kept", action="store_true", help="list what each layer keeps")
    parser.set_defaults(action=run_tool, threads=None)


def run_tool(options: argparse.Namespace) -> int:
    """Runs a tool: what it wrote, what it left out, what it kept."""
    from extensions_lib.toolbox.bake import Baked
    from extensions_lib.toolbox.tools import TOOLS
    from extensions_lib.toolbox.work import Output, Watch

    tool = TOOLS[options.command]
    given = {each.name: getattr(options, each.name) for each in tool.inputs}
    how: Any = from_arguments(tool.options, options)
    order = from_arguments(Output, options)
    with stopping() as stop, Line() as line:
        result = tool.run(given, how, order, Watch(line.count, stop))
    if isinstance(result, Baked):
        print(f"{result.changed} of {result.tensors} tensors changed", file=sys.stderr)
    _say(result, options.layers_kept)
    return 0


def _say(result: Written, every_layer: bool) -> None:
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    for line in result.left_out[:_SHOWN]:
        print(f"left out: {line}", file=sys.stderr)
    if (more := len(result.left_out) - _SHOWN) > 0:
        print(f"left out: and {more} more", file=sys.stderr)
    _say_kept(result, every_layer)
    print(result.path)


def _say_kept(result: Written, every_layer: bool) -> None:
    """The energy kept, of all and of the layer that keeps least."""
    from extensions_lib.toolbox.tools import figures_of, kept_of

    kept = kept_of(result)
    if kept is None:
        return
    for each in figures_of(result) if every_layer else ():
        before = "" if each.before is None else f" of {each.before}"
        print(f"{each.layer}: rank {each.rank}{before}, {each.kept:.2%} of the energy")
    said = f"{kept.layers} layers, {kept.share:.2%} of the energy kept"
    print(f"{said}; least: {kept.least.layer} {kept.least.kept:.2%}")


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
