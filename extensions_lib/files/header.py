"""What a tensor file holds, from its first bytes and its safetensors header; without torch.

A header is bounded, and every size, offset and type in it is checked against the file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from extensions_lib.atomic import reason
from extensions_lib.errors import FileProblem

MAX_HEADER = 100_000_000  # bytes; the safetensors library refuses more, too
MAX_DIMENSIONS = 32
# A short piece of JSON becomes an object of some 60 bytes, its place in a list or dict included.
# Real headers stay far below the first number; above it the objects must not outweigh the file.
_OBJECT = 100
_FREE = 128_000_000

# name -> bits of one element, in the order in which the safetensors library lays tensors out (last
# first), https://github.com/huggingface/safetensors (enum Dtype). Following it keeps hashes equal.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
DTYPE_RANK = {name: place for place, name in enumerate(DTYPE_BITS)}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: dtype as safetensors names it ("F16"), bytes after `data_start`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a tensor file says it holds, checked against its size. `data_start` in bytes."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_start: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}


# --- what a file is, by its first bytes -------------------------------------------------------

AGAIN = "download it again"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself",
     "fetch it with 'git lfs pull' or download it from the page"),
    (b"PK\x03\x04", "a zip archive",
     "rename it to .pt or .ckpt if PyTorch wrote it, else unpack it"),
    (b"PK\x05\x06", "an empty zip archive", AGAIN),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"GGUF", "a GGUF file", "download the .safetensors version"),
    (b"\x89PNG", "a PNG picture", AGAIN),
    (b"\xff\xd8\xff", "a JPEG picture", AGAIN),
    (b"RIFF", "a RIFF file (a WebP picture, perhaps)", AGAIN),
    (b"\x80\x02", "a Python pickle", "rename it to .pt or .ckpt if you trust its source"),
    (b"\x80\x03", "a Python pickle", "rename it to .pt or .ckpt if you trust its source"),
    (b"\x80\x04", "a Python pickle", "rename it to .pt or .ckpt if you trust its source"),
)  # fmt: skip
_PAGE_STARTS = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")


def foreign_content(head: bytes) -> tuple[str, str] | None:
    """What the first bytes of a file are, if not safetensors: (what, what to do), else None."""
    if not head:
        return "empty (0 bytes)", AGAIN
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic):
            return what, remedy
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    if text.startswith(_PAGE_STARTS):
        return "a web page (HTML), not the file itself", f"{AGAIN}, signed in if the site asks"
    if text[:1] in (b"{", b"["):
        return "a JSON text, not the file itself", AGAIN
    if not any(head):
        return "filled with zero bytes (a broken download)", AGAIN
    return None


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as safetensors do (a plausible length, then a JSON object)."""
    with opened(Path(path)) as file:
        head = file.read(9)
        length = int.from_bytes(head[:8], "little")
        return len(head) == 9 and head[8:] == b"{" and 2 <= length <= MAX_HEADER


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise FileProblem(f"{path}: there is no such file; check the name") from None
    except IsADirectoryError:
        raise FileProblem(f"{path}: is a folder; name a file") from None
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({reason(error)})") from error


# --- the safetensors header -------------------------------------------------------------------


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a safetensors file, checked against the file's size. Needs no torch.

    Raises FileProblem naming the file, what is wrong in it and what to do.
    """
    return read_header_text(path).parsed()


@dataclass(frozen=True)
class HeaderText:
    """A header with its metadata read and its tensors still as text.

    Two are equal if the files hold the same tensors: what follows from those alone need be worked
    out once for many files that a trainer wrote alike.
    """

    tensors: str  # a JSON object
    data_size: int  # bytes after the header
    path: Path = field(compare=False)
    metadata: Mapping[str, str] = field(compare=False)
    data_start: int = field(compare=False)

    def parsed(self) -> Header:
        """The header as a whole. Raises FileProblem where its tensors cannot be as it says."""
        with _explained(self.path):
            tensors = _parsed_tensors(self.tensors, self.data_size)
        return Header(tensors, self.metadata, self.data_start)


def read_header_text(path: str | os.PathLike[str]) -> HeaderText:
    """The header of a safetensors file as far as its metadata.

    Raises FileProblem naming the file, what is wrong in it and what to do; not yet for a wrong
    description of tensors.
    """
    path = Path(path)
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(64)
        length = int.from_bytes(head[:8], "little")
        if len(head) < 9 or head[8:9] != b"{" or length > MAX_HEADER:
            raise FileProblem(f"{path}: is {_not_safetensors(head, length)}")
        if 8 + length > size:
            raise FileProblem(
                f"{path}: is cut off: its header says {length} bytes, the file has {size}; {AGAIN}"
            )
        file.seek(8)
        raw = file.read(length)
    if max(_FREE, 3 * size) < _OBJECT * _objects(raw):
        raise FileProblem(f"{path}: its header is no list of tensors (too many entries); {AGAIN}")
    with _explained(path):
        metadata, tensors = _split(raw)
    return HeaderText(tensors, size - 8 - length, path, metadata, 8 + length)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except _Lie as lie:
        raise FileProblem(f"{path}: its header is broken: {lie}; {AGAIN}") from None


def _objects(raw: bytes) -> int:
    """About how many objects a piece of JSON becomes; at most."""
    if len(raw) * _OBJECT < _FREE:  # few in any case
        return len(raw)
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def _not_safetensors(head: bytes, length: int) -> str:
    foreign = foreign_content(head)
    if foreign:
        return f"{foreign[0]}; {foreign[1]}"
    if len(head) >= 9 and length > MAX_HEADER and head[8:9] == b"{":
        return f"not readable: its header claims {length} bytes, more than {MAX_HEADER}; {AGAIN}"
    return f"not a safetensors file (it begins with {head[:12]!r}); {AGAIN}"


class _Lie(ValueError):
    """Something in a header that cannot be true."""


def _no_constant(text: str) -> float:
    raise _Lie(f"the number {text} is not allowed")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Lie(f"the key '{short(twice)}' occurs twice")
    return result


def short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"


_METADATA = "__metadata__"
_FIRST = f'{{"{_METADATA}":'  # where safetensors' own writers have it
_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def _split(raw: bytes) -> tuple[dict[str, str], str]:
    """The metadata of a header, and the JSON object of its tensors."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _Lie("it is not UTF-8 text") from None
    if text.startswith(_FIRST):
        with contextlib.suppress(ValueError, RecursionError):  # the whole is parsed, then
            found, end = _DECODER.raw_decode(text, len(_FIRST))
            metadata = _checked_metadata(found)
            stop = text.rfind("}") + 1
            if text.startswith(',"', end) and not text[stop:].strip(" "):  # padded with spaces
                return metadata, "{" + text[end + 1 : stop]
    tensors = _parsed(text)
    metadata = _checked_metadata(tensors.pop(_METADATA, {}))
    return metadata, json.dumps(tensors)


def _parsed(text: str) -> dict[str, Any]:
    try:
        parsed = _DECODER.decode(text)
    except _Lie:
        raise
    except (ValueError, RecursionError) as error:
        raise _Lie(f"it is not JSON ({short(error)})") from None
    if not isinstance(parsed, dict):
        raise _Lie("it is not a JSON object")
    return parsed


def _parsed_tensors(text: str, data_size: int) -> dict[str, TensorInfo]:
    parsed = _parsed(text)
    if _METADATA in parsed:
        raise _Lie(f"the key '{_METADATA}' occurs twice")
    tensors = {name: _checked_info(name, value) for name, value in parsed.items()}
    _check_unicode(tensors)
    _check_layout(tensors, data_size)
    return tensors


def _check_unicode(texts: Iterable[str]) -> None:
    try:
        # JSON can spell half a surrogate pair, which no name or text may hold
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        raise _Lie("a name or text in it is not valid Unicode") from None


def _checked_metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Lie("'__metadata__' is not an object")
    for key, text in value.items():
        if not isinstance(text, str):
            raise _Lie(f"the metadata '{short(key)}' is not a text")
    _check_unicode((*value, *value.values()))
    return value


def _whole(value: object) -> bool:
    # bool is an int in Python, not in JSON
    return type(value) is int and 0 <= value < 2**63


def _checked_info(name: str, value: object) -> TensorInfo:
    if not isinstance(value, dict):
        raise _Lie(f"{_said(name)} is not described by an object")
    dtype, shape, offsets = (value.get(part) for part in ("dtype", "shape", "data_offsets"))
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _Lie(f"{_said(name)} has the unknown dtype {short(dtype)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_whole, shape)):
        raise _Lie(f"{_said(name)} has the impossible shape {short(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise _Lie(f"{_said(name)} has the impossible offsets {short(offsets)}")
    start, end = offsets
    if start > end:
        raise _Lie(f"{_said(name)} ends ({end}) before it starts ({start})")
    expected = math.prod(shape) * bits
    if expected != (end - start) * 8:
        raise _Lie(
            f"{_said(name)} of shape {shape} and dtype {dtype} needs {-(-expected // 8)} bytes,"
            f" its offsets give {end - start}"
        )
    return TensorInfo(str(dtype), tuple(shape), start, end)


def _said(name: str) -> str:
    return f"tensor '{short(name)}'"


def _check_layout(tensors: Mapping[str, TensorInfo], data_size: int) -> None:
    """Tensors lie back to back and fill the data exactly: no overlap, hole, or cut-off end."""
    ordered = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
    reached, before = 0, ""
    for name, info in ordered:
        if info.start < reached:
            raise _Lie(f"tensor '{short(name)}' overlaps tensor '{short(before)}'")
        if info.start > reached:
            raise _Lie(f"there is a hole of {info.start - reached} bytes before '{short(name)}'")
        if info.end > data_size:
            raise _Lie(
                f"the file is cut off: tensor '{short(name)}' ends at byte {info.end} of"
                f" {data_size}"
            )
        reached, before = info.end, name
    if reached != data_size:
        raise _Lie(f"{data_size - reached} bytes after the last tensor belong to nothing")
