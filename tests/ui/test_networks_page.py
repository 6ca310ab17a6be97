"""Sorting, folders and the popup of the networks panel, in a real browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import EVIL, Visit

pytestmark = pytest.mark.browser


def names(visit: Visit) -> list[str]:
    """The cards in sight, in their order."""
    cards = visit.page.locator(".crucible-card:visible")
    return [card.get_attribute("data-name") for card in cards.all()]


def about(visit: Visit, name: str) -> Any:
    """Opens the popup about a network and waits until it is filled, hashes and all."""
    visit.card(name).locator("xpath=..").locator(".crucible-i").click()
    visit.page.locator("#crucible-about dl dd code").first.wait_for()
    return visit.page.locator("#crucible-about")


def chip(visit: Visit, name: str) -> Any:
    return visit.page.locator(f'.crucible-folders [data-folder="{name}"]')


def test_sorting_and_folders(visit: Visit, data: Path) -> None:
    visit.tab("Networks")
    last = ["for_sdxl", "broken"]
    assert names(visit) == ["colours", "dust", "ink", "night (v2)", *last]
    visit.page.locator("#crucible-sort").select_option("Newest")
    newest = ["ink", "night (v2)", "dust", "colours", *last]
    assert names(visit) == newest
    assert chip(visit, "styles").inner_text() == "styles 2"
    chip(visit, "styles").click()
    assert names(visit) == ["ink", "dust"]
    visit.shot("networks-folder")
    visit.page.evaluate("document.querySelector('.crucible-cards').id = 'old'")
    os.utime(data / "models" / "Lora" / "for_sdxl.safetensors", (1.6e9, 1.6e9))
    visit.page.locator("#crucible-refresh").click()  # new cards: choice and order stay
    visit.page.locator("#old").wait_for(state="detached")
    visit.page.locator(".crucible-slot[hidden]").nth(3).wait_for(state="attached")
    assert names(visit) == ["ink", "dust"]
    chip(visit, "styles/old").click()
    assert names(visit) == ["dust"]
    visit.page.locator("#crucible-search").fill("ink")
    assert names(visit) == [] and visit.page.locator(".crucible-nomatch").is_visible()
    visit.page.reload()
    visit.tab("Networks")
    visit.page.locator(".crucible-card").first.wait_for()
    visit.page.wait_for_function("document.querySelector('#crucible-sort').value === 'newest'")
    assert names(visit) == newest
    visit.page.evaluate(
        """for (const slot of document.querySelectorAll(".crucible-slot"))
            slot.dataset.kind = slot.innerText.includes("ink") ? "LoCon" : "LoRA";"""
    )
    visit.page.locator("#crucible-sort").select_option("Kind")
    assert names(visit) == ["ink", "colours", "dust", "night (v2)", *last]
    assert visit.complaints == []


MANY = """(count) => {
    const list = document.querySelector(".crucible-cards");
    const many = list.cloneNode(false);
    for (let number = 0; number < count; number += 1) {
        const slot = list.firstElementChild.cloneNode(true);
        const name = `n${String(number).padStart(4, "0")}`;
        slot.dataset.search = slot.firstElementChild.dataset.name = name;
        slot.hidden = false;
        many.append(slot);
    }
    list.replaceWith(many);
}"""


def test_of_thousands_of_cards_those_scrolled_to_are_shown(visit: Visit) -> None:
    visit.tab("Networks")
    visit.prompt("a cat <lora:n2999:1>")
    visit.page.evaluate(MANY, 3000)
    visit.page.locator(".crucible-slot[hidden]").first.wait_for(state="attached")
    first = names(visit)
    assert 30 < len(first) < 300 and first == [f"n{place:04}" for place in range(len(first))]
    visit.page.evaluate("document.querySelector('.crucible-cards').scrollTop = 1e6")
    visit.page.locator(".crucible-slot:not([hidden])").nth(len(first)).wait_for()
    more = names(visit)
    assert more == [f"n{place:04}" for place in range(len(more))] and len(more) > len(first)
    visit.page.locator("#crucible-search").fill("n29")
    found = names(visit)
    assert found == [f"n{place}" for place in range(2900, 3000)]
    assert visit.card("n2999").get_attribute("aria-pressed") == "true"
    visit.card("n2999").click()
    assert visit.prompt_text() == "a cat"
    assert visit.complaints == []


def test_popup_tells_and_inserts_and_lets_nothing_in(visit: Visit) -> None:
    visit.tab("Networks")
    visit.prompt("a cat <lora:paint:1>")
    popup = about(visit, "ink")
    assert visit.prompt_text() == "a cat <lora:paint:1>"  # the card was not toggled
    said = popup.inner_text()
    for text in ("styles/ink.safetensors", "LoRA", "0.7", "fit the checkpoint", "1 not understood"):
        assert text in said, said
    assert EVIL in said  # as text
    assert visit.page.evaluate("window.evil") is None
    visit.shot("popup")
    popup.get_by_role("button", name="inkwash").click()
    assert visit.prompt_text() == "a cat, inkwash <lora:paint:1>"
    brush = popup.locator('[data-insert="brush, wide"]')
    brush.click()
    brush.click()  # it is there already
    assert visit.prompt_text() == "a cat, inkwash, brush, wide <lora:paint:1>"
    assert "crucible-used" in brush.get_attribute("class")
    popup.locator("details summary").click()
    assert "lora_unet_nowhere" in popup.locator("details").inner_text()
    assert visit.complaints == []


def test_popup_closes_in_every_way_and_gives_the_focus_back(visit: Visit) -> None:
    visit.tab("Networks")
    popup = about(visit, "colours")
    focused = "document.activeElement.dataset.file?.endsWith('colours.safetensors') ?? false"

    def closed() -> bool:
        return not popup.is_visible() and visit.page.evaluate(focused)

    visit.page.keyboard.press("Escape")
    assert closed()
    visit.page.keyboard.press("Enter")  # the "i" has the focus
    popup.wait_for()
    visit.page.mouse.click(5, 5)
    assert closed()
    visit.page.keyboard.press("Enter")
    popup.get_by_role("button", name="Close").click()
    assert closed() and visit.prompt_text() == ""


def test_popup_says_what_is_wrong(visit: Visit) -> None:
    visit.tab("Networks")
    visit.page.locator('.crucible-i[data-file$="broken.safetensors"]').click()
    error = visit.page.locator("#crucible-about .crucible-error")
    error.first.wait_for()
    assert "web page" in error.first.inner_text()
    visit.page.keyboard.press("Escape")
    visit.page.route("**/crucible/network*", lambda route: route.fulfill(status=500))
    visit.page.locator('.crucible-i[data-file$="colours.safetensors"]').click()
    visit.page.locator("#crucible-about", has_text="gave no answer").wait_for()
    visit.shot("popup-error")


DARK = {
    "locale": "zh-CN",
    "color_scheme": "dark",
    "viewport": {"width": 1024, "height": 768},
}


@pytest.mark.parametrize("visit", [DARK], indirect=True)
def test_popup_in_a_dark_narrow_chinese_page(visit: Visit) -> None:
    visit.tab("网络")
    visit.card("ink").click()
    visit.shot("networks-dark")
    popup = about(visit, "ink")
    visit.page.get_by_role("heading", name="触发词").wait_for()
    assert "与当前大模型匹配" in popup.inner_text()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 1024
    visit.shot("popup-dark")
