"""A training set from a folder to the batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from extensions_lib.datasets.folders import Subset, subsets_of
from extensions_lib.datasets.options import DataOptions
from extensions_lib.errors import CrucibleError
from extensions_lib.training.data import BrokenPictures, Run, read_training_data
from extensions_lib.training.data_report import metadata, report
from extensions_lib.training.loop import Loop, LoopOptions
from extensions_lib.training.recipes.network import NetworkRecipe, NetworkTraining
from tests.training.drawn import (
    SMALL,
    Counting,
    batches,
    counting,
    data_of,
    draw,
    drawn_set,
    same,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Counting:
    return counting(tmp_path_factory.mktemp("models"))


def both(tmp_path: Path) -> dict[str, object]:
    """A set with regularisation: 3 pictures twice, 4 others once."""
    drawn_set(tmp_path / "train", 3)
    drawn_set(tmp_path / "reg", 4, "1_thing")
    return {"train_data_dir": str(tmp_path / "train"), "reg_data_dir": str(tmp_path / "reg")}


def test_batches_of_an_epoch(tmp_path: Path, model: Counting) -> None:
    data = data_of(tmp_path, train_batch_size=2, **both(tmp_path))
    data.prepare(model)
    names: Counter[str] = Counter()
    regular = 0
    for batch in batches(data, 1):
        count = len(batch.names)
        assert batch.latents.dtype == torch.float32 and len(batch.latents) == count <= 2
        assert len(batch.prompts) == count and batch.sizes is not None
        assert batch.regularisation is not None and batch.mask is None
        height, width = batch.latents.shape[2:]
        for size, name, reg in zip(batch.sizes, batch.names, batch.regularisation, strict=True):
            assert size[4:] == (8 * height, 8 * width)
            assert bool(reg) == name.startswith("1_thing/")
        names.update(batch.names)
        regular += int(batch.regularisation.sum())
    assert names == {
        **{f"2_sls thing/{number}.png": 2 for number in range(3)},
        **{f"1_thing/{number}.png": 2 if number < 2 else 1 for number in range(4)},
    }
    assert regular == 6


def test_without_regularisation_there_is_no_such_tensor(tmp_path: Path, model: Counting) -> None:
    data = data_of(drawn_set(tmp_path))
    data.prepare(model)
    assert data.batch(0, 0, torch.Generator()).regularisation is None


@pytest.mark.parametrize(
    "options",
    [
        {"flip_aug": True},
        {"cache_latents": False, "flip_aug": True, "color_aug": True, "random_crop": True},
        {"cache_latents_to_disk": True, "cache_text_encoder_outputs": True},
    ],
)
def test_batches_follow_from_numbers_alone(
    tmp_path: Path, model: Counting, options: dict[str, object]
) -> None:
    """Another process, which asks for the last batches first, gets the same to the bit."""
    prompts = {} if "cache_text_encoder_outputs" in options else {"shuffle_caption": True}
    given = {**both(tmp_path), **options, **prompts, "train_batch_size": 3}
    one, other = (data_of(tmp_path, Run(5, 20), **given) for _ in range(2))
    one.prepare(model)
    other.prepare(model)
    assert one.identity == other.identity

    def at(data: object, epoch: int, index: int) -> object:
        return data.batch(epoch, index, torch.Generator().manual_seed(epoch * 50 + index))  # type: ignore[attr-defined]

    numbers = [(epoch, index) for epoch in range(3) for index in range(len(one))]
    there = {number: at(one, *number) for number in numbers}
    for number in reversed(numbers):
        assert same(at(other, *number), there[number])  # type: ignore[arg-type]
    changed = data_of(tmp_path, Run(6, 20), **given)
    changed.prepare(model)
    assert not all(same(at(changed, *number), there[number]) for number in numbers)  # type: ignore[arg-type]


def test_each_augmentation_has_its_effect(tmp_path: Path, model: Counting) -> None:
    root = tmp_path / "set"
    draw(root / "1_x/0.png", (160, 64))

    def looks(**options: object) -> int:
        """How many ways the picture comes, in 12 epochs."""
        data = data_of(root, cache_latents=False, enable_bucket=False, **options)
        data.prepare(model)
        found = set()
        for epoch in range(12):
            generator = torch.Generator().manual_seed(epoch)
            draws = torch.rand(1, 10, generator=generator).tolist()
            found.add(data._encoder.pictures(data.pictures, draws).mean.numpy().tobytes())
        return len(found)

    assert looks() == 1
    assert looks(flip_aug=True) == 2
    assert looks(random_crop=True) > 5
    assert looks(color_aug=True) > 2


def test_mirrored_pictures_say_where_they_were_cropped(tmp_path: Path, model: Counting) -> None:
    draw(tmp_path / "1_x/0.png", (101, 64))
    cut = {"resolution": "64", "enable_bucket": False}
    for cached in (True, False):
        data = data_of(tmp_path, cache_latents=cached, flip_aug=True, **cut)
        data.prepare(model)
        sizes = {
            data.batch(epoch, 0, torch.Generator().manual_seed(epoch)).sizes for epoch in range(12)
        }
        assert sizes == {((64, 101, 0, 18, 64, 64),), ((64, 101, 0, 19, 64, 64),)}


def test_masks_are_mirrored_along_and_those_without_count_everywhere(
    tmp_path: Path, model: Counting
) -> None:
    from PIL import Image

    root = tmp_path / "set"
    draw(root / "1_x/0.png", seed=1)
    clear = Image.open(draw(root / "1_x/1.png", seed=2)).convert("RGBA")
    alpha = Image.new("L", (64, 64))
    alpha.paste(255, (0, 0, 32, 64))
    clear.putalpha(alpha)
    clear.save(root / "1_x/1.png")
    kept = {}
    for cached in (True, False):
        data = data_of(
            root, alpha_mask=True, flip_aug=True, cache_latents=cached, train_batch_size=2
        )
        data.prepare(model)
        kept[cached] = batches(data, 12)
    for one, other in zip(kept[True], kept[False], strict=True):
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-5)
        assert one.mask is not None and other.mask is not None
        assert torch.equal(one.mask, other.mask) and one.sizes == other.sizes
    halves = set()
    for batch in kept[True]:
        assert batch.mask is not None and batch.mask.shape == (2, 1, 8, 8)
        for name, mask in zip(batch.names, batch.mask, strict=True):
            if name.endswith("0.png"):
                assert mask.min() == 1
            else:
                halves.add((float(mask[..., :4].mean()), float(mask[..., 4:].mean())))
    assert halves == {(1.0, 0.0), (0.0, 1.0)}


def test_prompts_change_with_repeats_and_epochs(tmp_path: Path, model: Counting) -> None:
    draw(tmp_path / "6_x/0.png").with_suffix(".txt").write_text("a, b, c, d, e, f, g")
    data = data_of(tmp_path, Run(steps=100, accumulation=2), shuffle_caption=True)
    data.prepare(model)
    found = {prompt for batch in batches(data, 3) for prompt in batch.prompts}
    assert len(found) == 18
    warm = data_of(tmp_path, Run(steps=100, accumulation=2), token_warmup_step=6)
    warm.prepare(model)
    lengths = [len(batch.prompts[0].split(", ")) for batch in batches(warm, 2)]
    assert lengths == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]  # two batches to a step


# --- held out ---------------------------------------------------------------------------------


def test_a_share_is_held_out_and_stays_the_same(tmp_path: Path, model: Counting) -> None:
    given = {**both(tmp_path), "shuffle_caption": True, "flip_aug": True}
    drawn_set(tmp_path / "train", 10)
    (tmp_path / "train/2_sls thing/copy.png").write_bytes(
        (tmp_path / "train/2_sls thing/4.png").read_bytes()
    )
    data = data_of(tmp_path, validation_split=0.2, **given)
    data.prepare(model)
    apart = data.validation
    assert apart is not None
    measured = {each.content for each in apart.pictures}
    assert len(measured) == 2  # of 10 contents
    assert not measured & {each.content for each in data.pictures if not each.subset.is_reg}
    assert not any(each.subset.is_reg for each in apart.pictures)
    once, again = (
        batches(apart, 1),
        [
            apart.batch(7, index, torch.Generator().manual_seed(index))
            for index in range(len(apart))
        ],
    )
    assert all(same(*pair) for pair in zip(once, again, strict=True))
    assert sum(len(batch.names) for batch in once) == len(apart.pictures)
    assert all(prompt.startswith("sls") for batch in once for prompt in batch.prompts)
    other = data_of(tmp_path, validation_split=0.2, validation_seed=3, **given).validation
    assert other is not None and {each.content for each in other.pictures} != measured


def test_a_folder_to_measure_on(tmp_path: Path, model: Counting) -> None:
    drawn_set(tmp_path / "train", 3)
    drawn_set(tmp_path / "other", 2, "5_x")
    data = data_of(tmp_path / "train", validation_data_dir=str(tmp_path / "other"))
    assert data.validation is not None
    assert len(data.validation) == 2 and len(data.pictures) == 3
    data.prepare(model)
    assert len(batches(data.validation, 1)) == 2


# --- what is refused, and said ----------------------------------------------------------------


def test_broken_pictures_are_named_before_the_start(tmp_path: Path) -> None:
    root = drawn_set(tmp_path, 14)
    for number in (1, 4):
        path = root / f"2_sls thing/{number}.png"
        path.write_bytes(path.read_bytes()[:60])
    (root / "2_sls thing/6.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BrokenPictures, match="3 pictures cannot be trained on") as caught:
        data_of(root)
    said = str(caught.value)
    assert all(name in said for name in ("1.png", "4.png", "6.txt"))
    assert len(caught.value.notes) == 3
    data = data_of(root, leave_out_broken=True)
    assert len(data.pictures) == 11 and len(data.broken) == 3
    assert len(report(data).broken) == 3
    for number in range(14):
        (root / f"2_sls thing/{number}.png").write_bytes(b"x")
    with pytest.raises(BrokenPictures, match="… and 4 more"):
        data_of(root)
    with pytest.raises(CrucibleError, match="no pictures to train on"):
        data_of(root, leave_out_broken=True)


def test_contradictions_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    drawn_set(tmp_path)
    with pytest.raises(CrucibleError, match="shuffle_caption") as caught:
        data_of(tmp_path, cache_text_encoder_outputs=True, shuffle_caption=True, random_crop=True)
    assert "random_crop" in str(caught.value)
    settings = DataOptions(**SMALL)  # type: ignore[arg-type]
    subset = Subset(tmp_path, overrides={"color_aug": True})
    with pytest.raises(CrucibleError, match="color_aug"):
        read_training_data([subset], settings)


def test_the_identity_tells_sets_apart_but_not_where_they_lie(tmp_path: Path) -> None:
    root = drawn_set(tmp_path / "a")
    (tmp_path / "b").mkdir()
    first = data_of(root).identity
    assert data_of(root, cache_latents_to_disk=True, vae_batch_size=4).identity == first
    root.rename(tmp_path / "b/moved")
    root = tmp_path / "b/moved"
    assert data_of(root).identity == first
    assert data_of(root, flip_aug=True).identity != first
    assert data_of(root, Run(seed=1)).identity != first
    (root / "2_sls thing/0.txt").write_text("another caption")
    assert data_of(root).identity != first


def test_report_and_metadata(tmp_path: Path) -> None:
    given = both(tmp_path)
    (tmp_path / "train/2_sls thing/1.txt").rename(tmp_path / "train/2_sls thing/1.caption")
    (tmp_path / "train/2_sls thing/0.txt").write_text(" \n")
    drawn_set(tmp_path / "reg", 8, "1_thing")
    data = data_of(tmp_path, keep_tokens=1, flip_aug=True, **given)
    told = report(data)
    assert (told.pictures, told.items, told.regular) == (9, 12, 6)
    assert told.batches == len(data) and sum(count for _, count in told.buckets) == 12
    assert told.suffixes == {".txt": 5, ".caption": 1}
    assert told.empty == ("2_sls thing/0.png",)
    assert set(told.uncaptioned) == {
        "2_sls thing/2.png",
        "1_thing/2.png",
        "1_thing/5.png",
    }
    prompts = dict(told.prompts)
    assert prompts["2_sls thing/2.png"] == "sls thing" and prompts["2_sls thing/0.png"] == ""
    assert prompts["2_sls thing/1.png"] == "sls, number 1, blue, large"
    said = "\n".join(told.notes)
    assert "keep_tokens" in said and "3 pictures have no caption file" in said
    assert "2 regularisation pictures are more than are needed" in said
    areas = sum(w * h for w, h in (each.where.bucket for each in data.used))
    assert told.latent_bytes == areas // 64 * 4 * 2 * 4 * 2

    held = metadata(data)
    assert held["dataset_dirs"] == {"2_sls thing": {"n_repeats": 2, "img_count": 3}}
    assert held["reg_dataset_dirs"]["1_thing"]["img_count"] == 6
    assert held["tag_frequency"]["2_sls thing"]["sls thing"] == 1
    assert held["tag_frequency"]["1_thing"]["blue"] == 4
    assert (held["num_train_images"], held["num_reg_images"]) == (6, 6)
    counts = [each["count"] for each in held["bucket_info"]["buckets"].values()]
    assert sum(counts) == 12


def test_large_enlargements_are_said(tmp_path: Path) -> None:
    draw(tmp_path / "1_x/0.png", (16, 16))
    assert "0.png 4.0 times" in "\n".join(report(data_of(tmp_path)).notes)


def test_data_sets_of_a_file_have_their_own_sizes_and_batches(
    tmp_path: Path, model: Counting
) -> None:
    root = drawn_set(tmp_path, 4, "pics")
    (root / "data.toml").write_text(
        "[general]\nmin_bucket_reso = 32\nbucket_reso_steps = 32\nmax_bucket_reso = 128\n"
        "[[datasets]]\nresolution = 64\nbatch_size = 2\n"
        "[[datasets.subsets]]\nimage_dir = 'pics'\n"
        "[[datasets]]\nresolution = 96\nbatch_size = 3\n"
        "[[datasets.subsets]]\nimage_dir = 'pics'\nclass_tokens = 'thing'\n"
    )
    options = DataOptions(dataset_config=str(root / "data.toml"))
    data = read_training_data(subsets_of(options), options, Run(steps=1))
    data.prepare(model)
    sides = Counter(
        (each.latents.shape[2] * each.latents.shape[3], len(each.names))
        for each in batches(data, 1)
    )
    assert sum(area * 0 + count * times for (area, count), times in sides.items()) == 8
    assert max(area for area, _ in sides) == 144 and min(area for area, _ in sides) <= 64
    assert report(data).items == 8


# --- with the loop ----------------------------------------------------------------------------


def test_a_run_resumed_on_a_set_is_the_same_to_the_bit(tmp_path: Path) -> None:
    given = {**both(tmp_path), "flip_aug": True, "shuffle_caption": True, "train_batch_size": 2}
    settings = LoopOptions(learning_rate=1e-3, max_train_steps=6, seed=4)

    def run(steps: int, state: dict[str, object] | None = None) -> Loop:
        model = counting(tmp_path)
        data = data_of(tmp_path, Run(4, 6), cache_latents_to_disk=True, **given)
        data.prepare(model)
        recipe = NetworkRecipe(model, NetworkTraining(network_dim=2), 1e-3)
        loop = Loop(recipe, data, settings)
        if state:
            loop.restore(state)
        recipe.put_in()
        for _ in range(steps):
            loop.step()
        recipe.take_out()
        return loop

    whole = run(6).recipe.tensors()
    parts = run(4, run(2).state()).recipe.tensors()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    fresh = run(0).recipe.tensors()
    assert not all(torch.equal(whole[name], fresh[name]) for name in whole)


def test_sdxl_takes_the_sizes(tmp_path: Path) -> None:
    model = counting(tmp_path, "SDXL")
    data = data_of(drawn_set(tmp_path / "set"), cache_text_encoder_outputs=True)
    data.prepare(model)
    batch = data.batch(0, 0, torch.Generator())
    recipe = NetworkRecipe(model, NetworkTraining(network_dim=2), 1e-3)
    recipe.put_in()
    one = recipe.losses(batch, torch.Generator().manual_seed(1))
    assert batch.sizes is not None
    moved = tuple((h, w, top + 40, left, *rest) for h, w, top, left, *rest in batch.sizes)
    other = recipe.losses(replace(batch, sizes=moved), torch.Generator().manual_seed(1))  # type: ignore[arg-type]
    recipe.take_out()
    assert torch.isfinite(one).all() and not torch.equal(one, other)


def test_a_picture_that_breaks_during_the_run_is_named(tmp_path: Path, model: Counting) -> None:
    root = drawn_set(tmp_path, 3)
    data = data_of(root, cache_latents=False)
    data.prepare(model)
    data.batch(0, 0, torch.Generator())
    for path in root.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(CrucibleError, match=r"\.png: is no picture"):
        batches(data, 2)
