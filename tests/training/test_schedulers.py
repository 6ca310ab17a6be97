"""Courses of the learning rate: at every step as transformers' schedulers have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

from extensions_lib.training.schedulers import SchedulerOptions, factor

STEPS = 60
COURSES = [
    ("constant", {}, {}),
    ("constant_with_warmup", {}, {}),
    ("linear", {}, {}),
    ("cosine", {}, {}),
    ("cosine_with_restarts", {"lr_scheduler_num_cycles": 3}, {"num_cycles": 3}),
    ("polynomial", {"lr_scheduler_power": 2.0}, {"power": 2.0, "lr_end": 0.0}),
    ("inverse_sqrt", {"lr_scheduler_timescale": 20}, {"timescale": 20}),
    (
        "warmup_stable_decay",
        {"lr_decay_steps": 15, "lr_scheduler_min_lr_ratio": 0.1},
        {"num_decay_steps": 15, "min_lr_ratio": 0.1},
    ),
    (
        "cosine_with_min_lr",
        {"lr_scheduler": "cosine", "lr_scheduler_min_lr_ratio": 0.1},
        {"min_lr_rate": 0.1},
    ),
]


def theirs(name: str, warmup: int, told: dict[str, Any]) -> list[float]:
    """The factors of transformers' scheduler, step by step."""
    wanted = dict(told)
    if name != "constant":
        wanted["num_warmup_steps"] = warmup
    if name == "warmup_stable_decay":
        wanted["num_stable_steps"] = STEPS - warmup - told["num_decay_steps"]
    elif name not in ("constant", "constant_with_warmup", "inverse_sqrt"):
        wanted["num_training_steps"] = STEPS
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)](optimizer, **wanted)
    found = []
    for _ in range(STEPS):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(("name", "told", "asked"), COURSES, ids=[each[0] for each in COURSES])
def test_every_step_is_theirs(
    name: str, told: dict[str, Any], asked: dict[str, Any], warmup: int
) -> None:
    options = SchedulerOptions(**{"lr_scheduler": name, "lr_warmup_steps": warmup, **told})
    found = [factor(options, step, STEPS) for step in range(STEPS)]
    assert found == pytest.approx(theirs(name, warmup, asked), abs=1e-12)


def test_a_warm_up_below_1_is_a_share() -> None:
    share = SchedulerOptions(lr_scheduler="linear", lr_warmup_steps=0.1)
    steps = SchedulerOptions(lr_scheduler="linear", lr_warmup_steps=6)
    assert [factor(share, n, STEPS) for n in range(9)] == [
        factor(steps, n, STEPS) for n in range(9)
    ]
