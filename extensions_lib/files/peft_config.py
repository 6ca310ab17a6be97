"""What PEFT keeps outside the tensors: alpha and how it scales.

PEFT (github.com/huggingface/peft) writes `adapter_config.json` beside `adapter_model.safetensors`;
diffusers writes the same options, by component, into the metadata `lora_adapter_metadata`. Without
either alpha is the rank (scale 1), as diffusers has it. Needs no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extensions_lib.files.header import short

_METADATA = "lora_adapter_metadata"
_BESIDE = "adapter_config.json"
_MAX_CONFIG = 1_000_000  # bytes; real ones have a few thousand
_COMPONENTS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}


@dataclass
class PeftConfig:
    """PEFT's options by component ("" for all), and what was wrong with them."""

    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""  # "the metadata" or the name of the file beside
    problems: list[str] = field(default_factory=list)

    def of(self, layer: str) -> Mapping[str, Any]:
        """The options of a canonical layer's component; empty if none are stated."""
        component = layer.partition(".")[0]
        found = self.options.get(_COMPONENTS.get(component, component))
        return self.options.get("", {}) if found is None else found

    def alpha(self, layer: str, rank: int) -> float | None:
        """The alpha of a layer so that alpha / rank is its scale; None where nothing states one."""
        options = self.of(layer)
        stated = _pattern(options.get("alpha_pattern"), layer)
        if stated is None:
            stated = options.get("lora_alpha", options.get("alpha"))
        number = _number(stated)
        if number is None:
            return None
        return number * (math.sqrt(rank) if options.get("use_rslora") is True else 1.0)

    def rank(self, layer: str) -> float | None:
        """The rank that is stated for a layer; a tensor that has one knows better."""
        options = self.of(layer)
        stated = _pattern(options.get("rank_pattern"), layer)
        number = _number(options.get("r")) if stated is None else stated
        return number if number is not None and number > 0 else None


def read_config(path: Path, metadata: Mapping[str, str], *, beside: bool) -> PeftConfig:
    """The options from a file's metadata, else (if `beside`) from the config beside it."""
    if _METADATA in metadata:
        found = PeftConfig(source="the metadata")
        flat = _parsed(metadata[_METADATA])
        if flat is None:
            found.problems.append(f"the metadata '{_METADATA}' is not JSON: alpha is taken as rank")
        else:
            found.options = _by_component(flat)
            found.problems += _strange_patterns(found)
        return found
    if not beside:
        return PeftConfig()
    for name in (f"{path.stem}.{_BESIDE}", f"{path.stem}_{_BESIDE}", _BESIDE):
        config = path.with_name(name)
        if config.is_file():
            return _read_beside(config)
    return PeftConfig()


def _read_beside(path: Path) -> PeftConfig:
    found = PeftConfig(source=path.name)
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_CONFIG + 1)
        options = _parsed(raw.decode("utf-8-sig")) if len(raw) <= _MAX_CONFIG else None
    except (OSError, UnicodeDecodeError):
        options = None
    if options is None:
        found.problems.append(f"{path.name} beside it is not readable: alpha is taken as rank")
    else:
        found.options = {"": options}
        found.problems += _strange_patterns(found)
    return found


def _strange_patterns(config: PeftConfig) -> list[str]:
    """What is not understood of the patterns for alpha, which then say nothing of a layer."""
    strange: list[str] = []
    for options in config.options.values():
        patterns = options.get("alpha_pattern")
        if isinstance(patterns, Mapping):
            strange += [key for key in patterns if _pieces(key) is None]
    if not strange:
        return []
    return [
        f"{config.source}: {len(strange)} patterns for alpha are not understood, such as"
        f" '{short(strange[0])}'; the layers that they mean have the alpha of all others"
    ]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _by_component(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"unet.r": 4, …} -> {"unet": {"r": 4}, …}; an option without a component goes to ""."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, dot, option = key.partition(".")
        if not dot or component not in _COMPONENTS.values():
            component, option = "", key
        found.setdefault(component, {})[option] = value
    return found


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -1e30 < value < 1e30 else None


def _pattern(patterns: object, layer: str) -> float | None:
    """The value of the first pattern that means the layer.

    PEFT's patterns are regular expressions that end with the module's path. A file may not choose
    what runs here, so only plain paths, `^` and `.*` are understood, which is what is in use.
    """
    if not isinstance(patterns, Mapping):
        return None
    module = layer.partition(".")[2]
    for pattern, value in patterns.items():
        number = _number(value)
        if isinstance(pattern, str) and number is not None and _means(pattern, module):
            return number
    return None


def means(named: object, layer: str) -> bool:
    """Whether an option that names modules, by their ends or by one pattern, means the layer."""
    module = layer.partition(".")[2]
    if isinstance(named, str):
        return _means(f"^{named}", module)
    return isinstance(named, list) and any(
        isinstance(each, str) and module.endswith(each) for each in named
    )


def _means(pattern: str, module: str) -> bool:
    anchored, pieces = pattern.startswith("^"), _pieces(pattern)
    if pieces is None:
        return False
    if not anchored and len(pieces) == 1:
        return module == pieces[0] or module.endswith(f".{pieces[0]}")
    return _glob(pieces, module, anchored)


def _pieces(pattern: str) -> list[str] | None:
    """The plain texts between the `.*` of a pattern; None for one that is not understood."""
    plain = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    for component in _COMPONENTS.values():
        plain = plain.removeprefix(f"{component}.")
    pieces = plain.split(".*")
    return pieces if all(re.fullmatch(r"[\w.]*", piece) for piece in pieces) else None


def _glob(pieces: Iterable[str], module: str, anchored: bool) -> bool:
    """Whether the pieces follow one another in the path, to its end; linear in its length."""
    first, *rest = pieces
    if not rest:
        return module == first
    if anchored and not module.startswith(first):
        return False
    at = module.find(first)
    if at < 0:
        return False
    at += len(first)
    for piece in rest[:-1]:
        at = module.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return module.endswith(rest[-1]) and len(module) - len(rest[-1]) >= at
