"""The Toolbox tab in a browser: a file dropped, told and moved; each tool on real files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.files.networks import read_network
from extensions_lib.files.safe import read_header
from extensions_lib.options import options_of
from extensions_lib.toolbox.inspect import inspect
from extensions_lib.toolbox.spectrum import LayerFigures
from extensions_lib.toolbox.tools import TOOLS
from extensions_lib.toolbox.work import Output
from extensions_lib.ui import toolbox_page, toolbox_result
from extensions_lib.ui.toolbox_tools import LOOKS
from tests.toolbox.networks import Q, lora, written
from tests.ui.conftest import PATIENCE, Server, start_server

ROOT = Path(__file__).resolve().parents[2]
ID = "#crucible-toolbox"
EVIL = "<img src=x onerror=\"window.evil='yes'\">"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the repository's own checkpoint and networks."""
    root = tmp_path_factory.mktemp("toolbox")
    for name in ("Lora", "demo"):
        shutil.copytree(ROOT / "models" / name, root / "models" / name)
    return root


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Server]:
    running = start_server(folder)
    yield running
    running.process.terminate()
    running.process.wait(timeout=30)


@pytest.fixture
def page(browser: Any, served: Server) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE * 1000)
    made = context.new_page()
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.goto(served.address)
    to_tab(made)
    yield made
    context.close()
    assert errors == []


def to_tab(page: Any) -> None:
    page.get_by_role("tab", name="Toolbox", exact=True).click()
    page.locator(f"{ID}-about-go").wait_for()
    page.wait_for_function("() => document.querySelector('.crucible-toolbox-networks')")
    page.wait_for_timeout(1500)  # what the browser has kept is in the fields by then


def to_tool(page: Any, name: str) -> None:
    page.locator(f"{ID}-tabs").get_by_role("tab", name=name, exact=True).click()


def type_in(page: Any, field: str, text: str) -> None:
    page.locator(f"{ID}-{field}").locator("input, textarea").first.fill(text)


def press(page: Any, name: str) -> None:
    """Presses a button once what was typed has reached it."""
    page.wait_for_timeout(500)
    page.locator(f"{ID}-{name}-go").click()


def look_at(page: Any, text: str) -> Any:
    to_tool(page, "About a file")
    type_in(page, "about-file", text)
    press(page, "about")
    return told_about(page)


def told_about(page: Any) -> Any:
    """What is shown about a file, once it is hashed too."""
    shown = page.locator(f"{ID}-about-page .crucible-toolbox-page")
    shown.locator("dt", has_text="AutoV2").wait_for()
    return shown


def done(page: Any, name: str) -> str:
    told = page.locator(f"{ID}-{name}-told .crucible-toolbox-done")
    told.wait_for()
    return str(told.inner_text())


@pytest.mark.browser
@pytest.mark.slow
def test_a_dropped_file_is_told_and_moved_where_it_belongs(
    page: Any, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "downloaded.safetensors"
    shutil.copy(ROOT / "models" / "Lora" / "star.safetensors", path)
    page.locator(f"{ID}-drop input[type=file]").set_input_files(str(path))
    shown = told_about(page)
    assert "LoCon" in shown.inner_text()
    assert "208 of 208 layers fit" in " ".join(shown.inner_text().split())
    page.get_by_text("It belongs in").wait_for()
    page.locator(f"{ID}-move").click()
    page.get_by_text("It lies where it belongs.").wait_for()
    assert (folder / "models" / "Lora" / "downloaded.safetensors").is_file()
    assert path.is_file()  # the browser gave a copy of it
    box = page.locator(f"{ID}-about-file").locator("input, textarea").first
    assert box.input_value() == "models/Lora/downloaded.safetensors"
    assert page.locator(f"{ID}-move").is_hidden()


@pytest.mark.browser
@pytest.mark.slow
def test_what_is_no_model_is_said_and_the_path_stays(page: Any) -> None:
    type_in(page, "about-file", "models/nowhere.safetensors")
    press(page, "about")
    page.locator(f"{ID}-about-told .crucible-error", has_text="there is no such file").wait_for()
    box = page.locator(f"{ID}-about-file").locator("input, textarea").first
    assert box.input_value() == "models/nowhere.safetensors"


@pytest.mark.browser
@pytest.mark.slow
def test_a_rank_is_chosen_on_the_curve(page: Any, folder: Path) -> None:
    look_at(page, "heart")
    page.locator(f"{ID} [data-tool=resize]").click()
    curve = page.locator(f"{ID} .crucible-energy svg")
    curve.wait_for()
    said = page.locator(f"{ID} .crucible-energy-tip")
    assert "Rank 8" in said.inner_text() and "100" in said.inner_text()
    curve.press("ArrowLeft")
    for _ in range(4):
        curve.press("ArrowLeft")
    rank = page.locator(f"{ID}-resize-rank input[type=number]")
    assert rank.input_value() == "3"
    page.locator(f"{ID}-resize-go", has_text="Resize to rank 3").wait_for()
    assert "Rank 3" in said.inner_text()
    press(page, "resize")
    assert "heart-r3.safetensors" in done(page, "resize")
    assert page.locator(f"{ID}-resize-told .crucible-toolbox-bars li").count() == 208
    made = read_network(folder / "models" / "Lora" / "heart-r3.safetensors")
    assert {adapter.rank for adapter in made.adapters.values()} == {3}
    press(page, "resize")
    page.locator(f"{ID}-resize-told .crucible-error", has_text="exists").wait_for()
    page.locator(f"{ID}-resize-output-number input").check()
    press(page, "resize")
    assert "heart-r3-2.safetensors" in done(page, "resize")


@pytest.mark.browser
@pytest.mark.slow
def test_networks_are_weighed_looked_at_and_merged(page: Any, folder: Path) -> None:
    look_at(page, "star")
    page.locator(f"{ID} [data-tool=merge]").click()
    rows = page.locator(f"{ID}-tab-merge, {ID}-tabs").locator(".crucible-toolbox-networks:visible")
    rows.get_by_role("button", name="+ Add a network").click()
    second = rows.locator("li").nth(1)
    second.get_by_label("Network").fill("heart-linear")
    second.locator("input[type=number]").fill("0.5")
    second.get_by_label("Weights by block").fill("MIDD")
    text = page.locator(f"{ID}-merge-networks textarea")
    assert text.input_value() == "models/Lora/star.safetensors:1\nheart-linear:0.5:lbw=MIDD"
    first = rows.locator("li").nth(0)
    first.get_by_title("Weights of text encoder and UNet apart").click()
    first.locator("input[type=number]").nth(1).fill("0.25")
    assert text.input_value().startswith("models/Lora/star.safetensors:0.25:1\n")
    page.locator(f"{ID}-merge-go", has_text="Merge 2 networks").wait_for()
    type_in(page, "preview-prompt", "red circle, large, center, blue background")
    press(page, "preview")
    pictures = page.locator(f"{ID}-preview-told img")
    pictures.nth(1).wait_for()
    assert pictures.nth(0).get_attribute("src") != pictures.nth(1).get_attribute("src")
    type_in(page, "merge-output-out", "both")
    press(page, "merge")
    assert "both.safetensors" in done(page, "merge")
    made = read_header(folder / "models" / "Lora" / "both.safetensors").metadata
    assert made["crucible_merged"] == "star:0.25:1, heart-linear:0.5:0.5"


@pytest.mark.browser
@pytest.mark.slow
def test_into_a_checkpoint_and_out_again(page: Any, folder: Path) -> None:
    look_at(page, "demo")
    page.locator(f"{ID} [data-tool=bake]").click()
    rows = page.locator(".crucible-toolbox-networks:visible")
    rows.locator("li").first.get_by_label("Network").fill("star")
    page.locator(f"{ID}-bake-go", has_text="Bake 1 network in").wait_for()
    type_in(page, "bake-output-out", "starry")
    press(page, "bake")
    assert "starry.safetensors" in done(page, "bake")
    assert "tensors changed" in page.locator(f"{ID}-bake-told").inner_text()
    to_tool(page, "Extract")
    type_in(page, "extract-base-file", "demo")
    type_in(page, "extract-tuned-file", "models/demo/starry.safetensors")
    type_in(page, "extract-rank", "8")
    press(page, "extract")
    assert "models/Lora/starry-extracted.safetensors" in done(page, "extract")
    to_tool(page, "Convert")
    type_in(page, "convert-file", "starry-extracted")
    page.locator(f"{ID}-convert-naming").get_by_label("comfyui", exact=True).check()
    press(page, "convert")
    assert "starry-extracted-comfyui.safetensors" in done(page, "convert")
    to_tool(page, "Duplicates")
    type_in(page, "folder-path", "models")
    press(page, "folder")
    page.locator(f"{ID}-folder-told tr", has_text="starry").first.wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_caches_are_written_ahead(page: Any, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 40, 200)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("red circle", encoding="utf-8")
    to_tool(page, "Caches")
    type_in(page, "cache-train-data-dir", str(tmp_path))
    type_in(page, "cache-resolution", "256")
    page.locator(f"{ID}-cache-cache-text-encoder-outputs-to-disk input").check()
    press(page, "cache")
    assert "2 pictures · 1 prompts · 3 newly written" in " ".join(done(page, "cache").split())
    assert len(list((tmp_path / ".crucible").rglob("*.safetensors"))) == 3


@pytest.mark.browser
@pytest.mark.slow
def test_files_are_offered_and_fields_are_kept(page: Any) -> None:
    to_tool(page, "Resize")
    box = page.locator(f"{ID}-resize-file").locator("input").first
    box.click()
    box.press_sequentially("linear")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#crucible-toolbox-resize-file datalist option')]"
        ".some((each) => each.value.endsWith('heart-linear.safetensors'))"
    )
    to_tool(page, "Merge")
    rows = page.locator(".crucible-toolbox-networks:visible")
    rows.locator("li").first.get_by_label("Network").fill("star")
    rows.locator("li").first.locator("input[type=number]").first.fill("0.7")
    page.wait_for_timeout(1200)
    page.reload()  # and comes back to the tool that was open
    first = page.locator(".crucible-toolbox-networks:visible li").first
    first.wait_for()
    assert first.get_by_label("Network").input_value() == "star"
    assert first.locator("input[type=number]").first.input_value() == "0.7"


# --- without a browser ------------------------------------------------------------------------


class Texts(HTMLParser):
    """The tags of a piece of HTML, each closed as it was opened, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_has_all_and_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    tags = {"10_x": {"star": 40, EVIL: 3}}
    buckets = {"buckets": {"0": {"resolution": [512, 768], "count": 9}}}
    path = written(
        tmp_path / "evil.safetensors",
        {Q: lora(Q, 4, 2.0, 1)},
        ss_tag_frequency=json.dumps(tags), ss_bucket_info=json.dumps(buckets),
        ss_output_name=EVIL, **{EVIL: EVIL},
    )  # fmt: skip
    told = Texts(toolbox_page.page(inspect(path), f"models/{EVIL}", EVIL))
    assert "img" not in told.seen and EVIL in told.text
    for part in ("LoRA", "SD1", "512 × 768", "star", "AutoV3", "Rank", "1 load"):
        assert part in told.text, part


def test_layers_are_bars_the_least_first() -> None:
    layers = [
        LayerFigures("unet.a", (8, 8), 2, 0.5, 1.0, 4, (0.3, 0.5, 0.9, 1.0)),
        LayerFigures("unet.b", (8, 8), 2, 0.9, 3.0, None, (0.8, 0.9)),
    ]
    told = Texts(toolbox_result.bars(layers)).text
    assert told.index("unet.a") < told.index("unet.b")
    assert "50.00%" in told and "4 → 2" in told
    [data] = re.findall(r'data-energy="([^"]*)"', toolbox_result.energy(layers))
    drawn = json.loads(data.replace("&quot;", '"'))
    # by hand: (0.3 · 1 + 0.8 · 3) / 4; a curve that ended stays where it was
    assert drawn["whole"] == [0.675, 0.8, 0.9, 0.925]
    assert drawn["least"] == [[0.3, "unet.a"], [0.5, "unet.a"], [0.9, "unet.a"], [0.9, "unet.b"]]
    assert "no ranks" in toolbox_result.energy([])


def test_every_tool_shows_every_input_and_option() -> None:
    import gradio as gr

    from extensions_lib.api.toolbox_orders import Desk
    from extensions_lib.ui.toolbox_room import ToolboxRoom
    from extensions_lib.ui.toolbox_tab import build_toolbox_tab

    desk = Desk(ROOT, lambda _: [], lambda: None, lambda: pytest.fail("nothing is to be loaded"))
    with gr.Blocks() as page:
        build_toolbox_tab(ToolboxRoom(desk), page)
    shown = {getattr(block, "elem_id", None) for block in page.blocks.values()}
    assert set(LOOKS) == set(TOOLS)
    for word, tool in TOOLS.items():
        names = [each.name for each in (*tool.inputs, *options_of(tool.options))]
        assert set(LOOKS[word].inputs) == {each.name for each in tool.inputs}
        names += [f"output-{each.name}" for each in options_of(Output)]
        wanted = {f"crucible-toolbox-{word}-{name.replace('_', '-')}" for name in names}
        assert wanted <= shown, wanted - shown


def test_every_word_of_the_tab_is_translated() -> None:
    import gradio as gr

    from extensions_lib.api.toolbox_orders import Desk
    from extensions_lib.ui.toolbox_room import ToolboxRoom
    from extensions_lib.ui.toolbox_tab import build_toolbox_tab

    texts = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    desk = Desk(ROOT, lambda _: [], lambda: None, lambda: pytest.fail("nothing is to be loaded"))
    with gr.Blocks() as page:
        build_toolbox_tab(ToolboxRoom(desk), page)
    shown: set[str] = set()
    for block in page.blocks.values():
        ident = str(getattr(block, "elem_id", None) or "")
        wired = "crucible-wire" in (getattr(block, "elem_classes", None) or [])
        if wired or ident.startswith("crucible-toolbox-cache-"):
            continue
        shown |= {str(getattr(block, name, None) or "") for name in ("label", "placeholder")}
        if isinstance(block, gr.Button):
            shown.add(str(block.value))
    named = {text for text in shown if re.search("[A-Za-z]{2}", text)}
    assert len(named) > 40
    # and what an error asks for where a field is empty
    named |= {each.help for tool in TOOLS.values() for each in tool.inputs}
    assert {text for text in named if text not in texts} == set()
