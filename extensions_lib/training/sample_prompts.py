"""Prompts of samples as sd-scripts writes them: `a cat --n dog --w 512 --h 768 --d 1 --l 7`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from extensions_lib.atomic import reason
from extensions_lib.datasets.dataset_file import read_toml
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.models.place import Sample

# What sd-scripts calls samplers; those of which there is none here under any name.
SAMPLERS: Mapping[str, str] = {
    "ddim": "DDIM",
    "lms": "LMS",
    "k_lms": "LMS",
    "euler": "Euler",
    "k_euler": "Euler",
    "euler_a": "Euler a",
    "k_euler_a": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "k_dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "k_dpm_2_a": "DPM2 a",
    "dpmsolver++": "DPM++ 2M",
}
UNKNOWN_SAMPLERS = ("pndm", "dpmsolver", "dpmsingle")

_FLAG = re.compile(r"\s--([A-Za-z]+)(?=\s)")
_FIELDS: dict[str, tuple[str, type]] = {
    "n": ("negative", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "l": ("cfg", float),
    "s": ("steps", int),
    "ss": ("sampler", str),
    "cn": ("control", Path),
}
# The flag of each key in a file of prompts that is TOML or JSON.
_KEYS = {
    "negative_prompt": "n",
    "width": "w",
    "height": "h",
    "seed": "d",
    "scale": "l",
    "sample_steps": "s",
    "sample_sampler": "ss",
    "controlnet_image": "cn",
}


def read_sample(line: str, usual: Sample) -> Sample:
    """The sample of one line; what it does not say is as in `usual`. `--cn` names a picture.

    Raises CrucibleError, naming the flag, for one that is unknown or has no such value.
    """
    prompt, *rest = _FLAG.split(f" {line.strip()} ")
    told: dict[str, Any] = {"prompt": prompt.strip()}
    for written, text in zip(rest[::2], rest[1::2], strict=True):
        flag = written.lower()
        if flag not in _FIELDS:
            known = ", ".join(f"--{each}" for each in _FIELDS)
            raise CrucibleError(f"sample prompt: --{written} is unknown; there are {known}.")
        name, kind = _FIELDS[flag]
        try:
            told[name] = kind(text.strip())
        except ValueError:
            raise CrucibleError(f"sample prompt: --{flag} takes a number, not {text!r}.") from None
    for side in ("width", "height"):
        if told.get(side) is not None and told[side] % 8:
            raise CrucibleError(f"sample prompt: {side} {told[side]} is no multiple of 8.")
    if "sampler" in told:
        told["sampler"] = SAMPLERS.get(told["sampler"].lower(), told["sampler"])
    return replace(usual, **told)


def read_samples(lines: Sequence[str], usual: Sample) -> list[Sample]:
    """One for each line that is neither empty nor a comment; seeds that are not said count up."""
    found: list[Sample] = []
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            found.append(read_sample(line, replace(usual, seed=usual.seed + len(found))))
    return found


def read_prompt_file(path: Path) -> list[str]:
    """The lines of a file of prompts: text, or TOML or JSON of sd-scripts. Raises FileProblem."""
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return [line.strip() for line in _text(path).splitlines() if line.strip()]
    if suffix == ".toml":
        held = read_toml(path).get("prompt")
        usual = {key: value for key, value in held.items() if key != "subset"} if held else {}
        told: Any = [{**usual, **each} for each in held.get("subset", [])] if held else None
    elif suffix == ".json":
        try:
            told = json.loads(_text(path))
        except json.JSONDecodeError as error:
            raise FileProblem(f"{path}: is no valid JSON ({error}).") from None
    else:
        raise FileProblem(f"{path}: is no file of prompts; name a .txt, .toml or .json file.")
    if not isinstance(told, list):
        raise FileProblem(f"{path}: has no list of prompts ([[prompt.subset]] in TOML).")
    return [_line(path, each) for each in told]


def _line(path: Path, told: Any) -> str:
    """A prompt of a TOML or JSON file, as a line of a text."""
    if isinstance(told, str):
        return told
    if not isinstance(told, dict) or "prompt" not in told:
        raise FileProblem(f"{path}: a prompt of it has no `prompt`.")
    flags = []
    for key, value in told.items():
        if key != "prompt" and key not in _KEYS:
            raise FileProblem(f"{path}: {key} is unknown; there are {', '.join(_KEYS)}.")
        if key in _KEYS:
            flags.append(f"--{_KEYS[key]} {value}")
    return " ".join([str(told["prompt"]).replace("\n", " "), *flags])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({reason(error)}).") from None
    except UnicodeDecodeError:
        raise FileProblem(f"{path}: is not UTF-8; save it as UTF-8.") from None
