"""Reading and writing tensor by tensor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from extensions_lib.errors import FileProblem
from extensions_lib.files.streams import TensorReader, write_stream

TENSORS = {
    "half": torch.randn(3, 5).half(), "none": torch.zeros(0, 4), "one": torch.tensor(2.5),
    "whole": torch.arange(7), "bits": torch.tensor([True, False]),
    "brain": torch.randn(2, 2).bfloat16(), "small": torch.randn(4).to(torch.float8_e4m3fn),
}  # fmt: skip
NAMES = {
    "half": "F16", "none": "F32", "one": "F32", "whole": "I64", "bits": "BOOL", "brain": "BF16",
    "small": "F8_E4M3",
}  # fmt: skip
PLAN = {name: (NAMES[name], tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.dtype == two.dtype and torch.equal(one.float(), two.float())


def test_every_dtype_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    with TensorReader(path) as reader:
        assert all(equal(reader[name], tensor) for name, tensor in TENSORS.items())
    torch.save({"state_dict": {"half": TENSORS["half"]}}, tmp_path / "a.pt")
    with TensorReader(tmp_path / "a.pt") as reader:
        assert equal(reader["half"], TENSORS["half"])


def test_what_is_read_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    with TensorReader(path) as reader:
        reader["half"].zero_()
        first = reader["half"]
        os.truncate(path, 200)
        with pytest.raises(FileProblem, match="shorter"):
            reader["whole"], reader["half"]
    assert equal(first, TENSORS["half"])


def test_the_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    asked: list[str] = []

    def make(name: str) -> torch.Tensor:
        asked.append(name)
        return TENSORS[name]

    write_stream(tmp_path / "a.safetensors", PLAN, make, {"k": "v"})
    save_file(TENSORS, tmp_path / "b.safetensors", {"k": "v"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(asked) == sorted(TENSORS)


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="not as planned"):
        write_stream(path, PLAN, lambda name: TENSORS[name].flatten()[:1])
    with pytest.raises(KeyError):
        write_stream(path, PLAN, lambda name: TENSORS["gone"])
    with pytest.raises(FileProblem, match="free some space"):
        write_stream(path, {"a": ("F32", (2**50,))}, lambda name: TENSORS[name])
    assert not list(tmp_path.iterdir())
    save_file({"old": torch.ones(1)}, path)
    with pytest.raises(KeyError):
        write_stream(path, PLAN, lambda name: TENSORS["gone"])
    assert list(load_file(path)) == ["old"]
