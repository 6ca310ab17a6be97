"""Hypernetwork files: every form that the WebUI has written, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extensions_lib.errors import FileProblem
from extensions_lib.files.hypernetworks import (
    Activation,
    Hypernetwork,
    LayerNorm,
    Linear,
    hypernetwork_widths,
    read_hypernetwork,
)
from tests.hyper import hyper_file, mlp_state

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def kinds(network: Hypernetwork, width: int = 8) -> list[str]:
    return [
        layer.name if isinstance(layer, Activation) else type(layer).__name__
        for layer in network.mlps[width][0]
    ]


def test_the_first_files_state_nothing(tmp_path: Path) -> None:
    state = {
        f"linear{number}.{part}": torch.randn(*shape)
        for number, shapes in ((1, ((16, 8), (16,))), (2, ((8, 16), (8,))))
        for part, shape in zip(("weight", "bias"), shapes, strict=True)
    }
    torch.save({8: (state, state)}, tmp_path / "old.pt")
    found = read_hypernetwork(tmp_path / "old.pt")
    assert kinds(found) == ["Linear", "Linear"] and found.name == "old" and found.widths == (8,)
    first, second = found.mlps[8][1]
    assert isinstance(first, Linear) and torch.equal(first.weight, state["linear1.weight"])
    assert isinstance(second, Linear) and torch.equal(second.bias, state["linear2.bias"])
    assert hypernetwork_widths(tmp_path / "old.pt") == (8,)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"activation": "relu"}, ["Linear", "relu", "Linear", "relu"]),
        ({"activation": "relu", "activate_output": False}, ["Linear", "relu", "Linear"]),
        ({"activation": "linear"}, ["Linear", "Linear"]),
        (
            {"activation": "swish", "layer_norm": True, "activate_output": False},
            ["Linear", "swish", "LayerNorm", "Linear", "LayerNorm"],
        ),
        (
            {"structure": [1, 2, 3, 1], "dropout": [0, 0.3, 0.3, 0]},
            ["Linear", "Linear", "Linear"],
        ),
        (
            {"structure": [1, 1.5, 1], "activation": "prelu"},
            ["Linear", "prelu", "Linear", "prelu"],
        ),
    ],
)
def test_layers_in_their_order(tmp_path: Path, options: Any, expected: list[str]) -> None:
    found = read_hypernetwork(hyper_file(tmp_path / "h.pt", [8, 16], **options))
    assert kinds(found, 8) == kinds(found, 16) == expected
    assert (found.step, found.checkpoint, found.info) == (100, "base", "made by a test")
    assert all(
        layer.slope is not None
        for layer in found.mlps[8][0]
        if isinstance(layer, Activation) and layer.name == "prelu"
    )


def test_a_norm_keeps_what_it_learnt(tmp_path: Path) -> None:
    state = mlp_state(8, layer_norm=True)
    torch.save({8: (state, state), "is_layer_norm": True}, tmp_path / "h.pt")
    norm = read_hypernetwork(tmp_path / "h.pt").mlps[8][0][1]
    assert isinstance(norm, LayerNorm) and torch.equal(norm.weight, state["linear.1.weight"])


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    def refused(match: str, change: Any = None, **extra: Any) -> None:
        state = mlp_state(8)
        pair = (change(state) if change else state, mlp_state(8))
        torch.save({8: pair, **extra}, tmp_path / "h.pt")
        with pytest.raises(FileProblem, match=match):
            read_hypernetwork(tmp_path / "h.pt")

    refused("layer_structure is .*expected widths", layer_structure=[2, 1])
    refused("layer_structure is", layer_structure="abc")
    refused("activation 'softmax2d' is not known", activation_func="softmax2d")
    refused("has 2 of the 3 layers", layer_structure=[1, 2, 1, 1])
    refused(r"shapes \[16, 8\] and \[16\], expected \[24, 8\]", layer_structure=[1, 3, 1])
    refused(
        "linear.0 lacks its weight", lambda s: {k: v for k, v in s.items() if k[7:] != "0.bias"}
    )
    refused("'other.weight' is no part", lambda s: s | {"other.weight": torch.zeros(1)})
    refused("more than the 2 layers", lambda s: s | {
        "linear.5.weight": torch.zeros(8, 8), "linear.5.bias": torch.zeros(8)})  # fmt: skip
    refused("no numbers", lambda s: s | {"linear.0.bias": torch.full((16,), float("inf"))})
    refused("lacks what its prelu", activation_func="prelu")
    refused("holds no layers", lambda s: [1])
    torch.save({"a": torch.zeros(1)}, tmp_path / "h.pt")
    for read in (read_hypernetwork, hypernetwork_widths):
        with pytest.raises(FileProblem, match="is no hypernetwork"):
            read(tmp_path / "h.pt")
    torch.save({8: mlp_state(8)}, tmp_path / "h.pt")
    with pytest.raises(FileProblem, match="no pair of MLPs"):
        read_hypernetwork(tmp_path / "h.pt")


@FUZZ
@given(st.data())
def test_mutated_files_are_refused_in_words(tmp_path: Path, data: st.DataObject) -> None:
    path = hyper_file(tmp_path / "h.pt", [4], activation="relu", layer_norm=True)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path.write_bytes(raw)
    for read in (read_hypernetwork, hypernetwork_widths):
        try:
            read(path)
        except FileProblem as problem:
            assert str(path) in str(problem)


@FUZZ
@given(
    st.dictionaries(
        st.one_of(st.integers(-2, 16), st.sampled_from(["layer_structure", "activation_func"])),
        st.recursive(
            st.one_of(st.none(), st.integers(-3, 9), st.text(max_size=3), st.floats()),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_object_in_the_file(tmp_path: Path, content: dict[Any, Any]) -> None:
    torch.save(content | {"t": torch.zeros(1)}, tmp_path / "h.pt")
    with pytest.raises(FileProblem):
        read_hypernetwork(tmp_path / "h.pt")
