"""ControlNet-LLLite on a small SDXL: against the formula in float64, and off without trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from extensions_lib.files.lllite import ControlLLLite, read_lllite
from extensions_lib.hosts.standalone.load import load_checkpoint
from extensions_lib.models.loaded import LoadedModel
from extensions_lib.patching.lllite import LLLites
from tests.lllite import by_hand, lllite_file, targets
from tests.tiny import TINY, tiny_checkpoint

XL = TINY["SDXL"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lllite")
    for seed, name in enumerate(("one", "two")):
        lllite_file(made / f"{name}.safetensors", XL, seed=100 * seed)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    loaded = load_checkpoint(tiny_checkpoint(folder / "xl.safetensors", "SDXL"))
    loaded.unet.double()
    return loaded


@pytest.fixture
def active(model: LoadedModel) -> Iterator[LLLites]:
    made = LLLites(model)
    yield made
    made.clear()
    assert not hooked(model)


def found(folder: Path, name: str) -> ControlLLLite:
    return read_lllite(folder / f"{name}.safetensors", structure=XL)


def picture(width: int, height: int, seed: int = 5) -> Tensor:
    """A picture of this size; another size is another picture."""
    generator = torch.Generator().manual_seed(seed + width + height)
    return torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64) * 2 - 1


def answer(model: LoadedModel, width: int = 64, height: int = 96, batch: int = 2) -> Tensor:
    """The UNet's answer for a batch whose rows differ, as those of prompt and negative prompt."""
    generator = torch.Generator().manual_seed(9)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    unet: Any = model.unet
    with torch.no_grad():
        said: Tensor = unet(
            noise(batch, 4, height // 8, width // 8),
            torch.tensor(500),
            encoder_hidden_states=noise(batch, 77, 80),
            added_cond_kwargs={"text_embeds": noise(batch, 48), "time_ids": noise(batch, 6)},
            return_dict=False,
        )[0]
    return said


def hooked(model: LoadedModel) -> list[str]:
    """The modules with anything on them that a plain model has not."""
    return [
        name
        for name, module in model.unet.named_modules()
        if module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
    ]


def by_forwards(
    model: LoadedModel, path: Path, weight: float, size: tuple[int, int]
) -> Callable[[], None]:
    """Puts the formula in numpy around each layer's own forward; returns what takes it away."""
    raw, pixels = load_file(path), picture(*size)[0].numpy()
    wrapped = []
    for canonical, name, _, _ in targets(XL):
        parts = {key[len(name) + 1 :]: t for key, t in raw.items() if key.startswith(f"{name}.")}
        module = model.layer(canonical)[0]
        own = module.forward

        def forward(x: Tensor, own: Any = own, parts: Any = parts) -> Tensor:
            added = [by_hand(parts, pixels, row.numpy()) for row in x]
            answer: Tensor = own(x + weight * torch.from_numpy(np.stack(added)))
            return answer

        module.forward = forward
        wrapped.append(module)

    def unwrap() -> None:
        for module in wrapped:
            del module.forward

    return unwrap


@pytest.mark.parametrize("weight", [1.0, 0.4, -0.6])
def test_the_whole_unet(model: LoadedModel, active: LLLites, folder: Path, weight: float) -> None:
    plain = answer(model)
    unwrap = by_forwards(model, folder / "one.safetensors", weight, (64, 96))
    expected = answer(model)
    unwrap()
    assert active.apply([found(folder, "one")], picture) == [[]]
    active.weigh([weight])
    changed = answer(model)
    torch.testing.assert_close(changed, expected, rtol=1e-9, atol=1e-9)
    assert (changed - plain).abs().max() > 1e-3
    assert (changed - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3  # in every row
    active.clear()
    assert torch.equal(answer(model), plain)


def test_a_row_does_not_depend_on_its_neighbours(
    model: LoadedModel, active: LLLites, folder: Path
) -> None:
    active.apply([found(folder, "one")], picture)
    active.weigh([1.0])
    unet: Any = model.unet
    sample = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    extra = {
        "encoder_hidden_states": torch.randn(1, 77, 80, dtype=torch.float64),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, 48, dtype=torch.float64),
            "time_ids": torch.randn(1, 6, dtype=torch.float64),
        },
    }

    def repeated(value: Any, count: int) -> Any:
        if isinstance(value, dict):
            return {key: repeated(each, count) for key, each in value.items()}
        return value.repeat(count, *[1] * (value.dim() - 1))

    with torch.no_grad():
        one = unet(sample=sample, timestep=torch.tensor(5), **extra).sample
        three = unet(
            repeated(sample, 3), torch.tensor(5), **{k: repeated(v, 3) for k, v in extra.items()}
        ).sample
    for row in three:
        torch.testing.assert_close(row, one[0])


def test_two_follow_one_another_in_their_order(
    model: LoadedModel, active: LLLites, folder: Path
) -> None:
    # The last put around a forward sees the input first.
    unwraps = [
        by_forwards(model, folder / f"{name}.safetensors", weight, (64, 96))
        for name, weight in (("two", 0.5), ("one", 1.0))
    ]
    expected = answer(model)
    unwraps[0]()
    active.apply([found(folder, "one"), found(folder, "two")], picture)
    active.weigh([1.0, 0.5])
    torch.testing.assert_close(answer(model), expected, rtol=1e-9, atol=1e-9)


def test_another_size_sees_the_picture_in_that_size(
    model: LoadedModel, active: LLLites, folder: Path
) -> None:
    expected = {}
    for size in ((64, 96), (128, 128)):
        unwrap = by_forwards(model, folder / "one.safetensors", 1.0, size)
        expected[size] = answer(model, *size)
        unwrap()
    active.apply([found(folder, "one")], picture)
    active.weigh([1.0])
    for size in ((64, 96), (128, 128), (64, 96)):
        torch.testing.assert_close(answer(model, *size), expected[size], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(72, 96), (88, 72), (104, 120)])
def test_sides_that_are_no_multiple_of_32(
    model: LoadedModel, active: LLLites, folder: Path, size: tuple[int, int]
) -> None:
    plain = answer(model, *size)
    active.apply([found(folder, "one")], picture)
    active.weigh([1.0])
    assert not torch.equal(answer(model, *size), plain)
    assert active.unmet == set()


def test_weight_0_and_removal_leave_every_bit(
    model: LoadedModel, active: LLLites, folder: Path
) -> None:
    before = {key: each.clone() for key, each in model.unet.state_dict().items()}
    plain = answer(model)
    active.apply([found(folder, "one")], picture)
    assert torch.equal(answer(model), plain)  # at weight 0
    active.weigh([1.0])
    assert not torch.equal(answer(model), plain)
    active.clear()
    assert hooked(model) == []
    assert torch.equal(answer(model), plain)
    after = model.unet.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_error_while_putting_on_leaves_nothing(
    model: LoadedModel, active: LLLites, folder: Path
) -> None:
    broken = found(folder, "two")
    broken.layers = dict.fromkeys(broken.layers, None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        active.apply([found(folder, "one"), broken], picture)
    assert hooked(model) == []


def test_an_error_in_the_middle_of_a_pass(
    model: LoadedModel, active: LLLites, folder: Path
) -> None:
    plain = answer(model)

    def no_picture(width: int, height: int) -> Tensor:
        raise ValueError(f"none of {width} by {height}")

    active.apply([found(folder, "one")], no_picture)
    active.weigh([1.0])
    with pytest.raises(ValueError, match="none of 64 by 96"):
        answer(model)
    active.clear()
    assert hooked(model) == [] and torch.equal(answer(model), plain)


def test_layers_that_do_not_fit(model: LoadedModel, active: LLLites, folder: Path) -> None:
    mixed = found(folder, "one")
    first, second, *kept_names = list(mixed.layers)[:5]
    wide = read_lllite(folder / "one.safetensors", structure=XL).layers
    deep = next(each for each in wide.values() if each.width != mixed.layers[first].width)
    kept = {name: mixed.layers[name] for name in kept_names}
    mixed.layers = {first: deep, **kept, "unet.nowhere": deep}
    (unfit,) = active.apply([mixed], picture)
    width = wide[first].width
    assert unfit == [
        f"{first}: made for an input {deep.width} wide, the layer's is {width}",
        "unet.nowhere: this model has no such layer",
    ]
    assert len(hooked(model)) == 4  # the layers that fit, and the UNet
    mixed.layers |= {second: deep}  # now half do not
    assert len(active.apply([mixed], picture)[0]) == 3 and hooked(model) == []


def test_an_input_that_was_cut_up_is_left_alone_and_told(
    model: LoadedModel, active: LLLites, folder: Path
) -> None:
    plain = answer(model)
    active.apply([found(folder, "one")], picture)
    active.weigh([1.0])
    name = next(layer for layer in found(folder, "one").layers if layer.endswith("attn1.to_q"))
    module: Any = model.layer(name)[0]
    answer(model)
    assert active.unmet == set()
    with torch.no_grad():
        cut = torch.ones(2, 5, module.in_features, dtype=torch.float64)
        active.weigh([0.0])
        expected = module(cut)
        active.weigh([1.0])
        assert torch.equal(module(cut), expected)
    assert active.unmet == {name}
    active.clear()
    assert active.unmet == set() and torch.equal(answer(model), plain)
