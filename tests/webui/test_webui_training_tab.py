"""Training in a real WebUI, by REST and by its tab: between pictures, leaving no trace."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extensions_lib.demo.lesson_set import LessonSet, draw_lesson
from tests.webui.conftest import HOST, PATIENCE, PROMPT, SIZE, WebUI
from tests.webui.tabs import browsed, opened, shot
from tests.webui.ways import Runs, options, picture, running

pytestmark = [pytest.mark.webui, pytest.mark.slow]

ROUTE = "/crucible/training"
STEPS = 30


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with running(data, tmp_path_factory.mktemp("training") / "data") as made:
        yield made


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> LessonSet:
    return draw_lesson(tmp_path_factory.mktemp("lesson"), pictures=6, known=6)


def order(lesson: LessonSet, name: str, **other: Any) -> dict[str, Any]:
    side = SIZE[HOST]
    return {
        "train_data_dir": str(lesson.train),
        "output_name": name,
        "network_dim": 4,
        "learning_rate": 0.005,
        "max_train_steps": STEPS,
        "resolution": str(side),
        "enable_bucket": False,
        "max_token_length": 75,
        "sample_prompts": [f"a red heart --s 2 --w {side} --h {side}"],
        "sample_every_n_steps": 1000,
        "validate_every_n_steps": 1000,
        "max_validation_steps": 1,
        **other,
    }


def until(webui: WebUI, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        status = webui.call(f"{ROUTE}/status")
        if reached(status):
            return dict(status)
        assert status["state"] != "failed", status["message"]
        time.sleep(0.2)
    raise AssertionError(status)


def refused(webui: WebUI, path: str, told: Any) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        webui.call(f"{ROUTE}/{path}", told)
    assert caught.value.code == 409
    return str(json.loads(caught.value.read())["detail"])


def over(status: dict[str, Any]) -> bool:
    return not status["busy"]


def test_thirty_steps_by_rest_between_pictures(runs: Runs, lesson: LessonSet) -> None:
    webui = runs()
    before = picture(webui, PROMPT)
    webui.call(f"{ROUTE}/start", order(lesson, "by_rest"))
    until(webui, lambda told: told["step"] >= 1)
    assert "by_rest" in refused(webui, "start", order(lesson, "second"))
    during = picture(webui, PROMPT)
    live = picture(webui, f"{PROMPT} <lora:by_rest:1>")
    still = webui.call(f"{ROUTE}/status")["busy"]
    assert np.array_equal(during, before)
    assert still and not np.array_equal(live, before)
    done = until(webui, over)
    assert (done["state"], done["step"]) == ("done", STEPS), done["message"]
    assert [each["step"] for each in done["samples"]] == [0, STEPS]
    assert np.array_equal(picture(webui, PROMPT), before)
    after = picture(webui, f"{PROMPT} <lora:by_rest:1>")
    assert not np.array_equal(after, before) and "by_rest" in webui.infotext()
    assert "no network named 'by_rest'" not in webui.said()
    assert "by_rest" in {each["name"] for each in webui.call("/sdapi/v1/loras")}
    assert "is free" in refused(webui, "start", order(lesson, "by_rest"))


def test_another_checkpoint_ends_the_run_with_what_it_has(runs: Runs, lesson: LessonSet) -> None:
    webui = runs()
    before = picture(webui, PROMPT)
    options(webui, sd_model_checkpoint="other.safetensors")
    elsewhere = picture(webui, PROMPT)
    options(webui, sd_model_checkpoint="demo.safetensors")
    webui.call(f"{ROUTE}/start", order(lesson, "switched", max_train_steps=100_000))
    until(webui, lambda told: told["step"] >= 2)
    options(webui, sd_model_checkpoint="other.safetensors")
    assert np.array_equal(picture(webui, PROMPT), elsewhere)
    deadline = time.monotonic() + PATIENCE
    while webui.call(f"{ROUTE}/status")["busy"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ended = webui.call(f"{ROUTE}/status")
    assert ended["state"] == "failed" and "another checkpoint" in ended["message"]
    assert ended["saved"][-1]["step"] == ended["step"] >= 2
    assert np.array_equal(picture(webui, PROMPT), elsewhere)
    options(webui, sd_model_checkpoint="demo.safetensors")
    webui.call(f"{ROUTE}/runs/switched/resume", {})
    until(webui, lambda told: told["step"] > ended["step"])
    webui.call(f"{ROUTE}/stop", {})
    assert until(webui, over)["state"] == "stopped"
    assert np.array_equal(picture(webui, PROMPT), before)


@pytest.fixture
def page(chromium_path: str, runs: Runs) -> Iterator[Any]:
    """The WebUI's page."""
    with browsed(chromium_path, runs().address) as made:
        yield made


def to_training(page: Any) -> Any:
    return opened(page, "Training", "#crucible-training-go")


@pytest.mark.browser
def test_thirty_steps_by_the_tab(runs: Runs, page: Any, lesson: LessonSet) -> None:
    from extensions_lib.training.toml_text import toml_text

    webui = runs()
    before = picture(webui, PROMPT)
    tab = to_training(page)
    tab.locator("#crucible-training-as-toml .label-wrap").click()
    tab.locator("#crucible-training-toml textarea").fill(toml_text(order(lesson, "by_tab")))
    tab.locator("#crucible-training-load").click()
    tab.wait_for_function(
        "() => document.querySelector('#crucible-training-output-name :is(input, textarea)')"
        ".value === 'by_tab'"
    )
    go = tab.locator("#crucible-training-go")
    tab.wait_for_function(
        f"() => document.getElementById('crucible-training-go').textContent.includes('{STEPS}')"
    )
    tab.locator("#crucible-training-check").click()
    tab.locator("#crucible-training-found .crucible-training-sum", has_text="about").wait_for()
    shot(page, "checked")
    go.click()
    tab.locator(".crucible-training-now .crucible-progress").wait_for()
    page.reload()
    # the new page finds the run, which may have ended by then
    tab = to_training(page)
    tab.locator(".crucible-training-now[data-state=done]").wait_for()
    assert tab.locator(".crucible-chart path.raw").count() == 1
    tab.wait_for_function(  # drawn for the width that it has here: nothing is stretched
        "() => { const place = document.querySelector('.crucible-chart');"
        " return Number(place.querySelector('svg').getAttribute('width')) === place.clientWidth; }"
    )
    tab.locator(".crucible-training-samples td img").nth(1).wait_for()
    shot(page, "done")
    assert np.array_equal(picture(webui, PROMPT), before)
    assert not np.array_equal(picture(webui, f"{PROMPT} <lora:by_tab:1>"), before)


@pytest.mark.parametrize("kind", ["embedding", "hypernetwork", "checkpoint"])
def test_other_kinds_leave_the_checkpoint_as_it_was(
    runs: Runs, lesson: LessonSet, kind: str
) -> None:
    """Samples are made with what is trained on the model; afterwards nothing of it is there."""
    webui = runs()
    before = picture(webui, PROMPT)
    told = order(lesson, f"a{kind}", train=kind, max_train_steps=4, save_precision="float")
    webui.call(f"{ROUTE}/start", told)
    done = until(webui, over)
    assert (done["state"], done["step"]) == ("done", 4), done["message"]
    assert [each["step"] for each in done["samples"]] == [0, 4], done["said"]
    assert np.array_equal(picture(webui, PROMPT), before)
