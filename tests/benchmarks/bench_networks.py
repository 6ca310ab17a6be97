"""How long each kind of network takes to apply, change and remove on full-size models.

SD1.5 (UNet and text encoder, fp32) or SDXL's UNet (bf16), every layer of its real shape with random
weights, and networks on attention and feed-forward layers; LoCon on all layers. Against peft, which
merges into the weights, and against bounds of plain torch in the same rounds, looked up beforehand
and written into memory that is there:

copy     the touched weights once
addmm    one `torch.addmm` over them with the factors of one LoRA
formula  the kind's own products and passes, whole layers at a time

A weight of 16 bits is computed in fp32 and rounded once, by the bounds as by us.

    python run.py bench networks [--model sd15|sdxl] [--kinds …] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from extensions_lib.adapters import Adapter, DoRA, LoHa, LoKr, LoRA
from extensions_lib.models import SD15, SDXL_BASE
from extensions_lib.patching import ActiveSet, Wanted
from tests.benchmarks.memory import warm
from tests.benchmarks.timing import Clock, load
from tests.benchmarks.webui_models import layers

ATTENTION = (".attn1.", ".attn2.", ".self_attn.", ".ff.", ".proj_in", ".proj_out", ".mlp.")
KINDS = ("lora", "locon", "loha", "lokr", "dora")
COUNT = 5
ONE, OTHER = 0.8, 0.5  # multipliers
MB = 1 << 20
Shape = tuple[int, ...]


# --- models and networks ----------------------------------------------------------------------


@dataclass
class Network:
    """A network of random adapters."""

    name: str
    adapters: dict[str, Adapter]

    @property
    def key(self) -> str:
        return self.name


class Model:
    """Layers of a model by canonical name, in a tree as a UNet's, for ActiveSet and for peft."""

    def __init__(self, shapes: Mapping[str, Shape], dtype: torch.dtype) -> None:
        noise = torch.randn(1 << 20).mul_(0.02).to(dtype)
        self.tree = nn.Module()
        self.layers: dict[str, nn.Module] = {}
        for name, (out, inputs, *kernel) in shapes.items():
            with torch.device("meta"):
                if kernel:
                    made: nn.Module = nn.Conv2d(inputs, out, kernel[0], bias=False)
                else:
                    made = nn.Linear(inputs, out, bias=False)
            made = made.to(dtype).to_empty(device="cpu").requires_grad_(False)
            weight = made.weight.view(-1)  # type: ignore[operator]
            for start in range(0, len(weight), len(noise)):
                part = weight[start : start + len(noise)]
                part.copy_(noise[: len(part)])
            *path, last = name.split(".")
            place = self.tree
            for each in path:
                if each not in place._modules:
                    place.add_module(each, nn.Module())
                place = place.get_submodule(each)
            place.add_module(last, made)
            self.layers[name] = made

    def layer(self, canonical: str) -> tuple[nn.Module, str, slice | None]:
        return self.layers[canonical], "weight", None

    def weight(self, name: str) -> Tensor:
        found: Any = self.layers[name]._parameters["weight"]
        return found


def touched(every: Mapping[str, Shape], kind: str) -> list[str]:
    """The layers that a network of this kind has."""
    return [n for n in every if kind == "locon" or any(part in n for part in ATTENTION)]


def adapter(kind: str, rank: int, weight: Tensor) -> Adapter:
    """A random one; factors of half precision in files are fp32 once they are read, as here."""
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


# --- ours -------------------------------------------------------------------------------------


def measure_ours(model: Model, nets: Sequence[Network], size: int, clock: Clock) -> None:
    """One round. Ends with nothing in force and all memory given back."""
    active = ActiveSet(model)
    one = [Wanted(nets[0], ONE, ONE)]
    five = [Wanted(net, ONE, ONE) for net in nets]
    changed = [*five[:-1], Wanted(nets[-1], OTHER, OTHER)]
    warm(size)
    clock("ours: first", lambda: active.apply(one))
    clock("ours: change", lambda: active.apply([Wanted(nets[0], OTHER, OTHER)]))
    clock("ours: remove", active.clear)
    clock("ours: apply", lambda: active.apply(one))
    active.apply(five)
    clock("ours: change one of five", lambda: active.apply(changed))
    clock("ours: remove five", active.clear)
    clock("ours: apply five", lambda: active.apply(five))
    active.release()


# --- the bounds -------------------------------------------------------------------------------


class Bounds:
    """Plain torch over the touched layers."""

    def __init__(self, model: Model, nets: Sequence[Network], kind: str) -> None:
        self.kind = kind
        names = list(nets[0].adapters)
        self.bases = [model.weight(name).flatten(1) for name in names]
        self.outs = [torch.zeros_like(base) for base in self.bases]
        self.held = [[net.adapters[name] for net in nets] for name in names]
        largest = max(base.numel() for base in self.bases)
        self.scratch = [torch.zeros(largest) for _ in range(4)]
        lora = [adapter("lora", 32, base) for base in self.bases]
        self.factors = [(each.up, each.down.flatten(1)) for each in lora]  # type: ignore

    def measure(self, clock: Clock) -> None:
        clock("copy", self.copy)
        clock("addmm", lambda: self.over(lambda w, i: self.addmm(w, *self.factors[i], ONE)))
        clock("formula", lambda: self.over(lambda w, i: self.formula(w, self.held[i][:1])))
        clock("formula five", lambda: self.over(lambda w, i: self.formula(w, self.held[i])))

    def copy(self) -> None:
        for base, out in zip(self.bases, self.outs, strict=True):
            out.copy_(base)

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

    def __init__(self, model: Model, kind: str, names: Sequence[str], rank: int) -> None:
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
        self.model: Any = peft.get_peft_model(model.tree, config, adapter_name="n0")
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


# --- the report -------------------------------------------------------------------------------

ROWS = (
    # what, bound of it
    ("first", None),
    ("apply", "formula"),
    ("change", "formula"),
    ("remove", None),
    ("apply five", "formula five"),
    ("change one of five", "formula five"),
    ("remove five", None),
)


def report(kind: str, count: int, size: int, clock: Clock) -> None:
    """Our times beside the bounds and peft's, ratios being medians of each round's."""
    print(f"\n{kind}: {count} layers, {size / MB:.0f} MB", end="")
    for name in ("copy", "addmm", "formula", "formula five"):
        print(f", {name} {1e3 * clock.seconds(name):.0f}", end="")
    print(" ms\n")
    heads = (
        f"{'ours ms':>10}{'/ copy':>9}{'/ addmm':>9}{'/ formula':>11}{'peft ms':>11}{'/ ours':>8}"
    )
    print(f"{'':22}{heads}")
    for name, bound in ROWS:
        ours, theirs = f"ours: {name}", f"peft: {name}"
        line = f"{name:22}{1e3 * clock.seconds(ours):10.1f}{clock.ratio(ours, 'copy'):9.2f}"
        line += f"{clock.ratio(ours, 'addmm'):9.2f}"
        line += f"{clock.ratio(ours, bound):11.2f}" if bound else " " * 11
        if theirs in clock.times:
            line += f"{1e3 * clock.seconds(theirs):11.1f}{clock.ratio(theirs, ours):7.1f}x"
        print(line)
    both = zip(clock.times["ours: apply"], clock.times["copy"], strict=True)
    clock.times["apart"] = [one + other for one, other in both]
    apart = clock.ratio("ours: change one of five", "apart")
    print(f"change one of five: {apart:.2f} x (apply one + copy back one)")


def measure(model: Model, every: Mapping[str, Shape], kind: str, options: Any) -> None:
    """All rounds of one kind."""
    names = touched(every, kind)
    rank = options.rank // 2 if kind == "locon" else options.rank
    size = sum(model.weight(name).nbytes for name in names)
    nets = [
        Network(f"n{index}", {n: adapter(kind, rank, model.weight(n)) for n in names})
        for index in range(COUNT)
    ]
    clock = Clock(cpu=options.cpu)
    bounds = Bounds(model, nets, kind)
    peft = None if options.no_peft else Peft(model, kind, names, rank)
    for _ in range(options.rounds):
        bounds.measure(clock)
        measure_ours(model, nets, size, clock)
        if peft:
            peft.measure(clock)
        gc.collect()
    if peft:
        peft.close()
    report(kind, len(names), size, clock)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench networks", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rank", type=int, default=32, help="(default 32; LoCon: half of it)")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds; for a busy machine")
    parser.add_argument("--no-peft", action="store_true", help="leave peft out")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    every = layers(SD15 if options.model == "sd15" else SDXL_BASE)
    if options.model == "sdxl":
        every = {name: shape for name, shape in every.items() if name.startswith("unet.")}
    model = Model(every, torch.float32 if options.model == "sd15" else torch.bfloat16)
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "peft"))
    print(f"{options.model}, {versions}, {options.threads} threads, rank {options.rank}, ", end="")
    print(f"medians of {options.rounds} rounds, {load()}")
    for kind in options.kinds:
        measure(model, every, kind, options)
        gc.collect()
    print(f"\n{load()} at the end")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
