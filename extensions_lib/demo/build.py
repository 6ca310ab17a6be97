"""`run.py build-demo`: trains the demo checkpoint and its networks from nothing, on the CPU.

Three stages, each of which goes on where it stopped: the autoencoder, the UNet with the text
encoder, and the small networks. The state of the first two lies in the work folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extensions_lib.demo import world

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo"
LORAS = ROOT / "models" / "Lora"
STAGES = ("vocabulary", "vae", "diffusion", "pack", "loras")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages asked for. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="run.py build-demo", description=__doc__)
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=STAGES[1:],
        help="which to run; `vocabulary` (not among the default) needs the open_clip_torch package",
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo", help="training state")
    parser.add_argument("--vae-minutes", type=float, default=18)
    parser.add_argument("--samples", type=int, default=500_000, help="pictures the UNet sees")
    parser.add_argument("--pool", type=int, default=20_000, help="pictures drawn by each worker")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--start", type=Path, help="checkpoint to train on from")
    parser.add_argument("--out", type=Path, default=DEMO / "demo.safetensors")
    parser.add_argument("--networks", nargs="*", default=(), help="only these networks")
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if stage in options.stages:
            print(f"-- {stage}", flush=True)
            globals()[f"_{stage}"](options)
    return 0


def _vocabulary(options: argparse.Namespace) -> None:
    from extensions_lib.demo.vocabulary import TABLE_NAME, open_clip_table, write_clip_vocabulary
    from extensions_lib.errors import FileProblem

    table = open_clip_table()
    if table is None:
        raise FileProblem(f"{TABLE_NAME}: not found; install open_clip_torch (without its needs)")
    write_clip_vocabulary(table, DEMO / "clip")


def _vae(options: argparse.Namespace) -> None:
    from extensions_lib.demo import autoencoder

    autoencoder.train(options.work, options.vae_minutes, options.workers)


def _diffusion(options: argparse.Namespace) -> None:
    from extensions_lib.demo import diffusion
    from extensions_lib.hosts.standalone.text import load_tokenizer

    vae = _vae_of(options)
    diffusion.train(
        options.work,
        vae,
        load_tokenizer(),
        options.samples,
        options.workers,
        options.pool,
        options.start,
    )


def _vae_of(options: argparse.Namespace) -> Any:
    """The autoencoder trained in the work folder, else that of the checkpoint to go on from."""
    from extensions_lib.errors import FileProblem
    from extensions_lib.hosts.standalone.load import load_checkpoint

    if (options.work / "vae.pt").exists():
        return folded_vae(options.work)
    if options.start is None:
        raise FileProblem(
            f"{options.work / 'vae.pt'}: not there; run the stage `vae` first, or name a "
            "checkpoint with --start to take its autoencoder"
        )
    return load_checkpoint(options.start, device="cpu").vae.float().requires_grad_(False)


def folded_vae(work: Path) -> Any:
    """The trained autoencoder as the checkpoint file holds it."""
    import torch

    from extensions_lib.demo import autoencoder

    vae: Any = autoencoder.build()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    autoencoder.set_norm_eps(vae, autoencoder.TRAIN_EPS)
    autoencoder.fold_norms(vae)
    sample = autoencoder.pictures(256, seed=9).float() / 127.5 - 1
    autoencoder.fold_latents(vae, sample)
    return vae.eval().requires_grad_(False)


def _pack(options: argparse.Namespace) -> None:
    from extensions_lib.demo import diffusion
    from extensions_lib.demo.pack import pack

    unet, text, seen = diffusion.load_average(options.work / "diffusion.pt")
    parts = {"unet": unet, "te1": text, "vae": _vae_of(options)}
    metadata = {
        "crucible.size": str(world.SIZE),
        "crucible.cfg": "3",
        "crucible.example": "red circle, large, center, blue background",
        "modelspec.title": "Crucible demo: coloured shapes",
        "modelspec.license": "Apache-2.0",
        "crucible.samples": str(seen),
    }
    pack(parts, options.out, metadata)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, {seen} pictures seen")


def _loras(options: argparse.Namespace) -> None:
    from extensions_lib.demo import loras

    loras.build(options.out, LORAS, options.networks)
