"""Networks in a real WebUI: the same pictures as its own handler, and what that one cannot say."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ui.conftest import FLAGS
from tests.webui.conftest import HOST, NEAR, ORDERS, PROMPT, WebUI, furthest

pytestmark = [pytest.mark.webui, pytest.mark.slow]

Pictures = dict[str, list[np.ndarray]]


@pytest.mark.parametrize("name", ORDERS)
def test_pictures_equal_the_builtin_handlers(webui: WebUI, builtin: Pictures, name: str) -> None:
    made = webui.pictures(**ORDERS[name])
    assert len(made) == len(builtin[name])
    assert max(furthest(a, b) for a, b in zip(made, builtin[name], strict=True)) <= NEAR
    same_size = [each for each in made if each.shape == builtin["plain"][0].shape]
    if name != "plain" and same_size:
        assert min(furthest(each, builtin["plain"][0]) for each in same_size) > 30


def test_nothing_remains_after_networks(webui: WebUI, builtin: Pictures) -> None:
    webui.pictures(f"{PROMPT} <lora:star:1>")
    assert 'Lora hashes: "star: ' in webui.infotext()
    assert furthest(webui.pictures(PROMPT)[0], builtin["plain"][0]) == 0
    assert "Lora hashes" not in webui.infotext()


def test_what_is_missing_is_said_and_the_rest_applies(webui: WebUI, builtin: Pictures) -> None:
    made = webui.pictures(f"{PROMPT} <lora:nowhere:1> <lora:star:0.8>")
    assert furthest(made[0], builtin["one"][0]) <= NEAR
    assert "no network named 'nowhere'" in webui.said()


def test_a_file_that_is_replaced_is_read_again(webui: WebUI, builtin: Pictures, data: Path) -> None:
    networks = data / "models" / "Lora"
    shutil.copy(networks / "star.safetensors", networks / "edited.safetensors")
    try:
        order = f"{PROMPT} <lora:edited:0.8>"
        assert furthest(webui.pictures(order)[0], builtin["one"][0]) <= NEAR
        shutil.copy(networks / "heart-linear.safetensors", networks / "edited.safetensors")
        heart = webui.pictures(f"{PROMPT} <lora:heart-linear:0.8>")[0]
        assert furthest(webui.pictures(order)[0], heart) == 0
        assert furthest(heart, builtin["one"][0]) > 10
    finally:
        (networks / "edited.safetensors").unlink()


def test_another_checkpoint_in_the_same_modules(webui: WebUI, builtin: Pictures) -> None:
    prompt = f"{PROMPT} <lora:star:0.8>"
    webui.pictures(prompt)
    webui.call("/sdapi/v1/options", {"sd_model_checkpoint": "other.safetensors"})
    other = webui.pictures(PROMPT)[0]
    assert furthest(other, builtin["plain"][0]) > 5
    assert furthest(webui.pictures(prompt)[0], builtin["one"][0]) > 5
    webui.call("/sdapi/v1/options", {"sd_model_checkpoint": "demo.safetensors"})
    assert furthest(webui.pictures(prompt)[0], builtin["one"][0]) <= NEAR
    assert furthest(webui.pictures(PROMPT)[0], builtin["plain"][0]) == 0


def test_an_order_that_fails_leaves_the_checkpoint_clean(webui: WebUI, builtin: Pictures) -> None:
    with pytest.raises(OSError):  # the latent has no pixel: sampling fails
        webui.pictures(f"{PROMPT} <lora:star:1>", width=0, height=0)
    assert furthest(webui.pictures(PROMPT)[0], builtin["plain"][0]) == 0


def test_an_interrupted_order_leaves_the_checkpoint_clean(webui: WebUI, builtin: Pictures) -> None:
    with ThreadPoolExecutor() as pool:
        working = pool.submit(webui.pictures, f"{PROMPT} <lora:star:1>", steps=150)
        while webui.call("/sdapi/v1/progress")["state"]["sampling_step"] < 3:
            assert not working.done()
            time.sleep(0.05)
        webui.call("/sdapi/v1/interrupt", {})
        working.result()
    assert furthest(webui.pictures(PROMPT)[0], builtin["plain"][0]) == 0


def test_orders_at_once_have_each_its_own_networks(webui: WebUI, builtin: Pictures) -> None:
    names = ["one", "two", "plain", "named"] * 2
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda name: webui.pictures(**ORDERS[name])[0], names))
    for name, picture in zip(names, made, strict=True):
        assert furthest(picture, builtin[name][0]) <= (0 if name == "plain" else NEAR)


def test_a_checkpoint_unloaded_and_loaded_again(webui: WebUI, builtin: Pictures) -> None:
    webui.pictures(f"{PROMPT} <lora:star:0.8>")
    webui.call("/sdapi/v1/unload-checkpoint", {})
    webui.call("/sdapi/v1/reload-checkpoint", {})
    assert furthest(webui.pictures(f"{PROMPT} <lora:star:0.8>")[0], builtin["one"][0]) <= NEAR


def test_the_console_has_one_line_of_ours(webui: WebUI) -> None:
    lines = [line for line in webui.said().splitlines() if line.startswith("Crucible ")]
    assert len(lines) == 1 and "networks from" in lines[0]


def test_the_routes_answer_as_before(webui: WebUI) -> None:
    found = {each["name"]: each for each in webui.call("/sdapi/v1/loras")}
    assert set(found) >= {"heart", "heart-linear", "star"}
    assert found["star"]["path"].endswith("star.safetensors") and found["star"]["metadata"]
    assert webui.call("/sdapi/v1/refresh-loras", {}) is None


def test_an_axis_of_the_plot_sets_the_weight(webui: WebUI, builtin: Pictures) -> None:
    scripts = webui.call("/sdapi/v1/script-info")
    plot = next(each for each in scripts if each["name"] == "x/y/z plot" and not each["is_img2img"])
    axes = next(a["choices"] for a in plot["args"] if a["label"] == "X type")
    axis = axes.index("[Crucible] Network weight")
    given = {"X type": axis, "X values": "0.8, star: 0", "X values ": [], "Y type": 0, "Z type": 0}
    given |= {"Include Sub Images": True, "Include Sub Grids": False, "Draw legend": False}
    args = [given.get(each["label"], each["value"]) for each in plot["args"]]
    made = webui.pictures(
        f"{PROMPT} <lora:star:0.1:0.2>", script_name="x/y/z plot", script_args=args
    )
    first, second = made[-2:]
    assert furthest(first, builtin["one"][0]) <= NEAR
    assert furthest(second, builtin["plain"][0]) == 0


def test_weights_over_the_steps_and_by_block(webui: WebUI, builtin: Pictures) -> None:
    def made(tag: str) -> np.ndarray:
        return webui.pictures(f"{PROMPT} {tag}")[0]

    one, plain = builtin["one"][0], builtin["plain"][0]
    assert furthest(made("<lora:star:0.8:unet=0.8@0,0.8@0.5,0.8@1>"), one) <= NEAR
    assert furthest(made("<lora:star:0.8:lbw=ALL>"), made("<lora:star:0.8>")) <= NEAR
    assert furthest(made("<lora:star:0:0.8:stop=0>"), plain) == 0
    late = made("<lora:star:0:0.8:start=2>")
    early = made("<lora:star:0:0.8:stop=2>")
    whole = made("<lora:star:0:0.8>")
    for each, other in ((late, early), (late, whole), (early, whole), (late, plain)):
        assert furthest(each, other) > 0
    assert furthest(made("<lora:star:0:0.8:start=2>"), late) == 0
    middle = made("<lora:star:0:0.8:in=0:out=0>")
    assert furthest(middle, plain) > 0 and furthest(middle, whole) > 0
    assert furthest(made(""), plain) == 0


def test_the_hires_pass_has_its_own_weights(webui: WebUI) -> None:
    order = {**ORDERS["hires"], "hr_prompt": ""}
    same = webui.pictures(**{**order, "prompt": f"{PROMPT} <lora:star:0.8>"})[0]
    also = webui.pictures(**{**order, "prompt": f"{PROMPT} <lora:star:0.8:hr=0.8>"})[0]
    other = webui.pictures(**{**order, "prompt": f"{PROMPT} <lora:star:0.8:hr=0>"})[0]
    assert furthest(same, also) == 0 and furthest(same, other) > 2


@pytest.fixture
def page(webui: WebUI, chromium_path: str) -> Iterator[Any]:
    """The WebUI's page in a browser; a test fails by any complaint of a script of ours.

    gradio 3.41's own scripts complain about the WebUI's Generate, with and without Crucible.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        page: Any = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(error.stack or str(error)))
        page.goto(webui.address)
        page.wait_for_function("() => window.opts?.extra_networks_add_text_separator !== undefined")
        yield page
        browser.close()
    assert [each for each in complaints if "assets/Blocks" not in each] == []
    assert "extensions_lib" not in webui.said()  # no traceback passes through our files


def shot(page: Any, name: str) -> None:
    """Keeps a picture of the page, where CRUCIBLE_SHOTS names a folder for them."""
    if folder := os.environ.get("CRUCIBLE_SHOTS"):
        page.screenshot(path=f"{folder}/{HOST}-{name}.png")


@pytest.mark.browser
def test_cards_in_the_page(page: Any) -> None:
    box = page.locator("#txt2img_prompt textarea")
    box.fill("a ring")
    tabs = page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Lora")
    tabs.first.wait_for()
    assert tabs.count() == 1
    tabs.first.click()
    card = page.locator("#txt2img_lora_cards .card[data-name=star]")
    card.wait_for()
    shot(page, "cards")
    badges = card.locator(".crucible-on-card b").all_inner_texts()
    # The widths of the small checkpoint for Forge are no family's own.
    assert badges == (["LoCon"] if HOST == "Forge" else ["LoCon", "SD1"])
    card.click(position={"x": 60, "y": 150})
    assert "<lora:star:" in box.input_value()
    card.click(position={"x": 60, "y": 150})
    assert box.input_value() == "a ring"
    box.fill("a ring <lora:star:0.5:unet=0.3>")
    card.click(position={"x": 60, "y": 150})
    assert box.input_value() == "a ring"


@pytest.mark.browser
def test_search_folders_and_refresh(page: Any, data: Path) -> None:
    networks = data / "models" / "Lora"
    new = networks / "shapes" / "second.safetensors"
    new.parent.mkdir()
    shutil.copy(networks / "star.safetensors", new)
    try:
        page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Lora").first.click()
        star = page.locator("#txt2img_lora_cards .card[data-name=star]")
        star.wait_for()
        page.locator("#txt2img_lora_extra_refresh:visible").first.click()
        second = page.locator("#txt2img_lora_cards .card[data-name=second]")
        second.wait_for()
        assert page.locator("#txt2img_lora_pane", has_text="shapes").count() == 1
        shot(page, "folders")
        page.locator("#txt2img_lora_extra_search:visible").first.fill("shapes")
        star.wait_for(state="hidden")
        assert second.is_visible()
    finally:
        shutil.rmtree(new.parent)


@pytest.mark.browser
def test_names_are_completed_while_typing(page: Any) -> None:
    box = page.locator("#txt2img_prompt textarea")
    box.click()
    box.press_sequentially("a ring <lora:sta")
    page.get_by_role("option", name="star").first.wait_for()
    shot(page, "completion")
    box.press("Tab")
    assert box.input_value().startswith("a ring") and "<lora:star:" in box.input_value()


def written(page: Any, text: str) -> Any:
    """The prompt box with this text, the caret at "|"."""
    before, _, after = text.partition("|")
    box = page.locator("#txt2img_prompt textarea")
    box.fill(before + after)
    box.evaluate("(box, caret) => box.setSelectionRange(caret, caret)", len(before))
    return box


@pytest.mark.browser
def test_keys_change_the_number_under_the_caret(page: Any) -> None:
    """Those in extended tags are ours; the others stay the WebUI's, which changes them once."""
    step = page.evaluate("() => window.opts.keyedit_precision_extra")
    for before, after in (
        ("a ring <lora:star:0.5|>", f"a ring <lora:star:{0.5 + step:g}>"),
        ("a ring <lora:star:0.5|:1:hr=1>", f"a ring <lora:star:{0.5 + step:g}:1:hr=1>"),
        ("<lora:star:1:unet=1@0,0|@0.5>", f"<lora:star:1:unet=1@0,{step:g}@0.5>"),
        ("<lora:star:1:lbw=1,0|,0,R:x=1>", f"<lora:star:1:lbw=1,{step:g},0,R:x=1>"),
        ("<lora:star:1:step=5-1|5>", "<lora:star:1:step=5-16>"),
        ("<lllite:star:0.5:stop=0.5|>", "<lllite:star:0.5:stop=0.55>"),
    ):
        box = written(page, before)
        box.press("Control+ArrowUp")
        assert box.input_value() == after, before
    page.keyboard.press("Control+ArrowDown")
    assert box.input_value() == "<lllite:star:0.5:stop=0.5>"


@pytest.mark.browser
def test_the_editor_writes_the_tag(page: Any) -> None:
    box = written(page, f"{PROMPT} <lora:star:0.8|>")
    page.locator(".crucible-edit-tag").wait_for()
    box.press("F2")
    dialog = page.locator("#crucible-tag")
    dialog.locator("input[name=stop]").fill("0")
    dialog.locator("[name=preset]").select_option("MIDD")
    shot(page, "editor")
    dialog.get_by_role("button", name="Write tag").click()
    dialog.wait_for(state="detached")
    expected = f"{PROMPT} <lora:star:0.8:lbw=MIDD:stop=0>"
    assert box.input_value() == expected
    box.press("Control+z")
    assert box.input_value() == f"{PROMPT} <lora:star:0.8>"


@pytest.mark.browser
def test_what_is_missing_is_said_at_the_picture(page: Any) -> None:
    for name, value in (("width", 64), ("height", 64), ("steps", 2)):
        number = page.locator(f"#txt2img_{name} input[type=number]")
        number.fill(str(value))
        number.press("Tab")
    page.locator("#txt2img_prompt textarea").fill("a ring <lora:star:1> <lora:nowhere:1>")
    page.locator("#txt2img_generate").click()
    said = page.locator("#html_log_txt2img", has_text="no network named 'nowhere' was found")
    said.first.wait_for()
    page.locator("#txt2img_gallery img").first.wait_for()
    shot(page, "missing")


@pytest.mark.browser
def test_the_settings_have_a_section(page: Any) -> None:
    page.locator("#tabs > .tab-nav button", has_text="Settings").click()
    page.locator("#settings > .tab-nav button", has_text="Crucible").click()
    option = page.get_by_label("Crucible applies the networks of")
    option.wait_for()
    assert option.is_checked()
    shot(page, "settings")
