"""Config files of sd-scripts' training programs, read and written.

Each of their arguments is an option here, or has no meaning here and is said, or is refused by
name: none is passed over in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extensions_lib.datasets.dataset_file import read_toml
from extensions_lib.datasets.options import SD_SCRIPTS_DEFAULTS
from extensions_lib.errors import CrucibleError
from extensions_lib.options import changed, checked, options_of
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.toml_text import toml_text

_NAMES = {each.name for each in options_of(TrainingOptions)}
# What train_network.py takes for arguments that are not named, where that differs from here.
_DEFAULTS: Mapping[str, Any] = {
    **SD_SCRIPTS_DEFAULTS,
    "max_train_steps": 1600,
    "learning_rate": 2e-6,
    "network_dim": 4,
    "network_alpha": 1.0,
    "lr_scheduler": "constant",
    "save_precision": "float",
    "max_token_length": 75,
    "sample_at_first": False,
    "output_name": "last",
}
_MODULES = {
    "networks.lora": "lora",
    "networks.dylora": "dylora",
    "networks.oft": "oft",
    "networks.lora_fa": "lora-fa",
    "lycoris.kohya": "",
}
_ALGORITHMS = {
    "lora": "lora",
    "locon": "lora",
    "loha": "loha",
    "lokr": "lokr",
    "ia3": "ia3",
    "full": "full",
    "glora": "glora",
    "dylora": "dylora",
    "diag-oft": "diag-oft",
    "boft": "boft",
}
_ARGUMENTS = {  # of a network module: the option it is
    "conv_dim": "conv_dim",
    "conv_alpha": "conv_alpha",
    "dropout": "network_dropout",
    "rank_dropout": "rank_dropout",
    "module_dropout": "module_dropout",
    "use_tucker": "use_tucker",
    "use_cp": "use_tucker",
    "use_conv_cp": "use_tucker",
    "dora_wd": "dora_wd",
    "factor": "factor",
    "decompose_both": "decompose_both",
    "full_matrix": "full_matrix",
    "constraint": "constraint",
    "constrain": "constraint",
    "rescaled": "rescaled",
    "train_norm": "train_norm",
    "unit": "unit",
    "block_size": "unit",
    "block_dims": "block_dims",
    "block_alphas": "block_alphas",
    "conv_block_dims": "conv_block_dims",
    "conv_block_alphas": "conv_block_alphas",
    "loraplus_lr_ratio": "loraplus_lr_ratio",
}
# What concerns how their program runs, and nothing of what is learnt.
_NO_MATTER = frozenset(
    """
    xformers sdpa mem_eff_attn max_data_loader_n_workers persistent_data_loader_workers lowram
    highvram no_half_vae output_dir logging_dir log_prefix log_tracker_name log_tracker_config
    log_config wandb_run_name wandb_api_key console_log_level console_log_file console_log_simple
    save_state save_state_on_train_end save_state_to_huggingface torch_compile dynamo_backend
    ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph full_fp16 full_bf16 fp8_base
    fp8_base_unet config_file skip_cache_check cache_info debug_dataset metadata_title
    metadata_description metadata_tags dim_from_weights tokenizer_cache_dir
    disable_mmap_load_safetensors save_last_n_epochs_state save_last_n_steps_state initial_epoch
    initial_step weighted_captions
    """.split()  # noqa: SIM905
)
# What only the programs that train checkpoints take.
_OF_CHECKPOINTS = frozenset(
    ["train_text_encoder", "learning_rate_te", "learning_rate_te1", "learning_rate_te2", "block_lr"]
)
# What is taken from the checkpoint that is loaded.
_OF_THE_CHECKPOINT = frozenset(["v2", "v_parameterization", "zero_terminal_snr"])


@dataclass(frozen=True)
class KohyaConfig:
    """A config as options. `checkpoint` is the file it names; `notes` say what has no effect."""

    options: TrainingOptions
    checkpoint: str | None = None
    notes: list[str] = field(default_factory=list)


def read_kohya(source: Path | Mapping[str, Any]) -> KohyaConfig:
    """A config file, or what one holds. Raises CrucibleError, naming all that is not known here."""
    held = read_toml(source) if isinstance(source, Path) else dict(source)
    given: dict[str, Any] = {}
    for name, value in held.items():  # sections are there for the eye alone
        given.update(value if isinstance(value, dict) else {name: value})
    reading = _Reading(dict(_DEFAULTS))
    refused = []
    for name, value in given.items():
        if value is None or value == "":
            continue
        try:
            reading.take(name, value)
        except _Refused as reason:
            refused.append(f"{name}: {reason}")
    reading.kind_of(given)
    if refused:
        where = f"{source}: " if isinstance(source, Path) else ""
        raise CrucibleError(f"{where}cannot be run as it is:\n" + "\n".join(refused))
    return KohyaConfig(checked(TrainingOptions, reading.told), reading.checkpoint, reading.notes())


def is_kohya(held: Mapping[str, Any]) -> bool:
    """Whether this is a config of sd-scripts, not one of ours."""
    flat = {n for v in held.values() if isinstance(v, dict) for n in v} | set(held)
    return bool(flat & {"pretrained_model_name_or_path", "network_module", "network_args"})


class _Refused(Exception):
    """An argument that cannot be followed, with the reason."""


class _Reading:
    """Gathers the options that the arguments come to."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.checkpoint: str | None = None
        self._idle: list[str] = []
        self._said: list[str] = []
        self._stated: list[str] = []

    def take(self, name: str, value: Any) -> None:
        """One argument. Raises _Refused."""
        if handler := _HANDLERS.get(name):
            handler(self, value)
        elif name in _OF_THE_CHECKPOINT:
            self._stated.append(name)
        elif name in _NO_MATTER:
            self._idle.append(name)
        elif name in _NAMES:
            self.told[name] = tuple(value) if isinstance(value, list) else value
        elif value not in (False, ""):
            near = difflib.get_close_matches(name, {*_NAMES, *_HANDLERS, *_NO_MATTER}, 1)
            raise _Refused(f"is not known here{f'; did you mean {near[0]}?' if near else ''}")

    def notes(self) -> list[str]:
        said = list(self._said)
        if self._idle:
            said.append(f"Without a meaning here: {', '.join(sorted(self._idle))}.")
        if self._stated:
            said.append(f"Taken from the loaded checkpoint: {', '.join(sorted(self._stated))}.")
        return said

    def kind_of(self, given: Mapping[str, Any]) -> None:
        """What is trained, as their programs differ: by the arguments that one of them takes."""
        if "network_module" in given:
            return
        if "token_string" in given:
            self.told["train"] = "embedding"
        elif named := sorted(_OF_CHECKPOINTS & given.keys()):
            self.told["train"] = "checkpoint"
            self.told.setdefault("train_text_encoder", "text_encoder_lr" in self.told)
            self._said.append(
                f"The checkpoint itself is trained, as {named[0]} is named and no network_module."
            )

    # --- single arguments ---------------------------------------------------------------------

    def model(self, value: Any) -> None:
        self.checkpoint = str(value)

    def module(self, value: Any) -> None:
        if value not in _MODULES:
            raise _Refused(f"{value!r} is none of {', '.join(_MODULES)}")
        if _MODULES[value]:
            self.told["kind"] = _MODULES[value]

    def arguments(self, value: Any) -> None:
        weights: dict[str, str] = {}
        for text in _list(value):
            name, equals, given = text.partition("=")
            if not equals:
                raise _Refused(f"{text!r} is no name=value")
            if name == "algo":
                if given.lower() not in _ALGORITHMS:
                    raise _Refused(f"algo {given!r} is none of {', '.join(_ALGORITHMS)}")
                self.told["kind"] = _ALGORITHMS[given.lower()]
            elif name == "preset" and given in ("full", "attn-mlp"):
                continue
            elif name in ("down_lr_weight", "mid_lr_weight", "up_lr_weight"):
                weights[name] = given
            elif name in _ARGUMENTS:
                self.told[_ARGUMENTS[name]] = given
            else:
                raise _Refused(f"{name} is not known here")
        if weights:
            self.told["block_lr_weight"] = _block_weights(weights)

    def unet_only(self, value: Any) -> None:
        if value:
            self.told["train_text_encoder"] = False

    def text_only(self, value: Any) -> None:
        if value:
            self.told["train_unet"] = False

    def rates(self, value: Any) -> None:
        self.told["text_encoder_lr"] = tuple(value if isinstance(value, list) else [value])

    def text_rate(self, value: Any) -> None:
        self.told["text_encoder_lr"] = (*self.told.get("text_encoder_lr", ()), value)

    def block_rates(self, value: Any) -> None:
        rates = [float(each) for each in (value if isinstance(value, list) else value.split(","))]
        if not rates or max(rates) <= 0:
            raise _Refused("no block has a rate above 0")
        self.told["unet_lr"] = max(rates)
        self.told["block_lr_weight"] = tuple(rate / max(rates) for rate in rates)

    def eight_bit(self, value: Any) -> None:
        if value:
            self.told["optimizer_type"] = "AdamW8bit"

    def lion(self, value: Any) -> None:
        if value:
            self.told["optimizer_type"] = "Lion"

    def resolution(self, value: Any) -> None:
        parts = value if isinstance(value, list) else [value]
        self.told["resolution"] = ",".join(str(part) for part in parts)

    def bucketless(self, value: Any) -> None:
        self.told["enable_bucket"] = bool(value)

    def samples(self, value: Any) -> None:
        if isinstance(value, list):
            self.told["sample_prompts"] = tuple(value)
            return
        path = Path(str(value))
        if path.suffix.lower() != ".txt":
            raise _Refused(f"{path.name}: name a .txt file with a prompt on each line")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise _Refused(f"{path} cannot be read ({error.strerror})") from None
        self.told["sample_prompts"] = tuple(line for line in lines if line.strip())

    def sampler(self, value: Any) -> None:
        names = {"euler": "Euler", "k_euler": "Euler", "euler_a": "Euler a", "k_euler_a": "Euler a",
                 "ddim": "DDIM", "dpmsolver++": "DPM++ 2M"}  # fmt: skip
        if value not in names:
            raise _Refused(f"{value!r} is none of {', '.join(names)}")
        self.told["sample_sampler"] = names[value]

    def loss(self, value: Any) -> None:
        self.told["loss_type"] = {"smooth_l1": "smooth_l1"}.get(value, value)

    def format(self, value: Any) -> None:
        if value != "safetensors":
            raise _Refused(f"{value!r}: networks are written as safetensors; convert them after")

    def precision(self, value: Any) -> None:
        if value not in ("float", "fp16", "bf16"):
            raise _Refused(f"{value!r} is none of float, fp16, bf16")
        self.told["save_precision"] = value

    def log(self, value: Any) -> None:
        if value not in ("tensorboard", "all"):
            raise _Refused(f"{value!r}: logs are for tensorboard")
        self.told["tensorboard"] = True

    def vae(self, value: Any) -> None:
        raise _Refused("training uses the VAE that is loaded; choose it there")

    def resume(self, value: Any) -> None:
        raise _Refused("their states cannot be read; name the network as network_weights instead")


_HANDLERS: Mapping[str, Callable[[_Reading, Any], None]] = {
    "pretrained_model_name_or_path": _Reading.model,
    "network_module": _Reading.module,
    "network_args": _Reading.arguments,
    "network_train_unet_only": _Reading.unet_only,
    "network_train_text_encoder_only": _Reading.text_only,
    "text_encoder_lr": _Reading.rates,
    "learning_rate_te": _Reading.text_rate,
    "learning_rate_te1": _Reading.text_rate,
    "learning_rate_te2": _Reading.text_rate,
    "block_lr": _Reading.block_rates,
    "use_8bit_adam": _Reading.eight_bit,
    "use_lion_optimizer": _Reading.lion,
    "resolution": _Reading.resolution,
    "enable_bucket": _Reading.bucketless,
    "sample_prompts": _Reading.samples,
    "sample_sampler": _Reading.sampler,
    "loss_type": _Reading.loss,
    "save_model_as": _Reading.format,
    "save_precision": _Reading.precision,
    "log_with": _Reading.log,
    "vae": _Reading.vae,
    "resume": _Reading.resume,
}


def _list(value: Any) -> Sequence[str]:
    return [str(each) for each in value] if isinstance(value, list) else str(value).split()


def _block_weights(weights: Mapping[str, str]) -> tuple[float, ...]:
    """The 25 weights of SD1's blocks out of those of its three parts; what is not named has 1."""
    parts = []
    for name, count in (("down_lr_weight", 12), ("mid_lr_weight", 1), ("up_lr_weight", 12)):
        text = weights.get(name, "")
        try:
            values = [float(each) for each in text.split(",") if each.strip()]
        except ValueError:
            raise _Refused(f"{name}: write its {count} numbers out, not {text!r}") from None
        if len(values) not in (0, count):
            raise _Refused(f"{name}: takes {count} numbers, not {len(values)}")
        parts += values or [1.0] * count
    return tuple(parts)


def kohya_text(options: TrainingOptions, checkpoint: str | None = None) -> str:
    """The options as a config file of sd-scripts. Raises CrucibleError where it has no word."""
    told = changed(options)
    told |= {name: getattr(options, name) for name in _DEFAULTS if name in _NAMES}
    told["network_alpha"] = options.network_alpha or float(options.network_dim)
    arguments: dict[str, Any] = {}
    kind = told.pop("kind", "lora")
    if kind == "norm":
        raise CrucibleError("kind: sd-scripts trains no norms alone.")
    back = {option: name for name, option in reversed(_ARGUMENTS.items())}
    for option in (*back, "block_lr_weight"):
        if option in told and option != "network_dropout":
            arguments[back.get(option, option)] = told.pop(option)
    if weights := arguments.pop("block_lr_weight", None):
        if len(weights) != 25:
            raise CrucibleError("block_lr_weight: sd-scripts takes those of SD1 and SD2.")
        cut = {"down": weights[:12], "mid": weights[12:13], "up": weights[13:]}
        arguments |= {f"{side}_lr_weight": values for side, values in cut.items()}
    module = next((name for name, of in _MODULES.items() if of == kind), "lycoris.kohya")
    if module == "lycoris.kohya" or {"dora_wd", "use_tucker", "train_norm"} & arguments.keys():
        module, arguments = "lycoris.kohya", {"algo": "locon" if kind == "lora" else kind,
                                              **arguments}  # fmt: skip
    for name in ("train_unet", "train_text_encoder"):
        if told.pop(name, True) is False:
            told["network_train_unet_only" if name != "train_unet" else
                 "network_train_text_encoder_only"] = True  # fmt: skip
    said: dict[str, Any] = {"network_module": module, **told}
    if checkpoint:
        said = {"pretrained_model_name_or_path": checkpoint, **said}
    if arguments:
        said["network_args"] = [f"{name}={_plain(value)}" for name, value in arguments.items()]
    for name in ( "validate_every_n_steps", "save_state_every_n_steps",
                 "leave_out_broken", "cache_dir", "tensorboard", "ema_decay",
                 "num_repeats"):  # fmt: skip
        said.pop(name, None)  # theirs has none of these
    return toml_text(said)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{each:g}" for each in value)
    return str(value)
