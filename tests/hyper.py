"""Small random hypernetwork files, laid out as the WebUI lays them out.

from tests.hyper import hyper_file
path = hyper_file(tmp_path / "h.pt", [32, 64], activation="relu", layer_norm=True)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch


def mlp_state(
    width: int,
    structure: Sequence[float] = (1, 2, 1),
    *,
    activation: str | None = None,
    layer_norm: bool = False,
    activate_output: bool = True,
    dropout: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """The state dict of one MLP: its layers are numbered with activations and dropouts between."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    state: dict[str, torch.Tensor] = {}
    number = 0
    for index in range(len(structure) - 1):
        into, out = int(width * structure[index]), int(width * structure[index + 1])
        state[f"linear.{number}.weight"], state[f"linear.{number}.bias"] = (
            noise(out, into),
            noise(out),
        )
        number += 1
        last = index == len(structure) - 2
        if activation not in (None, "linear") and (activate_output or not last):
            if activation == "prelu":
                state[f"linear.{number}.weight"] = noise(1)
            number += 1
        if layer_norm:
            state[f"linear.{number}.weight"] = 1 + noise(out)
            state[f"linear.{number}.bias"] = noise(out)
            number += 1
        if dropout is not None and dropout[index + 1] > 0:
            number += 1
    return state


def hyper_file(
    path: Path,
    widths: Sequence[int],
    *,
    structure: Sequence[float] = (1, 2, 1),
    activation: str | None = None,
    layer_norm: bool = False,
    activate_output: bool = True,
    dropout: Sequence[float] | None = None,
    seed: int = 0,
) -> Path:
    """Writes a hypernetwork for contexts of these widths and returns its path."""
    content: dict[object, object] = {
        width: tuple(
            mlp_state(
                width,
                structure,
                activation=activation,
                layer_norm=layer_norm,
                activate_output=activate_output,
                dropout=dropout,
                seed=seed + 2 * place + which,
            )
            for which in range(2)
        )
        for place, width in enumerate(widths)
    }
    content |= {
        "step": 100,
        "name": "inner",
        "layer_structure": list(structure),
        "activation_func": activation,
        "is_layer_norm": layer_norm,
        "weight_initialization": "Normal",
        "sd_checkpoint": "abcd1234",
        "sd_checkpoint_name": "base",
        "activate_output": activate_output,
        "use_dropout": dropout is not None,
        "dropout_structure": None if dropout is None else list(dropout),
        "last_layer_dropout": False,
        "optional_info": "made by a test",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # the form that AUTOMATIC1111's own unpickler knows
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path
