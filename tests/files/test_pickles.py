"""Pickles: weights load, code is refused by name and never runs."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extensions_lib.errors import FileProblem
from extensions_lib.files import safe
from extensions_lib.files.pickles import pickle_globals, read_pickle

STATE = collections.OrderedDict(
    a=torch.randn(2, 3).half(),
    b=torch.nn.Parameter(torch.randn(4)),
    c=torch.zeros(2, dtype=torch.bfloat16),
)
MARK = "ran.txt"


class Calls:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"echo ran > {self.path}",)


def hostile(tmp_path: Path) -> Calls:
    return Calls(tmp_path / MARK)


def refused(path: Path, says: str) -> None:
    for read in (safe.read_tensors, safe.read_any_header):
        with pytest.raises(FileProblem) as caught:
            read(path)
        assert says in str(caught.value)
        assert str(path) in str(caught.value)
    assert not (path.parent / MARK).exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_load(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": STATE, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    tensors, header = safe.read_tensors(path), safe.read_any_header(path)
    assert set(tensors) == set(header.tensors) == {"a", "b", "c"}
    for name, tensor in tensors.items():
        assert torch.equal(tensor, STATE[name])
        assert not tensor.requires_grad
        assert header.shapes[name] == tuple(tensor.shape)
    assert [info.dtype for info in header.tensors.values()] == ["F16", "F32", "BF16"]
    assert list(safe.read_tensors(path, ["b"])) == ["b"]


def test_module_state_and_nesting(tmp_path: Path) -> None:
    """A module's state_dict carries an attribute (_metadata), hypernetworks nest in tuples."""
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "l.pt")
    assert safe.read_any_header(tmp_path / "l.pt").shapes == {"weight": (3, 2), "bias": (3,)}
    torch.save({768: ({"w": torch.ones(2)}, {"w": torch.zeros(1)}), "n": 1}, tmp_path / "h.pt")
    assert set(safe.read_tensors(tmp_path / "h.pt")) == {"768.0.w", "768.1.w"}
    assert set(safe.read_any_header(tmp_path / "h.pt").shapes) == {"768.0.w", "768.1.w"}


def test_harmless_company_is_left_out(tmp_path: Path) -> None:
    """Old embeddings hold a ParameterDict, old checkpoints a NumPy number."""
    vectors = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.randn(2, 3))})
    path = tmp_path / "a.pt"
    torch.save({"string_to_param": vectors, "x": numpy.float64(3.0)}, path)
    found = safe.read_tensors(path)
    assert list(found) == ["string_to_param.*"]
    assert torch.equal(found["string_to_param.*"], vectors["*"])


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_by_name(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": STATE, "e": hostile(tmp_path)}, path, _use_new_zipfile_serialization=zipped)
    refused(path, f"{os.system.__module__}.system")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps(hostile(tmp_path), protocol))
    refused(path, "system")
    path.write_bytes(pickle.dumps({"a": 1}, protocol))
    refused(path, "PyTorch")


def test_code_in_a_second_pickle(tmp_path: Path) -> None:
    """In a zip beside data.pkl; in the old format in any of the five."""
    path = tmp_path / "a.pt"
    torch.save(dict(STATE), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/more.pkl", pickle.dumps(hostile(tmp_path)))
    refused(path, "more.pkl")
    buffer = io.BytesIO()
    torch.save(dict(STATE), buffer, _use_new_zipfile_serialization=False)
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    assert buffer.getvalue().startswith(magic)
    path.write_bytes(magic + pickle.dumps(hostile(tmp_path), 2) + buffer.getvalue()[len(magic) :])
    refused(path, "system")


def test_hidden_names(tmp_path: Path) -> None:
    """STACK_GLOBAL over a computed text, the extension registry, a memo index of gigabytes."""
    path = tmp_path / "a.pt"
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    joined = b"\x80\x04\x8c\x02os\x8c\x01s\x86\x93."
    for program, says in (
        (joined, "hidden"),
        (b"\x80\x02\x82\x01.", "registry"),
        (b"\x80\x02Nr" + struct.pack("<I", 2**31) + b".", "memo"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".", "not a readable"),
    ):
        path.write_bytes(magic + program)
        refused(path, says)


def test_memo_names_are_followed() -> None:
    program = b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93."
    assert list(pickle_globals(io.BytesIO(program))) == [("os", "system")]


def test_other_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.txt", "hello")
    refused(path, "PyTorch did not write")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(20_000_000))
    refused(path, "unpack to")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/code/__torch__.py", "x")
    refused(path, "TorchScript")
    path.write_bytes(b"x" * 257 + b"ustar" + bytes(300))
    refused(path, "oldest format")
    path.write_bytes(b"<html></html>")
    refused(path, "web page")
    torch.save({"words": ["a"], "n": 1}, path)
    refused(path, "holds no tensors")


def test_a_host_s_torch_load_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(dict(STATE), tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", lambda *_, **__: None)
    assert set(safe.read_tensors(tmp_path / "a.pt")) == {"a", "b", "c"}
    monkeypatch.setattr(torch.serialization, "load", lambda *_, **__: None)
    with pytest.raises(FileProblem, match="refused"):
        read_pickle(tmp_path / "a.pt")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), zipped=st.booleans())
def test_mutated_pickles_only_raise_file_problem(
    tmp_path: Path, data: st.DataObject, zipped: bool
) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=zipped)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzz.pt"
    path.write_bytes(bytes(content[: data.draw(st.integers(3, len(content)))]))
    for read in (safe.read_any_header, safe.read_tensors):
        try:
            read(path)
        except FileProblem as problem:
            assert str(path) in str(problem)
