"""The toolbox in a real WebUI, by REST and by its tab: on its own folders and checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ui.conftest import FLAGS
from tests.webui.conftest import HOST, PATIENCE, PROMPT, ROOT, SIZE, WebUI
from tests.webui.ways import Runs, picture, running

pytestmark = [pytest.mark.webui, pytest.mark.slow, pytest.mark.browser]

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
    assert np.abs(twice.astype(int) - star.astype(int)).max() <= 2
    with pytest.raises(urllib.error.HTTPError) as caught:
        webui.call(f"{ROUTE}/resize", {"file": "star", "rank": 0})
    assert caught.value.code == 422 and "rank" in json.loads(caught.value.read())["detail"]


@pytest.fixture
def page(chromium_path: str, runs: Runs) -> Iterator[Any]:
    """The page of the WebUI in a browser."""
    from playwright.sync_api import sync_playwright

    webui = runs()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        made = browser.new_page(viewport={"width": 1400, "height": 1200})
        made.set_default_timeout(PATIENCE * 1000)
        errors: list[str] = []
        made.on(
            "pageerror",
            lambda error: "/assets/" in (error.stack or "") or errors.append(str(error)),
        )
        made.goto(webui.address)
        yield made
        browser.close()
        assert errors == []


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("CRUCIBLE_SHOTS"):
        page.screenshot(path=str(Path(folder) / f"{HOST}-toolbox-{name}.png"), full_page=True)


def press(page: Any, name: str) -> None:
    page.wait_for_timeout(800)  # what was typed has reached the button by then
    page.locator(f"{ID}-{name}-go").click()


def test_by_the_tab_from_a_dropped_file_to_a_merge(runs: Runs, page: Any, tmp_path: Path) -> None:
    networks = runs.folder / "models" / "Lora"
    page.wait_for_function("() => window.opts?.extra_networks_add_text_separator !== undefined")
    page.locator("#tabs > .tab-nav button", has_text="Toolbox").click()
    page.locator(f"{ID}-about-go").wait_for()
    page.wait_for_timeout(1500)
    dropped = tmp_path / "dropped.safetensors"
    source = networks / "heart-linear.safetensors"
    shutil.copy(source if source.exists() else ROOT / "models" / "Lora" / source.name, dropped)
    page.locator(f"{ID}-drop input[type=file]").set_input_files(str(dropped))
    shown = page.locator(f"{ID}-about-page .crucible-toolbox-page")
    shown.locator("dt", has_text="AutoV2").wait_for()
    assert "layers fit" in shown.inner_text()
    shot(page, "about")
    page.locator(f"{ID}-move").click()
    page.get_by_text("It lies where it belongs.").wait_for()
    assert (networks / "dropped.safetensors").is_file()
    page.locator(f"{ID} [data-tool=resize]").click()
    page.locator(f"{ID} .crucible-energy svg").wait_for()
    page.locator(f"{ID}-resize-rank input[type=number]").fill("2")
    press(page, "resize")
    page.locator(f"{ID}-resize-told .crucible-toolbox-done").wait_for()
    assert (networks / "dropped-r2.safetensors").is_file()
    shot(page, "resized")
    page.locator(f"{ID}-tabs > .tab-nav button", has_text="Merge").click()
    rows = page.locator(".crucible-toolbox-networks:visible")
    rows.locator("li").first.get_by_label("Network").fill("dropped-r2")
    rows.get_by_role("button", name="+ Add a network").click()
    rows.locator("li").nth(1).get_by_label("Network").fill("star")
    rows.locator("li").nth(1).locator("input[type=number]").fill("0.5")
    page.locator(f"{ID}-preview-prompt textarea").fill(PROMPT)
    page.locator(f"{ID}-preview-steps input").fill("2")
    page.locator(f"{ID}-preview-size :is(input, textarea)").fill(str(SIZE[HOST]))
    press(page, "preview")
    page.locator(f"{ID}-preview-told img").nth(1).wait_for()
    press(page, "merge")
    page.locator(f"{ID}-merge-told .crucible-toolbox-done").wait_for()
    assert (networks / "dropped-r2-merged.safetensors").is_file()
    shot(page, "merged")
