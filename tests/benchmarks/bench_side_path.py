"""What networks beside the layers cost while sampling, and what changing their weights costs.

An SD1.5 UNet with random weights and rank-32 LoRAs on its attention and feed-forward layers. In
turns, in the same rounds: the forward pass with nothing, with one network merged, with one and five
beside the layers, and with one for each sample of the batch; and what a change of weight takes in
either way, which is what `patching.choice` weighs.

    python run.py bench side_path [--device cuda] [--size PIXELS] [--batch N] [--cpu] [--small]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from extensions_lib.patching import ActiveSet, Course, Wanted, together
from tests.benchmarks.bench_apply import Model, Network, build, networks
from tests.benchmarks.timing import Clock, load

BESIDE = Course(changes=10**9, forwards=1)


class Bench:
    """The model, its networks and an input; `state(name)` puts one of STATES in force."""

    def __init__(self, model: Model, nets: Sequence[Network], size: int, batch: int) -> None:
        self.nets, self.active = nets, ActiveSet(model)
        self.unet, self.batch = model.unet, batch
        weight = next(model.unet.parameters())
        width = int(model.unet.config.cross_attention_dim)  # type: ignore[union-attr, arg-type]
        drawn = torch.randn(batch, 4, size // 8, size // 8), torch.full((batch,), 500.0)
        self.inputs = [x.to(weight) for x in (*drawn, torch.randn(batch, 77, width))]
        one = Wanted(nets[0], 0.8, 0.8, course=BESIDE)
        alone = [[Wanted(nets[n % len(nets)], 0.8, 0.8)] for n in range(batch)]
        self.states: dict[str, list[Wanted]] = {
            "nothing": [],
            "one merged": [Wanted(nets[0], 0.8, 0.8)],
            "one beside": [one],
            "five beside": [Wanted(net, 0.8, 0.8, course=BESIDE) for net in nets],
            "one for each sample": together(alone),
        }

    def state(self, name: str) -> None:
        self.active.apply(self.states[name])
        self.active.rows(range(self.batch))

    def forward(self) -> Tensor:
        answer: Tensor = self.unet(*self.inputs, return_dict=False)[0]
        done(answer)
        return answer

    def change(self, weight: float, course: Course | None) -> None:
        self.active.change([Wanted(self.nets[0], 0.8, weight, course=course)])
        done(self.inputs[0])


def done(tensor: Tensor) -> None:
    """Waits for the device."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize()


def measured(bench: Bench, rounds: int, *, cpu: bool) -> Clock:
    clock = Clock(cpu=cpu)
    kept: Callable[[str, Callable[[], object]], object] = clock
    for turn in range(rounds + 1):
        if turn == 1:
            clock.times.clear()  # the first round warms up
        names = list(bench.states)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            bench.state(name)
            bench.forward()
            kept(name, bench.forward)
        for name, course in (("change merged", None), ("change beside", BESIDE)):
            bench.change(0.1, course)
            if course:
                bench.forward()  # factors are laid out in the first forward
            kept(name, partial(bench.change, 0.2 + 0.01 * turn, course))
        bench.active.clear()
    return clock


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench side_path", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--half", action="store_true", help="fp16 (the default on a GPU)")
    parser.add_argument("--size", type=int, help="pixels (256 on a CPU, 512 on a GPU)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="CPU seconds; for a busy machine")
    parser.add_argument("--small", action="store_true", help="a few narrow blocks: a smoke test")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    on_cpu = options.device == "cpu"
    size = options.size or (256 if on_cpu else 512)
    with torch.inference_mode(False), torch.no_grad():
        model = build(options.small)
        nets = networks(model, 5, options.rank)
        dtype = torch.float32 if on_cpu and not options.half else torch.float16
        model.unet.to(options.device, dtype)
        model.text.to(options.device, dtype)
    started = time.perf_counter()
    bench = Bench(model, nets, size, options.batch)
    clock = measured(bench, options.rounds, cpu=options.cpu)
    print(f"torch {torch.__version__}, {options.device}, {dtype}, {options.threads} threads")
    print(f"{len(model.layers)} layers, rank {options.rank}, {options.batch} x {size} x {size},")
    print(f"{load()},")
    print(f"medians of {options.rounds} rounds in {time.perf_counter() - started:.0f} s\n")
    for name in bench.states:
        ms = 1e3 * median(clock.times[name])
        print(f"forward, {name:20}{ms:10.1f} ms   x {clock.ratio(name, 'nothing'):.3f}")
    for name in ("change merged", "change beside"):
        ms = 1e3 * median(clock.times[name])
        print(f"{name:29}{ms:10.1f} ms   {clock.ratio(name, 'nothing'):.3f} of a forward")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
