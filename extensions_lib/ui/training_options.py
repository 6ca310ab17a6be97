"""The options of a training run in the tab: fields, presets, and all of it as TOML."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from extensions_lib.datasets.dataset_file import parse_toml
from extensions_lib.errors import FileProblem
from extensions_lib.options import changed, checked
from extensions_lib.training.kohya import is_kohya, read_kohya
from extensions_lib.training.options import TRAINED, TrainingOptions
from extensions_lib.training.presets import Preset, presets, presets_for
from extensions_lib.training.toml_text import toml_text
from extensions_lib.ui.option_fields import OptionForm, searchable

if TYPE_CHECKING:
    from extensions_lib.demo.lesson_set import LessonSet

PREFIX = "crucible-training"
CUSTOM = "Custom"
DEMO_PROMPTS = (
    "red heart, large, center, white background",
    "blue heart, small, top left, orange background",
    "green circle, medium, center, black background",
)
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
    "metadata_title",
    "metadata_description",
    "metadata_author",
    "metadata_license",
    "metadata_tags",
    "metadata_trigger_phrase",
    "metadata_usage_hint",
)


def new_form(family: str) -> OptionForm[TrainingOptions]:
    """The form, of which no field is built yet; it begins with the family's first preset."""
    return OptionForm(
        TrainingOptions,
        PREFIX,
        asdict(with_preset(TrainingOptions(), first_preset(family), family)),
        lines=("sample_prompts", "optimizer_args"),
    )


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


def preset_names(family: str) -> list[str]:
    """What there is to choose: the presets of the family, and none."""
    return [*(each.name for each in presets_for(family)), CUSTOM]


def first_preset(family: str) -> str:
    """The one to begin with."""
    return preset_names(family)[0]


def with_preset(options: TrainingOptions, name: str, family: str) -> TrainingOptions:
    """The options of a preset, with what is one's own of `options`; as they are for none."""
    preset = next((each for each in presets_for(family) if each.name == name), None)
    return options if preset is None else _with(options, preset)


def _with(options: TrainingOptions, preset: Preset) -> TrainingOptions:
    own = {each: getattr(options, each) for each in _OWN}
    return replace(checked(TrainingOptions, preset.options), **own)


def preset_of(options: TrainingOptions, family: str) -> str:
    """The preset that the options are; none where something was changed."""
    same = (each.name for each in presets_for(family) if _with(options, each) == options)
    return next(same, CUSTOM)


def moved(options: TrainingOptions, family: str) -> TrainingOptions:
    """The options for another family: a preset of any becomes that of the same name, or the first.

    What was changed by hand stays as it is.
    """
    names = preset_names(family)
    same = next((name for name in _untouched(options) if name in names), names[0])
    return with_preset(options, same, family) if _untouched(options) else options


def begun(options: TrainingOptions, family: str) -> TrainingOptions:
    """The options once something else is to be trained: its first preset in place of another.

    What was changed by hand stays as it is.
    """
    before = [replace(options, train=each) for each in TRAINED]
    fitting = [each for each in presets_for(family) if _trains(each) == options.train]
    if fitting and any(_untouched(each) for each in before):
        return _with(options, fitting[0])
    return options


def _untouched(options: TrainingOptions) -> list[str]:
    """The presets of any family that the options are."""
    return [each.name for each in presets() if _with(options, each) == options]


def _trains(preset: Preset) -> str:
    return str(preset.options.get("train", TRAINED[0]))


def with_demo_set(options: TrainingOptions, drawn: LessonSet) -> TrainingOptions:
    """The options for the demo's set, with pictures of its new shape on the way."""
    unnamed = options.output_name == TrainingOptions().output_name
    return replace(
        options,
        train_data_dir=str(drawn.train),
        reg_data_dir=str(drawn.known),
        output_name="my_heart" if unnamed else options.output_name,
        sample_prompts=options.sample_prompts or DEMO_PROMPTS,
    )


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
