"""What a trained network says of itself: `ss_*` as sd-scripts writes them, and `modelspec.*`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.datasets.captions import split
from extensions_lib.files.hashes import legacy_hash
from extensions_lib.models.families import Family
from extensions_lib.training import data_report
from extensions_lib.training.loop import batches_of_step

if TYPE_CHECKING:
    from extensions_lib.datasets.items import Picture
    from extensions_lib.models.loaded import LoadedModel
    from extensions_lib.training.data import TrainingData
    from extensions_lib.training.options import TrainingOptions

_VERSIONS = {Family.SD1: "sd_v1", Family.SD2: "sd_v2", Family.SDXL: "sdxl_base_v1-0"}
_MODULES = {"lora-fa": "networks.lora_fa", "dylora": "networks.dylora", "oft": "networks.oft"}
_ALGORITHMS = {"norm": "full", "lora": "locon"}
_PLAIN = ("lora", *_MODULES)
_MODELSPEC = (  # that options name, as metadata_…
    "title", "description", "author", "license", "tags", "trigger_phrase", "usage_hint",
)  # fmt: skip
_SAME = (  # options that are said by their own name
    "max_train_steps",
    "learning_rate",
    "unet_lr",
    "text_encoder_lr",
    "lr_scheduler",
    "lr_warmup_steps",
    "max_grad_norm",
    "gradient_checkpointing",
    "gradient_accumulation_steps",
    "mixed_precision",
    "network_dropout",
    "scale_weight_norms",
    "seed",
    "training_comment",
    "clip_skip",
    "max_token_length",
    "noise_offset",
    "noise_offset_random_strength",
    "adaptive_noise_scale",
    "multires_noise_iterations",
    "multires_noise_discount",
    "ip_noise_gamma",
    "ip_noise_gamma_random_strength",
    "min_snr_gamma",
    "loss_type",
    "huber_c",
    "huber_scale",
    "huber_schedule",
    "prior_loss_weight",
    "cache_latents",
    "caption_dropout_rate",
    "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate",
    "face_crop_aug_range",
    "shuffle_caption",
    "keep_tokens",
    "color_aug",
    "flip_aug",
    "random_crop",
    "resolution",
    "enable_bucket",
    "bucket_no_upscale",
    "min_bucket_reso",
    "max_bucket_reso",
    "resize_interpolation",
)


_ARGUMENTS = (  # of the network, where they are not at their default
    "dora_wd",
    "use_tucker",
    "rank_dropout",
    "module_dropout",
    "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio",
    "block_dims",
    "block_alphas",
    "conv_block_dims",
    "conv_block_alphas",
    "block_lr_weight",
    "train_norm",
    "constraint",
    "rescaled",
    "decompose_both",
    "full_matrix",
)


def training_metadata(
    options: TrainingOptions,
    model: LoadedModel,
    data: TrainingData,
    *,
    steps: int,
    epoch: int,
    started: float,
    now: float,
    session: int,
) -> dict[str, str]:
    """All of it; values are text, dicts are JSON. Times are seconds since 1970."""
    told: dict[str, Any] = {name: getattr(options, name) for name in _SAME}
    batches = batches_of_step(options)
    told |= {
        "session_id": session,
        "training_started_at": started,
        "training_finished_at": now,
        "output_name": options.output_name,
        "steps": steps,
        "epoch": epoch,
        "num_epochs": -(-options.max_train_steps * batches // len(data)),
        "batch_size_per_device": options.train_batch_size,
        "total_batch_size": options.train_batch_size * batches,
        "network_module": _module(options),
        "network_dim": options.network_dim,
        "network_alpha": options.network_alpha or options.network_dim,
        "network_args": _network_args(options),
        "optimizer": options.optimizer_type
        + (f"({','.join(options.optimizer_args)})" if options.optimizer_args else ""),
        "v2": model.family is Family.SD2,
        "base_model_version": _VERSIONS[model.family],
        "sd_model_name": model.path.name if model.path else model.name,
        "new_sd_model_hash": model.hash,
        "sd_model_hash": legacy_hash(model.path) if model.path and model.path.is_file() else "",
        "full_fp16": False,
        "lowram": False,
        "zero_terminal_snr": bool(float(model.schedule.alphas_cumprod[-1]) < 1e-6),
        "debiased_estimation": options.debiased_estimation_loss,
        **data_report.metadata(data),
    }
    said = {f"ss_{name}": _text(value) for name, value in told.items()}
    for key in _MODELSPEC:
        if text := getattr(options, f"metadata_{key}"):
            said[f"modelspec.{key}"] = text
    if model.schedule.prediction == "v_prediction":
        said["modelspec.prediction_type"] = "v"
    return said


def _module(options: TrainingOptions) -> str:
    """What would train such a network there: LyCORIS where it has layers of its presets."""
    plain = options.kind in _PLAIN and options.layers in ("attn-mlp", "attn-only")
    return _MODULES.get(options.kind, "networks.lora") if plain else "lycoris.kohya"


def _network_args(options: TrainingOptions) -> dict[str, Any] | None:
    """As sd-scripts and LyCORIS are given them."""
    args: dict[str, Any] = {}
    if _module(options) == "lycoris.kohya":
        args["algo"] = _ALGORITHMS.get(options.kind, options.kind)
    if options.conv_dim is not None:
        args |= {"conv_dim": options.conv_dim, "conv_alpha": options.conv_alpha}
    if options.layers != "attn-mlp":
        args["preset"] = options.layers
    for name in _ARGUMENTS:
        if value := getattr(options, name):
            args[name] = _text(value) if isinstance(value, tuple) else value
    if options.kind == "dylora":
        args["unit"] = options.unit
    if options.kind == "lokr":
        args["factor"] = options.factor
    return args or None


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, tuple):
        return ",".join(map(str, value)) if value else "None"
    return str(value)


def activation_text(pictures: Iterable[Picture], most: int = 3) -> str:
    """What a prompt should say: the tags that (nearly) all captions share, at most a few."""
    captions = [
        split(picture.caption or picture.subset.class_tokens or "")
        for picture in pictures
        if not picture.subset.is_reg
    ]
    captions = [tags for tags in captions if tags]
    counts = Counter(tag for tags in captions for tag in dict.fromkeys(tags))
    shared = [tag for tag, count in counts.most_common() if count >= 0.9 * len(captions)]
    return ", ".join(shared[:most])


def user_notes(
    options: TrainingOptions, family: Family, pictures: Iterable[Picture]
) -> Mapping[str, Any]:
    """For the JSON file beside the network, as WebUIs read it."""
    versions = {Family.SD1: "SD1", Family.SD2: "SD2", Family.SDXL: "SDXL"}
    said: dict[str, Any] = {"sd version": versions[family], "preferred weight": 1.0}
    if text := activation_text(pictures):
        said["activation text"] = text
    if options.training_comment:
        said["description"] = options.training_comment
    return said


def free_name(folder: Path, name: str, suffix: str = ".safetensors") -> str:
    """The name, or the next one with a number of which there is no file in the folder."""
    number, found = 1, name
    while (folder / f"{found}{suffix}").exists():
        number += 1
        found = f"{name}_{number}"
    return found
