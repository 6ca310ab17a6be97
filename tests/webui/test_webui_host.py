"""A WebUI as a Host: its model alone, and pictures by its own sampler."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.webui.conftest import HOST as WHICH
from tests.webui.conftest import PROMPT, SIZE, WebUI

pytestmark = [pytest.mark.webui, pytest.mark.slow]

SIDE = SIZE[WHICH]
ORDER: dict[str, Any] = {
    "prompt": f"{PROMPT} <lora:star:0.8>",
    "steps": 4,
    "sampler": "Euler",
    "cfg": 4,
    "seed": 1,
    "width": SIDE,
    "height": SIDE,
}


def test_its_pictures_are_those_of_the_button(webui: WebUI) -> None:
    expected = webui.pictures(ORDER["prompt"])[0]
    made = webui.call("/probe/pictures", {"order": {**ORDER, "batch_count": 2}})
    pixels = np.array(made["pixels"], np.uint8).reshape(2, SIDE, SIDE, 3)
    assert np.array_equal(pixels[0], expected) and not np.array_equal(pixels[1], expected)
    assert made["seeds"] == [1, 2] and made["messages"] == []
    assert "Lora hashes" in made["infotexts"][0] and "Seed: 2," in made["infotexts"][1]
    assert made["steps"] and all(0 <= step <= ORDER["steps"] for step in made["steps"])


def test_what_is_wrong_is_told(webui: WebUI) -> None:
    made = webui.call("/probe/pictures", {"order": {**ORDER, "prompt": "a <lora:nowhere:1>"}})
    assert len(made["pixels"]) == 1 and "nowhere" in " ".join(made["messages"])


def test_it_stops(webui: WebUI) -> None:
    """Only finished pictures are handed over; the WebUI has one that is half noise as well."""
    order = {**ORDER, "steps": 60, "batch_count": 3, "prompt": PROMPT}
    told = webui.call("/probe/pictures", {"order": order, "stop_at": [0, 3]})
    assert told["error"] == "Stopped"
    whole = webui.call("/probe/pictures", {"order": {**order, "batch_count": 1}})
    made = webui.call("/probe/pictures", {"order": order, "stop_at": [1, 3]})
    assert "Stopped." in made["messages"] and made["pixels"] == whole["pixels"]
    assert len(made["infotexts"]) == len(made["seeds"]) == 1
    plain = webui.call("/probe/pictures", {"order": {**ORDER, "prompt": PROMPT}})
    assert plain["messages"] == []


def test_the_model_is_held_clean_and_alone(webui: WebUI) -> None:
    before = webui.call("/probe/held")
    assert before["family"] == "SD1" and before["name"].startswith("demo")
    results: list[Any] = []
    working = threading.Thread(
        target=lambda: results.append(webui.pictures(ORDER["prompt"], steps=12))
    )
    working.start()
    seen = [webui.call("/probe/held") for _ in range(3)]
    working.join()
    assert len(results) == 1 and all(each == before for each in seen)
