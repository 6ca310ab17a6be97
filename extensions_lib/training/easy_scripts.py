"""What LoRA_Easy_Training_Scripts saves, as the arguments of sd-scripts that it would run.

Its TOML has a section for each part of its window, with `args` for the training program and
`dataset_args` for the data set; [[subsets]] are the folders, which `datasets.dataset_file` reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extensions_lib.errors import CrucibleError

_LISTS = ("network_args", "optimizer_args", "lr_scheduler_args")


def is_saved(held: Mapping[str, Any]) -> bool:
    """Whether it is such a file."""
    return any(
        isinstance(section, dict) and (_is_table(section, "args") or "dataset_args" in section)
        for section in held.values()
    )


def _is_table(section: Mapping[str, Any], name: str) -> bool:
    return isinstance(section.get(name), dict)


def arguments(held: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """The arguments of sd-scripts, with the file itself as the data set's.

    Raises CrucibleError where there are folders, but no file that could be named for them.
    """
    found: dict[str, Any] = {}
    for section in held.values():
        if isinstance(section, dict) and _is_table(section, "args"):
            found |= section["args"]
    network = found.get("network_args") or {}
    if "network_module" not in found and held.get("train_mode") != {"train_mode": "ti"}:
        found["network_module"] = _module(network, bool(found.pop("fa", False)))
    found.pop("fa", None)
    for name in _LISTS:
        if isinstance(found.get(name), dict):
            found[name] = [_argument(key, value) for key, value in found[name].items() if key]
    if "warmup_ratio" in found:
        found["lr_warmup_steps"] = float(found.pop("warmup_ratio"))
    if easy := found.pop("easy_name", ""):
        found["output_name"] = str(found.get("output_name", easy)).replace("${replace}", easy)
    if held.get("subsets"):
        if path is None:
            raise CrucibleError(
                "subsets: its folders are read from the file itself; hand that to `train`, or"
                " name it as dataset_config."
            )
        found["dataset_config"] = str(path)
    return found


def _module(network: Mapping[str, Any], frozen_down: bool) -> str:
    """As its own backend decides."""
    if frozen_down:
        return "networks.lora_fa"
    if network.get("algo"):
        return "lycoris.kohya"
    return "networks.dylora" if network.get("unit") else "networks.lora"


def _argument(name: str, value: Any) -> str:
    if isinstance(value, list):
        value = ",".join(map(str, value))
    elif str(value).lower() in ("true", "false"):
        value = str(value).capitalize()
    return f"{name}={value}"
