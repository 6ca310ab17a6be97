"""Latents and text states of a training set written to disk ahead, as a run reads them.

Which files are found later follows from pictures, options and weights (training.caches): a run with
the same options on the same checkpoint encodes nothing again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from extensions_lib.datasets.folders import subsets_of
from extensions_lib.models.place import Place
from extensions_lib.training.cache_options import Caching
from extensions_lib.training.data import read_training_data
from extensions_lib.training.encoding import TextOptions
from extensions_lib.training.preflight import facts_of

Told = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass
class Cached:
    """How many pictures and prompts there are, and how many were not on disk yet."""

    pictures: int
    prompts: int
    written: int
    notes: list[str] = field(default_factory=list)


def write_caches(
    place: Place,
    options: Caching,
    tell: Told = lambda *_: None,
    stop: threading.Event | None = None,
) -> Cached:
    """Encodes the pictures, and the prompts where asked for, by the checkpoint that is in use.

    What is there already is not made again; what is written by a stop stays. Raises CrucibleError
    for options that contradict each other and pictures that cannot be used; Stopped.
    """
    text = options.caches_text
    options = replace(
        options, cache_latents=True, cache_latents_to_disk=True,
        cache_text_encoder_outputs=text, cache_text_encoder_outputs_to_disk=text,
    )  # fmt: skip
    notes: list[str] = []
    settings = str(place.about().get("text", ""))
    data = read_training_data(
        subsets_of(options, notes),
        options,
        text=TextOptions(options.clip_skip, options.max_token_length // 75, settings),
        facts=facts_of(place),
        on_progress=lambda done, of: tell("Looking at the pictures", done, of),
        stop=stop,
    )
    written = 0

    def count(done: int, of: int) -> None:
        nonlocal written
        written = done
        tell("Encoding", done, of)

    with place.turn(stop) as model:
        data.prepare(model, count, stop)
    pictures, prompts = data.encoded_once
    counts = len({each.path for each in pictures}), len(set(prompts)) if text else 0
    return Cached(*counts, written, [*notes, *data.notes])
