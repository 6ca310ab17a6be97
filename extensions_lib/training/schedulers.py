"""Learning rate over the steps: one factor for each step, a function of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from extensions_lib.options import option

NAMES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "rex",
    "adafactor",
)


@dataclass(frozen=True)
class SchedulerOptions:
    """The options of the learning rate's course."""

    lr_scheduler: str = option(
        "cosine", "course of the learning rate", group="Learning rate", choices=NAMES
    )
    lr_warmup_steps: float = option(
        0,
        "steps in which it rises from 0; below 1: a share of all",
        group="Learning rate",
        low=0,
    )
    lr_decay_steps: float = option(
        0,
        "warmup_stable_decay: the last steps, in which it falls; below 1: a share",
        group="Learning rate",
        low=0,
    )
    lr_scheduler_num_cycles: int = option(
        1, "cosine_with_restarts: how often it falls", group="Learning rate", low=1
    )
    lr_scheduler_power: float = option(
        1.0, "polynomial: the power with which it falls", group="Learning rate", low=0
    )
    lr_scheduler_timescale: int | None = option(
        None, "inverse_sqrt: steps after which it has halved", group="Learning rate", low=1
    )
    lr_scheduler_min_lr_ratio: float = option(
        0.0, "share of the learning rate at which it ends", group="Learning rate", low=0, high=1
    )
    lr_scheduler_rex_d: float = option(
        0.5, "rex: how long it stays high; 0.5 as published, elsewhere often 0.9",
        group="Learning rate", low=0, high=0.99,
    )  # fmt: skip


def factor(options: SchedulerOptions, step: int, steps: int) -> float:
    """What the learning rate of step `step` (from 0) of `steps` is multiplied by, 0 to 1.

    The formulas are those of transformers' schedulers; "rex" is Chen et al. 2022 (arXiv
    2107.04197); "adafactor" leaves the rate to the optimizer of that name.
    """
    name, least = options.lr_scheduler, options.lr_scheduler_min_lr_ratio
    warmup = _steps(options.lr_warmup_steps, steps)
    if name in ("constant", "adafactor"):
        return 1.0
    if step < warmup:
        begun = step / max(1, warmup)
        return least + (1 - least) * begun if name == "warmup_stable_decay" else begun
    if name == "constant_with_warmup":
        return 1.0
    if name == "inverse_sqrt":
        scale = options.lr_scheduler_timescale or warmup or 10_000
        return 1.0 / math.sqrt((step + scale - warmup) / scale)
    if name == "warmup_stable_decay":
        decay = _steps(options.lr_decay_steps, steps)
        if step < steps - decay:
            return 1.0
        done = (step - (steps - decay)) / max(1, decay)
        return least + (1 - least) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return least + (1 - least) * _fallen(options, done)


def _fallen(options: SchedulerOptions, done: float) -> float:
    """The factor after `done` (0 to 1) of the way down."""
    name = options.lr_scheduler
    if name == "linear":
        return 1 - done
    if name == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if name == "cosine_with_restarts":
        if done >= 1:
            return 0.0
        return (1 + math.cos(math.pi * (done * options.lr_scheduler_num_cycles % 1.0))) / 2
    if name == "polynomial":
        return float((1 - done) ** options.lr_scheduler_power)
    if name == "rex":
        d = options.lr_scheduler_rex_d
        return (1 - done) / (1 - d + d * (1 - done))
    raise ValueError(f"no schedule is called {name!r}")


def _steps(count: float, steps: int) -> int:
    return int(count * steps) if 0 < count < 1 else int(count)
