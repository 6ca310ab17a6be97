"""The control picture in the Generate tab: the panel in a browser, on a small SDXL."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from extensions_lib.ui.control_panel import HINT, LABEL, with_tag
from extensions_lib.ui.webui_control import HOW
from tests.lllite import lllite_file
from tests.tiny import TINY, tiny_checkpoint
from tests.ui.conftest import ROOT, Server, Visit, open_page, start_server

browser = pytest.mark.browser


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "<lllite:canny:1>"),
        ("a cat ", "a cat <lllite:canny:1>"),
        ("a cat <lllite:canny:0.4>", "a cat <lllite:canny:0.4>"),
        ("<lllite:depth:1>", "<lllite:depth:1> <lllite:canny:1>"),
        ("<lora:canny:1>", "<lora:canny:1> <lllite:canny:1>"),
    ],
)
def test_a_tag_is_added_once(before: str, after: str) -> None:
    assert with_tag(before, "canny") == after
    assert with_tag(before, None) == before


def test_every_text_is_translated() -> None:
    texts = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    how = HOW.replace("&lt;", "<").replace("&gt;", ">")
    assert {LABEL, HINT, how, "Add to prompt"} <= set(texts)


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a small SDXL, and beside it what is to be dropped into models/."""
    folder = tmp_path_factory.mktemp("sdxl")
    tiny_checkpoint(folder / "models" / "Stable-diffusion" / "xl.safetensors", "SDXL")
    lllite_file(folder / "canny.safetensors", TINY["SDXL"])
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(folder / "edges.png")
    (folder / "text.png").write_text("no picture at all")
    return folder


@pytest.fixture(scope="module")
def page(sdxl: Path) -> Iterator[Server]:
    running = start_server(sdxl)
    yield running
    running.process.send_signal(signal.SIGINT)
    running.process.wait(timeout=30)


@pytest.fixture
def visit(browser: Any, page: Server) -> Iterator[Visit]:
    """The page freshly opened, with small pictures of few steps."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    made = open_page(context)
    made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
    made.page.goto(page.address)
    made.page.locator(".crucible-nothing").first.wait_for(state="attached")
    for name, value in (("width", 64), ("height", 64), ("steps", 2), ("seed", 5)):
        made.number(name, value)
    yield made
    assert made.complaints == []
    context.close()


def panel(visit: Visit) -> Any:
    return visit.page.locator("#crucible-control")


def upload(visit: Visit, path: Path) -> None:
    visit.page.locator("#crucible-control-picture input[type=file]").set_input_files(path)


def uploaded(visit: Visit) -> Any:
    return visit.page.locator("#crucible-control-picture img")


@browser
def test_there_is_no_panel_until_it_is_asked_for(visit: Visit) -> None:
    assert panel(visit).count() == 0 or not panel(visit).is_visible()
    visit.prompt("a cat <lllite:canny:1>")
    visit.page.locator("#crucible-control-picture").wait_for(state="visible")
    visit.generate()
    assert "no ControlNet-LLLite named 'canny' was found in" in visit.notes()


@browser
def test_from_the_file_to_the_picture(visit: Visit, sdxl: Path) -> None:
    folder = sdxl / "models" / "ControlNet"
    folder.mkdir(exist_ok=True)
    shutil.copy(sdxl / "canny.safetensors", folder)
    visit.page.reload()
    panel(visit).wait_for(state="visible")
    for name, value in (("width", 64), ("height", 64), ("steps", 2), ("seed", 5)):
        visit.number(name, value)
    visit.prompt("a cat")
    visit.generate()
    plain = visit.picture()
    panel(visit).get_by_text(LABEL).click()
    visit.page.locator("#crucible-control-add").click()
    visit.page.wait_for_function(
        "() => document.querySelector('#crucible-prompt textarea').value.includes('lllite')"
    )
    assert visit.prompt_text() == "a cat <lllite:canny:1>"
    visit.generate()
    assert "there is no control picture, so it has no effect" in visit.notes()
    assert visit.picture() == plain
    upload(visit, sdxl / "edges.png")
    uploaded(visit).wait_for()
    visit.shot("control-panel")
    visit.generate()
    changed = visit.picture()
    assert changed != plain and visit.notes() == ""
    assert visit.parameters().startswith("a cat <lllite:canny:1>\n")
    visit.shot("control-made")
    visit.prompt("a cat")
    visit.generate()
    assert visit.picture() == plain
    assert "The control picture has no effect" in visit.notes()
    visit.page.locator("#crucible-control-picture button[aria-label='Remove Image']").click()
    uploaded(visit).wait_for(state="detached")
    visit.generate()
    assert visit.picture() == plain and visit.notes() == ""


@browser
def test_a_file_that_is_no_picture_loses_nothing(visit: Visit, sdxl: Path) -> None:
    visit.prompt("a cat <lllite:canny:1>")
    visit.page.locator("#crucible-control-picture").wait_for(state="visible")
    upload(visit, sdxl / "text.png")
    visit.page.locator("#crucible-control-picture button[aria-label='Remove Image']").wait_for()
    visit.page.locator("#crucible-go").click()
    visit.page.locator("#crucible-notes .crucible-error", has_text="as a picture").wait_for()
    assert not visit.page.locator(".toast-body").count()
    visit.shot("control-no-picture")
    upload_again = visit.page.locator("#crucible-control-picture button[aria-label='Remove Image']")
    upload_again.click()
    upload(visit, sdxl / "edges.png")
    visit.generate()
    assert visit.picture() and visit.prompt_text() == "a cat <lllite:canny:1>"
