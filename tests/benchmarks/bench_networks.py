"""How long each kind of network takes to apply, change and remove on full-size models.

SD1.5 (UNet and text encoder; fp32, on a GPU fp16) or SDXL's UNet (bf16), every layer of its real
shape with random weights, and networks on attention and feed-forward layers; LoCon on all layers.
Against peft, which merges into the weights, and against bounds of plain torch in the same rounds,
looked up beforehand and written into memory that is there:

copy     the touched weights once
addmm    one `torch.addmm` over them with the factors of one LoRA
formula  the kind's own products and passes, whole layers at a time

A weight of 16 bits is computed in fp32 and rounded once, by the bounds as by us; "addmm in 16 bits"
is the same product without that, for comparison. On a GPU networks lie there, as those do that have
been in force before; "from host memory" they are copied there first, by the bound too. Times go
from the call until the GPU has finished.

    python run.py bench networks [--model sd15|sdxl] [--kinds …] [--rounds N] [--threads N]
                                 [--device cuda] [--dtype fp16|bf16|fp32] [--calls]
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from extensions_lib.adapters import Adapter
from extensions_lib.models import SD15, SDXL_BASE
from extensions_lib.patching import ActiveSet, Wanted
from tests.benchmarks.devices import Device
from tests.benchmarks.network_peers import COUNT, ONE, OTHER, Bounds, Peft, adapter
from tests.benchmarks.timing import Clock, load
from tests.benchmarks.webui_models import layers

ATTENTION = (".attn1.", ".attn2.", ".self_attn.", ".ff.", ".proj_in", ".proj_out", ".mlp.")
KINDS = ("lora", "locon", "loha", "lokr", "dora")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
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

    def __init__(
        self, shapes: Mapping[str, Shape], dtype: torch.dtype, device: torch.device
    ) -> None:
        noise = torch.randn(1 << 20, device=device).mul_(0.02).to(dtype)
        self.tree = nn.Module()
        self.layers: dict[str, nn.Module] = {}
        for name, (out, inputs, *kernel) in shapes.items():
            with torch.device("meta"):
                if kernel:
                    made: nn.Module = nn.Conv2d(inputs, out, kernel[0], bias=False)
                else:
                    made = nn.Linear(inputs, out, bias=False)
            empty = torch.empty((out, inputs, *kernel), dtype=dtype, device=device)
            made.weight = nn.Parameter(empty, requires_grad=False)
            weight = empty.view(-1)
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


# --- ours -------------------------------------------------------------------------------------


class Sets:
    """Sets of networks; `away` is one that is not on the device yet."""

    def __init__(self, nets: Sequence[Network], device: Device) -> None:
        self.one = [Wanted(nets[0], ONE, ONE)]
        self.other = [Wanted(nets[0], OTHER, OTHER)]
        self.five = [Wanted(net, ONE, ONE) for net in nets]
        self.changed = [*self.five[:-1], Wanted(nets[-1], OTHER, OTHER)]
        self.away = self.one
        if device.cuda:
            host = {name: each.to("cpu") for name, each in nets[0].adapters.items()}
            self.away = [Wanted(Network("host", host), ONE, ONE)]


def measure_ours(model: Model, sets: Sets, size: int, clock: Clock, device: Device) -> None:
    """One round. Ends with nothing in force and all memory given back."""
    active = ActiveSet(model)
    device.fresh(size)
    clock("ours: first", lambda: active.apply(sets.away))
    active.apply(sets.one)
    clock("ours: change", lambda: active.apply(sets.other))
    clock("ours: remove", active.clear)
    if sets.away is not sets.one:
        clock("ours: apply from host memory", lambda: active.apply(sets.away))
        active.clear()
    five, changed = sets.five, sets.changed
    clock("ours: apply", lambda: active.apply(sets.one))
    active.apply(five)
    clock("ours: change one of five", lambda: active.apply(changed))
    clock("ours: remove five", active.clear)
    clock("ours: apply five", lambda: active.apply(five))
    active.release()


def report_memory(model: Model, sets: Sets, size: int, device: Device) -> None:
    """What one and five take on a GPU beyond the model and the networks."""
    active = ActiveSet(model)
    for name, wanted in (("one", sets.one), ("five", sets.five)):
        held, peak = device.added(lambda wanted=wanted: active.apply(wanted))  # type: ignore[misc]
        print(f"memory, {name}: {held / size:.3f} x the touched bytes held, ", end="")
        print(f"{peak / size:.3f} x at most")
        active.release()


def report_calls(model: Model, sets: Sets, bounds: Bounds, device: Device) -> None:
    """How often CUDA's runtime is called for a set."""
    active = ActiveSet(model)
    active.apply(sets.five)
    active.clear()
    for name, work in (
        ("addmm", bounds.whole_addmm),
        ("ours: apply", lambda: active.apply(sets.one)),
        ("ours: apply five", lambda: active.apply(sets.five)),
        ("ours: change one of five", lambda: active.apply(sets.changed)),
    ):
        counts = ", ".join(f"{n} {each}" for each, n in device.calls(work).most_common(8))
        print(f"calls, {name}: {counts or 'not seen by the profiler'}")
    active.release()


# --- the report -------------------------------------------------------------------------------

BOUNDS = (
    "copy", "addmm", "addmm in 16 bits", "addmm from host memory", "formula", "formula five"
)  # fmt: skip
ROWS = (
    # what, bound of it
    ("first", None),
    ("apply", "formula"),
    ("change", "formula"),
    ("remove", None),
    ("apply from host memory", None),
    ("apply five", "formula five"),
    ("change one of five", "formula five"),
    ("remove five", None),
)


def report(kind: str, count: int, size: int, clock: Clock) -> None:
    """Our times beside the bounds and peft's, ratios being medians of each round's."""
    print(f"\n{kind}: {count} layers, {size / MB:.0f} MB", end="")
    for name in BOUNDS:
        if name in clock.times:
            print(f", {name} {1e3 * clock.seconds(name):.1f}", end="")
    print(" ms\n")
    heads = (
        f"{'ours ms':>10}{'/ copy':>9}{'/ addmm':>9}{'/ formula':>11}{'peft ms':>11}{'/ ours':>8}"
    )
    print(f"{'':24}{heads}")
    for name, bound in ROWS:
        ours, theirs = f"ours: {name}", f"peft: {name}"
        if ours not in clock.times:
            continue
        line = f"{name:24}{1e3 * clock.seconds(ours):10.1f}{clock.ratio(ours, 'copy'):9.2f}"
        line += f"{clock.ratio(ours, 'addmm'):9.2f}"
        line += f"{clock.ratio(ours, bound):11.2f}" if bound else " " * 11
        if theirs in clock.times:
            line += f"{1e3 * clock.seconds(theirs):11.1f}{clock.ratio(theirs, ours):7.1f}x"
        print(line)
    both = zip(clock.times["ours: apply"], clock.times["copy"], strict=True)
    clock.times["apart"] = [one + other for one, other in both]
    apart = clock.ratio("ours: change one of five", "apart")
    print(f"change one of five: {apart:.2f} x (apply one + copy back one)")
    if clock.times.get("addmm from host memory"):
        away = clock.ratio("ours: apply from host memory", "addmm from host memory")
        print(f"apply from host memory: {away:.2f} x the copies and addmm")


def measure(
    model: Model, every: Mapping[str, Shape], kind: str, options: Any, device: Device
) -> None:
    """All rounds of one kind."""
    names = touched(every, kind)
    rank = options.rank // 2 if kind == "locon" else options.rank
    size = sum(model.weight(name).nbytes for name in names)
    nets = [
        Network(f"n{index}", {n: adapter(kind, rank, model.weight(n)) for n in names})
        for index in range(COUNT)
    ]
    clock = Clock(cpu=options.cpu, settle=device.settle)
    weights = [model.weight(name) for name in names]
    bounds = Bounds(weights, [net.adapters for net in nets], kind, device)
    sets = Sets(nets, device)
    peft = None if options.no_peft else Peft(model.tree, kind, names, rank, device)
    for turn in range(options.rounds + device.cuda):
        if turn == device.cuda:
            clock.times.clear()  # a GPU's first round loads its kernels
        bounds.measure(clock)
        measure_ours(model, sets, size, clock, device)
        if peft:
            peft.measure(clock)
        gc.collect()
    if peft:
        peft.close()
    report(kind, len(names), size, clock)
    if device.cuda:
        report_memory(model, sets, size, device)
        if options.calls:
            report_calls(model, sets, bounds, device)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench networks", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the weights (fp32 for sd15 on a CPU, else 16 bits)"
    )
    parser.add_argument("--calls", action="store_true", help="count the calls of CUDA's runtime")
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
    device = Device(options.device)
    usual = "bf16" if options.model == "sdxl" else "fp16" if device.cuda else "fp32"
    dtype = options.dtype or usual
    started = time.perf_counter()
    model = Model(every, DTYPES[dtype], device.at)
    packages = ("torch",) if options.no_peft else ("torch", "peft")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(
        f"{options.model} in {dtype} on {device}, {versions}, {options.threads} threads, ", end=""
    )
    print(f"rank {options.rank}, medians of {options.rounds} rounds, {load()}")
    for kind in options.kinds:
        measure(model, every, kind, options, device)
        gc.collect()
        device.fresh(0)
        print(f"{time.perf_counter() - started:.0f} s so far", flush=True)
    print(f"\n{load()} at the end")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
