"""A tab for each tool: what it is given, its options, its button, what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from extensions_lib.api.toolbox import Work, watch
from extensions_lib.errors import CrucibleError
from extensions_lib.toolbox.tools import TOOLS
from extensions_lib.toolbox.work import Output, Written
from extensions_lib.ui import toolbox_result
from extensions_lib.ui.compat import at_once, only_last
from extensions_lib.ui.option_fields import OptionForm
from extensions_lib.ui.toolbox_preview import Preview, build_preview
from extensions_lib.ui.toolbox_room import ToolboxRoom
from extensions_lib.ui.toolbox_work import PREFIX, WorkFields, wire_work, work_fields

_ANY = "any"
_LINES = "one a line, as in a tag: FILE:0.8"


@dataclass(frozen=True)
class Look:
    """How a tool's tab is laid out.

    `inputs`: label, placeholder and sort of file of each input. `first`: rows of options; the
    others are in a closed group. `sorts`: options that name a file, and of which sort. `doing`:
    what the bar says. `button`: what the button says, by options and inputs.
    """

    label: str
    doing: str
    inputs: Mapping[str, tuple[str, str, str]]
    first: Sequence[Sequence[str]]
    button: Callable[[Any, Mapping[str, Any]], str]
    beside: str = ""  # an option beside the name of the result
    sorts: Mapping[str, str] = field(default_factory=dict)


def _count(given: Mapping[str, Any]) -> int:
    return len(given["networks"])


def _bake_label(how: Any, given: Mapping[str, Any]) -> str:
    count = _count(given)
    if count:
        return "Bake 1 network in" if count == 1 else f"Bake {count} networks in"
    return "Mix the checkpoints" if how.other else "Bake"


_CONVERT = {
    "safetensors": "Convert to safetensors",
    "ckpt": "Convert to ckpt",
    "pt": "Convert to pt",
    "diffusers": "Convert to diffusers",
}
LOOKS: Mapping[str, Look] = {
    "convert": Look(
        "Convert",
        "Converting …",
        {"file": ("File or diffusers folder", "path, or the name of a model", _ANY)},
        (("to",), ("naming",), ("prune", "ema")),
        lambda how, _: _CONVERT[how.to],
        sorts={"base": "checkpoint"},
    ),
    "resize": Look(
        "Resize",
        "Decomposing layers …",
        {"file": ("Network", "path, or its name", "network")},
        (("rank", "rule", "target"),),
        lambda how, _: f"Resize to rank {how.rank}" if how.rule == "rank" else "Resize by energy",
        sorts={"base": "checkpoint"},
    ),
    "merge": Look(
        "Merge",
        "Merging layers …",
        {"networks": ("Networks with their weights", _LINES, "network")},
        (),
        lambda _, given: f"Merge {_count(given)} networks" if _count(given) > 1 else "Merge",
        "rank",
        {"base": "checkpoint"},
    ),
    "extract": Look(
        "Extract",
        "Decomposing layers …",
        {
            "base_file": ("Checkpoint to start from", "path, or its name", "checkpoint"),
            "tuned_file": ("Checkpoint to arrive at", "path, or its name", "checkpoint"),
        },
        (("rank", "kind", "layers"), ("text_encoder",)),
        lambda how, _: f"Extract rank {how.rank}" if how.rule == "rank" else "Extract by energy",
    ),
    "bake": Look(
        "Bake",
        "Writing tensors …",
        {
            "file": ("Checkpoint", "path, or its name", "checkpoint"),
            "networks": ("Networks that go into it", _LINES, "network"),
        },
        (("other", "minus"), ("alpha", "blocks"), ("vae", "prune")),
        _bake_label,
        sorts={"other": "checkpoint", "minus": "checkpoint", "vae": "VAE"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ToolTab:
    """The components of a tool."""

    word: str
    room: ToolboxRoom
    given: Mapping[str, Any]
    how: OptionForm[Any]
    output: OptionForm[Output]
    work: WorkFields
    energy: WorkFields | None = None
    preview: Preview | None = None

    @property
    def inputs(self) -> list[Any]:
        """All fields, in the order in which `read` takes their values."""
        return [*self.given.values(), *self.how.inputs, *self.output.inputs]

    def read(self, values: Sequence[Any]) -> tuple[dict[str, Any], Any, Output]:
        """Inputs, options, and where the result goes. Raises OptionProblem."""
        count, options = len(self.given), len(self.how.fields)
        given = {
            name: _lines(value) if name == "networks" else value or ""
            for name, value in zip(self.given, values[:count], strict=True)
        }
        how = self.how.read(values[count : count + options])
        return given, how, self.output.read(values[count + options :])

    def job(self, values: Sequence[Any]) -> Work:
        """The order as it stands in the fields. Raises CrucibleError."""
        given, how, order = self.read(values)
        return self.room.service.tool(self.word, how, order, given)


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def file_field(name: str, label: str, placeholder: str, sort: str, **told: Any) -> gr.Textbox:
    """A field for a path; toolbox.js offers the host's files of a sort ("any": all) in it."""
    return gr.Textbox(
        label=label, placeholder=placeholder, max_lines=1, elem_id=f"{PREFIX}-{name}",
        elem_classes=["crucible-file", f"crucible-of-{sort}"], **told,
    )  # fmt: skip


def build_tool(word: str, room: ToolboxRoom) -> ToolTab:
    """Builds a tool's tab and wires it."""
    look, tool = LOOKS[word], TOOLS[word]
    prefix = f"{PREFIX}-{word}"
    how: OptionForm[Any] = OptionForm(tool.options, prefix)
    output = OptionForm(Output, f"{prefix}-output")
    given = _inputs(word, look)
    energy = preview = None
    first = {look.beside, *(name for row in look.first for name in row)}
    for row in look.first:
        with gr.Row():
            for name in row:
                _option(how, name, look)
    with gr.Row():
        if look.beside:
            _option(how, look.beside, look)
        output.field(
            "out", label="Name of the result", placeholder="made from the input's",
            info="in the folder of such files, or a path", scale=3, min_width=220,
        )  # fmt: skip
        output.field("precision", label="Precision", info=None, scale=3, min_width=300)
        output.field(
            "number", label="Number it where the name is taken", info=None, scale=2, min_width=160
        )
    work = work_fields(word, look.label, look.doing)
    if word == "resize":
        energy = _energy()
    if word == "merge":
        preview = build_preview()
    if rest := [name for name in how.options if name not in first]:
        with gr.Accordion("More options", open=False, elem_id=f"{prefix}-more"):
            for name in rest:
                _option(how, name, look)
    tab = ToolTab(word, room, given, how, output, work, energy, preview)
    _wire(tab, look)
    return tab


def _inputs(word: str, look: Look) -> dict[str, Any]:
    given: dict[str, Any] = {}
    with gr.Row():
        for name, (label, placeholder, sort) in look.inputs.items():
            if name != "networks":
                ident = f"{word}-{name.replace('_', '-')}"
                given[name] = file_field(ident, label, placeholder, sort)
    if "networks" in look.inputs:
        label, placeholder, _ = look.inputs["networks"]
        given["networks"] = gr.Textbox(
            label=label, placeholder=placeholder, lines=2, max_lines=12,
            elem_id=f"{PREFIX}-{word}-networks", elem_classes=["crucible-networks"],
        )  # fmt: skip
    return {name: given[name] for name in look.inputs}


def _option(form: OptionForm[Any], name: str, look: Look) -> None:
    told: dict[str, Any] = {"min_width": 160}
    if sort := look.sorts.get(name):
        told["elem_classes"] = ["crucible-option", "crucible-file", f"crucible-of-{sort}"]
    if len(form.options[name].choices) > 3:
        told |= {"min_width": 420, "scale": 2}
    form.field(name, **told)


def _energy() -> WorkFields:
    with gr.Group(elem_id=f"{PREFIX}-energy"):
        return work_fields(
            "spectrum", "Show the energy by rank", "Decomposing layers …", main=False
        )


def _wire(tab: ToolTab, look: Look) -> None:
    room, service = tab.room, tab.room.service

    def show(written: Written) -> str:
        path = written.path
        files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
        total = sum(each.stat().st_size for each in files)
        return toolbox_result.result(written, room.desk.shown(path), total)

    wire_work(tab.work, service.jobs, tab.job, show, tab.inputs)

    def label(*values: Any) -> Any:
        """What the button will do; a value that is being typed may be none yet."""
        try:
            given, how, _ = tab.read(values)
        except CrucibleError:
            return gr.update(value=look.label)
        return gr.update(value=look.button(how, given))

    following = {**at_once(), **only_last()}
    for each in (*tab.given.values(), *tab.how.inputs):
        each.change(label, tab.inputs, tab.work.go, **following)
    if tab.energy is not None:
        _wire_energy(tab, tab.energy)
    if tab.preview is not None:
        tab.preview.wire(room, tab.given["networks"], tab.how)


def _wire_energy(tab: ToolTab, fields: WorkFields) -> None:
    desk = tab.room.desk

    def read(values: tuple[Any, ...]) -> Work:
        file, base = values
        return lambda tell, stop: desk.spectrum(file or "", base or "", watch(tell, stop))

    inputs = [tab.given["file"], tab.how.fields["base"]]
    wire_work(fields, tab.room.service.jobs, read, toolbox_result.energy, inputs)
