"""Hypernetworks: small MLPs between the context of an attention layer and its keys and values.

A `.pt` of the WebUI is a dict: for each width of a context (320, 640, 768, …) a pair of state
dicts, for keys and for values, and beside them how the MLPs are built. What `linear` holds is told
by order and shape when read, so that it does not matter where a file counts a dropout; what is
written counts as the WebUI counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.files.header import AGAIN, Header, short
from extensions_lib.files.safe import atomic_write, read_any_header

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".bin")
MAX_LAYERS = 64
# How the first files spelled their two layers.
_OLD = {"linear1": "linear.0", "linear2": "linear.1"}
_PARAMETER = re.compile(r"linear\.(\d{1,4})\.(weight|bias)")
_SHAPED = re.compile(r"(\d+)\.([01])\.linear[.12]")

# The WebUI's names of activations: torch's class names in lower case, and its own "swish".
ACTIVATIONS = frozenset({
    "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "hardswish", "hardtanh",
    "hardsigmoid", "hardshrink", "relu6", "rrelu", "silu", "mish", "celu", "selu", "gelu",
    "logsigmoid", "softplus", "softshrink", "softsign", "tanhshrink", "prelu", "softmax",
    "softmin", "logsoftmax",
})  # fmt: skip
_NONE = ("linear", "identity")


@dataclass(frozen=True)
class Linear:
    """weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Activation:
    """One of `ACTIVATIONS`; `slope` [1] is what a PReLU has learnt."""

    name: str
    slope: Tensor | None = None


@dataclass(frozen=True)
class LayerNorm:
    """weight and bias [width]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Dropout:
    """A share of values that is left out, in training alone: none is read from a file."""

    share: float


Layer = Linear | Activation | LayerNorm | Dropout
Mlp = tuple[Layer, ...]
Key = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Hypernetwork:
    """The MLPs of a file by width: (for keys, for values), and how they were made.

    `structure` is how wide each layer is, in multiples of the context; `dropout` the share that was
    left out after each in training, its first and last 0.
    """

    name: str
    mlps: Mapping[int, tuple[Mlp, Mlp]]
    structure: tuple[float, ...] = (1, 2, 1)
    activation: str | None = None
    layer_norm: bool = False
    activate_output: bool = True
    path: Path | None = None
    key: Key = ("", 0, 0)  # content identity: absolute path, size, time of the last change in ns
    step: int | None = None
    checkpoint_hash: str | None = None
    checkpoint: str | None = None
    info: str | None = None  # what its maker wrote about it
    dropout: tuple[float, ...] = ()
    initialisation: str = "Normal"

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(sorted(self.mlps))


def hypernetwork_widths(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """The widths of contexts that a file changes, without torch.

    Raises FileProblem: the file cannot be read, or is no hypernetwork.
    """
    header: Header = read_any_header(path)
    found = {int(match[1]) for key in header.tensors if (match := _SHAPED.match(key))}
    if not found:
        raise FileProblem(f"{path}: is no hypernetwork: no width with its layers is in it")
    return tuple(sorted(found))


def read_hypernetwork(path: str | os.PathLike[str], name: str | None = None) -> Hypernetwork:
    """Reads a hypernetwork; `name` None takes the file's stem.

    Raises FileProblem that names the width and layer where something is wrong.
    """
    from extensions_lib.files.networks import network_key
    from extensions_lib.files.pickles import read_pickle

    path = Path(path)
    key = network_key(path)
    loaded = read_pickle(path)
    items = loaded if isinstance(loaded, dict) else {}
    widths = [width for width in items if type(width) is int and width > 0]
    if not isinstance(loaded, dict) or not widths:
        raise FileProblem(f"{path}: is no hypernetwork: no width with its layers is in it")
    plan = _plan(path, loaded)
    return Hypernetwork(
        name or path.stem,
        {width: _pair(f"{path}: width {width}", width, loaded[width], plan) for width in widths},
        plan.structure,
        plan.activation,
        bool(loaded.get("is_layer_norm", False)),
        plan.activate_output,
        path,
        key,
        _kept(loaded.get("step"), int),
        _kept(loaded.get("sd_checkpoint"), str),
        _kept(loaded.get("sd_checkpoint_name"), str),
        _kept(loaded.get("optional_info"), str),
        _dropout(loaded, plan.structure),
        _kept(loaded.get("weight_initialization"), str) or "Normal",
    )


def _dropout(loaded: Mapping[Any, Any], structure: tuple[float, ...]) -> tuple[float, ...]:
    """The shares that a file states; () where it states none, or what can be none."""
    stated = loaded.get("dropout_structure")
    if not isinstance(stated, (list, tuple)) or len(stated) != len(structure):
        return ()
    fair = all(type(share) in (int, float) and 0 <= share < 1 for share in stated)
    return tuple(float(share) for share in stated) if fair and any(stated) else ()


def _kept(value: Any, kind: type) -> Any:
    return value if type(value) is kind else None


@dataclass(frozen=True)
class _Plan:
    structure: tuple[float, ...]
    activation: str | None
    activate_output: bool


def _plan(path: Path, loaded: Mapping[Any, Any]) -> _Plan:
    """How the MLPs are built; what a file does not say is as in the WebUI's first ones."""
    structure = loaded.get("layer_structure", [1, 2, 1])
    if (
        not isinstance(structure, (list, tuple))
        or not 2 <= len(structure) <= MAX_LAYERS
        or not all(type(part) in (int, float) and 0 < part <= MAX_LAYERS for part in structure)
        or (structure[0], structure[-1]) != (1, 1)
    ):
        raise FileProblem(
            f"{path}: its layer_structure is {short(structure)}; expected widths from 1 to 1, such"
            " as [1, 2, 1]"
        )
    activation = loaded.get("activation_func")
    if isinstance(activation, str) and activation in _NONE:
        activation = None
    if activation is not None and not (isinstance(activation, str) and activation in ACTIVATIONS):
        raise FileProblem(f"{path}: its activation {short(repr(activation))} is not known")
    return _Plan(tuple(structure), activation, bool(loaded.get("activate_output", True)))


def _pair(label: str, width: int, states: object, plan: _Plan) -> tuple[Mlp, Mlp]:
    if not isinstance(states, (list, tuple)) or len(states) != 2:
        raise FileProblem(f"{label}: holds no pair of MLPs, for keys and for values; {AGAIN}")
    keys, values = (
        _mlp(f"{label}, {what}", width, state, plan)
        for what, state in zip(("keys", "values"), states, strict=True)
    )
    return keys, values


def _mlp(label: str, width: int, state: object, plan: _Plan) -> Mlp:
    """The layers in their order, checked against the structure that the file states."""
    layers: list[Layer] = []
    seen = 0
    count = len(plan.structure) - 1
    for number, found in _parameters(label, state):
        weight, bias = found.get("weight"), found.get("bias")
        if weight is not None and bias is None and weight.shape == (1,):
            if not layers or layers[-1] != Activation("prelu"):
                raise FileProblem(f"{label}: linear.{number} has no bias; {AGAIN}")
            layers[-1] = Activation("prelu", weight)
            continue
        if weight is None or bias is None:
            raise FileProblem(f"{label}: linear.{number} lacks its weight or bias; {AGAIN}")
        if weight.dim() == 2:
            if seen == count:
                raise FileProblem(f"{label}: has more than the {count} layers it states; {AGAIN}")
            shape = tuple(int(width * part) for part in plan.structure[seen : seen + 2][::-1])
            seen += 1
            _check_shape(f"{label}: linear.{number}", weight, bias, shape)
            layers.append(Linear(weight, bias))
            if plan.activation and (seen < count or plan.activate_output):
                layers.append(Activation(plan.activation))
        elif not layers:
            raise FileProblem(f"{label}: does not begin with a linear layer; {AGAIN}")
        else:
            _check_shape(
                f"{label}: linear.{number}", weight, bias, (int(width * plan.structure[seen]),)
            )
            layers.append(LayerNorm(weight, bias))
    if seen != count:
        raise FileProblem(f"{label}: has {seen} of the {count} layers it states; {AGAIN}")
    if any(layer == Activation("prelu") for layer in layers):
        raise FileProblem(f"{label}: lacks what its prelu has learnt; {AGAIN}")
    return tuple(layers)


def _parameters(label: str, state: object) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Weight and bias of each numbered layer, in float32, by number."""
    import torch

    if not isinstance(state, Mapping):
        raise FileProblem(f"{label}: holds no layers; {AGAIN}")
    numbered: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        old, _, part = str(key).partition(".")
        match = _PARAMETER.fullmatch(f"{_OLD[old]}.{part}" if old in _OLD else str(key))
        if match is None or not isinstance(tensor, torch.Tensor):
            raise FileProblem(f"{label}: '{short(key)}' is no part of a hypernetwork")
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise FileProblem(f"{label}: '{short(key)}' holds values that are no numbers; {AGAIN}")
        numbered.setdefault(int(match[1]), {})[match[2]] = tensor.detach().float()
    yield from sorted(numbered.items())


def _check_shape(label: str, weight: Tensor, bias: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(weight.shape) != shape or tuple(bias.shape) != shape[:1]:
        raise FileProblem(
            f"{label} has the shapes {list(weight.shape)} and {list(bias.shape)}, expected"
            f" {list(shape)} and {list(shape[:1])}"
        )


# --- writing ----------------------------------------------------------------------------------


def write_hypernetwork(path: str | os.PathLike[str], hypernetwork: Hypernetwork) -> None:
    """Writes a `.pt` as the WebUI does, atomically. Raises FileProblem."""
    import torch

    each = hypernetwork
    content: dict[Any, Any] = {
        width: tuple(_state(mlp, each.dropout) for mlp in mlps) for width, mlps in each.mlps.items()
    }
    content |= {
        "step": each.step or 0,
        "name": each.name,
        "layer_structure": list(each.structure),
        "activation_func": each.activation,
        "is_layer_norm": each.layer_norm,
        "weight_initialization": each.initialisation,
        "sd_checkpoint": each.checkpoint_hash,
        "sd_checkpoint_name": each.checkpoint,
        "activate_output": each.activate_output,
        "use_dropout": any(each.dropout),
        "dropout_structure": list(each.dropout) or [0] * len(each.structure),
        "last_layer_dropout": bool(each.dropout and each.dropout[-2]),
        "optional_info": each.info,
    }
    with atomic_write(path) as temporary:
        # the older form is the one that AUTOMATIC1111's own unpickler knows
        torch.save(content, temporary, _use_new_zipfile_serialization=False)


def _state(mlp: Mlp, dropout: tuple[float, ...]) -> dict[str, Tensor]:
    """The state dict of an MLP; activations and dropouts have numbers too."""
    state: dict[str, Tensor] = {}
    number, seen = 0, 0
    for layer in (each for each in mlp if not isinstance(each, Dropout)):
        if isinstance(layer, Linear):
            number += seen > 0 and bool(dropout) and dropout[seen] > 0
            seen += 1
        if isinstance(layer, Activation):
            tensors = {} if layer.slope is None else {"weight": layer.slope}
        else:
            tensors = {"weight": layer.weight, "bias": layer.bias}
        for name, tensor in tensors.items():
            state[f"linear.{number}.{name}"] = tensor.detach().cpu().contiguous().clone()
        number += 1
    return state
