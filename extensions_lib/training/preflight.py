"""Looks ahead: what a run would do, its time and its memory, and what speaks against it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extensions_lib.datasets.folders import subsets_of
from extensions_lib.datasets.options import contradictions
from extensions_lib.errors import CrucibleError
from extensions_lib.files.cache import FileCache
from extensions_lib.models.place import Place
from extensions_lib.patching.checkpointing import Checkpointing
from extensions_lib.patching.passes import FastPasses
from extensions_lib.training.data import Run as DataRun
from extensions_lib.training.data import TrainingData, read_training_data
from extensions_lib.training.data_report import DataReport, report
from extensions_lib.training.encoding import TextOptions
from extensions_lib.training.kinds import kind_of
from extensions_lib.training.looking import on_the_model
from extensions_lib.training.loop import batches_of_step, loop_on
from extensions_lib.training.metadata import free_name
from extensions_lib.training.optimizers import schedules_itself
from extensions_lib.training.options import TrainingOptions, check

_MOMENTS = {"adamw": 2, "adam": 2, "lion": 1, "sgdnesterov": 1, "adafactor": 0}


@dataclass(frozen=True)
class Cost:
    """What a step was measured to take, and the run expected to need, in bytes and seconds."""

    trained: int
    step_seconds: float
    seconds: float
    bytes_needed: int
    bytes_there: int | None


@dataclass(frozen=True)
class Preflight:
    """What is known before the start. `problems` keep a run from starting; `notes` do not.

    `data` is None where the pictures cannot be used, `cost` where it was not measured.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    steps: int = 0
    epochs: float = 0.0
    data: DataReport | None = None
    cost: Cost | None = None
    pictures: TrainingData | None = None


def look_ahead(
    place: Place,
    options: TrainingOptions,
    *,
    measured: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> Preflight:
    """The pre-flight of a run; with `measured` one step is tried, which loads the model.

    Nothing is changed or written but caches. Raises Stopped.
    """
    problems, notes = [], list[str]()
    try:
        check(options)
    except CrucibleError as problem:
        return Preflight((str(problem),), ())
    folder, suffix = place.folder(options.train), kind_of(options).suffix
    if (folder / f"{options.output_name}{suffix}").exists():
        free = free_name(folder, options.output_name, suffix)
        problems.append(f"A file named {options.output_name} exists; {free} is free.")
    problems += contradictions(options) + _against(options)
    data = None
    try:
        data = _read(place, options, on_progress, stop, notes)
    except CrucibleError as problem:
        problems += [line for line in str(problem).splitlines() if line not in problems]
    if data is None:
        return Preflight(tuple(problems), tuple(notes))
    told = report(data)
    notes += [*_without_effect(options), *told.notes]
    steps, epochs = steps_of(options, len(data))
    cost = None
    if measured and not problems:
        try:
            cost = _measured(place, replace(options, max_train_steps=steps), data)
        except torch.cuda.OutOfMemoryError:
            notes.append(_TOO_MUCH)
        if cost and cost.bytes_there is not None and cost.bytes_needed > cost.bytes_there:
            notes.append(_TOO_MUCH)
    return Preflight(tuple(problems), tuple(notes), steps, epochs, told, cost, data)


def steps_of(options: TrainingOptions, batches: int) -> tuple[int, float]:
    """Steps of the optimizer, and the epochs that they are."""
    each = batches_of_step(options)
    steps = options.max_train_steps
    if options.max_train_epochs:
        steps = -(-batches * options.max_train_epochs // each)
    return steps, steps * each / batches


def text_options(place: Place, options: TrainingOptions) -> TextOptions:
    """How prompts are encoded there."""
    settings = str(place.about().get("text", ""))
    return TextOptions(options.clip_skip, options.max_token_length // 75, settings)


def facts_of(place: Place) -> FileCache | None:
    """What is known of picture files from earlier, None where nothing can be kept."""
    folder = place.about().get("cache")
    return None if folder is None else FileCache(folder, "pictures.sqlite")


def _read(
    place: Place,
    options: TrainingOptions,
    on_progress: Callable[[int, int], None] | None,
    stop: threading.Event | None,
    notes: list[str],
) -> TrainingData:
    text, facts = text_options(place, options), facts_of(place)
    how = DataRun(options.seed, options.max_train_steps, batches_of_step(options))
    subsets = subsets_of(options, notes)
    return read_training_data(
        subsets, options, how, text, facts=facts, on_progress=on_progress, stop=stop
    )


def _against(options: TrainingOptions) -> list[str]:
    """What of the options cannot go together, beyond those of the pictures."""
    said = []
    if options.caches_text and options.train_text_encoder:
        said.append(
            "cache_text_encoder_outputs: the text encoders would be trained, so prompts cannot be "
            "encoded once; switch train_text_encoder off."
        )
    ratios = [name for name in _RATIOS if getattr(options, name)]
    if ratios and options.kind not in ("lora", "dylora"):
        said.append(f"{ratios[0]}: is for lora and dylora, not for {options.kind}.")
    if options.lr_scheduler == "adafactor" and options.optimizer_type.lower() != "adafactor":
        said.append(
            "lr_scheduler: adafactor is for the optimizer of that name, which sets its own rates;"
            " choose another."
        )
    return said


def _without_effect(options: TrainingOptions) -> list[str]:
    """What changes nothing as it is, or not what one may expect, a sentence each."""
    said, optimizer = [], options.optimizer_type
    if schedules_itself(optimizer):
        said.append(
            f"lr_scheduler, lr_warmup_steps: change nothing, since {optimizer} needs no course of"
            " the learning rate; say warmup_steps in optimizer_args."
        )
    elif options.lr_warmup_steps and options.lr_scheduler in ("constant", "adafactor"):
        said.append(
            f"lr_warmup_steps: changes nothing with {options.lr_scheduler}; choose"
            " constant_with_warmup."
        )
    if optimizer.lower().startswith(_MEASURING) and options.learning_rate < _LOW:
        said.append(
            f"learning_rate: {options.learning_rate:g} is little for {optimizer}, which multiplies"
            " it by what it measures; 1 is usual."
        )
    if options.train != "network":
        return said
    if options.network_dropout and (options.kind not in _BY_RANKS or options.dora_wd):
        kind = f"{options.kind} with dora_wd" if options.dora_wd else options.kind
        said.append(f"network_dropout: changes nothing for {kind}.")
    if options.kind not in (*_BY_RANKS, "loha", "lokr") and options.scale_weight_norms:
        said.append(f"scale_weight_norms: changes nothing for {options.kind}.")
    if options.network_weights:
        said.append("network_weights: kind, layers, ranks and alphas are those of the file.")
        for part in ("unet", "text_encoder"):
            if not getattr(options, f"train_{part}"):
                said.append(
                    f"network_weights: the file's layers of the {part.replace('_', ' ')} are left"
                    " out, since it is not trained."
                )
    return said


_TOO_MUCH = (
    "More memory is needed than is free: take smaller pictures or batches, a lower rank, or "
    "gradient_checkpointing."
)
_RATIOS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_BY_RANKS = ("lora", "lora-fa", "dylora")
_MEASURING = ("prodigy", "dadapt")  # optimizers that find the learning rate
_LOW = 0.1  # below which sd-scripts warns, too


def _measured(place: Place, options: TrainingOptions, data: TrainingData) -> Cost:
    """Tries one step and times it; nothing of it stays."""
    kept = _Kept()
    with place.turn() as model:
        data.prepare(model)
        file = Path(options.network_weights) if options.network_weights else None
        recipe = kind_of(options).make(model, options, file)
        loop = loop_on(model.loaded, recipe, data, options)
        again = Checkpointing(model.loaded) if options.gradient_checkpointing else None
        with on_the_model(recipe, FastPasses(model.loaded), again):
            loop.step()  # the first one is slower than those that follow
            started = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(kept.keep, kept.same):
                loop.step()
            seconds = time.perf_counter() - started
        device = model.loaded.device
    trained = sum(each.numel() for group in recipe.groups() for each in group["params"])
    moments = _MOMENTS.get(options.optimizer_type.lower(), 2)
    return Cost(
        trained,
        seconds,
        seconds * options.max_train_steps,
        kept.bytes + trained * 4 * (2 + moments),
        free_bytes(device),
    )


class _Kept:
    """Counts the bytes that a forward pass keeps for its backward pass, each storage once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    @staticmethod
    def same(tensor: Any) -> Any:
        return tensor


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device, None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
