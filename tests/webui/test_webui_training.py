"""Training on the checkpoint of a real WebUI, in turns between its pictures."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extensions_lib.files.checkpoints import read_checkpoint
from tests.webui.conftest import DEVICE, HOST, PROMPT, SIZE, WebUI, furthest, limit, start, stop

pytestmark = [pytest.mark.webui, pytest.mark.slow]

# In half precision, of numbers of about 1: what is rounded on the way in, out and in between.
ROUNDED = 2e-2
WAYS = [
    "Doggettx",
    "V1 - original v1",
    "InvokeAI",
    "sub-quadratic",
    "sdp - scaled dot product",
    "sdp-no-mem - scaled dot product without memory efficient attention",
]
ORDER = {"rank": 4, "steps": 10, "rate": 1e-3, "side": SIZE[HOST] // 8}


# A GPU sums gradients in an order of its own each time, and steps carry that on: relative.
LOOSE = 1e-2


def repeated(losses: list[float]) -> Any:
    """What the same steps come to once more: on a CPU the very same."""
    return pytest.approx(losses, rel=limit(0, LOOSE), abs=0)


def left_clean(told: dict[str, Any]) -> None:
    left = told["left"]
    assert left["same bits"] and left["same traces"] and left["same words"], told
    # in a turn no parameter of the checkpoint asks for gradients, and none has one afterwards
    assert left["inside"][2] == 0 and left["inside"][3] == told["outside"][3] == 0


def test_it_sees_what_the_webui_sees(webui: WebUI) -> None:
    seen = webui.call("/probe/train", {**ORDER, "steps": 0, "compare": True})["agrees"]
    assert seen["texts"] == 0 and seen["unet"] <= limit(1e-5, ROUNDED)
    assert seen["vae"] <= limit(1e-5, ROUNDED)
    assert seen["moved"] > 0.1 and seen["vae alone"] > 0
    assert seen["length"] > seen["cut"] == 77


def test_ten_steps_leave_the_checkpoint_as_it_was(webui: WebUI, data: Path) -> None:
    before = webui.pictures(PROMPT)[0]
    file = data / "models" / "Lora" / "learnt.safetensors"
    told = webui.call("/probe/train", {**ORDER, "conv": 4, "file": str(file)})
    assert len(told["losses"]) == 10 and np.isfinite(told["losses"]).all()
    assert told["learning"] > 50 and told["still"] == []
    left_clean(told)
    assert np.array_equal(webui.pictures(PROMPT)[0], before)
    after = webui.pictures(f"{PROMPT} <lora:learnt:1>")[0]
    assert furthest(after, before) > 0 and "learnt" in webui.infotext()
    assert np.array_equal(webui.pictures(PROMPT)[0], before)


def test_after_a_network_was_in_force(webui: WebUI) -> None:
    """Its merged weights are gone before a step, and come back afterwards."""
    with_network = webui.pictures(f"{PROMPT} <lora:star:1>")[0]
    told = webui.call("/probe/train", {**ORDER, "steps": 2})
    again = webui.call("/probe/train", {**ORDER, "steps": 2})
    assert told["losses"] == repeated(again["losses"])
    left_clean(told)
    assert np.array_equal(webui.pictures(f"{PROMPT} <lora:star:1>")[0], with_network)


def test_checkpointing_changes_nothing_but_memory(webui: WebUI) -> None:
    plain = webui.call("/probe/train", {**ORDER, "steps": 3, "conv": 4})
    again = webui.call("/probe/train", {**ORDER, "steps": 3, "conv": 4, "checkpointing": True})
    assert again["losses"] == pytest.approx(plain["losses"], rel=limit(1e-5, LOOSE))
    assert again["still"] == []
    left_clean(again)


@pytest.mark.skipif(HOST == "Forge", reason="it has one way for a device, by flag")
def test_every_way_to_compute_attention(webui: WebUI, data: Path) -> None:
    """Some are written with pictures in mind alone; gradients are to go through all of them."""
    option = "cross_attention_optimization"
    order = {**ORDER, "steps": 3, "conv": 4}
    try:
        webui.call("/sdapi/v1/options", {option: "None"})
        plain = webui.call("/probe/train", order)["losses"]
        for way in WAYS:
            webui.call("/sdapi/v1/options", {option: way})
            used = webui.said().rpartition("attention optimization: ")[2]
            assert used.startswith(f"{way.split(' - ')[0]}...")
            for checkpointing in (False, True):
                told = webui.call("/probe/train", {**order, "checkpointing": checkpointing})
                assert told["losses"] == pytest.approx(plain, rel=limit(1e-5, LOOSE)), way
                assert told["still"] == [], way
                left_clean(told)
    finally:
        webui.call("/sdapi/v1/options", {option: "Automatic"})


@pytest.mark.skipif(HOST == "Forge", reason="it has no hypertile that stays after a picture")
def test_pictures_in_tiles_are_for_pictures_alone(webui: WebUI) -> None:
    """Hypertile stays on the model after an order, with tiles drawn at random."""
    order = {**ORDER, "steps": 1, "side": 128}
    plain = webui.call("/probe/train", order)["losses"]
    size = {"width": 1024, "height": 1024, "steps": 1}
    try:
        webui.call(
            "/sdapi/v1/options", {"hypertile_enable_unet": True, "hypertile_max_tile_unet": 0}
        )
        tiled = webui.pictures(PROMPT, **size)[0]
        told = webui.call("/probe/train", order)
        assert told["losses"] == repeated(plain)
        left_clean(told)
        assert furthest(webui.pictures(PROMPT, **size)[0], tiled) == 0
    finally:
        webui.call("/sdapi/v1/options", {"hypertile_enable_unet": False})
    assert furthest(webui.pictures(PROMPT, **size)[0], tiled) > 0


@pytest.mark.skipif(HOST == "A1111", reason="a setting of it chooses")
@pytest.mark.parametrize("flag", ["--attention-split", "--attention-quad", "--attention-pytorch"])
def test_every_attention_of_a_flag(webui: WebUI, data: Path, flag: str) -> None:
    order = {**ORDER, "steps": 3, "conv": 4}
    plain = webui.call("/probe/train", order)["losses"]
    running = start(data, {}, "--nowebui", flag)
    try:
        running.pictures(PROMPT)
        for checkpointing in (False, True):
            told = running.call("/probe/train", {**order, "checkpointing": checkpointing})
            assert told["losses"] == pytest.approx(plain, rel=limit(1e-5, LOOSE))
            assert told["still"] == []
            left_clean(told)
    finally:
        stop(running)


@pytest.mark.skipif(HOST == "Forge", reason="A1111's setting")
def test_on_weights_stored_in_eight_bits(webui: WebUI, data: Path) -> None:
    order = {**ORDER, "steps": 3, "conv": 4}
    plain = webui.call("/probe/train", order)["losses"]
    running = start(data, {"fp8_storage": "Enable"}, "--nowebui")
    try:
        before = running.pictures(PROMPT)[0]
        for checkpointing in (False, True):
            told = running.call("/probe/train", {**order, "checkpointing": checkpointing})
            assert told["losses"] == pytest.approx(plain, rel=0.1) and told["losses"] != plain
            assert told["still"] == []
            left_clean(told)
            assert np.array_equal(running.pictures(PROMPT)[0], before)
    finally:
        stop(running)


@pytest.mark.skipif(HOST == "Forge", reason="its memory management asks for no flag")
@pytest.mark.parametrize("flag", ["--medvram", "--lowvram"])
def test_short_of_memory(webui: WebUI, data: Path, flag: str) -> None:
    """Parts of the model move in and out of the GPU there, and training has them where it needs."""
    plain = webui.call("/probe/train", {**ORDER, "steps": 3, "conv": 4})
    running = start(data, {}, "--nowebui", flag)
    try:
        before = running.pictures(PROMPT)[0]
        for other in ({}, {"checkpointing": True}):
            told = running.call("/probe/train", {**ORDER, "steps": 3, "conv": 4, **other})
            assert told["losses"] == pytest.approx(plain["losses"], rel=limit(1e-5, LOOSE))
            assert told["still"] == []
            left_clean(told)
            assert np.array_equal(running.pictures(PROMPT)[0], before)
        moments = running.call("/probe/encode", {"side": SIZE[HOST]})
        assert moments["device"] == DEVICE and moments["finite"]
    finally:
        stop(running)


def test_a_step_that_fails(webui: WebUI) -> None:
    before = webui.pictures(PROMPT)[0]
    told = webui.call("/probe/train", {**ORDER, "steps": 3, "fail_at": 1})
    assert told["failed"] == "as asked" and len(told["losses"]) == 1
    left_clean(told)
    assert np.array_equal(webui.pictures(PROMPT)[0], before)


def test_pictures_are_made_between_the_steps(webui: WebUI) -> None:
    expected = webui.pictures(PROMPT)[0]
    order = {**ORDER, "steps": 24}
    alone = webui.call("/probe/train", order)
    told: list[Any] = []
    working = threading.Thread(target=lambda: told.append(webui.call("/probe/train", order)))
    working.start()
    made, during = [], []
    for _ in range(3):
        made.append(webui.pictures(PROMPT)[0])
        during.append(working.is_alive())
    working.join()
    assert during[0]
    assert all(np.array_equal(each, expected) for each in made)
    assert told[0]["losses"] == repeated(alone["losses"])
    left_clean(told[0])


def test_an_embedding_that_is_learnt_can_be_said(webui: WebUI, data: Path) -> None:
    prompt = "zorble, large, center"
    before = webui.pictures(prompt)[0]
    order = {**ORDER, "recipe": "embedding", "word": "zorble", "steps": 3, "rate": 0.05}
    file = data / "embeddings" / "zorble.safetensors"
    told = webui.call("/probe/train", {**order, "file": str(file)})
    assert len(told["losses"]) == 3 and told["still"] == []
    left_clean(told)
    assert furthest(webui.pictures(prompt)[0], before) > 0
    assert "TI hashes" in webui.infotext()
    # and in training, its own vectors go before those of the file
    again = webui.call("/probe/train", order)
    assert again["losses"] == repeated(told["losses"])
    left_clean(again)
    file.unlink()
    assert np.array_equal(webui.pictures(prompt)[0], before)


@pytest.mark.parametrize("recipe", ["hypernetwork", "full"])
def test_other_kinds(webui: WebUI, data: Path, recipe: str) -> None:
    before = webui.pictures(PROMPT)[0]
    suffix = {"hypernetwork": ".pt", "full": ".safetensors"}[recipe]
    file = data / f"learnt{suffix}"
    order = {**ORDER, "recipe": recipe, "steps": 2, "rate": 1e-5, "file": str(file)}
    told = webui.call("/probe/train", order)
    assert len(told["losses"]) == 2 and np.isfinite(told["losses"]).all()
    assert told["still"] == []
    left_clean(told)
    assert np.array_equal(webui.pictures(PROMPT)[0], before)
    if recipe == "full":
        base = read_checkpoint(data / "models" / "Stable-diffusion" / "demo.safetensors").tensors
        for key, tensor in read_checkpoint(file).tensors.items():
            moved = not torch.equal(tensor, base[key].float())
            assert moved == (not key.startswith("first_stage_model.")), key
    file.unlink()
