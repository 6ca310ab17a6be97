"""Stand-ins for taggers: wd-vit-tagger-v3's architecture with random weights, in WD's contract.

ViT-B/16 at 448 pixels with 10,861 answers (timm's `vit_base_patch16_224` at `img_size=448`),
written out in torch, so that a benchmark needs no more than the project's own packages.
"""

from __future__ import annotations

import csv
from pathlib import Path

LABELS = 10861
RATINGS = ("general", "sensitive", "questionable", "explicit")
CHARACTERS = 2780


def write_tagger(
    folder: Path, *, width: int = 768, depth: int = 12, size: int = 448, labels: int = LABELS
) -> Path:
    """Writes model.onnx (NHWC, BGR 0..255, sigmoid; any batch) and selected_tags.csv; the folder.

    Files that are there are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.onnx"
    if not model.is_file():
        _export(model, width, depth, size, labels)
    with open(folder / "selected_tags.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("tag_id", "name", "category", "count"))
        for index in range(labels):
            name, category = _label(index, labels)
            rows.writerow((index, name, category, labels - index))
    return folder


def _label(index: int, labels: int) -> tuple[str, int]:
    if index < len(RATINGS):
        return RATINGS[index], 9
    if index >= labels - min(CHARACTERS, labels // 4):
        return f"somebody_{index}_(series)", 4
    return f"tag_{index}", 0


def _export(path: Path, width: int, depth: int, size: int, labels: int) -> None:
    import os

    import torch

    torch.manual_seed(0)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    with torch.no_grad():
        torch.onnx.export(
            _vit(width, depth, size, labels).eval(),
            (torch.zeros(1, size, size, 3),),
            str(fresh),
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    os.replace(fresh, path)


def _vit(width: int, depth: int, size: int, labels: int):  # type: ignore[no-untyped-def]
    """The module; torch is loaded here, so that a benchmark's help needs none."""
    import torch
    from torch import nn

    patch, head = 16, 64
    patches = (size // patch) ** 2

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.qkv(self.before(x)).unflatten(-1, (3, width // head, head))
            query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
            weights = (query * head**-0.5 @ key.transpose(-2, -1)).softmax(-1)
            x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
            return x + self.down(nn.functional.gelu(self.up(self.after(x))))

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, width, patch, patch)
            self.place = nn.Parameter(torch.randn(1, patches, width) * 0.02)
            self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, labels)
            # a few hundred scores above the store's floor, as a trained tagger gives
            nn.init.normal_(self.head.bias, -8.0, 2.0)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = pixels.flip(-1).permute(0, 3, 1, 2) / 127.5 - 1
            x = self.embed(x).flatten(2).transpose(1, 2) + self.place
            return torch.sigmoid(self.head(self.norm(self.blocks(x)).mean(1)))

    return ViT()
