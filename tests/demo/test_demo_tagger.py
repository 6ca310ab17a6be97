"""The demo tagger: what ships, and that its training makes it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extensions_lib.demo import tagger, tagger_bench, tagger_file, world
from extensions_lib.tagging.labels import read_labels
from extensions_lib.tagging.taggers import load_tagger


def test_every_tag_of_the_world_is_listed() -> None:
    rng = random.Random(3)
    seen = set()
    for _ in range(3000):
        drawn = tagger.scene(rng)
        seen |= tagger.tags_of(drawn)
        assert tagger.target(drawn).sum() == len(tagger.tags_of(drawn)) + 1
    assert seen == set(tagger.TAGS)
    assert len(set(tagger.TAGS + tagger.RATINGS)) == len(tagger.TAGS + tagger.RATINGS)


def test_lessons_are_the_same_for_the_same_seed_alone() -> None:
    first, again, other = (tagger.lesson(seed, 8) for seed in (5, 5, 6))
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()
    assert first[0].shape == (8, tagger.SIDE, tagger.SIDE, 3) and first[0].dtype == np.uint8


def test_the_file_computes_what_was_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = tagger.network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        net.votes.weight *= 8
    pictures = tagger.lesson(1, 32)[0]
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        net.train()(x)  # gives the norms something to fold
        expected = net.eval()(x).sigmoid().numpy()
    tagger_file.write(net, tmp_path / "mine")
    loaded = load_tagger("mine", tmp_path, device="cpu", threads=1)
    assert loaded.batch is None and loaded.size == tagger.SIDE
    found = loaded.score(pictures)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, atol=5e-3)  # weights are rounded to float16


def test_training_learns_and_repeats_itself(capsys: pytest.CaptureFixture[str]) -> None:
    nets = [tagger.train(320, seed=2) for _ in range(2)]
    first, second = (tagger_file.to_onnx(net) for net in nets)
    assert first == second
    losses = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert losses[:2] == losses[2:] and losses[1] < 0.8 * losses[0]


def test_what_ships_is_small_and_whole() -> None:
    folder = tagger.FOLDER
    sizes = sum(path.stat().st_size for path in folder.iterdir())
    assert sizes < 1.5e6
    listed = (folder / "selected_tags.csv").read_text(encoding="utf-8")
    assert listed == tagger_file.labels_csv()
    labels = read_labels(folder / "selected_tags.csv")
    assert [label.name for label in labels] == [*tagger.RATINGS, *tagger.TAGS]
    assert {label.category for label in labels} == {"general", "rating"}


def test_what_ships_reads_pictures_it_never_saw() -> None:
    loaded = load_tagger("demo-tagger", tagger.FOLDER.parent, device="cpu", threads=1)
    found = tagger_bench.found_in(loaded, 150)
    precision, recall = tagger_bench.measures(found)
    assert precision >= 0.95 and recall >= 0.95
    scene = world.Scene("blue", (world.Figure("star", "red", "large", "top left", "striped"),))
    scores = loaded.score(loaded.prepare(world.draw(scene, 512))[None])[0]
    names = [label.name for label, score in zip(loaded.labels, scores, strict=True) if score > 0.5]
    assert set(names) == {
        *("general", "red_star", "large", "top_left", "striped", "blue_background"),
    }


def test_measures_by_hand() -> None:
    found = [({"red_star", "small", "top"}, {"red_star", "large"}), ({"small"}, {"small"})]
    assert tagger_bench.measures(found) == (2 / 3, 2 / 4)
    assert tagger_bench.measures(found, "size") == (0.5, 0.5)
    assert tagger_bench.measures(found, "place") == (0, 0)


def test_the_bench_prints_and_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tagger_bench.main(["--count", "40"]) == 0
    assert "goal: 95% of both, reached" in capsys.readouterr().out
    assert tagger.main(["--pictures", "64", "--out", str(tmp_path / "untrained")]) == 0
    assert (tmp_path / "untrained" / "model.onnx").is_file()
    untrained = ["--models", str(tmp_path), "--tagger", "untrained", "--count", "10"]
    assert tagger_bench.main(untrained) == 1
    assert "missed" in capsys.readouterr().out
