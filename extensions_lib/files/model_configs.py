"""The yaml beside a checkpoint, in the form that the WebUIs use: what tensors cannot tell."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from extensions_lib.errors import FileProblem

_LARGEST = 1_000_000  # bytes; such files have two or three thousand
_PREDICTIONS: Mapping[str, Literal["epsilon", "v_prediction"]] = {
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "eps": "epsilon",
    "epsilon": "epsilon",
}


@dataclass(frozen=True)
class ModelConfig:
    """Facts from a model's yaml; None where it does not say."""

    path: Path
    prediction: Literal["epsilon", "v_prediction"] | None = None
    heads: int | None = None
    head_dim: int | None = None
    text_heads: tuple[int | None, ...] = ()
    """One entry a text encoder that has a local folder with its config.json."""
    clip_folder: Path | None = None
    """The local folder of the (first) text encoder's config and tokenizer."""
    vae_scale: float | None = None
    linear_start: float | None = None
    linear_end: float | None = None
    timesteps: int | None = None


def config_beside(path: str | os.PathLike[str]) -> ModelConfig | None:
    """The config of the same stem beside a checkpoint; None if there is none.

    Raises:
        FileProblem: the file is there and cannot be understood.
    """
    path = Path(path).with_suffix(".yaml")
    return read_config(path) if path.is_file() else None


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read a model config (`model: params: …`), of the ldm or the sgm (SDXL) form.

    Raises:
        FileProblem: not yaml, or not of this form.
    """
    path = Path(path)
    params = _parsed(path)
    unet = _params(params, "unet_config") or _params(params, "network_config")
    folders = _clip_folders(path, params)
    discretization = _params(_params(params, "denoiser_config"), "discretization_config")
    schedule = {**discretization, **params}
    return ModelConfig(
        path=path,
        prediction=_prediction(path, params),
        heads=_number(path, unet, "num_heads"),
        head_dim=_number(path, unet, "num_head_channels"),
        text_heads=tuple(_heads(folder) for folder in folders),
        clip_folder=next((folder for folder in folders if folder is not None), None),
        vae_scale=_fraction(path, params, "scale_factor"),
        linear_start=_fraction(path, schedule, "linear_start"),
        linear_end=_fraction(path, schedule, "linear_end"),
        timesteps=_number(path, schedule, "timesteps"),
    )


def _parsed(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        if path.stat().st_size > _LARGEST:
            raise FileProblem(f"{path}: is too large to be a model config; move it away")
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FileProblem(
            f"{path}: cannot be read as the checkpoint's config ({reason}); correct it or move "
            "it away"
        ) from error
    model = parsed.get("model") if isinstance(parsed, Mapping) else None
    params = model.get("params") if isinstance(model, Mapping) else None
    if not isinstance(params, Mapping):
        raise FileProblem(
            f"{path}: is not a model config (expected 'model: params: …'); correct it or move it "
            "away"
        )
    return params


def _params(owner: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = owner.get(name)
    params = part.get("params") if isinstance(part, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def _prediction(path: Path, params: Mapping[str, Any]) -> Literal["epsilon", "v_prediction"] | None:
    said = params.get("parameterization")
    if said is not None:
        if str(said) not in _PREDICTIONS:
            raise FileProblem(f"{path}: parameterization is {str(said)!r}; expected one of eps, v")
        return _PREDICTIONS[str(said)]
    denoiser = _params(params, "denoiser_config")
    for name in ("scaling_config", "weighting_config"):
        scaling = denoiser.get(name)
        target = str(scaling.get("target", "")) if isinstance(scaling, Mapping) else ""
        if target.endswith(".VScaling"):
            return "v_prediction"
        if target.endswith(".EpsScaling"):
            return "epsilon"
    return None


def _number(path: Path, owner: Mapping[str, Any], name: str) -> int | None:
    value = owner.get(name)
    if value is None or value == -1:  # the original code's "not given"
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FileProblem(f"{path}: {name} is {value!r}; expected a whole number above 0")
    return value


def _fraction(path: Path, owner: Mapping[str, Any], name: str) -> float | None:
    value = owner.get(name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < 1000:
        raise FileProblem(f"{path}: {name} is {value!r}; expected a number above 0")
    return number


def _clip_folders(path: Path, params: Mapping[str, Any]) -> list[Path | None]:
    """The local folder of each text encoder; None where the config names no existing folder."""
    conditioner = _params(params, "conditioner_config").get("emb_models")
    models = conditioner if isinstance(conditioner, list) else [params.get("cond_stage_config")]
    folders: list[Path | None] = []
    for model in models:
        if isinstance(model, Mapping) and "CLIP" in str(model.get("target", "")):
            version = _params({"it": model}, "it").get("version")
            folders.append(_folder(path, version))
    return folders


def _folder(path: Path, version: object) -> Path | None:
    """A hub name such as openai/clip-vit-large-patch14 is no folder; paths may be relative to
    the yaml or to the working directory (as the WebUI takes them)."""
    if not isinstance(version, str) or not version:
        return None
    for start in (path.parent, Path.cwd()):
        folder = start / version
        if (folder / "config.json").is_file():
            return folder
    return None


def _heads(folder: Path | None) -> int | None:
    if folder is None:
        return None
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileProblem(f"{file}: cannot be read as a text encoder's config ({error})") from error
    if isinstance(config, Mapping) and isinstance(config.get("text_config"), Mapping):
        config = config["text_config"]
    return _number(file, config if isinstance(config, Mapping) else {}, "num_attention_heads")
