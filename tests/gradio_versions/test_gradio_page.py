"""The whole page under the gradio that is installed: A1111's 3.41, Forge's 4.40 or our own.

`tests/gradio_versions/run.py` runs these in environments with the WebUIs' versions and without
torch; the test suite runs them with the standalone host's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo" / "demo.safetensors"
HEAVY = ("torch", "diffusers", "transformers", "onnxruntime", "peft")
USED_ID = re.compile(r"#(crucible-[a-z][a-z-]*)")


@dataclass
class Event:
    """One wired event of the page, spelt alike for every gradio."""

    number: int
    target: str  # the component's elem_id, or "load"
    trigger: str
    inputs: list[str]
    outputs: list[str]
    queue: bool
    js: str


class Page:
    """The page as it is served: its configuration, and its events to call."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.config = client.get("/config").json()
        self.components = {each["id"]: each for each in self.config["components"]}

    def elem_id(self, number: int) -> str:
        """The component's elem_id; KeyError if the page does not hold it."""
        return str(self.components[number]["props"].get("elem_id") or number)

    def component(self, elem_id: str) -> dict[str, Any]:
        found = [e for e in self.components.values() if e["props"].get("elem_id") == elem_id]
        assert len(found) == 1, f"{len(found)} components are called {elem_id}"
        return dict(found[0]["props"])

    @property
    def events(self) -> list[Event]:
        """Every event with every target; gradio 3 names the trigger once, 4 with each target."""
        made = []
        for place, each in enumerate(self.config["dependencies"]):
            targets = each["targets"] or [None]
            for target in targets:
                number, trigger = (
                    target if isinstance(target, list) else (target, each.get("trigger"))
                )
                made.append(
                    Event(
                        each.get("id", place),
                        self.elem_id(number) if number in self.components else "load",
                        trigger or "load",
                        [self.elem_id(i) for i in each["inputs"]],
                        [self.elem_id(i) for i in each["outputs"]],
                        each["queue"] is not False,
                        each["js"] if isinstance(each["js"], str) else "",
                    )
                )
        return made

    def event(self, target: str, trigger: str = "click") -> Event:
        found = [e for e in self.events if (e.target, e.trigger) == (target, trigger) and not e.js]
        assert len(found) == 1, f"{len(found)} events of {target} are called {trigger}"
        return found[0]

    def call(self, event: Event, *values: Any) -> dict[str, Any]:
        """What the event answers now, by the elem_ids of its outputs."""
        order = {"fn_index": event.number, "data": values}
        order |= {"session_hash": "a-window", "event_id": f"event-{event.number}"}
        answer = self.client.post("/run/predict", json=order)
        assert answer.status_code == 200, answer.text
        return dict(zip(event.outputs, answer.json()["data"], strict=True))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The standalone page with the demo checkpoint and a network, served without a socket."""
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from extensions_lib.ui.standalone import Options, build_page

    data = tmp_path_factory.mktemp("data")
    networks = data / "models" / "Lora"
    networks.mkdir(parents=True)
    shutil.copy(ROOT / "models" / "Lora" / "star.safetensors", networks)
    blocks, room = build_page(Options(data=data, checkpoint=DEMO))
    room.studio.warm_up = lambda: None  # type: ignore[method-assign]
    with TestClient(gr.mount_gradio_app(FastAPI(), blocks, path="/")) as client:
        served = Page(client)
        served.studio = room.studio  # type: ignore[attr-defined]
        yield served


def test_page_is_served(page: Page) -> None:
    answer = page.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "window.gradio_config" in answer.text


def test_every_event_reaches_components_of_the_page(page: Page) -> None:
    events = page.events  # KeyError, if one names a component that is not there
    assert len(events) > 15
    laid_out = set(_numbers(page.config["layout"]))
    shown = {n for n, each in page.components.items() if each["type"] != "state"}
    assert shown <= laid_out | {page.config["layout"]["id"]}


def _numbers(layout: dict[str, Any]) -> Iterator[int]:
    yield layout["id"]
    for child in layout.get("children", []):
        yield from _numbers(child)


def test_what_script_and_style_look_for_is_there(page: Page) -> None:
    files = (ROOT / "javascript" / "crucible.js", ROOT / "style.css")
    used = {found for file in files for found in USED_ID.findall(file.read_text("utf-8"))}
    assert {"crucible-go", "crucible-prompt", "crucible-search"} <= used
    ids = {each["props"].get("elem_id") for each in page.components.values()}
    ids.add("crucible-frame")  # around a tab of ours in a WebUI
    # What stands inside our own HTML keeps its id in every version.
    inside = " ".join(str(each["props"].get("value")) for each in page.components.values())
    scripts = "".join(path.read_text("utf-8") for path in (ROOT / "javascript").rglob("*.js"))
    made = set(re.findall(r'(?:\bid: |\bID = )"([\w-]+)"', scripts))  # by a script, not the page
    assert {name for name in used - ids - made if f'id="{name}"' not in inside} == set()


def test_no_two_components_share_an_id(page: Page) -> None:
    ids = [each["props"].get("elem_id") for each in page.components.values()]
    given = [each for each in ids if each]
    assert len(given) == len(set(given)) > 20


def test_only_long_work_waits_in_line(page: Page) -> None:
    waiting = {e.target for e in page.events if e.queue and not e.js}
    steps = {f"crucible-tagger-{name}" for name in ("go", "back", "look", "next")}
    buttons = {"crucible-one", "crucible-one-picture"}
    buttons |= {"crucible-prepare-go", "crucible-prepare-look"}
    buttons |= {"crucible-training-go", "crucible-training-check"}
    words = ("about", "convert", "resize", "spectrum", "merge", "preview", "extract", "bake")
    buttons |= {f"crucible-toolbox-{word}-go" for word in (*words, "cache", "folder")}
    buttons |= {"crucible-toolbox-about-file", "crucible-toolbox-drop", "crucible-toolbox-move"}
    # Captions follow these: a folder is written anew.
    follow = re.compile(r"crucible-tagger-(select-|run-join)")
    assert {e for e in waiting if not follow.match(e)} == {"crucible-go", *steps, *buttons}


def test_fields_are_remembered_and_restored_by_the_browser(page: Page) -> None:
    restoring = [e for e in page.events if "crucible.restore" in e.js]
    remembering = [e for e in page.events if "crucible.remember" in e.js]
    assert len(restoring) == 1 and restoring[0].target == "load"
    assert {e.target for e in remembering} == set(restoring[0].outputs)
    assert "crucible-prompt" in restoring[0].outputs


def test_an_event_at_once_answers(page: Page) -> None:
    assert page.call(page.event("crucible-random")) == {"crucible-seed": -1}


def test_networks_are_shown(page: Page) -> None:
    made = page.call(page.event("crucible-refresh"), str(DEMO))
    assert 'data-name="star"' in str(made["crucible-networks"])


def test_checkpoint_is_chosen_by_its_path(page: Page) -> None:
    chosen = page.component("crucible-checkpoint")
    assert chosen["value"] == str(DEMO)
    # gradio 3.41 would show a pair as the text of a tuple, and choose that.
    values = [each[-1] if isinstance(each, list) else each for each in chosen["choices"]]
    assert values == [str(DEMO)]
    opened = next(e for e in page.events if e.target == "load" and not e.js)
    fresh = page.call(opened)["crucible-checkpoint"]
    values = [each[-1] if isinstance(each, list) else each for each in fresh["choices"]]
    assert fresh["value"] == str(DEMO) and values == [str(DEMO)]
    made = page.call(page.event("crucible-checkpoint", "input"), str(DEMO))
    assert made["crucible-width"] == page.component("crucible-width")["value"]


def test_generating_and_stopping_reach_the_line_of_jobs(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    from extensions_lib.ui.jobs import Update

    windows = []

    def run(request: Any, window: str, checkpoint: Path) -> Iterator[Update]:
        windows.append(window)
        yield Update("failed", message=f"{request.prompt} at {request.width}")

    monkeypatch.setattr(page.studio, "run", run)  # type: ignore[attr-defined]
    monkeypatch.setattr(page.studio, "stop", windows.append)  # type: ignore[attr-defined]
    event = page.event("crucible-go")
    # The pictures made before are in a state, which has a number for a name.
    named = [(name, not name.isdigit()) for name in event.inputs]
    values = [page.component(name).get("value") if is_field else [] for name, is_field in named]
    values[event.inputs.index("crucible-prompt")] = "a ring"
    opening = page.call(event, *values)
    assert "Starting" in str(opening["crucible-progress"])
    stop = opening["crucible-stop"]
    assert stop.get("interactive") is True or stop["mode"] == "dynamic"  # the latter in gradio 3
    failed = page.call(event, *values)  # a generator goes on where it was
    assert "a ring at " in str(failed["crucible-notes"])
    page.call(page.event("crucible-stop"))
    assert len(windows) == 2 and windows[0] == windows[1]


def test_building_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from extensions_lib.ui.standalone import Options, build_page\n"
        f"build_page(Options(data=Path({str(tmp_path)!r}), checkpoint=Path({str(DEMO)!r})))\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
