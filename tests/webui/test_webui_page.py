"""The page of a real WebUI in a browser: reloaded, pasted into, and the notes about a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.ui.conftest import FLAGS
from tests.webui.conftest import HOST, NEAR, PROMPT, ROOT, SIZE, WebUI, furthest
from tests.webui.ways import ALONE, STAR, Runs, options, picture, running, wait

pytestmark = [pytest.mark.webui, pytest.mark.slow, pytest.mark.browser]

Browse = Callable[[WebUI], Any]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with running(data, tmp_path_factory.mktemp("page") / "data") as made:
        yield made


@pytest.fixture
def browse(chromium_path: str) -> Iterator[Browse]:
    """`browse(webui)` is its page in a browser, with the Lora cards in view."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        errors: list[str] = []

        def browse(webui: WebUI) -> Any:
            page = browser.new_page(viewport={"width": 1400, "height": 1400})
            page.set_default_timeout(60_000)
            # gradio itself raises some while a WebUI generates, with or without the extension.
            page.on(
                "pageerror",
                lambda error: "/assets/" in (error.stack or "") or errors.append(str(error)),
            )
            page.goto(webui.address)
            ready(page)
            return page

        yield browse
        browser.close()
        assert errors == []


def ready(page: Any) -> None:
    page.wait_for_function("() => window.opts?.extra_networks_add_text_separator !== undefined")
    assert tab(page, "Lora").count() == 1
    tab(page, "Lora").click()
    card(page, "star").wait_for()


def tab(page: Any, name: str) -> Any:
    """One of the tabs below the prompt; the pictures lie in that of "Generation"."""
    return page.locator("#txt2img_extra_tabs > .tab-nav button", has_text=name)


def card(page: Any, name: str) -> Any:
    return page.locator(f"#txt2img_lora_cards .card[data-name='{name}']")


def reload_ui(page: Any, webui: WebUI) -> None:
    """Presses the button of the Settings tab, and comes back to the cards."""
    starts = webui.said().count("Startup time")
    page.locator("#tabs > .tab-nav button", has_text="Settings").click()
    page.locator("#settings_restart_gradio").click()
    wait(lambda: webui.said().count("Startup time") > starts)
    page.wait_for_load_state()
    page.locator("#txt2img_prompt textarea").wait_for()
    ready(page)


def test_the_page_reloaded_and_the_builtin_given_back(runs: Runs, browse: Browse) -> None:
    webui = runs()
    star = picture(webui, STAR)
    page = browse(webui)
    for on in (True, False, True):
        options(webui, crucible_networks=on)
        reload_ui(page, webui)
        assert (page.locator(".crucible-on-card").count() > 0) == on
        # The builtin one rounds in another order; see the tests above.
        assert furthest(picture(webui, STAR), star) <= (0 if on else NEAR)
        before = webui.said().count("no network named 'nowhere'")
        picture(webui, f"{PROMPT} <lora:nowhere:1>")
        assert webui.said().count("no network named 'nowhere'") == before + on
        assert {"star", "heart"} <= {each["name"] for each in webui.call("/sdapi/v1/loras")}
    plots = [each for each in webui.call("/sdapi/v1/script-info") if each["name"] == "x/y/z plot"]
    axes = next(a["choices"] for a in plots[0]["args"] if a["label"] == "X type")
    assert axes.count("[Crucible] Network weight") == 1


def test_our_settings_in_the_language_of_the_webui(runs: Runs, browse: Browse) -> None:
    texts = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    page = browse(runs(localization="zh_CN"))
    page.locator("#tabs > .tab-nav button", has_text=texts["Settings"]).click()
    page.locator("#settings .tab-nav button", has_text="Crucible").click()
    ours = page.locator("#settings_crucible")
    for label in (
        "Crucible applies the networks of <lora:…> and <lyco:…> tags",
        "(off: the builtin Lora extension does; takes effect after Reload UI)",
        "Answers of /tagger/v1/interrogate",
    ):
        ours.get_by_text(texts[label]).first.wait_for()


def test_pasted_text_and_what_is_said_at_the_picture(runs: Runs, browse: Browse) -> None:
    webui = runs(**ALONE)
    picture(webui, STAR)
    text = webui.infotext().replace("<lora:star:", "<lora:there:").replace('"star: ', '"there: ')
    assert "<lora:there:0.8>" in text and 'Lora hashes: "there: ' in text
    page = browse(webui)
    prompt = page.locator("#txt2img_prompt textarea")
    prompt.fill(text)
    page.locator("#paste").first.click()
    page.wait_for_function(
        "() => !document.querySelector('#txt2img_prompt textarea').value.includes('Steps:')"
    )
    assert prompt.input_value() == STAR
    assert page.locator("#txt2img_width input[type=number]").input_value() == str(SIZE[HOST])
    prompt.fill(f"{STAR} <lora:nowhere:1>")
    tab(page, "Generation").click()
    page.locator("#txt2img_generate").click()
    told = page.locator("#html_log_txt2img .comments", has_text="no network named 'nowhere'")
    told.wait_for()


def test_notes_are_edited_in_the_popup(runs: Runs, browse: Browse) -> None:
    webui = runs(**ALONE)
    notes = runs.folder / "models" / "Lora" / "heart.json"
    before = {"description": "Draws hearts", "mine": [1]}
    notes.write_text(json.dumps(before))
    webui.call("/sdapi/v1/refresh-loras", {})
    page = browse(webui)
    popup = opened(page, "heart")
    assert popup.get_by_label("Description").input_value() == before["description"]
    popup.get_by_label("Activation text").fill('a "red" heart')
    popup.get_by_label("Preferred weight").fill("0.6")
    popup.get_by_label("Notes").fill("seen")
    popup.get_by_role("button", name="Save").click()
    page.wait_for_function("() => document.querySelector('.global-popup').style.display == 'none'")
    changed = {"activation text": 'a "red" heart', "preferred weight": 0.6, "notes": "seen"}
    assert json.loads(notes.read_text()) == {**before, **changed}
    # The card was made anew: a click inserts what was just saved.
    page.wait_for_function(
        "() => document.querySelector('#txt2img_lora_cards .card[data-name=heart]')"
        ".getAttribute('onclick').includes('red')"
    )
    card(page, "heart").click(position={"x": 60, "y": 150})
    prompt = page.locator("#txt2img_prompt textarea")
    assert prompt.input_value().strip() == '<lora:heart:0.6> a "red" heart'
    assert opened(page, "heart").get_by_label("Notes").input_value() == "seen"


def opened(page: Any, name: str) -> Any:
    """The popup of a card."""
    card(page, name).hover()
    card(page, name).locator(".edit-button").click()
    popup = page.locator("#txt2img_lora_edit_user_metadata")
    popup.locator(".extra-network-name", has_text=name).last.wait_for()
    return popup


def test_a_picture_becomes_the_preview(runs: Runs, browse: Browse) -> None:
    webui = runs(**ALONE)
    preview = runs.folder / "models" / "Lora" / "small.png"
    page = browse(webui)
    popup = opened(page, "small")
    popup.get_by_role("button", name="Replace preview").click()
    popup.get_by_text("There is no image in gallery").wait_for()
    page.keyboard.press("Escape")
    tab(page, "Generation").click()
    for field in ("width", "height"):
        page.locator(f"#txt2img_{field} input[type=number]").fill(str(SIZE[HOST]))
    page.locator("#txt2img_steps input[type=number]").fill("2")
    page.locator("#txt2img_generate").click()
    page.locator("#txt2img_gallery img").first.wait_for()
    assert not preview.exists()
    tab(page, "Lora").click()
    opened(page, "small").get_by_role("button", name="Replace preview").click()
    popup.locator(".standalone-card-preview img").wait_for()
    assert Image.open(preview).size == (SIZE[HOST], SIZE[HOST])
    page.keyboard.press("Escape")
    card(page, "small").locator("img.preview").wait_for()


def test_training_tags_go_into_the_activation_text(runs: Runs, browse: Browse) -> None:
    popup = opened(browse(runs(**ALONE)), "tagged")
    text = popup.get_by_label("Activation text")
    for then in (r"red \(dark\)", ""):  # a second click takes it out
        popup.get_by_text("red (dark)").first.click()
        wait(lambda then=then: text.input_value() == then)
    assert r"red \(dark\)" in popup.get_by_label("A prompt from its training tags").input_value()


def test_notes_that_cannot_be_saved_are_told_of(runs: Runs, browse: Browse) -> None:
    webui = runs(**ALONE)
    notes = runs.folder / "models" / "Lora" / "large.json"
    notes.write_text("[1]")
    webui.call("/sdapi/v1/refresh-loras", {})
    page = browse(webui)
    popup = opened(page, "large")
    popup.get_by_text("should hold a JSON object").wait_for()
    popup.get_by_label("Notes").fill("lost?")
    popup.get_by_role("button", name="Save").click()
    popup.get_by_text("should hold a JSON object").wait_for()
    assert popup.get_by_label("Notes").input_value() == "lost?"
    assert notes.read_text() == "[1]"
