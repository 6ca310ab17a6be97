"""How long it takes to put networks on a model, change them and take them off again.

A full-size SD1.5 UNet and CLIP-L text encoder with random weights (fp32; on a GPU fp16, as are the
factors of the bounds) and rank-32 LoRAs on 264 layers, measured against diffusers' fuse path, and
against two bounds, all in the same rounds:

copy   the touched bytes once into memory that is there
addmm  `torch.addmm(W, U, D, out=W2)` once over the same tensors; for five networks U and D already
       concatenated. "fresh": into memory that is not there yet, as a first application needs it

    python tests/benchmarks/bench_apply.py [--device cuda] [--threads N] [--repeat N] [--small]
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from extensions_lib.adapters import LoRA
from extensions_lib.patching import ActiveSet, Wanted
from tests.benchmarks.devices import Device
from tests.benchmarks.timing import Clock

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", ".q_proj", ".k_proj", ".v_proj", ".out_proj")
OTHERS = (".ff.net.0.proj", ".ff.net.2", ".proj_in", ".proj_out", ".fc1", ".fc2")
MB = 1 << 20


@dataclass
class Network:
    """A network of random LoRAs."""

    name: str
    key: str
    adapters: dict[str, LoRA]


class Model:
    """UNet and text encoder by canonical layer names."""

    def __init__(self, unet: nn.Module, text: nn.Module) -> None:
        self.unet, self.text = unet, text
        self.layers: dict[str, nn.Module] = {
            f"{component}.{path}": module
            for component, root in (("unet", unet), ("te1", text))
            for path, module in root.named_modules()
            if path.endswith(ATTENTION + OTHERS) and isinstance(module, nn.Linear | nn.Conv2d)
        }

    def layer(self, canonical: str) -> tuple[nn.Module, str, slice | None]:
        return self.layers[canonical], "weight", None

    def weights(self) -> list[Tensor]:
        return [module._parameters["weight"] for module in self.layers.values()]  # type: ignore


def build(small: bool) -> Model:
    """SD1.5's shapes, or a few narrow blocks."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
    text: dict[str, Any] = {"projection_dim": 768, "hidden_size": 768, "intermediate_size": 3072}
    text |= {"num_hidden_layers": 12, "num_attention_heads": 12}
    if small:
        unet |= {"block_out_channels": (64, 128, 128, 128), "cross_attention_dim": 64}
        text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 4, "vocab_size": 1000}
    with torch.device("meta"):
        bare = UNet2DConditionModel(**unet)
    filled = bare.to_empty(device="cpu")
    for parameter in filled.parameters():
        parameter.data.normal_(0, 0.02)
    return Model(filled.eval(), CLIPTextModel(CLIPTextConfig(**text)).eval())


def networks(model: Model, count: int, rank: int) -> list[Network]:
    made = []
    for index in range(count):
        adapters = {}
        for name, weight in zip(model.layers, model.weights(), strict=True):
            with weight.device:
                lora = LoRA.fresh(weight.shape, rank, float(rank))
            lora.up.normal_(0, 0.01)
            adapters[name] = lora
        made.append(Network(f"n{index}", f"n{index}", adapters))
    return made


def measure_ours(model: Model, nets: Sequence[Network], clock: Clock) -> int:
    """One round; the bytes it added. Ends with nothing in force and all memory given back."""
    active = ActiveSet(model)
    one, two = [Wanted(nets[0], 0.8, 0.8)], [Wanted(nets[0], 0.5, 0.5)]
    five = [Wanted(net, 0.8, 0.8) for net in nets]
    other = [*five[:4], Wanted(nets[4], 0.5, 0.5)]
    clock("ours: first, fresh memory", lambda: active.apply(one))
    added = active.nbytes
    clock("ours: same set again", lambda: active.apply(one))
    clock("ours: change weight", lambda: active.apply(two))
    clock("ours: remove", active.clear)
    clock("ours: apply", lambda: active.apply(one))
    clock("ours: five from one", lambda: active.apply(five))
    clock("ours: change one of five", lambda: active.apply(other))
    clock("ours: remove five", active.clear)
    clock("ours: apply five", lambda: active.apply(five))
    active.release()
    return added


def measure_bounds(
    model: Model, nets: Sequence[Network], into: Sequence[Tensor], clock: Clock
) -> None:
    """The same tensors through plain torch, with everything looked up beforehand."""
    base = [weight.flatten(1) for weight in model.weights()]

    def factors(chosen: Sequence[Network]) -> list[tuple[Tensor, Tensor]]:
        return [
            (
                torch.cat([net.adapters[name].up.flatten(1) for net in chosen], 1).to(weight),
                torch.cat([net.adapters[name].down.flatten(1) for net in chosen]).to(weight),
            )
            for name, weight in zip(model.layers, base, strict=True)
        ]

    def copy() -> None:
        for weight, out in zip(base, into, strict=True):
            out.copy_(weight)

    def addmm(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        for weight, (up, down), out in zip(base, pairs, into, strict=True):
            torch.addmm(weight, up, down, out=out)

    one, five = factors(nets[:1]), factors(nets)
    clock("copy", copy)
    clock("addmm", lambda: addmm(one))
    clock("addmm five", lambda: addmm(five))
    clock(
        "addmm fresh",
        lambda: [torch.addmm(w, u, d) for w, (u, d) in zip(base, one, strict=True)],
    )


class Diffusers:
    """The same networks through a diffusers pipeline: load, fuse, unfuse."""

    def __init__(self, model: Model, nets: Sequence[Network]) -> None:
        from diffusers import DDIMScheduler, StableDiffusionPipeline
        from diffusers.utils import logging

        # It reports keys as missing that it has loaded; what it fuses is right.
        logging.set_verbosity_error()
        none: Any = None
        self.nets = nets
        self.pipe = StableDiffusionPipeline(
            none, model.text, none, model.unet, DDIMScheduler(), none, none, none, False
        )

    def load(self, net: Network) -> None:
        state = {}
        for name, lora in net.adapters.items():
            path = name.replace("te1.", "text_encoder.", 1)
            state[f"{path}.lora_A.weight"] = lora.down
            state[f"{path}.lora_B.weight"] = lora.up
        self.pipe.load_lora_weights(state, adapter_name=net.name)

    def fuse(self, nets: Sequence[Network], weights: Sequence[float]) -> None:
        names = [net.name for net in nets]
        self.pipe.set_adapters(names, list(weights))
        self.pipe.fuse_lora(adapter_names=names)

    def change(self, nets: Sequence[Network], weights: Sequence[float]) -> None:
        self.pipe.unfuse_lora()
        self.fuse(nets, weights)

    def measure(self, clock: Clock) -> None:
        nets = self.nets

        def first() -> None:
            self.load(nets[0])
            self.fuse(nets[:1], [0.8])

        clock("peft: first with load", first)
        clock("peft: change weight", lambda: self.change(nets[:1], [0.5]))
        clock("peft: remove", self.pipe.unfuse_lora)
        clock("peft: apply", lambda: self.fuse(nets[:1], [0.8]))
        self.pipe.unfuse_lora()

        def load_others() -> None:
            for net in nets[1:]:
                self.load(net)

        clock("peft: load four more", load_others)
        clock("peft: apply five", lambda: self.fuse(nets, [0.8] * 5))
        clock("peft: change one of five", lambda: self.change(nets, [0.8] * 4 + [0.5]))
        clock("peft: remove five", self.pipe.unfuse_lora)
        self.pipe.delete_adapters([net.name for net in nets])
        self.pipe.unload_lora_weights()


def measure_forward(model: Model, net: Network, rounds: int, clock: Clock) -> None:
    """The UNet with a network in force and without, in turns."""
    size = 32
    width = int(model.unet.config.cross_attention_dim)  # type: ignore[union-attr, arg-type]
    drawn = torch.randn(1, 4, size, size), torch.tensor([500]), torch.randn(1, 77, width)
    inputs = [each.to(next(model.unet.parameters())) for each in drawn]
    active = ActiveSet(model)
    for turn in range(rounds + 1):
        wanted = [Wanted(net, 0.8, 0.8)]
        for name in ("forward clean", "forward active")[:: 1 if turn % 2 else -1]:
            active.apply(wanted) if name == "forward active" else active.clear()
            if turn:
                clock(name, lambda: model.unet(*inputs))
            else:
                model.unet(*inputs)
    active.release()


def resident() -> int:
    """Bytes of this process in memory (Linux; 0 elsewhere)."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


ROWS = (
    # what, ours, bound of it, the same in diffusers
    ("one: first, fresh memory", "first, fresh memory", "addmm fresh", "first with load"),
    ("one: apply again", "apply", "addmm", "apply"),
    ("one: change its weight", "change weight", "addmm", "change weight"),
    ("one: same set again", "same set again", None, None),
    ("one: remove", "remove", None, "remove"),
    ("five: added to one", "five from one", "addmm five", None),
    ("five: apply", "apply five", "addmm five", "apply five"),
    ("five: change one", "change one of five", "addmm five", "change one of five"),
    ("five: remove", "remove five", None, "remove five"),
)


def table(clock: Clock) -> None:
    def ms(name: str) -> str:
        return f"{1e3 * median(clock.times[name]):10.1f}" if name in clock.times else " " * 10

    print(f"\n{'milliseconds':28}{'ours':>10}{'bound':>10}{'ratio':>7}{'/copy':>7}", end="")
    print(f"{'diffusers':>11}{'ratio':>8}")
    for title, name, bound, other in ROWS:
        ours, theirs = f"ours: {name}", f"peft: {other}"
        line = f"{title:28}{ms(ours)}"
        if bound:
            line += f"{ms(bound)}{clock.ratio(ours, bound):7.2f}{clock.ratio(ours, 'copy'):7.2f}"
        if theirs in clock.times:
            line = f"{line:62} {ms(theirs)}{clock.ratio(theirs, ours):7.1f}x"
        print(line)
    print(f"{'copy of the touched bytes':38}{ms('copy')}")
    print(f"{'diffusers: load four more':62} {ms('peft: load four more')}")


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench apply", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--small", action="store_true", help="a few narrow blocks: a smoke test")
    parser.add_argument("--no-diffusers", action="store_true", help="leave diffusers out")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")

    device = Device(options.device)
    model = build(options.small)
    for part in (model.unet, model.text):
        part.to(device.at, torch.float16 if device.cuda else torch.float32)
    nets = networks(model, 5, options.rank)
    touched = sum(weight.nbytes for weight in model.weights())
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers")]
    clock = Clock(settle=device.settle)

    before = resident()
    active = ActiveSet(model)
    active.apply([Wanted(net) for net in nets])
    grown = resident() - before
    active.release()
    device.settle()

    measure_forward(model, nets[0], 2 * options.repeat, clock)
    into = [torch.zeros_like(weight.flatten(1)) for weight in model.weights()]
    peft = None
    if not options.no_diffusers:
        try:
            versions.append(f"peft {importlib.metadata.version('peft')}")
            peft = Diffusers(model, nets)
        except importlib.metadata.PackageNotFoundError:
            print("peft is not installed: diffusers is left out", file=sys.stderr)
    added = 0
    for _ in range(options.repeat):
        measure_bounds(model, nets, into, clock)
        added = max(added, measure_ours(model, nets, clock))
        if peft:
            peft.measure(clock)
        gc.collect()

    print(f"{', '.join(versions)}; {options.threads} threads, medians of {options.repeat} rounds")
    count = sum(weight.numel() for weight in model.weights())
    print(
        f"{len(model.layers)} layers, {count / 1e6:.0f} M weights, {touched / MB:.0f} MB, {device},"
    )
    print(f"five networks of rank {options.rank}")
    table(clock)
    print(f"\nmemory added: {added / MB:.0f} MB = {added / touched:.3f} x the touched bytes")
    print(f"the process grew by {grown / MB:.0f} MB = {grown / touched:.3f} x, five in force")
    clean, merged = (1e3 * median(clock.times[f"forward {state}"]) for state in ("clean", "active"))
    print(f"UNet forward, batch 1, 256 x 256: clean {clean:.1f} ms, active {merged:.1f} ms,")
    print(f"ratio {clock.ratio('forward active', 'forward clean'):.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
