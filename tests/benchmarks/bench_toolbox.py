"""How fast the tools are on full-size checkpoints, against a whole SVD and against the disk.

extract   rank 32 from the difference of two random SD1.5 layers, one of each shape that occurs,
          weighed by how often it does: this project's randomised decomposition, and torch's whole
          SVD cut to that rank, in turns in one run. The difference has singular values that fall as
          those of fine-tuned checkpoints do (1 / n^0.7) and noise below them. Errors are Frobenius
          norms of what is left over. --every takes every layer instead: about half an hour.
bake      a network of rank 32 into an SD1.5 checkpoint in fp16, against copying that file and
          against reading it, merging in memory and saving it as a whole

    python run.py bench toolbox [--every] [--rounds N] [--folder DIR] [--only extract|bake]
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from extensions_lib.adapters import LoRA, merged
from extensions_lib.files.networks import read_network, write_network
from extensions_lib.models import SD15, canonical_layers, checkpoint_shapes, places
from extensions_lib.toolbox.bake import bake
from extensions_lib.toolbox.spectrum import of_matrix
from extensions_lib.toolbox.weighted import Weighted
from extensions_lib.toolbox.work import Output
from tests.benchmarks.timing import Clock, load

RANK = 32
NOISE = 0.02  # of the largest singular value, for each number of the rest as a whole
Shape = tuple[int, ...]


def main(arguments: Sequence[str]) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        prog="run.py bench toolbox", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--every", action="store_true", help="every layer, not one of each shape")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of bake (3)")
    parser.add_argument("--folder", type=Path, help="where to write some GB (a temporary one)")
    parser.add_argument("--only", choices=("extract", "bake"))
    options = parser.parse_args(arguments)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {load()}")
    if options.only != "bake":
        bench_extract(options.every)
    if options.only != "extract":
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            bench_bake(Path(folder), options.rounds)
    return 0


# --- extract ----------------------------------------------------------------------------------


def bench_extract(every: bool) -> None:
    shapes = Counter(
        info.shape
        for name, info in canonical_layers(SD15).items()
        if info.kind in ("linear", "conv") and name.startswith(("unet.", "te1."))
        and any(mark in name for mark in (".attentions.", ".resnets.", "samplers.", ".layers."))
    )  # fmt: skip
    spent, errors = {"ours": 0.0, "whole": 0.0}, {"ours": 0.0, "whole": 0.0}
    worst = 0.0
    for shape, count in sorted(shapes.items()):
        for seed in range(count if every else 1):
            change = difference(shape, seed)
            clock = Clock()
            found: dict[str, Any] = {}
            found["ours"] = clock("ours", partial(of_matrix, change, RANK))
            whole = partial(torch.linalg.svd, change, full_matrices=False)
            found["whole"] = clock("whole", whole)
            left = {
                name: float((change - (u[:, :RANK] * s[:RANK]) @ v[:RANK]).norm())
                for name, (u, s, v, *_) in found.items()
            }
            weight = 1 if every else count
            for name in spent:
                spent[name] += weight * clock.seconds(name)
                errors[name] += weight * left[name] ** 2
            worst = max(worst, left["ours"] / left["whole"])
    what = "every layer" if every else f"one layer of each of {len(shapes)} shapes, weighed"
    error = math.sqrt(errors["ours"] / errors["whole"])
    print(f"extract, rank {RANK}, SD1.5, {sum(shapes.values())} layers ({what}):")
    print(f"  ours       {spent['ours']:8.1f} s")
    print(f"  whole SVD  {spent['whole']:8.1f} s   {spent['whole'] / spent['ours']:.1f} × ours")
    print(f"  error of ours / of the best rank {RANK}: {error:.5f}; of the worst layer {worst:.5f}")


def difference(shape: Shape, seed: int) -> Tensor:
    """A change whose singular values fall as 1 / n^0.7 for the first 256, with noise below."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape[0], math.prod(shape[1:])
    count = min(256, rows, columns)
    left = torch.linalg.qr(torch.randn(rows, count, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, count, generator=generator))[0]
    values = 1 / torch.arange(1, count + 1) ** 0.7
    noise = torch.randn(rows, columns, generator=generator)
    return (left * values) @ right.T + noise * (NOISE / math.sqrt(max(rows, columns)))


# --- bake -------------------------------------------------------------------------------------


def bench_bake(folder: Path, rounds: int) -> None:
    checkpoint, network = folder / "sd15.safetensors", folder / "n.safetensors"
    write_inputs(checkpoint, network)
    size = checkpoint.stat().st_size
    clock = Clock()
    out = folder / "out.safetensors"
    for _ in range(rounds):
        clock("copy", lambda: copied(checkpoint, out))
        clock("ours", lambda: bake(checkpoint, [Weighted(network)], order=Output(fresh(out))))
        clock("whole", lambda: at_once(checkpoint, network, out))
    print(f"bake, rank {RANK} on {len(read_network(network).adapters)} layers into {size / 1e9:.2f} GB:")  # fmt: skip  # noqa: E501
    for name, said in (("copy", "copying the file, to the disk"), ("ours", "ours, to the disk"), ("whole", "load, merge, save_file")):  # fmt: skip  # noqa: E501
        seconds, ratio = clock.seconds(name), clock.ratio(name, "copy")
        print(f"  {said:30} {seconds:6.2f} s  {size / seconds / 1e6:7.0f} MB/s  {ratio:.2f} × copy")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"  peak memory of this process, all of the above: {peak / 1e6:.2f} GB")


def write_inputs(checkpoint: Path, network: Path) -> None:
    noise = torch.randn(60_000_000).mul_(0.02).half()
    save_file(
        {key: noise[: math.prod(shape)].view(shape).clone()
         for key, shape in checkpoint_shapes(SD15).items()},
        checkpoint,
    )  # fmt: skip
    layers = canonical_layers(SD15)
    chosen = [n for n, i in layers.items() if i.kind == "linear" and (".attentions." in n or ".layers." in n)]  # fmt: skip  # noqa: E501
    adapters = {}
    for name in chosen:
        fresh_one = LoRA.fresh(layers[name].shape, RANK, float(RANK))
        adapters[name] = LoRA(torch.randn_like(fresh_one.up) * 0.01, fresh_one.down, alpha=RANK)
    write_network(network, adapters, dtype=torch.float16)


def fresh(path: Path) -> str:
    path.unlink(missing_ok=True)
    return str(path)


def copied(source: Path, target: Path) -> None:
    """A copy that is on the disk when it ends, as ours is; read and written, not cloned."""
    target.unlink(missing_ok=True)
    with open(source, "rb") as read, open(target, "wb") as write:
        shutil.copyfileobj(read, write, 1 << 20)
        write.flush()
        os.fsync(write.fileno())


def at_once(checkpoint: Path, network: Path, target: Path) -> None:
    """What a short script does: all tensors in memory, merged, saved."""
    target.unlink(missing_ok=True)
    tensors = load_file(checkpoint)
    spots = places(SD15, "ldm")
    for layer, adapter in read_network(network).adapters.items():
        key = spots[layer].key
        tensors[key] = merged(tensors[key], [(adapter, 1.0)])
    save_file(tensors, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
