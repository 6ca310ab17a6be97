"""TorchDeepDanbooru's `model-resnet_custom_v3.pt`: the network in plain torch, and the tagger.

The file numbers its convolutions through, n_Conv_0 to n_Conv_178. Which is which is read here from
the plan of the stages; no layer is written out.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extensions_lib.errors import FileProblem
from extensions_lib.options import OptionProblem
from extensions_lib.tagging import hub, pixels
from extensions_lib.tagging.labels import GENERAL, RATING, Label
from extensions_lib.tagging.manifest import Entry
from extensions_lib.tagging.taggers import Array, Tagger, revision_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """Blocks of one width; the first has a convolution on its shortcut.

    `shortcut_last`: that convolution's number comes after the block's others, not before.
    """

    blocks: int
    stride: int
    shortcut_last: bool = False


STAGES = (
    Stage(3, 1),
    Stage(8, 2),
    Stage(20, 2),
    Stage(20, 2, shortcut_last=True),
    Stage(3, 2),
    Stage(3, 2),
)


@dataclass(frozen=True)
class Block:
    """The numbers of a bottleneck's convolutions: 1 × 1, 3 × 3, 1 × 1, and its shortcut's."""

    main: tuple[int, int, int]
    shortcut: int | None
    stride: int


def blocks() -> Iterator[Block]:
    """The bottlenecks in order; number 0 is the stem, the number after the last is the head."""
    number = 1
    for stage in STAGES:
        for i in range(stage.blocks):
            first, shortcut = number, None
            if i == 0:
                shortcut = number + 3 if stage.shortcut_last else number
                first += not stage.shortcut_last
            yield Block((first, first + 1, first + 2), shortcut, stage.stride if i == 0 else 1)
            number += 3 + (i == 0)


COUNT = 2 + sum(3 * stage.blocks + 1 for stage in STAGES)  # convolutions


def forward(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Probabilities [N, tags] of RGB images [N, S, S, 3] in 0..1; `weights` as in the file."""
    from torch.nn.functional import adaptive_avg_pool2d, max_pool2d, pad, relu

    def conv(x: Tensor, number: int, stride: int = 1, around: int = 0) -> Tensor:
        from torch.nn.functional import conv2d

        name = f"n_Conv_{number}"
        bias = weights.get(f"{name}.bias")
        return conv2d(x, weights[f"{name}.weight"], bias, stride=stride, padding=around)

    # TensorFlow pads where a stride leaves a rest, at the right and the bottom.
    x = relu(conv(pad(images.permute(0, 3, 1, 2), [2, 3, 2, 3]), 0, stride=2))
    x = max_pool2d(pad(x, [0, 1, 0, 1], value=float("-inf")), 3, stride=2)
    for block in blocks():
        one, three, last = block.main
        rest = x if block.shortcut is None else conv(x, block.shortcut, block.stride)
        y = relu(conv(x, one))
        y = conv(pad(y, [0, 1, 0, 1]), three, 2) if block.stride == 2 else conv(y, three, 1, 1)
        x = relu(conv(relu(y), last) + rest)
    x = conv(x, COUNT - 1)
    return adaptive_avg_pool2d(x, 1).flatten(1).sigmoid()


def read(path: Path) -> tuple[dict[str, Tensor], tuple[Label, ...]]:
    """The weights and the labels of the file. Raises FileProblem."""
    import torch

    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileProblem(
            f"{path}: holds more than tensors and tags, and is not opened."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileProblem(f"{path}: cannot be read ({said}); get it again.") from error
    tags = state.pop("tags", None) if isinstance(state, dict) else None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise FileProblem(f"{path}: holds no list of tags; it is another kind of model.")
    wanted = {f"n_Conv_{i}.weight" for i in range(COUNT)}
    if missing := sorted(wanted - state.keys()):
        raise FileProblem(
            f"{path}: lacks {len(missing)} of {COUNT} layers, as {missing[0]}; get it again."
        )
    if (outputs := len(state[f"n_Conv_{COUNT - 1}.weight"])) != len(tags):
        raise FileProblem(f"{path}: lists {len(tags)} tags and gives {outputs} scores.")
    return state, tuple(_label(tag) for tag in tags)


def _label(tag: str) -> Label:
    rating = tag.startswith("rating:")
    return Label(tag[len("rating:") :], RATING) if rating else Label(tag, GENERAL)


class TorchTagger(Tagger):
    """`model-resnet_custom_v3.pt` as a tagger."""

    batch = None

    def __init__(self, entry: Entry, files: hub.Files, *, device: str = "auto") -> None:
        """`device` is auto, gpu or cpu. Raises FileProblem, and OptionProblem for a GPU that there
        is none of."""
        self.name, self.title = entry.name, entry.title
        self.thresholds, self.contract = entry.thresholds, entry.contract
        self.size = entry.contract.size
        weights, self.labels = read(files.model)
        self.revision = revision_of(files.model)
        self._device = _device(device)
        self.provider = "CUDA" if self._device.type == "cuda" else "CPU"
        self.why_not_gpu = None if self.provider == "CUDA" or device == "cpu" else _why_not()
        self._weights = {name: tensor.to(self._device).float() for name, tensor in weights.items()}
        self._lock = threading.Lock()

    def score(self, batch: Array) -> Array:
        import torch

        if batch.dtype != np.uint8 or batch.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"score: takes uint8 [N, {self.size}, {self.size}, 3]")
        if not len(batch):
            return np.zeros((0, len(self.labels)), np.float32)
        made = pixels.to_input(batch, self.contract, "NHWC")
        with self._lock, torch.inference_mode():
            if not self._weights:
                raise FileProblem(f"{self.name}: was unloaded; load it again.")
            scores = forward(self._weights, torch.from_numpy(made).to(self._device))
            found: Array = scores.cpu().numpy()
        return found

    def close(self) -> None:
        from extensions_lib.tagging.devices import give_back

        with self._lock:
            self._weights = {}
        give_back(self._device)


def _device(wanted: str) -> torch.device:
    import torch

    if wanted not in ("auto", "gpu", "cpu"):
        raise OptionProblem(f"device: takes one of auto, gpu, cpu, not {wanted!r}.")
    if wanted == "gpu" and not torch.cuda.is_available():
        raise OptionProblem(f"device: {_why_not() or 'there is no GPU here'}. Or take auto or cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _why_not() -> str | None:
    from extensions_lib.tagging.runtime import nvidia_cards

    if not nvidia_cards():
        return None
    return "there is an NVIDIA GPU, and torch here cannot use it; install torch with CUDA"
