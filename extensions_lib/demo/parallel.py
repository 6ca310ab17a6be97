"""Data-parallel training on CPU cores: one-threaded processes, gradients averaged by gloo.

Two such processes do twice the work of one process with two threads on models this small.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn


def run(workers: int, function: Callable[..., None], *args: Any) -> None:
    """Call function(rank, workers, *args) in `workers` processes; an error in one ends all."""
    if workers == 1:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        function(0, 1, *args)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_enter, (workers, port, function, args), nprocs=workers)


def _enter(
    rank: int, workers: int, port: int, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    try:
        function(rank, workers, *args)
        dist.barrier()  # nobody leaves while another still writes
    finally:
        dist.destroy_process_group()


def agree(flag: bool) -> bool:
    """Rank 0's answer, the same in every process (for decisions that depend on the clock)."""
    if not dist.is_initialized():
        return flag
    answer = torch.tensor(float(flag))
    dist.broadcast(answer, 0)
    return bool(answer.item())


class MixedPrecision:
    """AdamW on fp32 master weights for a model that computes in bf16, and their average.

    All masters lie in one flat tensor, so that a step is a handful of sweeps whatever the number of
    layers. `decay` acts on matrices and kernels only, not on norms, biases and embeddings.
    `average` is the keep-rate of the exponential moving average (fp32).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        betas: tuple[float, float],
        decay: float,
        average: float,
        embeddings: Iterable[nn.Parameter] = (),
    ) -> None:
        self.live = list(parameters)
        spared = {id(p) for p in embeddings}
        self.live.sort(key=lambda p: p.dim() < 2 or id(p) in spared)  # stable: the decayed first
        decayed = sum(p.numel() for p in self.live if p.dim() >= 2 and id(p) not in spared)
        self.master = torch.cat([p.detach().float().flatten() for p in self.live])
        self.average = self.master.clone()
        self.keep = average
        self.parts = [nn.Parameter(self.master[:decayed]), nn.Parameter(self.master[decayed:])]
        self.adam = torch.optim.AdamW(
            [{"params": self.parts[0], "weight_decay": decay},
             {"params": self.parts[1], "weight_decay": 0.0}],
            betas=betas,
            fused=True,
        )  # fmt: skip
        self.steps = 0

    def step(self, rate: float, clip: float = 1.0) -> float:
        """One update at learning rate `rate`; returns the gradient's norm before clipping."""
        flat = torch.cat([_grad(p).flatten() for p in self.live]).float()
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        norm = float(flat.norm())
        if norm > clip:
            flat *= clip / norm
        first, rest = flat.split([part.numel() for part in self.parts])
        self.parts[0].grad, self.parts[1].grad = first, rest
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.steps += 1
        self.average.lerp_(self.master, 1 - min(self.keep, self.steps / (self.steps + 10)))
        self._put(self.master)
        for live in self.live:
            live.grad = None
        return norm

    @torch.no_grad()
    def _put(self, flat: Tensor) -> None:
        for live, part in zip(self.live, self.split(flat), strict=True):
            live.copy_(part)

    def split(self, flat: Tensor) -> list[Tensor]:
        """A flat tensor as views in the shapes of `live`."""
        parts = flat.split([p.numel() for p in self.live])
        return [part.view(live.shape) for part, live in zip(parts, self.live, strict=True)]

    def averaged(self, names: dict[int, str]) -> dict[str, Tensor]:
        """The averaged weights by name; `names` maps id(parameter) to its name."""
        parts = self.split(self.average.clone())
        return {names[id(p)]: part for p, part in zip(self.live, parts, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"master": self.master, "average": self.average, "adam": self.adam.state_dict(),
                "steps": self.steps}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.master.copy_(state["master"])
        self._put(self.master)
        self.average = state["average"]
        self.adam.load_state_dict(state["adam"])
        self.steps = state["steps"]


def _grad(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad
