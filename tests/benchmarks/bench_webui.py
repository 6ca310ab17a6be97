"""How long A1111's WebUI takes from Generate to the first step when its networks change.

A full-size random SD1.5 checkpoint (fp32, CPU), with LoRA over the 264 layers that one usually has
(of the transformer blocks and the text encoder) and with LoCon over every linear layer and
convolution; Crucible's handler and the WebUI's builtin one by turns, in one process, on the same
prompts. The builtin one applies inside the first forward pass, so what counts is the time
from the order to the *end* of the first step, less what that takes with nothing changed. Memory is
what the process holds more than before the networks.

    WEBUI_DIR=~/stable-diffusion-webui python run.py bench webui [--kinds lora locon] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from extensions_lib.errors import CrucibleError

PROMPT = "a lighthouse on a cliff"
HANDLERS = ("builtin", "ours")
GB = 1 << 30
Weights = dict[str, float]
ONE: Weights = {"n0": 0.8}
FIVE: Weights = {f"n{index}": 0.8 for index in range(5)}
# Lets glibc's allocator keep freed memory and take all of it from one heap.
KEEPS = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
# Each order follows the one above it. "nothing …" are those that change nothing.
ORDERS: tuple[tuple[str, Weights], ...] = (
    ("warm up", {}),
    ("nothing, without", {}),
    ("one: first time", ONE),
    ("nothing, one", ONE),
    ("one: change its weight", {"n0": 0.5}),
    ("one: remove", {}),
    ("one: again", ONE),
    ("five: four added", FIVE),
    ("nothing, five", FIVE),
    ("five: change one", FIVE | {"n4": 0.5}),
    ("five: remove", {}),
    ("nothing, after", {}),
)
CHANGES = [name for name, _ in ORDERS if ":" in name]
GROWING = ("one: first time", "five: four added")  # those that may need new memory
# The kinds of network: words of which one is in the name of every layer that they change.
KINDS: dict[str, tuple[str, ...]] = {
    "lora": (".transformer_blocks.", ".proj_in", ".proj_out", ".self_attn.", ".mlp."),
    "locon": ("",),
}


@dataclass
class Timed:
    """One order: seconds, also of CPU, to the end of the first step; seconds of the later ones."""

    first: float
    cpu: float
    steps: list[float]
    picture: Any


@dataclass
class Handler:
    """What one handler took, an entry a round: by order, `steps` by the count of networks."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cost: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    pictures: dict[str, Any] = field(default_factory=dict)

    def note(self, orders: dict[str, Timed]) -> None:
        """Takes in a round of orders."""
        unchanged = [order for name, order in orders.items() if name.startswith("nothing")]
        first, cpu = (median(getattr(o, what) for o in unchanged) for what in ("first", "cpu"))
        for name, order in orders.items():
            self.seconds[name].append(order.first)
            self.cost[name].append(order.first - first)
            self.cpu[name].append(order.cpu - cpu)
            self.pictures[name] = order.picture
        for count in {len(weights) for _, weights in ORDERS}:
            same = [orders[name].steps for name, weights in ORDERS if len(weights) == count]
            self.steps[count].append(median(chain.from_iterable(same)))


class Bench:
    """The running WebUI, asked by turns for pictures with networks of a kind.

    `touched`: bytes of the layers that they change.
    """

    def __init__(self, webui: Any, size: int, steps: int, kind: str, touched: int) -> None:
        self.webui, self.size, self.steps = webui, size, steps
        self.kind, self.touched = kind, touched
        self.results = {name: Handler() for name in HANDLERS}

    def press(self, weights: Weights) -> Timed:
        """Orders a picture and reads off when its steps ended."""
        tags = "".join(f" <lora:{self.kind}-{name}:{weight}>" for name, weight in weights.items())
        cpu = self.webui.call("/crucible-bench/marks")["now"][1]
        pressed = time.monotonic()
        [picture] = self.webui.pictures(
            PROMPT + tags, steps=self.steps, width=self.size, height=self.size
        )
        marks = self.webui.call("/crucible-bench/marks")
        end, end_cpu = marks["ended"][0]
        begun = [moment for moment, _ in marks["begun"][1:]]
        later = [after - before for before, after in pairwise(begun)]
        return Timed(end - pressed, end_cpu - cpu, later, picture)

    def resident(self) -> int:
        """Bytes in memory."""
        return int(self.webui.call("/crucible-bench/resident"))

    def round(self, handler: str) -> None:
        """All orders with one handler, from a model that holds nothing of either."""
        result = self.results[handler]
        self.webui.call(f"/crucible-bench/use?handler={handler}", {})
        wanted = {"ours": "CrucibleNetworks", "builtin": "ExtraNetworkLora"}[handler]
        assert self.webui.call("/crucible-bench/answering") == wanted
        orders: dict[str, Timed] = {}
        before = 0
        for name, weights in ORDERS:
            if name in GROWING:
                self.webui.call(f"/crucible-bench/warm?size={2 * self.touched}", {})
            orders[name] = self.press(weights)
            if name == "nothing, without":
                before = self.resident()
            elif name in ("nothing, one", "nothing, five"):
                result.memory[name].append(self.resident() - before)
        result.note(orders)

    def run(self, rounds: int) -> None:
        """Both handlers in each round, the other one first in every second."""
        self.press({})  # the checkpoint is loaded by the first order that needs it
        for turn in range(rounds):
            for handler in HANDLERS[:: -1 if turn % 2 else 1]:
                started = time.monotonic()
                self.round(handler)
                took = time.monotonic() - started
                told = f"{self.kind}, round {turn + 1}, {handler}: {took:.0f} s"
                print(told, file=sys.stderr, flush=True)


# --- the report -------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{median(values):7.{digits}f} ({low:.{digits}f} – {high:.{digits}f})"


def row(name: str, builtin: Sequence[float], ours: Sequence[float], digits: int = 2) -> str:
    """Both handlers' values and the median of the ratios of each round."""
    pairs = zip(ours, builtin, strict=True)
    ratio = median(a / b for a, b in pairs)
    return f"{name:24}{spread(builtin, digits):>26}{spread(ours, digits):>26}{ratio:14.3f}"


def report(results: dict[str, Handler], touched: int) -> None:
    """The tables."""
    builtin, ours = results["builtin"], results["ours"]
    print("\nseconds from Generate to the end of the first step, beyond what it takes unchanged")
    print(f"{'':24}{'builtin':>26}{'ours':>26}{'ours/builtin':>14}{'in CPU seconds':>16}")
    for name in CHANGES:
        cpu = median(ours.cpu[name]) / median(builtin.cpu[name])
        print(f"{row(name, builtin.cost[name], ours.cost[name])}{cpu:16.3f}")
    print("\nthe same in whole")
    for name, _ in ORDERS[1:]:
        print(row(name, builtin.seconds[name], ours.seconds[name]))
    print("\nGB of memory more than without networks")
    for name, title in (("nothing, one", "one"), ("nothing, five", "five")):
        theirs, own = ([each / GB for each in h.memory[name]] for h in (builtin, ours))
        print(f"{row(title, theirs, own)}   touched weights: {touched / GB:.2f}")
    report_steps(results)
    far = max(furthest(builtin.pictures[name], ours.pictures[name]) for name, _ in ORDERS)
    moved = furthest(ours.pictures["nothing, five"], ours.pictures["nothing, without"])
    print(f"\nlargest difference of a picture between the two: {far} of 255", end="")
    print(f" (the networks change it by {moved})")


def report_steps(results: dict[str, Handler]) -> None:
    """What a step costs while networks are in force, beside one without in the same round."""
    print("\nseconds a step with so many networks, and the ratio to none")
    for name, handler in results.items():
        for count, seconds in sorted(handler.steps.items()):
            pairs = zip(seconds, handler.steps[0], strict=True)
            ratio = median(a / b for a, b in pairs)
            print(f"{name:10}{count:14}{spread(seconds, 3):>26}{ratio:14.3f}")


def furthest(one: Any, other: Any) -> int:
    """The largest difference of two pictures, in steps of 255."""
    return int(abs(one.astype(int) - other.astype(int)).max())


# --- the WebUI --------------------------------------------------------------------------------


def prepare(data: Path, kinds: Sequence[str], rank: int) -> dict[str, int]:
    """Models, networks and extensions in a folder; bytes that each kind touches, in float32."""
    from extensions_lib.models.families import SD15
    from tests.benchmarks import webui_models as models

    root = Path(__file__).resolve().parents[2]
    print("writing the checkpoint and networks …", file=sys.stderr, flush=True)
    models.write_checkpoint(data / "models" / "Stable-diffusion" / "full.safetensors", SD15)
    touched = {}
    for kind in kinds:
        layers = models.layers(SD15, KINDS[kind])
        touched[kind] = 4 * models.weights(layers)
        for index, name in enumerate(FIVE):
            file = data / "models" / "Lora" / f"{kind}-{name}.safetensors"
            models.write_lora(file, layers, rank, index)
        print(f"{kind}: {len(layers)} layers, {touched[kind] / 4e6:.0f} M weights; rank {rank}")
    scripts = data / "extensions" / "crucible-bench" / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("webui_probe.py"), scripts)
    (data / "extensions" / "crucible").symlink_to(root)
    return touched


def measure(data: Path, options: argparse.Namespace) -> None:
    """Starts the WebUI on the folder, measures, stops it."""
    try:
        from tests.webui.conftest import HOST, start, stop
    except ModuleNotFoundError as missing:
        raise CrucibleError(
            f"bench webui starts a WebUI as the tests do, and {missing.name} is not installed: "
            "run 'python run.py test --co -q' once"
        ) from missing
    if HOST != "A1111":
        raise CrucibleError("bench webui compares with the handler of A1111's WebUI, not Forge's")
    touched = prepare(data, options.kinds, options.rank)
    # Without the cache of encoded prompts every order encodes its own, also an unchanged one.
    settings = {"sd_model_checkpoint": "full.safetensors", "persistent_cond_cache": False}
    os.environ.update(KEEPS)
    webui = start(data, {**settings, "live_previews_enable": False}, "--nowebui")
    try:
        for kind in options.kinds:
            bench = Bench(webui, options.size, options.steps, kind, touched[kind])
            bench.run(options.rounds)
            size = f"{options.size} x {options.size}"
            print(f"\n{kind}; {size}, {options.rounds} rounds; medians (least – most)")
            report(bench.results, touched[kind])
    finally:
        stop(webui)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench webui", description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3, help="of both handlers (default 3)")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side (default 64)")
    parser.add_argument("--steps", type=int, default=4, help="at least 3 (default 4)")
    options = parser.parse_args(argv)
    if not os.environ.get("WEBUI_DIR"):
        raise CrucibleError("bench webui needs a checkout of A1111's WebUI: name it in WEBUI_DIR")
    with tempfile.TemporaryDirectory(prefix="crucible-bench-") as folder:
        measure(Path(folder), options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
