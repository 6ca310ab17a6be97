"""The options of a training run in the tab: fields, presets, and all of it as TOML."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from extensions_lib.datasets.dataset_file import parse_toml
from extensions_lib.errors import FileProblem
from extensions_lib.options import changed, checked
from extensions_lib.training.kohya import is_kohya, read_kohya
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.presets import Preset, presets
from extensions_lib.training.toml_text import toml_text
from extensions_lib.ui.option_fields import OptionForm, searchable

PREFIX = "crucible-training"
CUSTOM = "Custom"
_FIRST = {  # with what fits below a narrow field
    "network_dim": {"label": "Rank", "info": "network_dim: how much it can learn"},
    "learning_rate": {"info": "unless a part has its own"},
    "max_train_steps": {"label": "Steps", "info": "max_train_steps"},
    "train_batch_size": {"label": "Batch size", "info": "pictures learnt from at a time"},
    "resolution": {"info": "size, or width,height"},
}
# What a preset says nothing of: which pictures, which name, what is looked at.
_OWN = (
    "train_data_dir",
    "reg_data_dir",
    "dataset_config",
    "validation_data_dir",
    "conditioning_data_dir",
    "output_name",
    "network_weights",
    "sample_prompts",
    "training_comment",
    "metadata_author",
    "metadata_license",
)


def new_form() -> OptionForm[TrainingOptions]:
    """The form, of which no field is built yet."""
    return OptionForm(TrainingOptions, PREFIX, lines=("sample_prompts", "optimizer_args"))


def first_row(form: OptionForm[TrainingOptions]) -> None:
    """The options that are enough for most."""
    with gr.Row():
        for name, told in _FIRST.items():
            form.field(name, min_width=160, **told)


def rest(form: OptionForm[TrainingOptions]) -> None:
    """All others, by groups."""
    with searchable():
        form.rest()


# --- presets ----------------------------------------------------------------------------------


def preset_names() -> list[str]:
    """What there is to choose: none, and the presets with the families they are for."""
    return [CUSTOM, *(_name(each) for each in presets())]


def _name(preset: Preset) -> str:
    return f"{preset.name} ({', '.join(preset.families)})"


def with_preset(options: TrainingOptions, name: str) -> TrainingOptions:
    """The options of a preset, with what is one's own of `options`."""
    preset = next((each for each in presets() if _name(each) == name), None)
    if preset is None:
        return options
    own = {each: getattr(options, each) for each in _OWN}
    return replace(checked(TrainingOptions, preset.options), **own)


# --- TOML -------------------------------------------------------------------------------------


def as_toml(options: TrainingOptions) -> str:
    """What is not at its default."""
    return toml_text(changed(options))


def from_toml(text: str) -> tuple[TrainingOptions, list[str]]:
    """The options that a text says, ours or sd-scripts', and notes about it.

    Raises CrucibleError.
    """
    if not text.strip():
        raise FileProblem("There is no TOML to load; paste it into the field first.")
    held = parse_toml(text, "the TOML")
    if not is_kohya(held):
        return checked(TrainingOptions, held), []
    found = read_kohya(held)
    notes = list(found.notes)
    if found.checkpoint:
        notes.append(f"It names {found.checkpoint}; trained is the checkpoint that is loaded.")
    return found.options, notes


def shown(form: OptionForm[TrainingOptions], options: TrainingOptions) -> list[Any]:
    """The options as the form's fields take them."""
    return form.shown(asdict(options))
