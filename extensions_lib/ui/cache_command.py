"""`run.py cache CONFIG.toml`: latents and text states of a data set, written ahead of training.

What was done goes to stdout, progress and notes to stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from extensions_lib.options import add_arguments, checked, options_of
from extensions_lib.ui.terminal import Line, stopping


def cache_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `cache`; imports no torch."""
    from extensions_lib.training.cache_options import Caching

    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG.toml",
        help="options of a training, also of sd-scripts; of them those of its pictures are taken",
    )  # fmt: skip
    add_arguments(parser, Caching)
    parser.set_defaults(action=cache, preset="")


def cache(arguments: argparse.Namespace) -> int:
    """Writes what is not there yet; says how many pictures and prompts there are."""
    from extensions_lib.hosts.standalone import StandaloneHost
    from extensions_lib.hosts.standalone.place import StandalonePlace
    from extensions_lib.training.cache_ahead import write_caches
    from extensions_lib.training.cache_options import Caching
    from extensions_lib.ui.train_command import told_options

    training, checkpoint, notes = told_options(arguments)
    told: dict[str, Any] = {each.name: getattr(training, each.name) for each in options_of(Caching)}
    host = StandaloneHost(
        arguments.checkpoint or checkpoint,
        arguments.data,
        threads=arguments.threads,
        originals=arguments.originals_gb,
    )
    with stopping() as stop, Line() as line:
        cached = write_caches(
            StandalonePlace(host), checked(Caching, told), lambda _, *at: line.count(*at), stop
        )
    for note in [*notes, *cached.notes]:
        print(f"note: {note}", file=sys.stderr)
    said = f"{cached.pictures} pictures, {cached.prompts} prompts"
    print(f"{said}; {cached.written} newly written, the others were there")
    return 0
