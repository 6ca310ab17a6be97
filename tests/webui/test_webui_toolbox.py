"""The toolbox in a real WebUI, by REST and by its tab: on its own folders and checkpoint."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.webui.conftest import HOST, NEAR, PATIENCE, PROMPT, ROOT, SIZE, WebUI
from tests.webui.tabs import browsed, opened, shot
from tests.webui.ways import Runs, picture, running

pytestmark = [pytest.mark.webui, pytest.mark.slow]

ROUTE = "/crucible/toolbox"
ID = "#crucible-toolbox"


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with running(data, tmp_path_factory.mktemp("toolbox") / "data") as made:
        yield made


def done(webui: WebUI, word: str, order: dict[str, Any]) -> dict[str, Any]:
    key = webui.call(f"{ROUTE}/{word}", order)["job"]
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        told = webui.call(f"{ROUTE}/jobs/{key}")
        if told["state"] == "done":
            return dict(told["result"])
        assert told["state"] not in ("failed", "stopped"), told
        time.sleep(0.2)
    raise AssertionError(told)


def test_by_rest_on_the_webuis_own_files(runs: Runs) -> None:
    webui = runs()
    networks = runs.folder / "models" / "Lora"
    told = webui.call(f"{ROUTE}/inspect", {"path": "star", "against": "loaded"})
    assert Path(told["path"]) == networks / "star.safetensors"
    assert told["fitting"] > 0 and told["strange"] == told["problems"] == []
    files = webui.call(f"{ROUTE}/files?sort=checkpoint")["files"]
    assert "models/Stable-diffusion/demo.safetensors" in files
    plain, star = picture(webui, PROMPT), picture(webui, f"{PROMPT} <lora:star:0.8>")
    made = done(webui, "merge", {"networks": ["star:0.5", "star:0.3"], "out": "twice"})
    assert Path(made["path"]) == networks / "twice.safetensors"
    # the WebUI knows the new file at once, and it does what the two did
    twice = picture(webui, f"{PROMPT} <lora:twice:1>")
    assert not np.array_equal(plain, twice)
    assert np.abs(twice.astype(int) - star.astype(int)).max() <= NEAR
    with pytest.raises(urllib.error.HTTPError) as caught:
        webui.call(f"{ROUTE}/resize", {"file": "star", "rank": 0})
    assert caught.value.code == 422 and "rank" in json.loads(caught.value.read())["detail"]


@pytest.fixture
def page(chromium_path: str, runs: Runs) -> Iterator[Any]:
    """The WebUI's page."""
    with browsed(chromium_path, runs().address) as made:
        yield made


@pytest.mark.browser
def test_the_tab_is_written_in_the_webuis_font(page: Any) -> None:
    tab = opened(page, "Toolbox", f"{ID}-about-go")
    named = "() => getComputedStyle(document.querySelector('.gradio-container')).fontFamily"
    assert tab.evaluate(named) == page.evaluate(named)
    tab.wait_for_function(
        "() => [...document.fonts].some((face) => face.status === 'loaded'"
        " && face.family.includes('Source Sans Pro'))"
    )


def press(tab: Any, name: str) -> None:
    tab.wait_for_timeout(800)  # what was typed has reached the button by then
    tab.locator(f"{ID}-{name}-go").click()


@pytest.mark.browser
def test_by_the_tab_from_a_dropped_file_to_a_merge(runs: Runs, page: Any, tmp_path: Path) -> None:
    networks = runs.folder / "models" / "Lora"
    tab = opened(page, "Toolbox", f"{ID}-about-go")
    tab.wait_for_timeout(1500)
    dropped = tmp_path / "dropped.safetensors"
    source = networks / "heart-linear.safetensors"
    shutil.copy(source if source.exists() else ROOT / "models" / "Lora" / source.name, dropped)
    tab.locator(f"{ID}-drop input[type=file]").set_input_files(str(dropped))
    shown = tab.locator(f"{ID}-about-page .crucible-toolbox-page")
    shown.locator("dt", has_text="AutoV2").wait_for()
    assert "layers fit" in shown.inner_text()
    shot(page, "toolbox-about")
    tab.locator(f"{ID}-move").click()
    tab.get_by_text("It lies where it belongs.").wait_for()
    assert (networks / "dropped.safetensors").is_file()
    tab.locator(f"{ID} [data-tool=resize]").click()
    tab.locator(f"{ID} .crucible-energy svg").wait_for()
    tab.locator(f"{ID}-resize-rank input[type=number]").fill("2")
    press(tab, "resize")
    tab.locator(f"{ID}-resize-told .crucible-toolbox-done").wait_for()
    assert (networks / "dropped-r2.safetensors").is_file()
    shot(page, "toolbox-resized")
    tab.locator(f"{ID}-tabs > .tab-nav button", has_text="Merge").click()
    rows = tab.locator(".crucible-toolbox-networks:visible")
    rows.locator("li").first.get_by_label("Network").fill("dropped-r2")
    rows.get_by_role("button", name="+ Add a network").click()
    rows.locator("li").nth(1).get_by_label("Network").fill("star")
    rows.locator("li").nth(1).locator("input[type=number]").fill("0.5")
    tab.locator(f"{ID}-preview-prompt textarea").fill(PROMPT)
    tab.locator(f"{ID}-preview-steps input").fill("2")
    tab.locator(f"{ID}-preview-size :is(input, textarea)").fill(str(SIZE[HOST]))
    press(tab, "preview")
    tab.locator(f"{ID}-preview-told img").nth(1).wait_for()
    press(tab, "merge")
    tab.locator(f"{ID}-merge-told .crucible-toolbox-done").wait_for()
    assert (networks / "dropped-r2-merged.safetensors").is_file()
    shot(page, "toolbox-merged")
