"""How fast a network learns, and in which memory, beside diffusers and peft.

    run.py bench training [--model demo|sd15|sdxl] [--device cuda] [--rounds N] [--steps N]
                          [--batch N …] [--rank N] [--side N] [--threads N]

Each way trains LoRA of one rank on the same layers of the same UNet (attention, feed-forward,
projections), on the same pictures, in the same precision, with AdamW and clipped gradients, in a
process of its own:

    ours         this project's loop, latents and text states cached
    peer         the LoRA script of diffusers: peft's layers; VAE and text encoder run every step
    peer cached  the same, with latents and text states cached

"demo" is the demo checkpoint. "sd15" and "sdxl" are UNets of full size with random weights; there
are neither VAE nor text encoders to run, so that the peer is cached. On the CPU all is in 32 bits
and latents are small; on a GPU the model is in bf16 and pictures have the model's own size, and
the share of the bound is told: the operations of a step's products over the time that a single
large product takes for as many.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.benchmarks.memory import peak, resident
from tests.benchmarks.timing import load

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("ours", "peer", "peer cached")
WARM = {"cpu": 3, "cuda": 8}
MODELS = {
    "demo": "the demo checkpoint",
    "sd15": "SD1.5's UNet, random",
    "sdxl": "SDXL's UNet, random",
}
SIDES = {"demo": 16, "sd15": 64, "sdxl": 128}  # of latents, on a GPU


def main(arguments: Sequence[str]) -> int:
    """Runs each way in turn, `rounds` times, and prints the ratios."""
    options = _parsed(arguments)
    if options.way:
        print(json.dumps(_one(options)))
        return 0
    for batch in options.batches:
        ways = [way for way in WAYS if options.model == "demo" or way != "peer"]
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for turn in range(options.rounds):
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                found[way].append(_apart(way, batch, arguments))
        _tell(options, batch, found)
    return 0


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py bench training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="demo")
    parser.add_argument("--full", action="store_const", const="sd15", dest="model")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="timed steps (20; 3 if full on a CPU)")
    parser.add_argument("--batch", type=int, nargs="+", dest="batches", default=[1])
    parser.add_argument("--rank", type=int, default=0, help="16; on a GPU 32")
    parser.add_argument("--side", type=int, default=0, help="of the latents")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cuda = options.device.startswith("cuda")
    options.steps = options.steps or (20 if cuda or options.model == "demo" else 3)
    options.rank = options.rank or (32 if cuda else 16)
    options.side = options.side or (SIDES[options.model] if cuda else 16)
    options.batch = options.batches[0]
    return options


def _apart(way: str, batch: int, arguments: Sequence[str]) -> dict[str, float]:
    own = ["--way", way, "--batch", str(batch)]  # the later batch is the one that counts
    command = [sys.executable, "-m", "tests.benchmarks.bench_training", *arguments, *own]
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def _tell(
    options: argparse.Namespace, batch: int, found: dict[str, list[dict[str, float]]]
) -> None:
    on = f"fp32, {options.threads} threads"
    if options.device != "cpu":
        on = f"bf16 on {options.device}"
    print(
        f"LoRA of rank {options.rank} on {MODELS[options.model]}, batch {batch}, latents "
        f"{options.side}×{options.side}, {on}, {options.rounds} rounds of {options.steps} steps; "
        f"{load()}"
    )
    for way, rounds in found.items():
        step = median(each["step"] for each in rounds)
        memory = median(each["memory"] for each in rounds)
        print(
            f"{way:12} {1000 * step:8.1f} ms a step  {1 / step:7.2f} it/s  "
            f"{memory / 2**20:8.0f} MB beyond the model"
        )
    for way in found:
        if way == "ours":
            continue
        pairs = list(zip(found[way], found["ours"], strict=True))
        speed = median(peer["step"] / ours["step"] for peer, ours in pairs)
        memory = median(ours["memory"] / peer["memory"] for peer, ours in pairs)
        print(f"against {way}: {speed:.2f} × its steps/s, {memory:.2f} × its memory")
    outside = median(each["outside"] for each in found["ours"])
    print(f"ours: {outside:.1%} of a step is outside of its forward and backward pass")
    if "bound" in found["ours"][0]:
        step, flops, bound = (
            median(each[name] for each in found["ours"]) for name in ("step", "flops", "bound")
        )
        print(
            f"ours: {flops / 1e12:.2f} TFLOP a step, {flops / step / bound:.1%} of the "
            f"{bound / 1e12:.0f} TFLOP/s of a large product"
        )


def _one(options: argparse.Namespace) -> dict[str, float]:
    """One way, in this process. Memory is the peak above what the model takes."""
    import torch

    from tests.benchmarks import training_ways as ways

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    bench = ways.Bench(options)
    step, outside = ways.WAYS[options.way](bench)
    before = _settled(bench.cuda)
    for _ in range(WARM["cuda" if bench.cuda else "cpu"]):
        step()
    times = []
    for _ in range(options.steps):
        bench.settle()
        started = time.perf_counter()
        step()
        bench.settle()
        times.append(time.perf_counter() - started)
    told = {"step": median(times), "memory": _most(bench.cuda) - before}
    if outside:
        told["outside"] = outside()
        if bench.cuda:
            told["flops"] = ways.flops(step)
            told["bound"] = ways.bound(options.device, bench.dtype)
    return told


def _settled(cuda: bool) -> int:
    """Bytes that the process, or on a GPU its tensors, have; from now on their peak counts."""
    if not cuda:
        return resident()
    import torch

    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _most(cuda: bool) -> int:
    """The same, at most."""
    if not cuda:
        return peak()
    import torch

    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
