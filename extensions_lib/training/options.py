"""All options of a training run, one field each: tab, shell, files, REST and docs are made of them.

Names are those of kohya's sd-scripts where it has the option.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from extensions_lib.datasets.options import DataOptions
from extensions_lib.errors import CrucibleError
from extensions_lib.models.place import Sample
from extensions_lib.options import option
from extensions_lib.training.option_groups import LoopOptions, NetworkTraining
from extensions_lib.training.recipe_options import (
    EmbeddingTraining,
    FullTraining,
    HypernetworkTraining,
    LLLiteTraining,
)
from extensions_lib.training.sample_prompts import read_samples

_BAD_IN_NAMES = re.compile(r'[<>:"/\\|?*=\x00-\x1f]')
_LONGEST_NAME = 200  # bytes: a file's 255, less what is put behind it


@dataclass(frozen=True)
class SavingOptions:
    """The options of what is written, and when."""

    output_name: str = option("my_network", "name of the file, and in prompts", label="Name")
    save_precision: str = option(
        "fp16", "of the numbers in the file", group="Saving", choices=("fp16", "bf16", "float")
    )
    save_every_n_steps: int | None = option(
        None, "also saves on the way, after so many steps", group="Saving", low=1
    )
    save_every_n_epochs: int | None = option(
        None, "also saves on the way, after so many epochs", group="Saving", low=1
    )
    save_with_samples: bool = option(
        True, "also saves where samples are made, so that any can be used; no checkpoints",
        group="Saving",
    )  # fmt: skip
    save_last_n_steps: int | None = option(
        None, "of these keeps those of the last so many steps", group="Saving", low=1
    )
    save_last_n_epochs: int | None = option(
        None, "of these keeps those of the last so many times save_every_n_epochs",
        group="Saving", low=1,
    )  # fmt: skip
    save_state_every_n_steps: int = option(
        250, "from where a run that was killed goes on; 0: from its end alone", group="Saving",
        low=0,
    )  # fmt: skip
    no_metadata: bool = option(False, "the file does not say how it was trained", group="Saving")
    training_comment: str = option("", "a note in the file", group="Saving")
    metadata_title: str = option("", "the title in the file; none: its name", group="Saving")
    metadata_description: str = option("", "what it is, in the file", group="Saving")
    metadata_author: str = option("", "the author in the file", group="Saving")
    metadata_license: str = option("", "the licence in the file", group="Saving")
    metadata_tags: str = option("", "tags in the file, with commas between", group="Saving")
    metadata_trigger_phrase: str = option(
        "", "words in the file that a prompt should say", group="Saving"
    )
    metadata_usage_hint: str = option("", "how to use it, in the file", group="Saving")
    tensorboard: bool = option(False, "logs for TensorBoard beside the run", group="Saving")


@dataclass(frozen=True)
class SampleOptions:
    """The options of what is looked at on the way."""

    sample_prompts: tuple[str, ...] = option(
        (),
        "a picture of each on the way; --n negative, --w, --h, --d seed, --l CFG, --s steps,"
        " --cn control picture",
        group="Samples",
    )
    sample_every_n_steps: int | None = option(
        None, "pictures after so many steps", group="Samples", low=1
    )
    sample_every_n_epochs: int | None = option(
        None, "pictures after so many epochs", group="Samples", low=1
    )
    sample_at_first: bool = option(True, "pictures before the first step", group="Samples")
    sample_sampler: str = option("", "sampler; none: the host's own choice", group="Samples")
    validate_every_n_steps: int | None = option(
        None, "measures after so many steps; none: a tenth of them", group="Validation", low=1
    )
    validate_every_n_epochs: int | None = option(
        None, "measures after so many epochs", group="Validation", low=1
    )
    max_validation_steps: int | None = option(
        None, "most batches to measure on; none: those of 32 pictures", group="Validation", low=1
    )


@dataclass(frozen=True)
class PrecisionOptions:
    """The options of numbers and memory."""

    mixed_precision: str = option(
        "no",
        "of the computing; no: as the checkpoint is loaded",
        group="Memory",
        choices=("no", "fp16", "bf16"),
    )
    gradient_checkpointing: bool = option(False, "less memory, a third more time", group="Memory")


TRAINED = ("network", "embedding", "hypernetwork", "checkpoint", "lllite")


@dataclass(frozen=True)
class TrainingOptions(
    NetworkTraining,
    EmbeddingTraining,
    HypernetworkTraining,
    FullTraining,
    LLLiteTraining,
    LoopOptions,
    DataOptions,
    SavingOptions,
    SampleOptions,
    PrecisionOptions,
):
    """All options of a training; those of a kind that is not trained do nothing."""

    train: str = option("network", "what is trained", choices=TRAINED)
    max_train_epochs: int | None = option(
        None, "epochs, in place of max_train_steps", group="Steps", low=1
    )
    network_weights: str | None = option(None, "file to go on with", group="Network")


def check(options: TrainingOptions) -> None:
    """Raises CrucibleError for what no option alone can tell is wrong."""
    name = options.output_name
    if not name.strip() or name != name.strip(" .") or _BAD_IN_NAMES.search(name):
        raise CrucibleError(
            f"output_name: {name!r} cannot be the name of a file and stand in a prompt; use "
            "letters, digits, - and _."
        )
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise CrucibleError(
            f"output_name: is {len(name)} signs long, which no file can be called; shorten it."
        )
    if options.min_timestep >= options.max_timestep:
        raise CrucibleError(
            f"min_timestep {options.min_timestep} is not below max_timestep {options.max_timestep}."
        )
    read_samples(options.sample_prompts, Sample(""))
    if not (options.train_data_dir or options.dataset_config):
        raise CrucibleError("train_data_dir: name the folder of pictures.")
