"""The tagger in a real WebUI: its routes under its own `--api-auth`, its tab in a browser."""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from extensions_lib.demo import world
from tests.webui.conftest import ROOT, WebUI, start, stop
from tests.webui.tabs import browsed, opened, shot

pytestmark = [pytest.mark.webui, pytest.mark.slow]


@pytest.fixture(scope="module")
def guarded(data: Path) -> Iterator[WebUI]:
    """A WebUI that answers programs with a password only; its page is for all."""
    target = data / "models" / "demo-tagger"
    if not target.exists():
        shutil.copytree(ROOT / "models" / "demo-tagger", target)
    running = start(data, {}, "--api-auth", "ann:secret")
    yield running
    stop(running)


def ask(webui: WebUI, path: str, order: Any = None, password: str = "secret") -> Any:
    """GET, or POST where there is an order; the answer's JSON."""
    request = urllib.request.Request(
        webui.address + path,
        None if order is None else json.dumps(order).encode(),
        {"Content-Type": "application/json"},
    )
    if password:
        pair = base64.b64encode(f"ann:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {pair}")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def picture() -> str:
    raw = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(raw, "PNG")
    return base64.b64encode(raw.getvalue()).decode()


def onnxruntime_is_there(webui: WebUI) -> bool:
    """Whether the WebUI's Python has it."""
    python = webui.process.args[0]  # type: ignore[index]
    return subprocess.run([python, "-c", "import onnxruntime"], capture_output=True).returncode == 0


def test_only_with_the_password(guarded: WebUI) -> None:
    for path, order in (
        ("/tagger/v1/interrogators", None),
        ("/tagger/v1/interrogate", {"model": "demo-tagger", "image": picture()}),
        ("/tagger/v1/unload-interrogators", {}),
    ):
        for password in ("", "wrong"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(guarded, path, order, password)
            assert refused.value.code == 401
    assert "demo-tagger" in ask(guarded, "/tagger/v1/interrogators")["models"]
    assert "Error executing callback" not in guarded.said()


def test_a_picture(guarded: WebUI) -> None:
    order = {"model": "demo-tagger", "image": picture(), "threshold": 0.3}
    if not onnxruntime_is_there(guarded):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(guarded, "/tagger/v1/interrogate", order)
        assert "install.py" in refused.value.read().decode()
        return
    flat = ask(guarded, "/tagger/v1/interrogate", order)["caption"]
    assert all(isinstance(score, float) for score in flat.values())
    nested = ask(guarded, "/tagger/v1/interrogate", {**order, "queue": ""})["caption"]
    assert set(nested) == {"tag", "rating"}
    assert {**nested["rating"], **nested["tag"]} == flat
    assert ask(guarded, "/tagger/v1/unload-interrogators", {}) == "1 models unloaded"


# --- the tab ----------------------------------------------------------------------------------


@pytest.fixture
def page(guarded: WebUI, chromium_path: str) -> Iterator[Any]:
    """The WebUI's page."""
    with browsed(chromium_path, guarded.address, 1000) as made:
        yield made


@pytest.fixture
def tagger(page: Any) -> Any:
    """Our tab's frame in it."""
    return opened(page, "Tagger", "#crucible-tagger-tabs")


def within(tagger: Any, name: str) -> None:
    """One of our tabs."""
    tagger.locator("#crucible-tagger-tabs > .tab-nav button", has_text=name).click()


def name_folder(tagger: Any, folder: Path) -> None:
    within(tagger, "Folder")
    box = tagger.locator("#crucible-tagger-folder :is(input, textarea)")
    box.fill(str(folder))
    box.press("Tab")
    said(tagger, "#crucible-tagger-go", "Tag 6 pictures")


def said(tagger: Any, place: str, text: str) -> None:
    """Waits until a place says something; gradio 3 gives two elements its id."""
    tagger.locator(place, has_text=text).first.wait_for()


def drawn(folder: Path) -> list[world.Scene]:
    """Six pictures; what is on them."""
    folder.mkdir()
    rng = random.Random(3)
    scenes = [world.random_scene(rng) for _ in range(6)]
    for number, scene in enumerate(scenes):
        world.draw(scene, 128).save(folder / f"{number}.png")
    return scenes


@pytest.mark.browser
def test_a_folder_is_tagged_edited_and_taken_back(
    guarded: WebUI, page: Any, tagger: Any, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    scenes = drawn(photos)
    name_folder(tagger, photos)
    tagger.locator("#crucible-tagger-go").click()
    if not onnxruntime_is_there(guarded):
        said(tagger, "#crucible-tagger-notes", "install.py")
        for number, scene in enumerate(scenes):
            (photos / f"{number}.txt").write_text(world.caption(scene))
    else:
        said(tagger, "#crucible-tagger-result", "6 captions written")
    shot(page, "tagger-folder")
    captions = [(photos / f"{number}.txt").read_text() for number in range(6)]
    for scene, caption in zip(scenes, captions, strict=True):
        assert f"{scene.background} background" in caption

    within(tagger, "Edit")
    shots = tagger.locator("#crucible-edit .crucible-shot")
    shots.nth(5).wait_for()
    shots.nth(0).locator("img").evaluate("(image) => image.decode()")
    shots.nth(0).click()
    said(tagger, "#crucible-edit-tags", "Tags of the 1 picked")
    tagger.locator(".crucible-edit-add input").fill("smith")
    tagger.locator(".crucible-edit-add input").press("Enter")
    said(tagger, "#crucible-edit-notes", "1 caption changed")
    assert (photos / "0.txt").read_text() == f"{captions[0]}, smith"
    shot(page, "tagger-edit")
    tagger.locator("#crucible-edit-bar [data-crucible-do=undo]").click()
    said(tagger, "#crucible-edit-notes", "Undo: Add smith")
    assert (photos / "0.txt").read_text() == captions[0]

    within(tagger, "Rules")
    tagger.locator("#crucible-rules [data-crucible-do=new]").click()
    tagger.locator(".crucible-rule [name=drop]").fill("* background")
    told = tagger.locator(".crucible-rule-told", has_text="would change 6 captions")
    told.wait_for()
    shot(page, "tagger-rules")
    within(tagger, "Prepare")
    said(tagger, "#crucible-prepare-go", "Prepare 6 pictures")
    shot(page, "tagger-prepare")


@pytest.mark.browser
def test_one_picture_goes_to_the_prompt(
    guarded: WebUI, page: Any, tagger: Any, tmp_path: Path
) -> None:
    [scene, *_] = drawn(tmp_path / "photos")
    within(tagger, "One picture")
    drop = tagger.locator("#crucible-one-picture input[type=file]")
    drop.set_input_files(tmp_path / "photos" / "0.png")
    if not onnxruntime_is_there(guarded):
        said(tagger, "#crucible-one-notes", "install.py")
        return
    tagger.locator("#crucible-one-bars .crucible-bars li").first.wait_for()
    shot(page, "tagger-one")
    tagger.locator("#crucible-one-send").click()
    prompt = page.locator("#txt2img_prompt textarea")
    prompt.wait_for()
    assert f"{scene.background} background" in prompt.input_value()


@pytest.mark.browser
def test_fields_survive_a_reload_of_the_page(page: Any, tagger: Any, tmp_path: Path) -> None:
    drawn(tmp_path / "photos")
    name_folder(tagger, tmp_path / "photos")
    trigger = tagger.locator("#crucible-tagger-select-trigger :is(input, textarea)")
    trigger.fill("smith")
    trigger.press("Tab")
    tagger.locator("#crucible-tagger-select-trigger .crucible-reset").wait_for()
    tagger.wait_for_timeout(1000)
    page.reload()
    tagger = opened(page, "Tagger", "#crucible-tagger-tabs")
    within(tagger, "Folder")
    said(tagger, "#crucible-tagger-go", "Tag 6 pictures")
    trigger = tagger.locator("#crucible-tagger-select-trigger :is(input, textarea)")
    assert trigger.input_value() == "smith"
