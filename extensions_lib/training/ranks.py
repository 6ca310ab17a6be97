"""Several processes train one network: `accelerate launch run.py train …`, or torchrun.

Each takes its share of the batches of a step, and their gradients are averaged, so that N processes
with batch B learn as one with N micro-batches of B. The first one alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Rank:
    """Which process this is, of how many; `device` where each has one of its own."""

    index: int = 0
    count: int = 1
    device: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether it is the one that speaks and writes."""
        return self.index == 0


@contextmanager
def joined() -> Iterator[Rank]:
    """Joins the others, if the launcher has started any; this process alone otherwise."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Rank()
        return
    device = None
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    distributed.init_process_group("nccl" if device else "gloo")
    try:
        yield Rank(distributed.get_rank(), count, device)
    finally:
        distributed.destroy_process_group()


def rank() -> Rank:
    """Which process this is."""
    if distributed.is_available() and distributed.is_initialized():
        return Rank(distributed.get_rank(), distributed.get_world_size())
    return Rank()


def average(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its mean over the processes; in place, all at once."""
    if rank().count == 1 or not tensors:
        return
    flat = torch.cat([each.reshape(-1) for each in tensors])
    distributed.all_reduce(flat)
    flat /= rank().count
    start = 0
    for each in tensors:
        each.copy_(flat[start : start + each.numel()].view_as(each))
        start += each.numel()


def average_number(value: float, device: torch.device | str) -> float:
    """The mean of a number over the processes."""
    if rank().count == 1:
        return value
    held = torch.tensor([value], dtype=torch.float64, device=device)
    average([held])
    return float(held)


def any_of(said: bool) -> bool:
    """Whether any process says so; all of them ask at the same time."""
    if rank().count == 1:
        return said
    return average_number(float(said), _device()) > 0


def _device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"
