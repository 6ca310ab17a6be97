"""Tiny ONNX taggers of every contract, and what they must answer, told in float64 by the formats.

A model is one matrix over all pixels, so that every pixel counts in every score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
LABELS = (
    *(("general", "9"), ("sensitive", "9"), ("explicit", "9")),
    *((f"tag_{i}", "0") for i in range(14)),
    *((f"someone_({i})", "4") for i in range(3)),
)
KINDS = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}


@dataclass
class Tiny:
    """What was written: its matrix is [3 · size · size, labels] over [S, S, 3] in `colour`."""

    path: Path
    matrix: Array
    bias: Array
    size: int

    def answer(self, values: Array) -> Array:
        """Probabilities float64 of inputs [N, S, S, 3], ranged and normalised, in the model's
        colour order."""
        logits = values.reshape(len(values), -1).astype(np.float64) @ self.matrix + self.bias
        return np.asarray(1 / (1 + np.exp(-logits)))


def write_model(
    path: Path,
    *,
    size: int = 24,
    count: int = len(LABELS),
    layout: str = "NHWC",
    largest: float = 255,
    batch: int | None = None,
    logits: bool = False,
    dynamic_size: bool = False,
    kind: Any = np.float32,
    before: Sequence[str] = (),
    output: str = "scores",
    square_output: bool = False,
    seed: int = 0,
) -> Tiny:
    """Writes a model; `before` names outputs of the same shape that say something else first."""
    rng = np.random.default_rng(seed)
    spread = 3 / (largest * np.sqrt(3 * size * size))
    matrix = rng.normal(0, spread, (3 * size * size, count)).astype(kind)
    bias = rng.normal(-1, 1, count).astype(kind)
    nodes, x = [], "pixels"
    if layout == "NCHW":
        nodes.append(helper.make_node("Transpose", [x], ["hwc"], perm=[0, 2, 3, 1]))
        x = "hwc"
    nodes.append(helper.make_node("Flatten", [x], ["flat"], axis=1))
    nodes.append(helper.make_node("Gemm", ["flat", "matrix", "bias"], ["logits"]))
    last = "logits"
    if not logits:
        nodes.append(helper.make_node("Sigmoid", ["logits"], ["probabilities"]))
        last = "probabilities"
    names = {before_name: "Neg" for before_name in before}
    nodes += [helper.make_node(how, [last], [name]) for name, how in names.items()]
    if square_output:
        nodes.append(helper.make_node("Unsqueeze", [last, "axes"], [output]))
    else:
        nodes.append(helper.make_node("Identity", [last], [output]))
    number: Any = batch or "batch"
    side: Any = "side" if dynamic_size else size
    shape = [number, side, side, 3] if layout == "NHWC" else [number, 3, side, side]
    shapes = {name: [number, count] for name in before}
    shapes[output] = [number, count, 1] if square_output else [number, count]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", KINDS[kind], shape)],
        [helper.make_tensor_value_info(name, KINDS[kind], at) for name, at in shapes.items()],
        [
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.array([2]), "axes"),
        ],
    )
    opset = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return Tiny(path, matrix.astype(np.float64), bias.astype(np.float64), size)


def write_tags(path: Path, labels: Sequence[tuple[str, str]] = LABELS) -> None:
    """`selected_tags.csv` as WD's taggers have it."""
    rows = [f"{i},{name},{category},{100 - i}" for i, (name, category) in enumerate(labels)]
    path.write_text("tag_id,name,category,count\n" + "\n".join(rows) + "\n", encoding="utf-8")


def write_tagger(
    folder: Path, entry: dict[str, Any] | None = None, *, tags: bool = True, **how: Any
) -> Tiny:
    """A tagger's folder in WD's contract, or with an entry of its own."""
    tiny = write_model(folder / "model.onnx", **how)
    if tags:
        write_tags(folder / "selected_tags.csv", LABELS[: how.get("count", len(LABELS))])
    if entry is not None:
        (folder / "crucible-tagger.json").write_text(json.dumps(entry), encoding="utf-8")
    return tiny


# --- what pictures must become, in float64 ----------------------------------------------------


def cubic(x: Array) -> Array:
    """Keys' kernel with a = −0.5 (Keys 1981), as Pillow's BICUBIC."""
    x, a = abs(x), -0.5
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def triangle(x: Array) -> Array:
    return np.maximum(0, 1 - abs(x))


def lanczos(x: Array) -> Array:
    return np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


KERNELS = {"bicubic": (cubic, 2), "bilinear": (triangle, 1), "lanczos": (lanczos, 3)}


def resampled(pixels: Array, width: int, height: int, how: str) -> Array:
    """[height, width, 3] of [H, W, 3]: the kernel widened where it makes smaller.

    Whole numbers from 0 to 255 after each direction, as Pillow keeps them; AREA stays exact.
    """
    for axis, count in ((1, width), (0, height)):
        weights = _weights(pixels.shape[axis], count, how)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
        if how != "area":
            pixels = np.floor(pixels + 0.5).clip(0, 255)
    return pixels


def _weights(old: int, new: int, how: str) -> Array:
    if old == new:
        return np.eye(old)
    scale = old / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    if how == "area":  # the share of each pixel that lies below a new one
        left = np.clip(np.arange(old), centres - scale / 2, centres + scale / 2)
        right = np.clip(np.arange(old) + 1, centres - scale / 2, centres + scale / 2)
        weights = right - left
    else:
        kernel, _ = KERNELS[how]
        weights = kernel((np.arange(old) + 0.5 - centres) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


def padded(pixels: Array, ground: Sequence[float]) -> Array:
    """A square with the picture in the middle, the odd row or column after it."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    made = np.empty((side, side, 3))
    made[:] = ground
    top, left = (side - height) // 2, (side - width) // 2
    made[top : top + height, left : left + width] = pixels
    return made
