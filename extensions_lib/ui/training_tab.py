"""The Training tab: a set, its options, a look ahead, and a run to watch.

The same builder serves the standalone page and the WebUIs. What is watched and steered is drawn by
javascript/training.js, which asks the routes of `TrainingRoom.add_page_routes`: so every window
sees the run, also after a reload.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import gradio as gr

from extensions_lib.errors import CrucibleError
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.presets import DEMO
from extensions_lib.ui import pieces, training_options, training_set
from extensions_lib.ui.compat import at_once, on_browser, only_last, side_by_side, window_of
from extensions_lib.ui.jobs import Jobs, Tell, Update
from extensions_lib.ui.option_fields import OptionForm
from extensions_lib.ui.training_options import PREFIX
from extensions_lib.ui.training_room import TrainingRoom

WINDOWS = 16  # inside one event at a time
Changes = dict[Any, Any]


@dataclass(frozen=True)
class TrainingTab:
    """The components."""

    room: TrainingRoom
    jobs: Jobs
    form: OptionForm[TrainingOptions]
    check: gr.Button
    demo: gr.Button
    found: gr.HTML
    preset: gr.Dropdown
    go: gr.Button
    error: gr.HTML
    crops: gr.HTML
    prompts: gr.HTML
    toml: gr.Textbox
    load: gr.Button
    loaded: gr.HTML

    @property
    def fields(self) -> list[Any]:
        return self.form.inputs

    def read(self, values: tuple[Any, ...]) -> TrainingOptions:
        """The options as they stand in the fields. Raises OptionProblem."""
        return self.form.read(values)


def build_training_tab(room: TrainingRoom, page: gr.Blocks) -> TrainingTab:
    """Builds the tab inside `page` and wires it."""
    family = room.family()
    form = training_options.new_form(family)
    with gr.Column(elem_id=PREFIX):
        with gr.Row(elem_id=f"{PREFIX}-set"):
            form.field(
                "train_data_dir", label="Folder of pictures", placeholder="/path/to/pictures",
                scale=6, min_width=260,
            )  # fmt: skip
            form.field(
                "reg_data_dir", label="Regularisation pictures", placeholder="none",
                scale=4, min_width=200,
            )  # fmt: skip
            with gr.Column(scale=1, min_width=140):
                check = gr.Button("Check", elem_id=f"{PREFIX}-check")
                demo = gr.Button(
                    "Draw a demo set", size="sm", visible=family == DEMO, elem_id=f"{PREFIX}-demo"
                )
        found = _said("found")
        with gr.Row():
            form.field("output_name", scale=2, min_width=200)
            form.field("train", label="What is trained", info=None, scale=3, min_width=420)
        with gr.Row(elem_id=f"{PREFIX}-what"):
            form.field("kind", label="Kind of network", info=None, scale=2, min_width=140)
            preset = gr.Dropdown(
                training_options.preset_names(family), label="Preset", scale=3, min_width=180,
                value=training_options.first_preset(family), elem_id=f"{PREFIX}-preset",
            )  # fmt: skip
            gr.HTML(_base(room), elem_id=f"{PREFIX}-base")
        training_options.first_row(form)
        with gr.Row(elem_id=f"{PREFIX}-actions"):
            label = training_set.steps_label(TrainingOptions().max_train_steps)
            go = gr.Button(label, variant="primary", scale=3, elem_id=f"{PREFIX}-go")
            gr.HTML('<div class="crucible-training-acts"></div>', elem_id=f"{PREFIX}-acts")
        error = _said("error")
        gr.HTML(_live(room), elem_id=f"{PREFIX}-watch")
        with gr.Accordion("Options", open=False, elem_id=f"{PREFIX}-options"):
            training_options.rest(form)
        with gr.Accordion("Pictures and their sizes", open=False, elem_id=f"{PREFIX}-pictures"):
            crops = gr.HTML(_UNCHECKED, elem_id=f"{PREFIX}-crops")
        with gr.Accordion("Prompts as the model sees them", open=False, elem_id=f"{PREFIX}-seen"):
            prompts = gr.HTML(_UNCHECKED, elem_id=f"{PREFIX}-prompts")
        with gr.Accordion("As TOML", open=False, elem_id=f"{PREFIX}-as-toml"):
            toml = gr.Textbox(
                label="Options that are not at their default",
                info="copy them, or put others here and load them",
                lines=6, max_lines=30, show_copy_button=True, elem_id=f"{PREFIX}-toml",
            )  # fmt: skip
            load = gr.Button("Load", elem_id=f"{PREFIX}-load")
            loaded = _said("loaded")
        with gr.Accordion("Runs so far", open=False, elem_id=f"{PREFIX}-past"):
            gr.HTML('<div class="crucible-training-runs"></div>', elem_id=f"{PREFIX}-runs")
    tab = TrainingTab(
        room, Jobs(), form, check, demo, found, preset, go, error, crops, prompts, toml, load,
        loaded,
    )  # fmt: skip
    _wire_fields(tab, page)
    _wire_presets(tab)
    _wire_check(tab)
    _wire_start(tab)
    return tab


_UNCHECKED = '<p class="crucible-training-quiet">Press Check to see them.</p>'


def _said(name: str) -> gr.HTML:
    """A place for what is to be said, which takes no room while that is nothing."""
    return gr.HTML(elem_id=f"{PREFIX}-{name}", elem_classes=["crucible-training-said"])


def _base(room: TrainingRoom) -> str:
    """On what is trained; the script keeps it up to date."""
    name = html.escape(room.base())
    return (
        '<div class="crucible-training-base"><span>Trained on</span>'
        f'<b translate="no">{name}</b><span>the checkpoint that is loaded</span></div>'
    )


def _live(room: TrainingRoom) -> str:
    """What the script fills: bar, curves, samples. Relative to the page, wherever that lies."""
    route = html.escape(f".{room.route}", quote=True)
    return f'<div id="{PREFIX}-live" data-route="{route}"></div>'


# --- fields -----------------------------------------------------------------------------------


def _wire_fields(tab: TrainingTab, page: gr.Blocks) -> None:
    """Fields are remembered by the browser, marked where changed, and follow preset and TOML."""
    fields = tab.fields

    def follow(*values: Any) -> Changes:
        """The button says what it will do, the TOML what is chosen."""
        try:
            options = tab.read(values)
        except CrucibleError as problem:
            return {tab.error: pieces.messages([str(problem)], "error")}
        return {
            tab.go: gr.update(value=_label(options)),
            tab.toml: training_options.as_toml(options),
            tab.preset: training_options.preset_of(options, tab.room.family()),
            tab.error: "",
        }

    remember = on_browser("(...values) => window.crucibleTraining?.remember(values) ?? values")
    following: dict[str, Any] = {
        "fn": follow,
        "inputs": fields,
        "outputs": [tab.go, tab.toml, tab.preset, tab.error],
        **remember,
        **at_once(),
    }
    names = json.dumps([field.elem_id for field in fields])
    restore = f"(...values) => window.crucibleTraining?.restore(values, {names}) ?? values"
    page.load(None, None, fields, **on_browser(restore))
    changed = gr.Button("Changed", elem_id=f"{PREFIX}-changed", elem_classes=["crucible-wire"])
    changed.click(**following, **only_last())
    reset = gr.Button("Reset", elem_id=f"{PREFIX}-reset", elem_classes=["crucible-wire"])
    back = on_browser("(...values) => window.crucibleTraining?.reset(values) ?? values")
    reset.click(None, fields, fields, **back)

    def load(text: str) -> Changes:
        try:
            options, notes = training_options.from_toml(text)
        except CrucibleError as problem:
            return {tab.loaded: pieces.messages([str(problem)], "error")}
        values = training_options.shown(tab.form, options)
        return {tab.loaded: pieces.messages(notes), **dict(zip(fields, values, strict=True))}

    tab.load.click(load, tab.toml, [tab.loaded, *fields], **at_once()).success(**following)


def _wire_presets(tab: TrainingTab) -> None:
    """Values to begin with: by the preset, by what is trained, by the family, by the demo's set.

    Each becomes the fields; the script then asks for what follows from them.
    """
    fields, room = tab.fields, tab.room
    others = [tab.error, tab.preset, tab.demo]
    follow = {"fn": None, **on_browser("() => { window.crucibleTraining?.follow(); return []; }")}

    def wire(event: Any, change: Callable[..., TrainingOptions], *more: Any) -> None:
        def act(*values: Any) -> Changes:
            given, own = values[: len(fields)], values[len(fields) :]
            family = room.family()
            try:
                options = change(tab.read(given), family, *own)
            except CrucibleError as problem:
                return {tab.error: pieces.messages([str(problem)], "error")}
            names = training_options.preset_names(family)
            chosen = training_options.preset_of(options, family)
            return {
                tab.preset: gr.update(choices=names, value=chosen),
                tab.demo: gr.update(visible=family == DEMO),
                **dict(zip(fields, training_options.shown(tab.form, options), strict=True)),
            }

        event(act, [*fields, *more], [*others, *fields], **at_once()).then(**follow)

    def preset(options: TrainingOptions, family: str, name: str) -> TrainingOptions:
        return training_options.with_preset(options, name, family)

    def demo(options: TrainingOptions, _: str) -> TrainingOptions:
        return training_options.with_demo_set(options, room.draw_demo_set())

    based = gr.Button("Another base", elem_id=f"{PREFIX}-based", elem_classes=["crucible-wire"])
    wire(tab.preset.input, preset, tab.preset)
    wire(tab.form.fields["train"].input, training_options.begun)
    wire(based.click, training_options.moved)
    wire(tab.demo.click, demo)


def _label(options: TrainingOptions) -> str:
    if options.max_train_epochs:
        return f"Train {options.max_train_epochs} epochs"
    return training_set.steps_label(options.max_train_steps)


# --- looking ahead ----------------------------------------------------------------------------


def _wire_check(tab: TrainingTab) -> None:
    outputs = [tab.found, tab.crops, tab.prompts, tab.go]

    def check(request: gr.Request, *values: Any) -> Iterator[Changes]:
        window = window_of(request)
        yield {tab.found: pieces.bar(None, "Looking at the pictures …")}
        try:
            options = tab.room.allowed(tab.read(values))
        except CrucibleError as problem:
            yield {tab.found: pieces.messages([str(problem)], "error")}
            return

        def job(tell: Tell, stop: Event) -> Any:
            return _look(tab.room, options, tell, stop)

        for update in tab.jobs.run(window, job):
            yield _told(tab, options, update)

    running: dict[str, Any] = {"show_progress": "hidden", **side_by_side(WINDOWS)}
    tab.check.click(check, tab.fields, outputs, **running)


def _look(room: TrainingRoom, options: TrainingOptions, tell: Tell, stop: Event) -> Any:
    """First the pictures; then, unless a run has the model, a step is tried. Raises Stopped."""
    from extensions_lib.training.preflight import look_ahead

    place = room.service.here()
    found = look_ahead(place, options, on_progress=lambda *at: tell(at), stop=stop)
    if found.problems:
        return found
    room.service.approve(options)
    if room.service.status()["busy"]:
        return found
    tell(found)
    return look_ahead(place, options, measured=True, stop=stop)


def _told(tab: TrainingTab, options: TrainingOptions, update: Update) -> Changes:
    """A check under way or at its end, as changes of the page."""
    if update.state == "failed":
        return {tab.found: pieces.messages([update.message], "error")}
    if update.state == "stopped":
        return {tab.found: ""}
    if update.state == "done":
        return _shown(tab, options, update.result)
    if update.state == "waiting":
        return {tab.found: pieces.bar(None, "Waiting for", str(update.ahead), "other")}
    if isinstance(update.progress, tuple):
        done, of = update.progress
        bar = pieces.bar(done / max(1, of), "Looking at the pictures …", f"{done}/{of}")
        return {tab.found: bar}
    if update.progress is not None:  # all but the time and the memory
        changes = _shown(tab, options, update.progress)
        changes[tab.found] += pieces.bar(None, "Trying a step …")
        return changes
    return {tab.found: pieces.bar(None, "Looking at the pictures …")}


def _shown(tab: TrainingTab, options: TrainingOptions, found: Any) -> Changes:
    changes: Changes = {tab.found: training_set.summary(found)}
    if found.data is None or found.pictures is None:
        return {**changes, tab.crops: _UNCHECKED, tab.prompts: _UNCHECKED}
    changes[tab.found] += training_set.missing(found.data)
    changes[tab.crops] = training_set.crops(found.pictures.used, tab.room.links)
    changes[tab.prompts] = training_set.prompts(found.data)
    changes[tab.go] = gr.update(value=training_set.steps_label(found.steps))
    return changes


# --- starting ---------------------------------------------------------------------------------


def _wire_start(tab: TrainingTab) -> None:
    def start(*values: Any) -> Iterator[Changes]:
        yield {tab.error: pieces.bar(None, "Looking at the pictures …")}
        try:
            tab.room.service.begin(tab.read(values))
        except CrucibleError as problem:
            lines = str(problem).splitlines()
            yield {tab.error: pieces.messages(lines, "error")}
            return
        yield {tab.error: ""}

    tab.go.click(start, tab.fields, [tab.error], show_progress="hidden", **side_by_side(WINDOWS))
