"""The editor of network tags, in a real browser; what it writes is read by prompts.tags."""

from __future__ import annotations

import random
from typing import Any

import pytest

from extensions_lib.prompts.blocks import BASE, LISTS, PRESETS
from extensions_lib.prompts.tags import NetworkRequest, network_requests
from tests.ui.conftest import Visit

pytestmark = pytest.mark.browser

PROMPT = "#crucible-prompt textarea"
ALL = LISTS[26]


def said(tag: str, blocks: tuple[str, ...] = ALL) -> dict[str, Any]:
    """All that a tag makes of a picture: weights in every step of both passes, by block."""
    rest, (request,), problems = network_requests(tag)
    assert rest == "" and problems == [], problems
    steps = range(11)
    plain = [(request.te, request.unet)] * 11
    plan = request.plan
    passes = [
        [plan.weights(step, 11, hires=hires) for step in steps] if plan else plain
        for hires in (False, True)
    ]
    weights = [plan.blocks.of(name) if plan and plan.blocks else 1.0 for name in blocks]
    return {"name": request.name, "dyn": request.dyn, "passes": passes, "blocks": weights}


def rewritten(visit: Visit, texts: list[str]) -> list[str]:
    """What the browser makes of each of these tags: the shortest that says the same."""
    return list(
        visit.page.evaluate(
            """async (texts) => {
                const {answer, read, tagsIn, write} = window.crucible_tags;
                const known = await answer();
                return texts.map((text) => write(read(tagsIn(text)[0], known), known));
            }""",
            texts,
        )
    )


SHORTEST = {
    "<lora:x>": "<lora:x:1>",
    "<lyco:x:te=0.5:unet=0.5>": "<lyco:x:0.5>",
    "<lora:x:unet=0.5>": "<lora:x:1:0.5>",
    "<lora:x:0.5:0.5:8>": "<lora:x:0.5:dyn=8>",
    "<lora:x:1:1:8>": "<lora:x:1:1:8>",
    "<lora:x:1:lbw=1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0>": "<lora:x:1:lbw=MIDD>",
    "<lora:x:1:in=0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5>": "<lora:x:1:in=0.5>",
    "<lora:x:1:lbw=all:in=3>": "<lora:x:1>",
    "<lora:x:1:lbw=1,X,X,X,X,X,X,1,1,1,1,1,1,1,1,1,1:x=0.25>": "<lora:x:1:in=0.25>",
    "<lora:x:1@0,1@0.5,0.5@0.75,0@1>": "<lora:x:1@0.5,0@1>",
    "<lora:x:1:unet=1~0;0~1>": "<lora:x:1@0,0@1>",
    "<lora:x:0.5:unet=1,0>": "<lora:x:0.5:1@0,0@1>",
    "<lora:x:1@0,0@8,0@20>": "<lora:x:1@0,0@8>",
    "<lora:x:1@0,0@1,0@20>": "<lora:x:1@0,0@1,0@20>",  # else its positions were shares
    "<lora:x:1:start=5:stop=15>": "<lora:x:1:step=5-15>",
    "<lora:x:1:step=-15>": "<lora:x:1:stop=15>",
    "<lora:x:1:start=0:stop=0.5>": "<lora:x:1:stop=0.5>",
    "<lora:x:1:hrte=0.5:hrunet=0.5>": "<lora:x:1:hr=0.5>",
    "<lora:x:1:hr=0.5:hrunet=0.2>": "<lora:x:1:hr=0.5:hrunet=0.2>",
    "<lora:x:1:hr=0@0,1@1>": "<lora:x:1:hr=0@0,1@1>",
}


def test_the_shortest_tag_that_says_the_same(visit: Visit) -> None:
    assert dict(zip(SHORTEST, rewritten(visit, list(SHORTEST)), strict=True)) == SHORTEST
    for text, short in SHORTEST.items():
        if "in=3" not in text and "X" not in text:  # which there have no meaning, or are in x
            same(text, short)
    # What is random or unreadable stays, in its own words.
    elements = "<lora:x:1:lbw=MIDD:lbwe=NOT IN05-OUT05:attn proj:0,M00:ff:0.5>"
    for odd in ("<lora:x:1:lbw=R,U,1>", "<lora:x:1:wow=2>", "<lora:x:0.5:step=5>", elements):
        assert rewritten(visit, [odd]) == [odd]
    assert visit.complaints == []


def same(one: str, other: str) -> None:
    """Fails where the two tags say different things."""
    first, second = said(one), said(other)
    for key in ("name", "dyn"):
        assert first[key] == second[key], (one, other)
    for number in (0, 1):
        for before, after in zip(first["passes"][number], second["passes"][number], strict=True):
            assert after == pytest.approx(before, abs=1e-9), (one, other)
    assert second["blocks"] == pytest.approx(first["blocks"], abs=1e-9), (one, other)


def random_tag(draw: random.Random) -> str:
    """A tag with arguments of every sort, written in any of the ways there are."""

    def number() -> str:
        return draw.choice(["0", "1", "-0.7", ".5", "0.85", "2", "1e-1", "0.333"])

    def curve() -> str:
        if draw.random() < 0.5:
            return number()
        shares = draw.random() < 0.6
        places = sorted(draw.sample(range(0, 21), draw.randint(1, 4)))
        if not shares and places[-1] < 2:
            places[-1] = 9
        spelled = [f"{place / 20:g}" if shares else str(place) for place in places]
        return draw.choice(",;").join(f"{number()}{draw.choice('@~')}{each}" for each in spelled)

    def blocks() -> list[str]:
        size = draw.choice([*LISTS, 0, -1])
        if size == 0:
            return [f"lbw={draw.choice([*PRESETS, 'midd'])}"]
        if size == -1:
            sides = {"in": draw.choice([1, 9, 12]), "mid": 1, "out": draw.choice([1, 9, 12])}
            chosen = draw.sample(sorted(sides), draw.randint(1, 3))
            return [f"{side}=" + ",".join(number() for _ in range(sides[side])) for side in chosen]
        return ["lbw=" + ",".join(number() for _ in range(size))]

    items = [curve() for _ in range(draw.randint(0, 2))]
    if not items and draw.random() < 0.5:
        items.append(f"unet={curve()}")
    if draw.random() < 0.3:
        items.append(f"dyn={draw.randint(1, 32)}")
    if draw.random() < 0.7:
        items += blocks()
    if draw.random() < 0.5:
        items.append(draw.choice(["start=3", "stop=0.6", "step=2-7", "step=0.2-", "step=-0.75"]))
    items += [f"{key}={curve()}" for key in ("hr", "hrte", "hrunet") if draw.random() < 0.3]
    return f"<lora:{':'.join(['x', *items])}>"


def test_hundreds_of_tags_say_the_same_when_they_are_rewritten(visit: Visit) -> None:
    draw = random.Random(7)
    texts = [random_tag(draw) for _ in range(600)]
    short = rewritten(visit, texts)
    for one, other in zip(texts, short, strict=True):
        same(one, other)
    assert rewritten(visit, short) == short


# --- the popup -----------------------------------------------------------------------------------


def opened(visit: Visit, prompt: str, key: bool = False) -> Any:
    """The editor of the tag that ends the prompt, opened by its button or by F2."""
    visit.prompt(prompt)
    box = visit.page.locator(PROMPT)
    box.press("Control+End")
    box.press("ArrowLeft")
    offered = visit.page.locator(".crucible-edit-tag")
    offered.wait_for()
    if key:
        box.press("F2")
    else:
        offered.click()
    dialog = visit.page.locator("#crucible-tag")
    dialog.wait_for()
    return dialog


def preview(visit: Visit) -> str:
    return str(visit.page.locator(".crucible-written").inner_text())


def set_number(visit: Visit, name: str, value: str) -> None:
    visit.page.locator(f"#crucible-tag input[name={name}]").fill(value)


def write_tag(visit: Visit) -> str:
    visit.page.get_by_role("button", name="Write tag").click()
    visit.page.locator("#crucible-tag").wait_for(state="detached")
    return visit.prompt_text()


def test_numbers_presets_and_a_way_back(visit: Visit) -> None:
    opened(visit, "a cat <lora:colours:1>")
    set_number(visit, "te", "0.5")
    assert preview(visit) == "<lora:colours:0.5:1>"
    set_number(visit, "te", "much")  # the last that could be read stays
    assert visit.page.locator("#crucible-tag [aria-invalid=true]").count() == 1
    assert preview(visit) == "<lora:colours:0.5:1>"
    set_number(visit, "te", "1")
    set_number(visit, "start", "3")
    set_number(visit, "stop", "12")
    set_number(visit, "hrunet", "0.4")
    visit.page.locator("[name=preset]").select_option("MIDD")
    assert visit.page.locator(".crucible-block-bar").count() == 17
    visit.shot("editor")
    expected = "<lora:colours:1:lbw=MIDD:step=3-12:hrunet=0.4>"
    assert preview(visit) == expected
    assert write_tag(visit) == f"a cat {expected}"
    assert visit.page.evaluate(f"document.activeElement === document.querySelector('{PROMPT}')")
    visit.page.keyboard.press("Control+z")
    assert visit.prompt_text() == "a cat <lora:colours:1>"
    assert visit.complaints == []


def test_bars_by_keys_and_by_pointer(visit: Visit) -> None:
    opened(visit, "<lora:colours:0.8>", key=True)
    bars = visit.page.locator(".crucible-block-bar")
    bars.nth(0).focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("ArrowDown")
    assert bars.nth(1).get_attribute("aria-valuenow") == "0.9"
    assert visit.page.locator(".crucible-told").inner_text() == "IN01: 0.9"
    visit.page.keyboard.press("Delete")
    visit.page.keyboard.press("End")
    visit.page.keyboard.press("PageDown")
    visit.page.keyboard.press("PageDown")
    visit.page.keyboard.press("PageDown")
    assert bars.nth(16).get_attribute("aria-valuenow") == "-0.5"
    expected = "<lora:colours:0.8:lbw=1,0,1,1,1,1,1,1,1,1,1,1,1,1,1,1,-0.5>"
    assert preview(visit) == expected
    visit.page.locator("[name=preset]").select_option("NONE")
    assert bars.nth(0).get_attribute("aria-valuenow") == "0"
    track = visit.page.locator(".crucible-track")
    first, last = track.nth(2).bounding_box(), track.nth(5).bounding_box()
    assert first and last
    height = first["y"] + first["height"] / 2  # of the whole scale from 0 to 1.5
    visit.page.mouse.move(first["x"] + first["width"] / 2, height)
    visit.page.mouse.down()
    visit.page.mouse.move(last["x"] + last["width"] / 2, height, steps=12)
    visit.page.mouse.up()
    request = asked(preview(visit))
    assert request.plan and request.plan.blocks
    drawn = [request.plan.blocks.of(name) for name in LISTS[17]]
    assert drawn == [0, 0, 0.75, 0.75, 0.75, 0.75, *[0] * 11]
    visit.shot("editor-bars")
    visit.page.keyboard.press("Escape")
    visit.page.locator("#crucible-tag").wait_for(state="detached")
    assert visit.prompt_text() == "<lora:colours:0.8>"
    assert visit.complaints == []


def asked(tag: str) -> NetworkRequest:
    _, (request,), problems = network_requests(tag)
    assert problems == []
    return request


def test_points_of_the_curve(visit: Visit) -> None:
    opened(visit, "<lora:colours:1>")
    plot = visit.page.locator(".crucible-plot")
    points = visit.page.locator(".crucible-point")
    assert points.count() == 1
    frame = plot.bounding_box()
    assert frame

    def at(place: float, value: float) -> tuple[float, float]:
        return frame["x"] + place * frame["width"], frame["y"] + (1 - value / 1.5) * frame["height"]

    visit.page.mouse.click(*at(0.5, 0.5))
    assert points.count() == 2 and preview(visit) == "<lora:colours:1@0,0.5@0.5>"
    visit.page.mouse.move(*at(0.5, 0.5))
    visit.page.mouse.down()
    visit.page.mouse.move(*at(0.75, 0.25), steps=5)
    visit.page.mouse.up()
    assert preview(visit) == "<lora:colours:1@0,0.25@0.75>"
    visit.page.get_by_role("button", name="Add a point").click()  # at the end, in focus
    visit.page.keyboard.press("ArrowUp")
    visit.page.keyboard.press("ArrowUp")
    assert preview(visit) == "<lora:colours:1@0,0.25@0.75,0.35@1>"
    set_number(visit, "stop", "0.9")
    visit.shot("editor-curve")
    points.nth(1).focus()
    visit.page.keyboard.press("ArrowLeft")
    assert "0.25@0.7," in preview(visit)
    visit.page.keyboard.press("Delete")
    assert preview(visit) == "<lora:colours:1@0,0.35@1:stop=0.9>"
    points.nth(1).dblclick()
    set_number(visit, "stop", "")
    assert points.count() == 1 and preview(visit) == "<lora:colours:1>"
    assert visit.complaints == []


def test_a_curve_in_steps_stays_in_steps(visit: Visit) -> None:
    opened(visit, "<lora:colours:1@0,0@10>")
    points = visit.page.locator(".crucible-point")
    points.nth(1).focus()
    for _ in range(12):
        visit.page.keyboard.press("ArrowLeft")
    assert preview(visit) == "<lora:colours:1@0,0@2>"
    visit.page.get_by_role("button", name="Add a point").click()
    visit.page.keyboard.press("Delete")
    assert preview(visit) == "<lora:colours:1@0,0@2>"
    assert visit.complaints == []


def test_what_is_not_understood_is_kept_and_said(visit: Visit) -> None:
    dialog = opened(visit, "<lora:colours:1:lbw=R,0,1:note=x>")
    assert "lbw=R,0,1:note=x" in dialog.locator(".crucible-tag-notes").inner_text()
    set_number(visit, "unet", "0.5")
    assert preview(visit) == "<lora:colours:1:0.5:lbw=R,0,1:note=x>"
    visit.page.locator("[name=preset]").select_option("OUTD")
    assert preview(visit) == "<lora:colours:1:0.5:lbw=OUTD:note=x>"
    visit.page.keyboard.press("Control+Enter")  # writes, and makes no picture
    visit.page.locator("#crucible-tag").wait_for(state="detached")
    assert visit.prompt_text() == "<lora:colours:1:0.5:lbw=OUTD:note=x>"
    assert visit.page.locator("#crucible-stop").is_disabled()


def test_sdxl_has_its_own_blocks(visit: Visit) -> None:
    opened(visit, "<lora:for_sdxl:1>")
    bars = visit.page.locator(".crucible-block-bar")
    assert bars.count() == 12
    assert [bar.get_attribute("aria-label") for bar in bars.all()] == list(LISTS[12])
    bars.nth(5).focus()
    visit.page.keyboard.press("Delete")
    assert preview(visit) == "<lora:for_sdxl:1:mid=0>"
    visit.page.locator("[name=layout]").select_option("20")
    assert bars.count() == 20 and preview(visit) == "<lora:for_sdxl:1:mid=0>"
    assert bars.nth(0).get_attribute("aria-label") == BASE


def test_the_popup_about_a_network_leads_to_its_editor(visit: Visit) -> None:
    visit.tab("Networks")
    visit.prompt("a cat")
    visit.card("ink").locator("xpath=..").locator(".crucible-i").click()
    visit.page.get_by_role("button", name="Blocks and steps").click()
    dialog = visit.page.locator("#crucible-tag")
    dialog.wait_for()
    assert dialog.get_by_role("heading", name="ink").is_visible()
    assert visit.prompt_text() == "a cat <lora:ink:0.7>"
    set_number(visit, "stop", "5")
    assert write_tag(visit) == "a cat <lora:ink:0.7:stop=5>"
    assert visit.complaints == []


def test_the_button_comes_and_goes_with_the_caret(visit: Visit) -> None:
    visit.prompt("a cat <lora:ink:1> b")
    box, offered = visit.page.locator(PROMPT), visit.page.locator(".crucible-edit-tag")
    box.press("Control+End")
    assert not offered.is_visible()
    for _ in range(4):
        box.press("ArrowLeft")
    offered.wait_for()
    visit.shot("editor-button")
    box.press("Control+Home")
    offered.wait_for(state="hidden")
    assert visit.complaints == []


NARROW = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
DARK = {"color_scheme": "dark", "locale": "zh-CN", "viewport": {"width": 1280, "height": 860}}


@pytest.mark.parametrize("visit", [NARROW, DARK], indirect=True, ids=["narrow", "dark"])
def test_the_editor_fits_and_is_translated(visit: Visit, request: pytest.FixtureRequest) -> None:
    dark = "dark" in request.node.name
    dialog = opened(visit, "<lora:colours:1@0,0.2@1:lbw=OUTD:stop=0.8>")
    frame = dialog.bounding_box()
    size = visit.page.viewport_size
    assert frame and frame["x"] >= 0 and frame["x"] + frame["width"] <= size["width"]
    wide = """(made) => [...made.querySelectorAll("*")].filter((each) =>
        each.getBoundingClientRect().right > made.getBoundingClientRect().right)
        .map((each) => each.outerHTML.slice(0, 200))"""
    assert dialog.evaluate(wide) == []
    assert dialog.evaluate("(made) => made.scrollWidth <= made.clientWidth")
    bars = visit.page.locator(".crucible-block-bar")
    boxes = [bar.bounding_box() for bar in (bars.first, bars.last)]
    assert all(box and frame["x"] <= box["x"] <= frame["x"] + frame["width"] for box in boxes)
    if dark:
        visit.page.get_by_role("button", name="写入标签").wait_for()
    visit.shot(f"editor-{'dark' if dark else 'narrow'}")
    assert visit.complaints == []
