"""Our tabs in a real WebUI's page: a browser, and the frame that a tab of ours is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ui.conftest import FLAGS
from tests.webui.conftest import HOST, PATIENCE


@contextmanager
def browsed(chromium: str, address: str, height: int = 1200) -> Iterator[Any]:
    """The page of the WebUI in a browser; no script of ours may fail meanwhile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": height})
        page.set_default_timeout(PATIENCE * 1000)
        errors: list[str] = []
        page.on(
            "pageerror",
            lambda error: "/assets/" in (error.stack or "") or errors.append(str(error)),
        )
        page.goto(address)
        yield page
        browser.close()
        assert errors == []


def opened(page: Any, label: str, place: str) -> Any:
    """The frame of one of our tabs, once the page is filled and `place` stands in it."""
    page.wait_for_function("() => window.opts?.extra_networks_add_text_separator !== undefined")
    page.locator("#tabs > .tab-nav button", has_text=label).click()
    frame = page.locator(f'iframe[title="{label}"]')
    page.wait_for_function(f"() => document.querySelector('iframe[title={label}]')?.src")
    inside = frame.element_handle().content_frame()
    assert inside is not None
    inside.locator(place).wait_for()
    return inside


def shot(page: Any, name: str) -> None:
    """Keeps a picture of the page, where CRUCIBLE_SHOTS names a folder for them."""
    if folder := os.environ.get("CRUCIBLE_SHOTS"):
        page.screenshot(path=str(Path(folder) / f"{HOST}-{name}.png"), full_page=True)
