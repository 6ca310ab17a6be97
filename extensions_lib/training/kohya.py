"""Config files of sd-scripts' training programs.

Each of their arguments is an option here, or has no meaning here and is said, or is refused by
name: none is passed over in silence. Also read are what LoRA_Easy_Training_Scripts saves
(`easy_scripts`) and what kohya_ss hands to sd-scripts.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from extensions_lib.datasets.dataset_file import read_toml
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import checked, options_of
from extensions_lib.training import easy_scripts
from extensions_lib.training.kohya_names import (
    DEFAULTS,
    NO_MATTER,
    OF_CHECKPOINTS,
    OF_THE_CHECKPOINT,
    OFF_AT_0,
    REFUSED,
    RENAMED,
)
from extensions_lib.training.kohya_networks import MODULES, Refused, read_network
from extensions_lib.training.kohya_rates import optimizer_name, read_schedule
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.sample_prompts import SAMPLERS, UNKNOWN_SAMPLERS, read_prompt_file

_OPTIONS = {each.name: each for each in options_of(TrainingOptions)}


@dataclass(frozen=True)
class KohyaConfig:
    """A config as options. `checkpoint` is the file it names; `notes` say what has no effect."""

    options: TrainingOptions
    checkpoint: str | None = None
    notes: list[str] = field(default_factory=list)


def read_kohya(source: Path | Mapping[str, Any]) -> KohyaConfig:
    """A config file, or what one holds. Raises CrucibleError, naming all that is not known here."""
    held = read_toml(source) if isinstance(source, Path) else dict(source)
    if easy_scripts.is_saved(held):
        held = easy_scripts.arguments(held, source if isinstance(source, Path) else None)
    given: dict[str, Any] = {}
    for name, value in held.items():  # sections are there for the eye alone
        given.update(value if isinstance(value, dict) else {name: value})
    given = {name: value for name, value in given.items() if value not in (None, "", [])}
    reading = _Reading(given)
    for name, value in given.items():
        reading.attempt(f"{name}: ", partial(reading.take, name, value))
    for finish in _LAST:
        reading.attempt("", partial(finish, reading))
    if reading.refused:
        where = f"{source}: " if isinstance(source, Path) else ""
        raise CrucibleError(f"{where}cannot be run as it is:\n" + "\n".join(reading.refused))
    return KohyaConfig(checked(TrainingOptions, reading.told), reading.checkpoint, reading.notes())


def is_kohya(held: Mapping[str, Any]) -> bool:
    """Whether this is a config of sd-scripts, not one of ours, which has no sections."""
    marks = {"pretrained_model_name_or_path", "network_module", "network_args"}
    sections = any(isinstance(value, dict) for value in held.values())
    return sections or bool(marks & held.keys()) or easy_scripts.is_saved(held)


class _Reading:
    """Gathers the options that the arguments come to."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given, self.told = given, dict(DEFAULTS)
        self.checkpoint: str | None = None
        self.refused: list[str] = []
        self.said: list[str] = []
        self._idle: list[str] = []
        self._stated: list[str] = []

    def attempt(self, prefix: str, act: Callable[[], None]) -> None:
        """Does it; why it cannot be followed is kept."""
        try:
            act()
        except Refused as reason:
            self.refused.append(f"{prefix}{reason}")

    def take(self, name: str, value: Any) -> None:
        """One argument. Raises Refused."""
        name = RENAMED.get(name, name)
        if name in _TOGETHER:
            return
        if handler := _HANDLERS.get(name):
            handler(self, value)
        elif name in OF_THE_CHECKPOINT:
            self._stated.append(name)
        elif name in NO_MATTER:
            self._idle += [name] if value is not False else []
        elif name in _OPTIONS:
            option = _OPTIONS[name]
            off = not value and (option.optional or name in OFF_AT_0)
            if not (off and option.low and not isinstance(value, bool)):
                self.told[name] = tuple(value) if isinstance(value, list) else value
        elif value not in (False, {}):
            if name in REFUSED:
                raise Refused(REFUSED[name])
            near = difflib.get_close_matches(name, {*_OPTIONS, *_HANDLERS, *_TOGETHER}, 1, 0.75)
            raise Refused(f"is not known here{f'; did you mean {near[0]}?' if near else ''}")

    def notes(self) -> list[str]:
        """What is to be said about it."""
        said = list(self.said)
        if self._idle:
            said.append(f"Without a meaning here: {', '.join(sorted(self._idle))}.")
        if self._stated:
            said.append(f"Taken from the loaded checkpoint: {', '.join(sorted(self._stated))}.")
        if "v_parameterization" in self._stated and self.given["v_parameterization"]:
            said.append(
                "v_parameterization: a checkpoint that predicts v must say so itself, by a .yaml"
                " beside it or a key v_pred; else it is trained to predict noise."
            )
        return said

    # --- single arguments ---------------------------------------------------------------------

    def model(self, value: Any) -> None:
        self.checkpoint = str(value)

    def unet_only(self, value: Any) -> None:
        if value:
            self.told["train_text_encoder"] = False

    def text_only(self, value: Any) -> None:
        if value:
            self.told["train_unet"] = False

    def rates(self, value: Any) -> None:
        rates = value if isinstance(value, list) else [value]
        # kohya_ss names two whatever the model has; theirs takes as many as there are encoders
        self.told["text_encoder_lr"] = tuple(rates[:1] if len(set(rates)) == 1 else rates)

    def block_rates(self, value: Any) -> None:
        rates = [float(each) for each in (value if isinstance(value, list) else value.split(","))]
        if not rates or max(rates) <= 0:
            raise Refused("no block has a rate above 0")
        self.told["unet_lr"] = max(rates)
        self.told["block_lr_weight"] = tuple(rate / max(rates) for rate in rates)

    def eight_bit(self, value: Any) -> None:
        self._former("AdamW8bit", value)

    def lion(self, value: Any) -> None:
        self._former("Lion", value)

    def _former(self, name: str, value: Any) -> None:
        if value and self.given.get("optimizer_type", name) != name:
            raise Refused(f"means {name}, but optimizer_type is {self.given['optimizer_type']}")
        if value:
            self.told["optimizer_type"] = name

    def optimizer(self, value: Any) -> None:
        self.told["optimizer_type"] = optimizer_name(str(value))

    def resolution(self, value: Any) -> None:
        parts = value if isinstance(value, list) else [value]
        self.told["resolution"] = ",".join(str(part) for part in parts)

    def samples(self, value: Any) -> None:
        try:
            lines = value if isinstance(value, list) else read_prompt_file(Path(str(value)))
        except FileProblem as problem:
            raise Refused(str(problem)) from None
        self.told["sample_prompts"] = tuple(lines)

    def sampler(self, value: Any) -> None:
        if value in UNKNOWN_SAMPLERS:
            self.said.append(f"sample_sampler: {value} is none here; the usual one is taken.")
        elif value not in SAMPLERS:
            raise Refused(f"{value!r} is none of {', '.join((*SAMPLERS, *UNKNOWN_SAMPLERS))}")
        else:
            self.told["sample_sampler"] = SAMPLERS[value]

    def every_epochs(self, value: Any) -> None:
        if value:
            self.told["sample_every_n_epochs"] = value

    def every_steps(self, value: Any) -> None:
        if value and not self.given.get("sample_every_n_epochs"):  # theirs goes by epochs then
            self.told["sample_every_n_steps"] = value

    def format(self, value: Any) -> None:
        if value != "safetensors":
            raise Refused(f"{value!r}: networks are written as safetensors; convert them after")

    def log(self, value: Any) -> None:
        if value not in ("tensorboard", "all"):
            raise Refused(f"{value!r}: logs are for tensorboard; leave it out")
        self.told["tensorboard"] = True

    def log_folder(self, value: Any) -> None:
        """Theirs logs for TensorBoard where this is named; ours lies in the run's folder."""
        if importlib.util.find_spec("tensorboard") is not None:
            self.told["tensorboard"] = True
            self.said.append("logging_dir: the logs for TensorBoard are in the run's folder.")
        else:
            self.said.append(
                "logging_dir: no logs are written, since the package tensorboard is not installed"
                " (pip install tensorboard)."
            )

    def weighted(self, value: Any) -> None:
        if value:
            self.said.append("weighted_captions: captions are read as prompts are, always.")

    def last_of_text(self, value: Any) -> None:
        if value == -1:
            self.told["train_text_encoder"] = False
        elif value:
            raise Refused(
                "text encoders learn to the end, or not at all: say network_train_unet_only"
            )

    # --- what several of them come to ---------------------------------------------------------

    def kind(self) -> None:
        """What is trained, as their programs differ: by the arguments that one of them takes."""
        given = self.given
        if "network_module" in given:
            return
        if "token_string" in given:
            self.told["train"] = "embedding"
        elif named := sorted(OF_CHECKPOINTS & given.keys()):
            self.told["train"] = "checkpoint"
            self._of_checkpoint()
            self.said.append(
                f"The checkpoint itself is trained, as {named[0]} is named and no network_module."
            )
        elif not any(name.startswith("network_") for name in given):
            self.said.append("A LoRA is trained, as no network_module is named.")

    def _of_checkpoint(self) -> None:
        """The text encoders of a checkpoint: those of SDXL have a rate each, 0 for none."""
        given, told = self.given, self.told
        each = [given.get(f"learning_rate_te{number}") for number in (1, 2)]
        if any(rate is not None for rate in each):
            usual = given.get("learning_rate", DEFAULTS["learning_rate"])
            rates = tuple(usual if rate is None else rate for rate in each)
            told["text_encoder_lr"] = rates
            # theirs has a switch for both besides
            told["train_text_encoder"] = bool(given.get("train_text_encoder")) and any(rates)
            if not given.get("train_text_encoder"):
                self.said.append(
                    "learning_rate_te1, learning_rate_te2: change nothing without"
                    " train_text_encoder."
                )
        elif "learning_rate_te" in given:
            told["text_encoder_lr"] = (given["learning_rate_te"],)
            told.setdefault("train_text_encoder", bool(given["learning_rate_te"]))
        else:
            told.setdefault("train_text_encoder", False)

    def network(self) -> None:
        """Raises Refused, as the next one."""
        module = self.given.get("network_module")
        if module is not None and module not in MODULES:
            raise Refused(f"network_module: {module!r} is none of {', '.join(MODULES)}")
        arguments = _list(self.given.get("network_args", []))
        rank, alpha = self.told["network_dim"], self.told["network_alpha"]
        try:
            found = read_network(module, arguments, rank, alpha)
        except Refused as reason:
            raise Refused(f"network_args: {reason}") from None
        self.told |= found.told
        self.said += found.notes

    def schedule(self) -> None:
        given = self.given
        told, notes = read_schedule(
            str(self.told["lr_scheduler"]),
            str(given.get("lr_scheduler_type", "")),
            _list(given.get("lr_scheduler_args", [])),
            self.told.get("lr_scheduler_num_cycles", 1),
            float(self.told.get("unet_lr") or self.told["learning_rate"]),
        )
        self.told |= told
        self.said += notes

    def pictures(self) -> None:
        """A data set file goes before folders, as there."""
        if "dataset_config" in self.told:
            idle = [name for name in ("train_data_dir", "reg_data_dir") if name in self.told]
            for name in idle:
                del self.told[name]
            if idle:
                self.said.append(f"{', '.join(idle)}: not used, as dataset_config names them.")

    def share_of_epochs(self) -> None:
        """save_n_epoch_ratio: at least so many files in all."""
        parts = self.given.get("save_n_epoch_ratio")
        epochs = self.told.get("max_train_epochs")
        if not parts:
            return
        if not epochs:
            raise Refused(
                "save_n_epoch_ratio: needs max_train_epochs; say save_every_n_steps instead"
            )
        self.told["save_every_n_epochs"] = max(1, int(epochs) // int(parts))


_HANDLERS: Mapping[str, Callable[[_Reading, Any], None]] = {
    "pretrained_model_name_or_path": _Reading.model,
    "network_train_unet_only": _Reading.unet_only,
    "network_train_text_encoder_only": _Reading.text_only,
    "text_encoder_lr": _Reading.rates,
    "block_lr": _Reading.block_rates,
    "use_8bit_adam": _Reading.eight_bit,
    "use_lion_optimizer": _Reading.lion,
    "optimizer_type": _Reading.optimizer,
    "resolution": _Reading.resolution,
    "sample_prompts": _Reading.samples,
    "sample_sampler": _Reading.sampler,
    "sample_every_n_epochs": _Reading.every_epochs,
    "sample_every_n_steps": _Reading.every_steps,
    "save_model_as": _Reading.format,
    "log_with": _Reading.log,
    "logging_dir": _Reading.log_folder,
    "weighted_captions": _Reading.weighted,
    "stop_text_encoder_training": _Reading.last_of_text,
}
# What is read once all single arguments are, in this order, and the arguments that it reads.
_LAST = (
    _Reading.kind,
    _Reading.network,
    _Reading.schedule,
    _Reading.pictures,
    _Reading.share_of_epochs,
)
_TOGETHER = frozenset(
    """
    learning_rate_te learning_rate_te1 learning_rate_te2 network_module network_args
    lr_scheduler_type lr_scheduler_args save_n_epoch_ratio
    """.split()  # noqa: SIM905
)


def _list(value: Any) -> Sequence[str]:
    return [str(each) for each in value if each] if isinstance(value, list) else str(value).split()
