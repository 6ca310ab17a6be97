"""Optimizers and courses of the learning rate as sd-scripts and its faces name them, as options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from extensions_lib.training.kohya_networks import Refused

# Classes of LoRA_Easy_Training_Scripts that are known here by a name.
_OPTIMIZERS = {
    "LoraEasyCustomOptimizer.came.CAME": "CAME",
    "came_pytorch.CAME.CAME": "CAME",
}
_REX = "LoraEasyCustomOptimizer.RexAnnealingWarmRestarts.RexAnnealingWarmRestarts"
_COSINE = "LoraEasyCustomOptimizer.CosineAnnealingWarmRestarts.CosineAnnealingWarmRestarts"
_LEAST = ("min_lr", "lr_end", "min_lr_rate")  # the rate at which it ends, or its share


def optimizer_name(value: str) -> str:
    """What an optimizer is called here."""
    return _OPTIMIZERS.get(value, value)


def read_schedule(
    course: str, kind: str, arguments: Sequence[str], cycles: Any, rate: float
) -> tuple[dict[str, Any], list[str]]:
    """The options that lr_scheduler, lr_scheduler_type and lr_scheduler_args come to, and notes.

    rate: the learning rate, by which a least one is a share. Raises Refused.
    """
    given = _given(arguments)
    told: dict[str, Any] = {}
    if kind:
        told, notes = _of_class(kind, given, int(cycles), rate)
    else:
        notes = []
        if course == "cosine_with_min_lr":
            if int(cycles) > 1:
                raise Refused("lr_scheduler: cosine_with_min_lr falls once here; name 1 cycle")
            told["lr_scheduler"] = "cosine"
        for name in given:
            if name not in _LEAST or course not in ("polynomial", "cosine_with_min_lr"):
                raise Refused(f"lr_scheduler_args: {name} says nothing to {course} here")
    least = _least(given, rate)
    if least is not None:
        told["lr_scheduler_min_lr_ratio"] = least
    return told, notes


def _given(arguments: Sequence[str]) -> dict[str, float]:
    given = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        try:
            given[name.strip()] = float(value) if equals else float("nan")
        except ValueError:
            raise Refused(f"lr_scheduler_args: {text!r} is no name=number") from None
    return given


def _least(given: Mapping[str, float], rate: float) -> float | None:
    if "min_lr_rate" in given:
        return given["min_lr_rate"]
    least = given.get("min_lr", given.get("lr_end"))
    if least is None or least >= rate:  # theirs takes no least rate that is above the rate
        return None
    return least / rate


def _of_class(
    kind: str, given: Mapping[str, float], cycles: int, rate: float
) -> tuple[dict[str, Any], list[str]]:
    """A scheduler by its class. Each cycle as long as the others; only the first has its height."""
    if kind not in (_REX, _COSINE):
        raise Refused(
            f"lr_scheduler_type: {kind!r} is not known here; name an lr_scheduler (rex, cosine,"
            " cosine_with_restarts, …) instead"
        )
    known = (*_LEAST[:1], "gamma", "d", "warmup_steps", "first_cycle_max_steps")
    for name in given:
        if name not in known:
            raise Refused(f"lr_scheduler_args: {name} says nothing to {kind.split('.')[-1]} here")
    told: dict[str, Any] = {"lr_scheduler": "rex" if kind == _REX else "cosine"}
    if cycles > 1:
        if kind == _REX or given.get("gamma", 1.0) != 1.0 or given.get("min_lr"):
            raise Refused(
                "lr_scheduler_num_cycles: only cosine starts again here, at its full height"
                " (gamma 1) and down to 0; name 1 cycle, or cosine_with_restarts"
            )
        told["lr_scheduler"] = "cosine_with_restarts"
    if kind == _REX:
        told["lr_scheduler_rex_d"] = given.get("d", 0.9)
    if "warmup_steps" in given:
        told["lr_warmup_steps"] = given["warmup_steps"] * cycles
    notes = []
    if "first_cycle_max_steps" in given:
        notes.append("first_cycle_max_steps: the learning rate falls over all steps.")
    return told, notes
