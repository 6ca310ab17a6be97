"""Completion and weight keys in the prompt boxes, in a real browser; and what the server tells."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from extensions_lib.files.safe import write_safetensors
from extensions_lib.library import AESTHETICS, EMBEDDINGS, HYPERNETWORKS, Library
from extensions_lib.prompts.blocks import LISTS, PRESETS
from extensions_lib.ui.completions import ROUTE, Sources, add_route, webui_sources
from tests.hosts.conftest import tiny_lora
from tests.ui.conftest import ROOT, Visit

PROMPT = "#crucible-prompt textarea"
NEGATIVE = "#crucible-negative textarea"
LIST = "#crucible-completions"


def embedding(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, {"emb_params": torch.zeros(2, 768)})


# --- what the server tells ----------------------------------------------------------------------


def aesthetic(path: Path) -> Path:
    """A file of one vector of CLIP's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.ones(1, 768), path)
    return path


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    tiny_lora(tmp_path / "Lora" / "sub" / "star.safetensors", 1)
    user = {"activation text": "a \ud83d star", "preferred weight": 0.6}
    (tmp_path / "Lora" / "sub" / "star.json").write_text(json.dumps(user))
    tiny_lora(tmp_path / "Lora" / "odd.safetensors", 2)
    (tmp_path / "Lora" / "odd.json").write_text("[1]")
    (tmp_path / "Lora" / "broken.safetensors").write_text("no network")
    embedding(tmp_path / "emb" / "bad-hands.safetensors")
    aesthetic(tmp_path / "aes" / "sunsets.pt")
    return Sources(
        Library([tmp_path / "Lora"]),
        Library([tmp_path / "none"], shelf=HYPERNETWORKS),
        Library([tmp_path / "emb"], shelf=EMBEDDINGS),
        aesthetics=Library([tmp_path / "aes"], shelf=AESTHETICS),
    )


def test_the_route_tells_names_and_what_goes_with_them(sources: Sources, tmp_path: Path) -> None:
    app = FastAPI()
    add_route(app, lambda: sources)
    client = TestClient(app)
    told = client.get(ROUTE).json()
    rows = [(name, weight, words) for name, _, _, _, weight, words in told["lora"]]
    assert rows == [("odd", 1, ""), ("star", 0.6, "a \ud83d star")]
    assert told["embedding"][0][0] == "bad-hands"
    assert [row[0] for row in told["aesthetic"]] == ["sunsets"] and told["lllite"] == []
    assert told["presets"] == dict(PRESETS)
    assert told["lists"] == {str(size): list(names) for size, names in LISTS.items()}
    assert client.get(ROUTE, params={"have": told["stamp"]}).json() == {"same": True}
    tiny_lora(tmp_path / "Lora" / "new.safetensors", 3)
    again = client.get(ROUTE, params={"have": told["stamp"]}).json()
    assert [row[0] for row in again["lora"]] == ["new", "odd", "star"]


def test_a_webui_has_the_same_from_its_own_folders(sources: Sources, tmp_path: Path) -> None:
    options = SimpleNamespace(
        hypernetwork_dir=str(tmp_path / "none"), embeddings_dir=str(tmp_path / "emb")
    )
    session: Any = SimpleNamespace(library=sources.networks)
    asked = webui_sources(session, options, tmp_path / "cache")
    app = FastAPI()
    add_route(app, asked)
    told = TestClient(app).get(ROUTE).json()
    assert [row[0] for row in told["lora"]] == ["odd", "star"]
    assert [row[0] for row in told["embedding"]] == ["bad-hands"]
    assert asked() is asked()


def test_telling_names_needs_no_torch(tmp_path: Path) -> None:
    tiny_lora(tmp_path / "star.safetensors", 1)
    code = (
        "import sys; from pathlib import Path; from extensions_lib.library import Library\n"
        "from extensions_lib.ui.completions import Sources, answer\n"
        "library = Library([Path(sys.argv[1])])\n"
        "assert b'star' in answer(Sources(library, Library([]), Library([])))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)


def test_every_explanation_is_translated() -> None:
    texts = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    script = (ROOT / "javascript" / "completion.js").read_text(encoding="utf-8")
    notes = re.findall(r'\["[a-z]+=?", "([^" ]+ [^"]+)"\]', script)
    assert len(notes) == 22
    assert [note for note in notes if note not in texts] == []


# --- typing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def embeddings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two embeddings in the data folder of the page, while the tests of this file run."""
    if not any(item.get_closest_marker("browser") for item in request.session.items):
        yield
        return
    folder = request.getfixturevalue("data") / "embeddings"
    made = [folder / "easynegative.safetensors", folder / "bad-hands.safetensors"]
    for path in made:
        embedding(path)
    yield
    for path in made:
        path.unlink()


browser = pytest.mark.browser


def offers(visit: Visit) -> list[str]:
    """What the open list offers; [] where none is open."""
    return list(
        visit.page.evaluate(
            f"""[...document.querySelectorAll("{LIST}:not([hidden]) .crucible-offer-name")]
                .map((each) => each.textContent)"""
        )
    )


def await_offers(visit: Visit, expected: list[str]) -> None:
    visit.page.wait_for_function(
        f"""(expected) => expected.join("|") === [...document.querySelectorAll(
            "{LIST}:not([hidden]) .crucible-offer-name")].map((e) => e.textContent).join("|")""",
        arg=expected,
    )


def type_into(visit: Visit, text: str, box: str = PROMPT) -> None:
    """Types at the end of what is in the box."""
    visit.page.locator(box).press("Control+End")
    visit.page.keyboard.type(text)


@browser
def test_a_network_is_found_and_written_with_its_weight_and_words(visit: Visit) -> None:
    visit.prompt("a cat")
    type_into(visit, ", <")
    await_offers(visit, ["lora", "lyco", "hypernet", "lllite", "aesthetic"])
    visit.shot("completion-kinds")
    visit.page.keyboard.press("Enter")
    assert visit.prompt_text() == "a cat, <lora:"
    await_offers(visit, ["colours", "dust", "for_sdxl", "ink", "night (v2)"])
    visit.shot("completion-names")
    visit.page.keyboard.type("INK")  # case does not matter
    await_offers(visit, ["ink"])
    box = visit.page.locator(PROMPT)
    assert box.get_attribute("aria-activedescendant") == "crucible-completions-0"
    assert box.get_attribute("aria-controls") == "crucible-completions"
    visit.page.keyboard.press("Tab")
    assert visit.prompt_text() == "a cat, inkwash <lora:ink:0.7>"
    await_offers(visit, [])
    assert box.get_attribute("aria-activedescendant") is None
    visit.page.keyboard.press("Control+z")  # all of it is one step back
    assert visit.prompt_text() == "a cat, <lora:INK"
    assert visit.complaints == []


@browser
def test_keys_and_mouse_choose_and_a_closed_list_takes_no_keys(visit: Visit) -> None:
    visit.prompt("")
    type_into(visit, "<lora:")
    await_offers(visit, ["colours", "dust", "for_sdxl", "ink", "night (v2)"])
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "ArrowUp", "ArrowUp"):
        visit.page.keyboard.press(key)
    chosen = visit.page.locator(f"{LIST} [aria-selected=true]")
    assert "night (v2)" in chosen.inner_text()  # round from the first to the last
    visit.page.keyboard.press("Escape")
    await_offers(visit, [])
    visit.page.keyboard.press("Enter")  # a new line, as without a list
    assert visit.prompt_text() == "<lora:\n"
    visit.prompt("")
    type_into(visit, "<lora:u")  # within the name; an alias is found too
    await_offers(visit, ["colours", "dust"])
    visit.page.locator(f"{LIST} li", has_text="dust").click()
    assert visit.prompt_text() == "<lora:dust:1>"
    assert visit.page.evaluate(f"document.activeElement === document.querySelector('{PROMPT}')")
    visit.prompt("")
    type_into(visit, "<lyco:pai")
    await_offers(visit, ["colours"])
    visit.page.keyboard.press("Enter")
    assert visit.prompt_text() == "<lyco:colours:1>"


@browser
def test_the_name_within_a_tag_is_replaced_and_its_arguments_stay(visit: Visit) -> None:
    visit.prompt("<lora:dust:0.5:hr=1> x")
    visit.page.locator(PROMPT).press("Control+Home")
    for _ in "<lora:d":
        visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("Backspace")
    visit.page.keyboard.type("co")
    await_offers(visit, ["colours"])
    visit.page.keyboard.press("Enter")
    assert visit.prompt_text() == "<lora:colours:0.5:hr=1> x"


@browser
def test_arguments_and_presets(visit: Visit) -> None:
    visit.prompt("")
    type_into(visit, "<lora:ink:0.7:")
    visit.page.locator(f"{LIST} li", has_text="hrunet=").wait_for()
    assert {"te=", "lbw=", "step=", "mid=", "dyn="} <= set(offers(visit))
    visit.shot("completion-arguments")
    visit.page.keyboard.type("hr")
    await_offers(visit, ["hr=", "hrte=", "hrunet="])
    visit.page.keyboard.press("Enter")
    visit.page.keyboard.type("0.5:l")
    await_offers(visit, ["lbw=", "lbwe="])
    visit.page.keyboard.press("Enter")
    visit.page.locator(f"{LIST} li", has_text="MIDD").wait_for()
    visit.page.keyboard.type("out")
    await_offers(visit, ["OUTD", "OUTS", "OUTALL"])
    visit.shot("completion-presets")
    visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("Enter")
    visit.page.keyboard.type(":lbwe=p")
    await_offers(visit, ["PROJDEEPOFF", "ATTNDEEPON", "ATTNDEEPOFF"])
    visit.page.keyboard.press("Enter")
    visit.page.keyboard.type(":h")
    await_offers(visit, ["hrte=", "hrunet="])  # hr= is there already
    visit.page.keyboard.type("x>")
    await_offers(visit, [])
    assert visit.prompt_text() == "<lora:ink:0.7:hr=0.5:lbw=OUTS:lbwe=PROJDEEPOFF:hx>"


@browser
def test_aesthetic_gradients_have_arguments_of_their_own(visit: Visit, data: Path) -> None:
    path = aesthetic(data / "models" / "aesthetic_embeddings" / "sunsets.pt")
    try:
        visit.prompt("")
        type_into(visit, "<aes")
        await_offers(visit, ["aesthetic"])
        visit.page.keyboard.press("Enter")
        await_offers(visit, ["sunsets"])
        visit.page.keyboard.press("Enter")
        assert visit.prompt_text() == "<aesthetic:sunsets:0.9>"
        visit.page.keyboard.press("ArrowLeft")
        visit.page.keyboard.type(":")
        await_offers(visit, ["steps=", "rate=", "slerp="])
        visit.page.keyboard.press("Enter")
        visit.page.keyboard.type("7:l")
        await_offers(visit, [])  # block weights mean nothing here
        assert visit.prompt_text() == "<aesthetic:sunsets:0.9:steps=7:l>"
    finally:
        path.unlink()


@browser
def test_embeddings_are_offered_outside_of_tags_in_both_boxes(visit: Visit) -> None:
    visit.prompt("")
    visit.page.locator(NEGATIVE).fill("")
    type_into(visit, "blurry, eas", NEGATIVE)
    await_offers(visit, ["easynegative"])
    visit.shot("completion-embedding")
    visit.page.keyboard.press("Enter")
    assert visit.page.locator(NEGATIVE).input_value() == "blurry, easynegative"
    type_into(visit, ", <lor", NEGATIVE)  # tags do nothing there
    type_into(visit, ">, (BAD", NEGATIVE)
    await_offers(visit, ["bad-hands"])
    visit.page.keyboard.press("Home")  # the caret has gone elsewhere
    await_offers(visit, [])
    type_into(visit, "hands")  # in the prompt; holds it, but does not begin so
    assert offers(visit) == []


@browser
def test_names_come_before_aliases(visit: Visit) -> None:
    rows = [["a_star", "", "LoRA", "SD1", 1, ""], ["ink", "star ink", "LoRA", "SD1", 1, ""],
            ["star", "", "LoRA", "SD1", 1, ""]]  # fmt: skip
    told = {"stamp": "x", "lora": rows, "hypernet": [], "embedding": [],
            "presets": {}, "lists": {}}  # fmt: skip
    visit.page.route("**/crucible/completions*", lambda route: route.fulfill(json=told))
    visit.prompt("")
    type_into(visit, "<lora:st")
    await_offers(visit, ["star", "ink", "a_star"])


@browser
def test_ten_thousand_names_answer_within_moments(visit: Visit) -> None:
    words = ("style", "person", "light", "ink", "glass")
    rows = [[f"{words[n % 5]}_{n:05d}_v{n % 7}", f"alias {n}", "LoRA", "SD1", 1, ""]
            for n in range(10_000)]  # fmt: skip
    told = {"stamp": "x", "lora": sorted(rows), "hypernet": [], "embedding": rows,
            "presets": {}, "lists": {}}  # fmt: skip
    visit.page.route("**/crucible/completions*", lambda route: route.fulfill(json=told))
    visit.prompt("")
    type_into(visit, "<lora:light")
    visit.page.locator(f"{LIST} li").nth(11).wait_for()
    assert len(offers(visit)) == 12
    # The middle one of several, since others may have the machine at one moment.
    took = visit.page.evaluate(
        """async (selector) => {
            const box = document.querySelector(selector);
            const times = [];
            for (const text of ["g", "gl", "gla", "9", "98", "99", "_v6", "x", "s", "alias 77"]) {
                const started = performance.now();
                box.setRangeText(text, 6, box.value.length, "end");
                box.dispatchEvent(new InputEvent("input", {bubbles: true}));
                times.push(performance.now() - started);
                await new Promise(requestAnimationFrame);
            }
            return times.sort((a, b) => a - b)[5];
        }""",
        PROMPT,
    )
    assert took < 50


@browser
def test_no_answer_is_no_trouble_and_a_late_one_opens_the_list(visit: Visit) -> None:
    visit.page.route("**/crucible/completions*", lambda route: route.fulfill(status=500))
    visit.prompt("")
    with visit.page.expect_response("**/crucible/completions*"):
        type_into(visit, "<lora:col")
    assert offers(visit) == [] and visit.complaints == []
    visit.page.unroute("**/crucible/completions*")
    visit.page.reload()
    visit.page.locator(".crucible-card").first.wait_for(state="attached")

    def late(route: Any) -> None:
        time.sleep(0.5)
        route.continue_()

    visit.page.route("**/crucible/completions*", late)
    visit.prompt("")
    type_into(visit, "<lora:col")
    await_offers(visit, ["colours"])


# --- weight keys ---------------------------------------------------------------------------------


def pressed(visit: Visit, text: str, key: str, times: int = 1) -> str:
    """The prompt after Ctrl+`key`; "|" in `text` is the caret, two of them a marked text."""
    start, *more = text.split("|")
    visit.prompt(text.replace("|", ""))
    end = len(start) + len(more[0]) if len(more) > 1 else len(start)
    visit.page.locator(PROMPT).evaluate(
        "(box, [start, end]) => { box.focus(); box.setSelectionRange(start, end); }",
        [len(start), end],
    )
    for _ in range(times):
        visit.page.keyboard.press(f"Control+Arrow{key}")
    return visit.prompt_text()


WEIGHED = [
    ("a <lora:x:0|.5> b", "Up", 1, "a <lora:x:0.6> b"),
    ("<lora:x|>", "Down", 2, "<lora:x:0.8>"),
    ("<lo|ra:x:1:0.5>", "Down", 1, "<lora:x:0.9:0.5>"),
    ("<lora:x:1:0.5|:8>", "Up", 1, "<lora:x:1:0.6:8>"),
    ("<lora:x:1:1:|8>", "Up", 2, "<lora:x:1:1:10>"),
    ("<lora:x:1:dyn=|1>", "Down", 1, "<lora:x:1:dyn=1>"),
    ("<lora:x:te=0.1:un|et=1>", "Up", 1, "<lora:x:te=0.1:unet=1.1>"),
    ("<lora:|x:te=0.1:unet=1>", "Down", 3, "<lora:x:te=-0.2:unet=1>"),
    ("<lora:x:1@0,0|@0.5>", "Up", 3, "<lora:x:1@0,0.3@0.5>"),
    ("<lora:x:1@0,0@0.|5,1@1>", "Up", 1, "<lora:x:1@0,0.1@0.5,1@1>"),
    ("<lora:x:1:lbw=1,0|,0,R:hr=1>", "Up", 10, "<lora:x:1:lbw=1,1,0,R:hr=1>"),
    ("<lora:x:1:lbw=MI|DD>", "Up", 1, "<lora:x:1:lbw=MIDD>"),
    ("<lora:x:1:hr=-0|.1>", "Up", 1, "<lora:x:1:hr=0>"),
    ("<lora:x:1:step=5-1|5>", "Down", 2, "<lora:x:1:step=5-13>"),
    ("<lora:x:1:stop=0.5|>", "Up", 1, "<lora:x:1:stop=0.55>"),
    ("<hypernet:h:0.5|>", "Up", 1, "<hypernet:h:0.6>"),
    ("<lllite:h:0.5|>", "Up", 1, "<lllite:h:0.6>"),
    ("<lllite:h:0.5:stop=0.5|>", "Down", 1, "<lllite:h:0.5:stop=0.45>"),
    ("a b|ig cat", "Up", 1, "a (big:1.1) cat"),
    ("a b|ig cat", "Up", 3, "a (big:1.3) cat"),
    ("a (b|ig:1.1) cat", "Down", 1, "a big cat"),
    ("a (big, re|d) cat", "Up", 1, "a (big, red:1.2) cat"),
    ("a ((b|ig)) cat", "Down", 1, "a (big:1.1) cat"),
    ("a [b|ig] cat", "Up", 1, "a big cat"),
    ("a |big cat| b", "Down", 2, "a (big cat:0.8) b"),
    ("a [b|ig:red:0.5]", "Up", 1, "a [big:red:0.5]"),
    (r"a \(b|ig\)", "Up", 1, r"a \((big:1.1)\)"),
]


@browser
def test_keys_change_the_weight_under_the_caret(visit: Visit) -> None:
    for text, key, times, expected in WEIGHED:
        assert pressed(visit, text, key, times) == expected, text
    assert visit.complaints == []
