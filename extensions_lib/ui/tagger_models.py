"""The fields of the Tagger tab that say which models are asked, and what becomes of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from extensions_lib.tagging.pool import Models
from extensions_lib.tagging.run import Run
from extensions_lib.tagging.selection import FALLBACK, Selection
from extensions_lib.ui.compat import any_value, at_once, named
from extensions_lib.ui.option_fields import OptionForm
from extensions_lib.ui.tagger_room import TaggerRoom

THRESHOLDS = ("general", "character")


@dataclass(frozen=True)
class Asked:
    """What was asked for, read from the fields."""

    models: Models
    selection: Selection
    run: Run

    @property
    def names(self) -> tuple[str, ...]:
        """The models in the order in which they answer."""
        return (*self.models.tagger, *self.models.captioner)

    @property
    def here(self) -> Asked:
        """The same of models that are loaded, so that nothing need be downloaded."""
        return replace(self, models=replace(self.models, download=False))


@dataclass(frozen=True)
class ModelFields:
    """Model, thresholds and lists; the same in the tabs of one picture and of a folder."""

    room: TaggerRoom
    names: gr.Dropdown
    models: OptionForm[Models]
    selection: OptionForm[Selection]
    run: OptionForm[Run]

    @property
    def inputs(self) -> list[Any]:
        """The components, as `read` takes their values."""
        return [self.names, *self.models.inputs, *self.selection.inputs, *self.run.inputs]

    def read(self, values: Sequence[Any], **run: Any) -> Asked:
        """Raises CrucibleError: no model chosen, or a value that an option does not take."""
        names, rest = values[0], list(values[1:])
        parts = []
        for form in (self.models, self.selection, self.run):
            count = len(form.fields)
            parts.append(rest[:count])
            rest = rest[count:]
        models = self.room.wanted(names or [], self.models.read(parts[0]))
        return Asked(models, self.selection.read(parts[1]), self.run.read(parts[2], **run))

    @property
    def sliders(self) -> list[Any]:
        """The thresholds that a model has values of its own for."""
        return [self.selection.fields[name] for name in THRESHOLDS]

    @property
    def live(self) -> list[Any]:
        """The fields that say what becomes of scores; no model need be asked again."""
        return [*self.selection.inputs, self.run.fields["join"]]

    @property
    def settled(self) -> list[Any]:
        """The events of those fields when a value has been chosen, not while it is being."""
        return [_settled(field) for field in self.live]


def _settled(field: Any) -> Any:
    if hasattr(field, "release"):
        return field.release
    return field.blur if isinstance(field, gr.Textbox | gr.Number) else field.input


def choices(room: TaggerRoom) -> list[Any]:
    """The models of the list; those that are not here are marked."""
    return named([(c.name if c.here else f"{c.name} ⤓", c.name) for c in room.choices()])


def model_fields(room: TaggerRoom, prefix: str) -> ModelFields:
    """Builds them; `rest_of` builds what is not always in sight."""
    own = own_thresholds(room, room.default())
    models = OptionForm(Models, f"{prefix}-models")
    selection = OptionForm(Selection, f"{prefix}-select", dict(zip(THRESHOLDS, own, strict=True)))
    run = OptionForm(Run, f"{prefix}-run")
    with gr.Row():
        names = gr.Dropdown(
            choices(room),
            value=room.default(),
            multiselect=True,
            label="Models",
            info="several are asked together; ⤓ is not on this machine yet",
            scale=4,
            min_width=300,
            elem_id=f"{prefix}-names",
            **any_value(),  # a kept name may be gone, which is said when it is asked
        )
        run.field("join", label="Several as", info=None, scale=2, min_width=160)
        models.field("download", label="Download", info="models marked ⤓", scale=1, min_width=130)
    with gr.Row():
        selection.field("general", label="General threshold", info=None, scale=3, min_width=195)
        selection.field("character", label="Character threshold", info=None, scale=3, min_width=195)
        selection.field("mcut", info="each picture's own thresholds", scale=2, min_width=150)
    with gr.Row():
        for name, label in (
            ("trigger", "Trigger word, first"),
            ("exclude", "Exclude tags"),
            ("additional", "Add tags, last"),
        ):
            selection.field(name, label=label, info=None, min_width=150)
    return ModelFields(room, names, models, selection, run)


def rest_of(fields: ModelFields, *, batch: bool) -> None:
    """Builds the options that stand in closed groups, and wires the model's own thresholds."""
    fields.selection.rest()
    if batch:
        fields.run.rest(leave_out=("subfolders", "join"))
    fields.models.rest(leave_out=("tagger", "captioner"))

    def free() -> None:
        fields.room.pool.unload()

    unload = gr.Button("Unload the models", size="sm", elem_id=f"{fields.models.prefix}-unload")
    unload.click(free, None, None, **at_once())

    def own(names: list[str]) -> list[Any]:
        return own_thresholds(fields.room, names)

    # The person's choice alone: values that the browser kept are not replaced.
    fields.names.input(own, fields.names, fields.sliders, **at_once())


def own_thresholds(room: TaggerRoom, names: Sequence[str] | None) -> list[float]:
    """The general and character thresholds that these models come with, the lowest of each."""
    from extensions_lib.tagging.manifest import entries

    own = [each.thresholds for each in entries(room.pool.models) if each.name in (names or ())]
    return [
        min((one[kind] for one in own if kind in one), default=FALLBACK[kind])
        for kind in THRESHOLDS
    ]
