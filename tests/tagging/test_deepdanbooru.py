"""TorchDeepDanbooru's network, by the facts of its file and by TensorFlow's arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from extensions_lib.errors import FileProblem
from extensions_lib.tagging import deepdanbooru
from extensions_lib.tagging.deepdanbooru import COUNT, blocks, forward, read
from extensions_lib.tagging.labels import Label
from extensions_lib.tagging.taggers import load_tagger

WIDTHS = (256, 512, 1024, 1024, 2048, 4096)
TAGS = ["1girl", "long_hair", "rating:safe", "rating:explicit"]


def shapes(tags: int = 9176, divided: int = 1) -> dict[str, tuple[int, ...]]:
    """The shapes in the file, told from its facts; `divided` makes every width smaller."""
    found = {"n_Conv_0": (64 // divided, 3, 7, 7)}
    inward, number = 64 // divided, 1
    for stage, (width, count) in enumerate(zip(WIDTHS, (3, 8, 20, 20, 3, 3), strict=True)):
        width //= divided
        for block in range(count):
            main = [(width // 4, inward, 1, 1), (width // 4, width // 4, 3, 3),
                    (width, width // 4, 1, 1)]  # fmt: skip
            if block == 0:
                place = len(main) if stage == 3 else 0
                main.insert(place, (width, inward, 1, 1))
            for shape in main:
                found[f"n_Conv_{number}"] = shape
                number += 1
            inward = width
    found["n_Conv_178"] = (tags, inward, 1, 1)
    return found


def state(divided: int = 16, tags: list[str] = TAGS) -> dict[str, Any]:
    """Random weights of the real layout, narrower, that keep numbers near 1."""
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {}
    for name, shape in shapes(len(tags), divided).items():
        inward = shape[1] * shape[2] * shape[3]
        made[f"{name}.weight"] = torch.randn(shape, generator=generator) / inward**0.5
        if name != "n_Conv_178":
            made[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return {**made, "tags": tags}


def same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's padding SAME, by its definition."""
    for axis in (2, 3):
        size = x.shape[axis]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        around = [total // 2, total - total // 2]
        x = functional.pad(x, [*([0, 0] if axis == 2 else []), *around])
    return x


def by_tensorflow(weights: dict[str, Any], images: torch.Tensor) -> torch.Tensor:
    """The network in TensorFlow's terms, every convolution padded SAME."""

    def conv(x: torch.Tensor, number: int, stride: int = 1) -> torch.Tensor:
        weight = weights[f"n_Conv_{number}.weight"]
        x = same(x, weight.shape[-1], stride)
        return functional.conv2d(x, weight, weights.get(f"n_Conv_{number}.bias"), stride)

    x = conv(images.permute(0, 3, 1, 2), 0, 2).relu()
    x = functional.max_pool2d(same(x, 3, 2), 3, 2)  # after relu, a border of zeros changes nothing
    number = 1
    for stage, count in enumerate((3, 8, 20, 20, 3, 3)):
        for block in range(count):
            stride, rest = (2 if stage and not block else 1), x
            if not block and stage != 3:
                rest, number = conv(x, number, stride), number + 1
            y = conv(x, number).relu()
            y = conv(y, number + 1, stride).relu()
            y, number = conv(y, number + 2), number + 3
            if not block and stage == 3:
                rest, number = conv(x, number, stride), number + 1
            x = (y + rest).relu()
    return conv(x, number).mean((2, 3)).sigmoid()


def test_the_numbers_are_the_files() -> None:
    assert COUNT == 179
    shortcuts = [block.shortcut for block in blocks() if block.shortcut is not None]
    assert shortcuts == [1, 11, 36, 100, 158, 168]
    fourth = next(block for block in blocks() if block.shortcut == 100)
    assert fourth.main == (97, 98, 99)
    used = {0, 178, *shortcuts, *(number for block in blocks() for number in block.main)}
    assert used == set(range(179))


def test_it_has_161_million_parameters() -> None:
    numbers = sum(int(np.prod(shape)) for shape in shapes().values())
    biases = sum(shape[0] for name, shape in shapes().items() if name != "n_Conv_178")
    assert len(shapes()) == 179 and round((numbers + biases) / 1e6) == 161


@pytest.mark.parametrize("side", [512, 128])
def test_the_arithmetic_is_tensorflows(side: int) -> None:
    weights = state()
    images = torch.rand(2, side, side, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = forward(weights, images), by_tensorflow(weights, images)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_file_as_a_tagger(tmp_path: Path) -> None:
    folder = tmp_path / "torch_deepdanbooru"
    folder.mkdir()
    weights = state()
    torch.save(weights, folder / "model-resnet_custom_v3.pt")
    tagger = load_tagger("deepbooru", tmp_path, device="cpu")
    assert tagger.labels[1:3] == (Label("long_hair", "general"), Label("safe", "rating"))
    assert (tagger.size, tagger.batch, tagger.provider) == (512, None, "CPU")
    picture = Image.effect_noise((300, 200), 60).convert("RGB")
    prepared = tagger.prepare(picture)
    scores = tagger.score(np.stack([prepared, 255 - prepared]))
    with torch.inference_mode():
        exact = forward(weights, torch.from_numpy(prepared[None]).float() / 255)[0]
    np.testing.assert_allclose(scores[0], exact, atol=1e-5)
    assert scores.dtype == np.float32 and abs(scores[0] - scores[1]).max() > 1e-4
    tagger.close()
    with pytest.raises(FileProblem, match="was unloaded"):
        tagger.score(prepared[None])


def test_files_that_are_not_it(tmp_path: Path) -> None:
    def refused(content: Any, said: str) -> None:
        torch.save(content, tmp_path / "m.pt")
        with pytest.raises(FileProblem, match=said):
            read(tmp_path / "m.pt")

    refused({"weight": torch.zeros(1)}, "holds no list of tags")
    refused({"tags": TAGS, "n_Conv_0.weight": torch.zeros(1)}, "lacks 178 of 179 layers")
    refused({**state(32), "tags": TAGS[:2]}, "lists 2 tags and gives 4 scores")
    refused({"tags": TAGS, "x": deepdanbooru.Stage(1, 1)}, "holds more than tensors")
    (tmp_path / "m.pt").write_bytes(b"nothing")
    with pytest.raises(FileProblem):
        read(tmp_path / "m.pt")
    with pytest.raises(FileProblem, match="cannot be read"):
        read(tmp_path / "gone.pt")
