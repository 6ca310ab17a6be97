"""The Toolbox tab's events under the gradio that is installed: labels, refusals, kept fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from extensions_lib.toolbox.tools import TOOLS
from tests.gradio_versions.test_gradio_page import Page, page  # noqa: F401

pytestmark = pytest.mark.usefixtures("page")
ID = "crucible-toolbox"


def shown(page: Page, name: str) -> Any:  # noqa: F811
    return page.component(name).get("value")


def label(page: Page, word: str, **given: Any) -> str:  # noqa: F811
    """What the button of a tool says when its fields hold these values."""
    fields = {f"{ID}-{word}-{name.replace('_', '-')}": value for name, value in given.items()}
    [event] = [
        e for e in page.events
        if (e.target, e.trigger) == (next(iter(fields)), "change") and not e.js
    ]  # fmt: skip
    assert not event.queue
    values = [fields.get(name, shown(page, name)) for name in event.inputs]
    return json.dumps(page.call(event, *values)[f"{ID}-{word}-go"])


def test_the_buttons_say_what_they_will_do(page: Page) -> None:  # noqa: F811
    assert '"Resize to rank 4"' in label(page, "resize", file="star", rank=4)
    assert '"Resize by energy"' in label(page, "resize", rank=4, rule="sv_fro", target="0.9")
    assert '"Resize"' in label(page, "resize", rank=0)
    assert '"Merge 2 networks"' in label(page, "merge", networks="star:0.5\n\nheart")
    assert '"Bake 1 network in"' in label(page, "bake", networks="star")
    assert '"Mix the checkpoints"' in label(page, "bake", networks="", other="b")
    assert '"Convert to ckpt"' in label(page, "convert", to="ckpt")
    assert '"Extract rank 8"' in label(page, "extract", rank=8)


def test_a_tool_without_its_file_says_so(page: Page) -> None:  # noqa: F811
    assert set(TOOLS) == {"convert", "merge", "resize", "extract", "bake"}
    for word in TOOLS:
        event = page.event(f"{ID}-{word}-go")
        assert f"{ID}-{word}-told" in event.outputs and event.queue
        assert f"{ID}-{word}-output-out" in event.inputs


def test_fields_of_the_toolbox_are_kept_by_the_browser(page: Page) -> None:  # noqa: F811
    [restoring] = [e for e in page.events if "crucibleToolbox?.restore" in e.js]
    [remembering] = [e for e in page.events if "crucibleToolbox?.remember" in e.js]
    assert restoring.target == "load" and remembering.inputs == restoring.outputs
    assert set(restoring.outputs) >= {f"{ID}-resize-file", f"{ID}-merge-networks"}


def test_a_dropped_file_goes_into_the_field(page: Page) -> None:  # noqa: F811
    event = page.event(f"{ID}-drop", "upload")
    assert {f"{ID}-about-file", f"{ID}-drop", f"{ID}-about-page"} <= set(event.outputs)
    assert page.component(f"{ID}-move")["visible"] is False
