"""An order that another extension makes in the middle of one: each keeps its own networks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.webui.conftest import PROMPT, WebUI, furthest, pictures_in

pytestmark = [pytest.mark.webui, pytest.mark.slow]


STAR, HEART = f"{PROMPT} <lora:star:0.8>", f"{PROMPT} <lora:heart-linear:0.7>"


def within(webui: WebUI, prompt: str, inner: str, **order: object) -> list[np.ndarray]:
    """The outer order's pictures, then those that were made within it."""
    scripts = {"within": {"args": [inner]}}
    outer = webui.pictures(prompt, alwayson_scripts=scripts, **order)
    return [*outer, *pictures_in(webui.call("/probe/within"))]


@pytest.mark.parametrize("inner", [PROMPT, HEART, STAR], ids=["plain", "other", "same"])
def test_each_has_its_own_networks(webui: WebUI, inner: str) -> None:
    two = {"n_iter": 2, "batch_size": 2}
    outer = webui.pictures(STAR, **two)[-4:]
    alone = webui.pictures(inner, seed=5)[-1]
    made = within(webui, STAR, inner, **two)[-8:]
    for picture, expected in zip(made, outer + [alone] * 4, strict=True):
        assert furthest(picture, expected) == 0


def test_one_with_networks_within_one_without(webui: WebUI) -> None:
    plain = webui.pictures(PROMPT, n_iter=2)[-2:]
    alone = webui.pictures(HEART, seed=5)[-1]
    made = within(webui, PROMPT, HEART, n_iter=2)[-4:]
    for picture, expected in zip(made, [*plain, alone, alone], strict=True):
        assert furthest(picture, expected) == 0
