"""Crucible's axes of the WebUI's X/Y/Z plot."""

from __future__ import annotations

from typing import Any

from extensions_lib.prompts.tags import with_weight

LABEL = "[Crucible] Network weight"


def add_axes() -> None:
    """Adds the axes, once, where the X/Y/Z plot is there (people can disable it)."""
    from modules import scripts

    for data in scripts.scripts_data:
        if data.script_class.__module__ not in ("xyz_grid.py", "scripts.xyz_grid"):
            continue
        plot = data.module
        if all(option.label != LABEL for option in plot.axis_options):
            plot.axis_options.append(plot.AxisOption(LABEL, str, set_weight, confirm=_check))


def set_weight(p: Any, value: str, _: Any) -> None:
    """One cell of the plot: `0.6` weighs every network of the prompt so, `name: 0.6` that one."""
    name, weight = _read(value)
    p.prompt = with_weight(p.prompt, weight, name)


def _read(value: str) -> tuple[str | None, float]:
    name, colon, weight = str(value).rpartition(":")
    return (name.strip() if colon else None), float(weight)


def _check(_: Any, values: list[str]) -> None:
    for value in values:
        try:
            _read(value)
        except ValueError:
            raise RuntimeError(
                f"{LABEL}: {value!r} is neither a weight (0.6) nor a network with a weight "
                "(name: 0.6)"
            ) from None
