"""What `bench networks` compares with: plain torch over the same weights, and peft."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from extensions_lib.adapters import Adapter, DoRA, LoHa, LoKr, LoRA
from tests.benchmarks.devices import Device
from tests.benchmarks.timing import Clock

COUNT = 5
ONE, OTHER = 0.8, 0.5  # multipliers


def adapter(kind: str, rank: int, weight: Tensor) -> Adapter:
    """A random one; factors of half precision in files are fp32 once they are read, as here."""
    with weight.device:  # where it is drawn, too
        return _drawn(kind, rank, weight)


def _drawn(kind: str, rank: int, weight: Tensor) -> Adapter:
    shape = weight.shape
    if kind == "loha":
        loha = LoHa.fresh(shape, rank, float(rank))
        loha.w2_a.normal_(0, 0.01)
        return loha
    if kind == "lokr":
        lokr = LoKr.fresh(shape, rank, float(rank), factor=8)
        for part in (lokr.w2, lokr.w2_b):
            if part is not None:
                part.normal_(0, 0.01)
        return lokr
    lora = LoRA.fresh(shape, rank, float(rank))
    lora.up.normal_(0, 0.01)
    return DoRA.fresh(lora, weight) if kind == "dora" else lora


# --- the bounds -------------------------------------------------------------------------------


class Bounds:
    """Plain torch over the weights of the touched layers; `nets`: adapters by layer, in order."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        nets: Sequence[Mapping[str, Adapter]],
        kind: str,
        device: Device,
    ) -> None:
        self.kind = kind
        self.bases = [weight.flatten(1) for weight in weights]
        self.outs = [torch.zeros_like(base) for base in self.bases]
        self.held = list(zip(*(net.values() for net in nets), strict=True))
        largest = max(base.numel() for base in self.bases)
        self.scratch = [torch.zeros(largest, device=self.bases[0].device) for _ in range(4)]
        lora: list[Any] = [adapter("lora", 32, base) for base in self.bases]
        self.factors = [(each.up, each.down.flatten(1)) for each in lora]
        self.short: list[tuple[Tensor, Tensor]] = []
        self.away: list[tuple[Tensor, Tensor]] = []
        if device.cuda:
            self.away = [(up.cpu(), down.cpu()) for up, down in self.factors]
            if self.bases[0].dtype != torch.float32:
                dtype = self.bases[0].dtype
                self.short = [(up.to(dtype), down.to(dtype)) for up, down in self.factors]

    def measure(self, clock: Clock) -> None:
        clock("copy", self.copy)
        clock("addmm", self.whole_addmm)
        if self.short:
            clock("addmm in 16 bits", self.whole_short)
        if self.away:
            clock("addmm from host memory", self.whole_away)
        clock("formula", lambda: self.over(lambda w, i: self.formula(w, self.held[i][:1])))
        clock("formula five", lambda: self.over(lambda w, i: self.formula(w, self.held[i])))

    def copy(self) -> None:
        for base, out in zip(self.bases, self.outs, strict=True):
            out.copy_(base)

    def whole_addmm(self) -> None:
        self.over(lambda w, i: self.addmm(w, *self.factors[i], ONE))

    def whole_away(self) -> None:
        at = self.bases[0].device
        there = [(up.to(at), down.to(at)) for up, down in self.away]
        self.over(lambda w, i: self.addmm(w, *there[i], ONE))

    def whole_short(self) -> None:
        for base, (up, down), out in zip(self.bases, self.short, self.outs, strict=True):
            torch.addmm(base, up, down, alpha=ONE, out=out)

    def over(self, work: Callable[[Tensor, int], Tensor]) -> None:
        """Every layer: into fp32 where it is none, the work, and into place."""
        for index, (base, out) in enumerate(zip(self.bases, self.outs, strict=True)):
            if base.dtype == torch.float32:
                self.target = out
                work(base, index)
            else:
                self.target = self.room(0, base)
                out.copy_(work(self.room(1, base).copy_(base), index))

    def room(self, number: int, like: Tensor) -> Tensor:
        return self.scratch[number][: like.numel()].view(like.shape)

    def addmm(self, base: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
        return torch.addmm(base, up.flatten(1), down, alpha=scale, out=self.target)

    def formula(self, base: Tensor, held: Sequence[Any]) -> Tensor:
        """The kind's own products and passes for some adapters of one layer."""
        if self.kind in ("lora", "locon"):
            up = torch.cat([each.up.flatten(1) for each in held], 1)
            return self.addmm(base, up, torch.cat([each.down.flatten(1) for each in held]), ONE)
        total = base
        for each in held:
            total = getattr(self, f"_{self.kind}")(total, base, each)
        return total

    def _loha(self, total: Tensor, base: Tensor, each: LoHa) -> Tensor:
        first = torch.mm(each.w1_a, each.w1_b, out=self.room(2, base))
        second = torch.mm(each.w2_a, each.w2_b, out=self.room(3, base))
        return torch.addcmul(total, first, second, value=each.scale * ONE, out=self.target)

    def _lokr(self, total: Tensor, base: Tensor, each: LoKr) -> Tensor:
        w1 = each.w1 if each.w1 is not None else each.w1_a @ each.w1_b  # type: ignore[operator]
        w2 = each.w2 if each.w2 is not None else each.w2_a @ each.w2_b  # type: ignore[operator]
        w2 = w2.flatten(1)
        grid = (len(w1), len(w2), w1.shape[1], -1)
        left, right = w1[:, None, :, None], w2[None, :, None, :]
        scale = each.scale * ONE
        out = self.target.view(grid)
        torch.addcmul(total.view(grid), left, right, value=scale, out=out)
        return self.target

    def _dora(self, total: Tensor, base: Tensor, each: DoRA) -> Tensor:
        lora: Any = each.inner
        whole = self.room(2, base)
        torch.addmm(base, lora.up.flatten(1), lora.down.flatten(1), alpha=lora.scale, out=whole)
        gain = each.magnitude.view(-1, 1) / torch.linalg.vector_norm(whole, dim=1, keepdim=True)
        whole.mul_(gain)
        if total is base:
            return torch.lerp(base, whole, ONE, out=self.target)
        return torch.add(total, whole.sub_(base), alpha=ONE, out=self.target)


# --- peft -------------------------------------------------------------------------------------


class Peft:
    """The same kinds in peft, which merges into the weight and subtracts to undo it."""

    def __init__(
        self, tree: nn.Module, kind: str, names: Sequence[str], rank: int, device: Device
    ) -> None:
        import peft

        common: dict[str, Any] = {"r": rank, "target_modules": list(names)}
        if kind == "loha":
            config: Any = peft.LoHaConfig(alpha=rank, init_weights=False, **common)
        elif kind == "lokr":
            factor = {"decompose_factor": 8, "init_weights": False}
            config = peft.LoKrConfig(alpha=rank, **factor, **common)
        else:
            dora = kind == "dora"
            config = peft.LoraConfig(
                lora_alpha=rank, init_lora_weights=False, use_dora=dora, **common
            )
        self.names = [f"n{index}" for index in range(COUNT)]
        with device.at:  # drawn there, which is faster
            self.model: Any = peft.get_peft_model(tree, config, adapter_name="n0")
            for name in self.names[1:]:
                self.model.add_adapter(name, config)
        self.tuned = [each for each in self.model.modules() if hasattr(each, "set_scale")]

    def scale(self, name: str, value: float) -> None:
        for each in self.tuned:
            each.set_scale(name, value)

    def merge(self, count: int) -> None:
        self.model.base_model.merge_adapter(self.names[:count])

    def undo(self) -> None:
        self.model.base_model.unmerge_adapter()

    def change(self, name: str, count: int) -> None:
        self.undo()
        self.scale(name, OTHER)
        self.merge(count)

    def measure(self, clock: Clock) -> None:
        for name in self.names:
            self.scale(name, ONE)
        clock("peft: apply", lambda: self.merge(1))
        clock("peft: change", lambda: self.change("n0", 1))
        clock("peft: remove", self.undo)
        self.scale("n0", ONE)
        clock("peft: apply five", lambda: self.merge(COUNT))
        clock("peft: change one of five", lambda: self.change("n4", COUNT))
        clock("peft: remove five", self.undo)

    def close(self) -> None:
        self.model.unload()
