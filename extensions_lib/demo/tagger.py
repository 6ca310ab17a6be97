"""`run.py build-tagger`: trains the demo tagger on the drawn world and writes it in WD's contract.

A small convolutional network looks at the picture in 8 × 8 cells; each cell votes for every tag,
and the strongest vote counts. Every picture is drawn anew, so that none is seen twice.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from extensions_lib.demo import world

if TYPE_CHECKING:
    from torch import nn

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "models" / "demo-tagger"
SIDE, CELLS = 128, 8
WIDTHS = (16, 32, 64, 96)
SHAPES = world.SHAPES + world.HELD_OUT_SHAPES
STYLES = world.STYLES + world.HELD_OUT_STYLES
RATINGS = ("general", "sensitive", "questionable", "explicit")
TAGS = (
    *(f"{colour}_{shape}" for shape in SHAPES for colour in world.COLOURS),
    *world.SIZES,
    *(name.replace(" ", "_") for name in world.POSITIONS),
    *(style for style in STYLES if style != "flat"),
    *(f"{colour}_background" for colour in world.COLOURS),
)
BATCH, PICTURES, SEED = 64, 160_000, 1
HELD_OUT_SEED = 20_000_000  # pictures that are measured are drawn from seeds from here on
_PLACES = {name: i for i, name in enumerate(RATINGS + TAGS)}


def scene(rng: random.Random) -> world.Scene:
    """A scene of the whole world, held-out shapes and styles too, often with two figures."""
    return world.random_scene(rng, SHAPES, STYLES, two=0.35)


def tags_of(drawn: world.Scene) -> set[str]:
    """The tags of a scene, as the tagger spells them, without the rating."""
    return {tag.replace(" ", "_") for group in world.tags(drawn) for tag in group}


def target(drawn: world.Scene) -> Array:
    """float32 [labels]: 1 for the scene's tags and its rating, which is always `general`."""
    made = np.zeros(len(_PLACES), np.float32)
    made[[_PLACES[tag] for tag in tags_of(drawn)]] = 1
    made[_PLACES["general"]] = 1
    return made


def worn(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture as others may bring it: soft, noisy, or between white bars; SIDE × SIDE."""
    if rng.random() < 0.1:
        bar = rng.randint(1, picture.width // 4)
        wide, high = rng.choice([(2 * bar, 0), (0, 2 * bar)])
        longer = picture.width + 2 * bar
        canvas = Image.new("RGB", (longer, longer), "white")
        canvas.paste(picture.resize((longer - wide, longer - high)), (wide // 2, high // 2))
        picture = canvas
    if picture.width != SIDE:
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(1, 7), (SIDE, SIDE, 3)
        )
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    return picture


def lesson(seed: int, count: int = BATCH) -> tuple[Array, Array]:
    """Pictures uint8 [count, SIDE, SIDE, 3] in RGB and their targets [count, labels]."""
    rng = random.Random(seed)
    pictures, targets = [], []
    for _ in range(count):
        drawn = scene(rng)
        side = rng.choices([SIDE, 96, 192, 256], [6, 1, 2, 1])[0]
        pictures.append(np.asarray(worn(world.draw(drawn, side), rng)))
        targets.append(target(drawn))
    return np.stack(pictures), np.stack(targets)


# --- the network ------------------------------------------------------------------------------


def layers() -> list[tuple[int, int, int, int]]:
    """The convolutions: channels in and out, kernel, stride."""
    a, b, c, d = WIDTHS
    return [(3, a, 5, 2), (a, b, 3, 2), (b, c, 3, 2), (c, c, 3, 1), (c, d, 3, 2), (d, d, 3, 1)]


def network() -> nn.Module:
    """RGB pictures in 0..1, [N, 3, SIDE, SIDE], to logits [N, labels]."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
            for inward, out, kernel, stride in layers():
                self.convs.append(nn.Conv2d(inward, out, kernel, stride, kernel // 2, bias=False))
                self.norms.append(nn.BatchNorm2d(out))
            # tells each cell where it lies
            self.places = nn.Parameter(0.1 * torch.randn(1, WIDTHS[-1], CELLS, CELLS))
            self.mix = nn.Conv2d(WIDTHS[-1], 2 * WIDTHS[-1], 1)
            self.votes = nn.Conv2d(2 * WIDTHS[-1], len(_PLACES), 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = norm(conv(x)).relu()
            return self.votes(self.mix(x + self.places).relu()).amax((2, 3))

    return Net()


def train(pictures: int = PICTURES, seed: int = SEED) -> Any:
    """A network trained on so many pictures, on one thread; the same for the same seed."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net: Any = network()
    net.to(memory_format=torch.channels_last)
    steps = max(1, pictures // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    began = time.monotonic()
    for step in range(steps):
        images, wanted = lesson(seed * 10_000_000 + step)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        loss = binary_cross_entropy_with_logits(net(x), torch.from_numpy(wanted))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            seen, seconds = (step + 1) * BATCH, time.monotonic() - began
            print(f"{seen:>7} pictures, {seconds:4.0f} s, loss {loss.item():.4f}", flush=True)
    net.eval()
    return net


# --- the command ------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Trains the tagger and writes its folder. Returns the exit code."""
    import onnx  # noqa: F401  # before minutes of training, in case it is missing

    from extensions_lib.demo.tagger_file import write

    parser = argparse.ArgumentParser(
        prog="run.py build-tagger", description="Trains the demo tagger on drawn pictures."
    )
    parser.add_argument("--pictures", type=int, default=PICTURES, help=f"drawn ({PICTURES})")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    options = parser.parse_args(argv)
    model = write(train(options.pictures, options.seed), options.out)
    print(f"{model}: {model.stat().st_size / 1e6:.2f} MB; measure it by run.py bench tagger")
    return 0
