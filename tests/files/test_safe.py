"""Headers that lie, files that are something else, and writes that fail."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extensions_lib.errors import FileProblem
from extensions_lib.files import safe

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def info(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def every_dtype() -> dict[str, torch.Tensor]:
    return {
        "half": torch.randn(3, 4).half(),
        "float": torch.randn(5),
        "scalar": torch.tensor(1.5),
        "bfloat": torch.randn(2, 2).bfloat16(),
        "long": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "byte": torch.arange(3, dtype=torch.uint8),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn),
        "nothing": torch.zeros(0, 3),
        "turned": torch.randn(4, 6).t(),
    }


def test_header_without_torch(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(2, 3)}, tmp_path / "a.safetensors", {"k": "v"})
    code = (
        "import sys; from extensions_lib.files.safe import read_header;"
        "h = read_header(sys.argv[1]); assert h.shapes == {'a': (2, 3)}, h;"
        "assert h.metadata == {'k': 'v'}; assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.safetensors")],
        check=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"\n  <html lang=en>" + b"x" * 99, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"\x80\x02}q\x00." + bytes(60), "pickle"),
        (b'{"error": "Unauthorized"}', "JSON"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "PNG"),
        (bytes(100), "zero bytes"),
        (b"\x05\x00\x00\x00\x00\x00\x00\x00hello", "not a safetensors file"),
        (raw({"a": info()}, bytes(8))[:6], "not a safetensors file"),
        (raw({"a": info()}, bytes(8))[:30], "cut off"),
        (raw({"a": info()}, bytes(7)), "cut off"),
        (raw({"a": info()}, bytes(9)), "belong to nothing"),
        ((2**62).to_bytes(8, "little") + b'{"a":1}', "claims"),
        ((2**64 - 1).to_bytes(8, "little") + b'{"a":1}', "claims"),
        (raw(b'{"a": NaN}'), "NaN"),
        (raw(b'{"a":' + b"[" * 100_000), "JSON"),
        (raw(b'{"a": ' + b"9" * 5000 + b"}"), "JSON"),
        (raw(b'{"a":{},"a":{}}'), "twice"),
        (raw(b'{"\xff":{}}'), "UTF-8"),
        (raw(b'{"__metadata__":{"a":"\\ud800"}}'), "Unicode"),
        (raw({"a": 3}), "object"),
        (raw({"__metadata__": {"a": 3}}), "metadata 'a'"),
        (raw({"__metadata__": [1]}), "__metadata__"),
        (raw({"a": info("F99")}, bytes(8)), "unknown dtype F99"),
        (raw({"a": info(["F32"])}, bytes(8)), "unknown dtype"),
        (raw({"a": info(shape=[-2])}, bytes(8)), "impossible shape"),
        (raw({"a": info(shape=[2.0])}, bytes(8)), "impossible shape"),
        (raw({"a": info(shape=[True, 2])}, bytes(8)), "impossible shape"),
        (raw({"a": info(shape=[1] * 100)}, bytes(8)), "impossible shape"),
        (raw({"a": info(shape=[2**62, 2**62])}, bytes(8)), "needs"),
        (raw({"a": info(offsets=[0, 2**63])}, bytes(8)), "impossible offsets"),
        (raw({"a": info(offsets=[0])}, bytes(8)), "impossible offsets"),
        (raw({"a": info(offsets=[8, 0])}, bytes(8)), "before it starts"),
        (raw({"a": info(shape=[3])}, bytes(8)), "needs 12 bytes"),
        (raw({"a": info(), "b": info(offsets=[4, 12])}, bytes(12)), "overlaps"),
        (raw({"a": info(), "b": info()}, bytes(8)), "overlaps"),
        (raw({"a": info(), "b": info(offsets=[16, 24])}, bytes(24)), "hole"),
    ],
)
def test_lies_are_said(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    for read in (safe.read_header, safe.read_any_header, safe.read_tensors):
        with pytest.raises(FileProblem) as caught:
            read(path)
        assert says in str(caught.value)
        assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such file"):
        safe.read_header(tmp_path / "none.safetensors")
    with pytest.raises(FileProblem, match="folder"):
        safe.read_header(tmp_path)


@FUZZ
@given(data=st.data())
def test_mutated_files_only_raise_file_problem(tmp_path: Path, data: st.DataObject) -> None:
    whole = b"".join(safe.serialised(every_dtype(), {"a": "b"}))
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 700) - 1))
        if data.draw(st.booleans()):
            content[place] = data.draw(st.integers(0, 255))
        else:
            content[place : place + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=9))
    cut = data.draw(st.integers(9, len(content)))
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(bytes(content[:cut]))
    try:
        header = safe.read_header(path)
    except FileProblem:
        with pytest.raises(FileProblem):
            safe.read_tensors(path)
        return
    try:
        tensors = safe.read_tensors(path)
    except FileProblem:
        return
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == header.shapes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@FUZZ
@given(header=st.dictionaries(st.text(max_size=12) | st.just("__metadata__"), JSON, max_size=4))
def test_any_json_only_raises_file_problem(tmp_path: Path, header: dict) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(raw(header, bytes(8)))
    with pytest.raises(FileProblem):  # 8 bytes of data that no such header describes
        safe.read_header(path)


@FUZZ
@given(
    dtype=st.sampled_from(["F32", "F16", "BOOL", "F4", "I64"]),
    shape=st.lists(st.integers(-1, 5), max_size=3),
    start=st.integers(-2, 10),
    end=st.integers(-2, 70),
    size=st.integers(0, 70),
)
def test_an_accepted_tensor_lies_within_the_file(
    tmp_path: Path, dtype: str, shape: list[int], start: int, end: int, size: int
) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(raw({"a": info(dtype, shape, [start, end])}, bytes(size)))
    try:
        found = safe.read_header(path).tensors["a"]
    except FileProblem:
        return
    bits = torch.Size(shape).numel() * safe_bits(dtype)
    assert (found.start, found.end) == (0, size)
    assert bits == size * 8


def safe_bits(dtype: str) -> int:
    return {"F32": 32, "F16": 16, "BOOL": 8, "F4": 4, "I64": 64}[dtype]


def test_round_trip_is_the_library_s_own(tmp_path: Path) -> None:
    tensors = every_dtype()
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    written = b"".join(safe.serialised(tensors, {"a": 'é"\n\x01/'}))
    assert written == safetensors.torch.save(contiguous, {"a": 'é"\n\x01/'})
    path = tmp_path / "new" / "folder" / "a.safetensors"
    safe.write_safetensors(path, tensors, {"k": "v"})
    back = safe.read_tensors(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].float(), tensor.float())
    assert safe.read_header(path).metadata == {"k": "v"}
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_chosen_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safe.write_safetensors(path, {"a": torch.ones(2), "b": torch.zeros(2)})
    assert list(safe.read_tensors(path, ["b"])) == ["b"]
    with pytest.raises(FileProblem, match="no tensor 'c'"):
        safe.read_tensors(path, ["b", "c"])


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safe.write_safetensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    bad: list[tuple[dict, dict]] = [
        ({"a": torch.ones(2)}, {"k": 3}),
        ({"a": torch.ones(2)}, {"k": "\ud800"}),
        ({"a": torch.ones(2, dtype=torch.complex128)}, {}),
        ({"__metadata__": torch.ones(2)}, {}),
    ]
    for tensors, metadata in bad:
        with pytest.raises(FileProblem, match=r"a\.safetensors"):
            safe.write_safetensors(path, tensors, metadata)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(FileProblem, match="disk is full"):
        safe.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_write_that_the_system_cuts_off(tmp_path: Path) -> None:
    """A real refusal in the middle of the data, by a limit on the size of files."""
    path = tmp_path / "a.safetensors"
    safe.write_safetensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()
    code = (
        "import resource, signal, sys, torch\n"
        "from extensions_lib.errors import FileProblem\n"
        "from extensions_lib.files import safe\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    safe.write_safetensors(sys.argv[1], {'a': torch.ones(10**6)})\n"
        "except FileProblem as problem:\n"
        "    assert 'cannot be written' in str(problem), problem\n"
        "else:\n"
        "    raise SystemExit('it was written')\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=root)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_error_in_the_block_passes_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(error: BaseException) -> None:
        with safe.atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error

    for error in (KeyboardInterrupt(), ZeroDivisionError()):
        with pytest.raises(type(error)):
            fail(error)
    assert os.listdir(tmp_path) == []


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    safe.write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640


def test_safetensors_under_a_pickle_s_name(tmp_path: Path) -> None:
    safe.write_safetensors(tmp_path / "a.pt", {"a": torch.ones(2)})
    assert torch.equal(safe.read_tensors(tmp_path / "a.pt")["a"], torch.ones(2))


def test_tensors_are_mapped_not_copied(tmp_path: Path) -> None:
    """A later change of the file's bytes shows in the tensor: nothing was copied."""
    path = tmp_path / "a.safetensors"
    safe.write_safetensors(path, {"a": torch.zeros(4096)})
    tensor = safe.read_tensors(path)["a"]
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(torch.ones(1).numpy().tobytes())
    if float(tensor[-1]) != 1.0:
        pytest.skip("this version of safetensors copies")
