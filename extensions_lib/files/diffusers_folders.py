"""A model as diffusers saves it: a folder with a part in each subfolder, and a config in each.

The plan of the model is read off the configs; the weights are listed, and read when asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from extensions_lib.errors import FileProblem
from extensions_lib.files.safe import read_any_header
from extensions_lib.files.vaes import today
from extensions_lib.models.families import Family, Structure, TextShape, UNetShape, VAEShape
from extensions_lib.models.layouts import parts

INDEX = "model_index.json"
FOLDERS = {"unet": "unet", "vae": "vae", "te1": "text_encoder", "te2": "text_encoder_2"}
_LARGEST = 10_000_000  # bytes of a JSON file
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp16", ".non_ema", ".bf16")


@dataclass(frozen=True)
class DiffusersFolder:
    """What is in a folder. `files`: (component, key of diffusers) -> file and key in it."""

    path: Path
    structure: Structure
    files: Mapping[tuple[str, str], tuple[Path, str]]
    prediction: Literal["epsilon", "v_prediction"] | None
    zero_terminal_snr: bool


def is_diffusers_folder(path: str | os.PathLike[str]) -> bool:
    """Whether it is a folder as diffusers saves a whole model."""
    return (Path(path) / INDEX).is_file()


def read_folder(path: str | os.PathLike[str]) -> DiffusersFolder:
    """Reads the configs and the headers. Raises FileProblem naming the file that is wrong."""
    path = Path(path)
    index = _read_json(path / INDEX)
    structure = _structure(path, index)
    there: dict[tuple[str, str], tuple[Path, str]] = {}
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for component in ("unet", "vae", *structure.text_components):
        folder = path / FOLDERS[component]
        for file in _weights(folder):
            for key, shape in read_any_header(file).shapes.items():
                name = _name(today(key), structure, component)
                there[component, name], shapes[component, name] = (file, key), shape
    for part in parts(structure):
        found = shapes.get((part.component, part.name))
        if found is None:
            raise FileProblem(
                f"{path / FOLDERS[part.component]}: lacks {part.name}; download it again"
            )
        if _plain(found) != _plain(part.shape):
            raise FileProblem(
                f"{path / FOLDERS[part.component]}: its {part.name} is {list(found)}, its config"
                f" says {list(part.shape)}"
            )
    scheduler = path / "scheduler" / "scheduler_config.json"
    schedule = _read_json(scheduler) if scheduler.is_file() else {}
    said = schedule.get("prediction_type")
    prediction = said if said in ("epsilon", "v_prediction") else None
    zero = schedule.get("rescale_betas_zero_snr") is True
    return DiffusersFolder(path, structure, there, prediction, zero)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution and a linear layer hold the same weight."""
    return shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else shape


def _name(key: str, structure: Structure, component: str) -> str:
    """Text encoders of some versions leave out the leading `text_model.`."""
    text = component in structure.text_components
    if text and not key.startswith(("text_model.", "text_projection.")):
        return f"text_model.{key}"
    return key


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise FileProblem(f"{path}: is too large for a config")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileProblem(f"{path}: there is no such file; the model is not complete") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileProblem(
            f"{path}: cannot be read ({str(error)[:100]}); download it again"
        ) from None
    if not isinstance(found, dict):
        raise FileProblem(f"{path}: is no config; download it again")
    return found


def _weights(folder: Path) -> list[Path]:
    """The files with a part's weights: one, or several with an index; safetensors first."""
    for suffix in (".safetensors", ".bin"):
        for stem in _STEMS:
            for variant in _VARIANTS:
                one = folder / f"{stem}{variant}{suffix}"
                if one.is_file():
                    return [one]
                listed = folder / f"{stem}{suffix}.index{variant}.json"
                if listed.is_file():
                    return _shards(listed)
    raise FileProblem(f"{folder}: holds no weights; download the model again")


def _shards(listed: Path) -> list[Path]:
    weights = _read_json(listed).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(n, str) for n in weights.values()):
        raise FileProblem(f"{listed}: lists no files; download it again")
    names = sorted(set(weights.values()))
    if any(Path(name).name != name for name in names):
        raise FileProblem(f"{listed}: names files outside of its folder; do not use it")
    return [listed.parent / name for name in names]


# --- the plan ---------------------------------------------------------------------------------


class _Config:
    """A config's values, asked for by type."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = _read_json(path)

    def number(self, name: str, default: int | None = None) -> int:
        found = self.values.get(name, default)
        if type(found) is not int or found < 1:
            raise FileProblem(f"{self.path}: its {name} is {found!r}, expected a number")
        return found

    def numbers(self, name: str, count: int, default: int | None = None) -> tuple[int, ...]:
        """One for all, or one for each level."""
        found = self.values.get(name, default)
        if type(found) is int:
            found = [found] * count
        if not isinstance(found, list) or not all(type(n) is int and n > 0 for n in found):
            raise FileProblem(f"{self.path}: its {name} is {found!r}, expected numbers")
        return tuple(found)


def _structure(path: Path, index: Mapping[str, Any]) -> Structure:
    texts = {
        component: _text(_Config(path / FOLDERS[component] / "config.json"), component)
        for component in ("te1", "te2")
        if (path / FOLDERS[component] / "config.json").is_file()
    }
    if "te2" in texts:
        family = Family.SDXL
    elif "te1" in texts:
        family = Family.SD2 if texts["te1"].kind == "openclip" else Family.SD1
    else:
        name = index.get("_class_name")
        raise FileProblem(f"{path}: is a {name} without a text encoder of SD1, SD2 or SDXL")
    unet = _unet(_Config(path / "unet" / "config.json"), family)
    vae = path / "vae" / "config.json"
    return Structure(
        family, unet, tuple(texts.values()), _vae(_Config(vae)) if vae.is_file() else None
    )


def _text(config: _Config, component: str) -> TextShape:
    width = config.number("hidden_size")
    return TextShape(
        width=width,
        layers=config.number("num_hidden_layers"),
        mlp=config.number("intermediate_size"),
        heads=config.number("num_attention_heads"),
        kind="clip"
        if config.values.get("hidden_act", "quick_gelu") == "quick_gelu"
        else "openclip",
        projection=config.number("projection_dim", width) if component == "te2" else None,
        vocab=config.number("vocab_size"),
        positions=config.number("max_position_embeddings", 77),
    )


def _unet(config: _Config, family: Family) -> UNetShape:
    values = config.values
    channels = config.numbers("block_out_channels", 0)
    levels = len(channels)
    types = values.get("down_block_types")
    if not levels or not isinstance(types, list) or len(types) != levels:
        raise FileProblem(f"{config.path}: is no UNet of SD1, SD2 or SDXL")
    depths = config.numbers("transformer_layers_per_block", levels, 1)
    heads = config.numbers("attention_head_dim", levels, 8)
    blocks = config.numbers("layers_per_block", levels, 2)
    if not len(depths) == len(heads) == len(blocks) == levels:
        raise FileProblem(f"{config.path}: has values for another number of levels than {levels}")
    # Despite its name diffusers keeps the number of heads there.
    alike = len(set(heads)) == 1 and family is Family.SD1
    adm = values.get("projection_class_embeddings_input_dim")
    return UNetShape(
        in_channels=config.number("in_channels", 4),
        model_channels=channels[0],
        channel_mult=tuple(width // channels[0] for width in channels),
        num_res_blocks=blocks,
        transformer_depth=tuple(
            depth if str(kind).startswith("CrossAttn") else 0
            for kind, depth in zip(types, depths, strict=True)
        ),
        middle_depth=depths[-1],
        context_dim=config.number("cross_attention_dim"),
        heads=heads[0] if alike else None,
        head_dim=None if alike else max(1, channels[-1] // heads[-1]),
        linear_projection=values.get("use_linear_projection") is True,
        adm_in_channels=adm if type(adm) is int else None,
        out_channels=config.number("out_channels", 4),
    )


def _vae(config: _Config) -> VAEShape:
    channels = config.numbers("block_out_channels", 0)
    if not channels:
        raise FileProblem(f"{config.path}: is no VAE of Stable Diffusion")
    return VAEShape(
        channels=channels[0],
        channel_mult=tuple(width // channels[0] for width in channels),
        num_res_blocks=config.number("layers_per_block", 2),
        latent_channels=config.number("latent_channels", 4),
        image_channels=config.number("in_channels", 3),
    )
