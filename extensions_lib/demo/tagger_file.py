"""The demo tagger as files: an ONNX in WD's contract, `selected_tags.csv`, a manifest entry."""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extensions_lib.atomic import atomic_write
from extensions_lib.demo import tagger

if TYPE_CHECKING:
    from torch import nn

Array = np.ndarray[Any, Any]
ENTRY = {
    "title": "Demo: drawn shapes",
    "family": "wd",
    "size": tagger.SIDE,
    "thresholds": {"general": 0.5, "character": 0.85},
}
# Old enough for every onnxruntime that is met in a WebUI.
_OPSET, _IR = 13, 7
_COUNTED = 20_000  # scenes by which the tags' counts are told


def write(net: nn.Module, folder: Path) -> Path:
    """Writes the trained network's folder; returns the path of its model.onnx."""
    model = to_onnx(net)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("selected_tags.csv", labels_csv().encode()),
        ("crucible-tagger.json", (json.dumps(ENTRY, indent=2) + "\n").encode()),
        ("model.onnx", model),
    ):
        with atomic_write(folder / name) as path:
            path.write_bytes(content)
    return folder / "model.onnx"


def labels_csv() -> str:
    """The tag list in the format of WD's taggers; counts are of drawn scenes."""
    rng = random.Random(0)
    counts = Counter(tag for _ in range(_COUNTED) for tag in tagger.tags_of(tagger.scene(rng)))
    counts["general"] = _COUNTED
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["tag_id", "name", "category", "count"])
    for i, name in enumerate(tagger.RATINGS):
        rows.writerow([9_999_999 - i, name, 9, counts[name]])
    for i, name in enumerate(tagger.TAGS):
        rows.writerow([i, name, 0, counts[name]])
    return text.getvalue()


def to_onnx(net: Any) -> bytes:
    """The network from BGR pixels 0..255, [N, SIDE, SIDE, 3], to probabilities [N, labels].

    Normalisations are folded into the convolutions, weights are stored as float16.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, stored, x = [], [], "pixels"

    def weight(name: str, values: Array) -> str:
        stored.append(numpy_helper.from_array(values.astype(np.float16), name + "_half"))
        nodes.append(helper.make_node("Cast", [name + "_half"], [name], to=TensorProto.FLOAT))
        return name

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"x{len(nodes)}"], **attributes))
        return f"x{len(nodes) - 1}"

    x = add("Transpose", x, perm=[0, 3, 1, 2])
    # In float16 a kernel divided by 255 would lose its small numbers.
    stored.append(numpy_helper.from_array(np.float32(1 / 255), "scale"))
    x = add("Mul", x, "scale")
    for i, (kernel, bias, stride) in enumerate(_folded(net)):
        if i == 0:
            kernel = kernel[:, ::-1]  # the file takes BGR
        names = weight(f"conv{i}", kernel), weight(f"bias{i}", bias)
        around = kernel.shape[-1] // 2
        x = add("Conv", x, *names, strides=[stride] * 2, pads=[around] * 4)
        x = add("Relu", x)
    x = add("Add", x, weight("places", net.places.detach().numpy()))
    for name in ("mix", "votes"):
        layer = getattr(net, name)
        values = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        x = add("Conv", x, weight(name, values[0]), weight(f"{name}_bias", values[1]))
        x = add("Relu", x) if name == "mix" else x
    x = add("ReduceMax", x, axes=[2, 3], keepdims=0)
    nodes.append(helper.make_node("Sigmoid", [x], ["scores"]))
    side, count = tagger.SIDE, len(tagger.RATINGS + tagger.TAGS)
    graph = helper.make_graph(
        nodes,
        "demo_tagger",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", side, side, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", count])],
        stored,
    )
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, producer_name="crucible", opset_imports=opset, ir_version=_IR)
    checker.check_model(model)
    made: bytes = model.SerializeToString()
    return made


def _folded(net: Any) -> list[tuple[Array, Array, int]]:
    """Each convolution with its normalisation: kernel, bias, stride."""
    found = []
    for conv, norm in zip(net.convs, net.norms, strict=True):
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        kernel = (conv.weight * scale.view(-1, 1, 1, 1)).detach().numpy()
        bias = (norm.bias - norm.running_mean * scale).detach().numpy()
        found.append((kernel, bias, conv.stride[0]))
    return found
