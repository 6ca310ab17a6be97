"""The hashes by which files are known: in pictures' infotext, on model sites, in networks.

| name | what | shown |
|---|---|---|
| sha256, AutoV2 | the whole file | 10 hex (checkpoints), 10 (AutoV2) |
| network hash, AutoV3 | `sshs_model_hash`, i.e. the bytes after the safetensors header | 12 hex |
| legacy | bytes 0x100000 to 0x110000 of the file | 8 hex |
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from extensions_lib.errors import FileProblem
from extensions_lib.files.cache import FileCache, identity
from extensions_lib.files.header import (
    Header,
    HeaderText,
    is_safetensors,
    opened,
    read_header,
    read_header_text,
)

_BLOCK = 1 << 20
_WHOLE, _DATA = "sha256", "data_sha256"  # as they are kept
LEGACY_START, LEGACY_LENGTH = 0x100000, 0x10000


def sha256_file(path: str | os.PathLike[str], cache: FileCache | None = None) -> str:
    """sha256 of the whole file, 64 hex digits. Raises FileProblem."""
    return _kept(_WHOLE, Path(path), 0, cache)


def data_hash(path: str | os.PathLike[str], cache: FileCache | None = None) -> str:
    """sha256 of the bytes after the safetensors header; of all bytes in other files.

    Raises FileProblem.
    """
    path = Path(path)
    if not is_safetensors(path):
        return sha256_file(path, cache)
    return _kept(_DATA, path, read_header(path).data_start, cache)


def stated_hash(header: Header | HeaderText) -> str | None:
    """The `sshs_model_hash` that a network's metadata states, if it is one."""
    stated = header.metadata.get("sshs_model_hash", "").strip().lower()
    return stated if re.fullmatch(r"[0-9a-f]{64}", stated) else None


def network_hash(path: str | os.PathLike[str], cache: FileCache | None = None) -> str:
    """A network's hash as the WebUI writes it: the stated `sshs_model_hash`, else `data_hash`.

    64 hex digits. Raises FileProblem.
    """
    if is_safetensors(path):
        stated = stated_hash(read_header_text(path))
        if stated:
            return stated
    return data_hash(path, cache)


def short_network_hash(sha256: str) -> str:
    """12 digits: `Lora hashes` in infotext, AutoV3."""
    return sha256[:12]


def short_checkpoint_hash(sha256: str) -> str:
    """10 digits: `Model hash` in infotext, AutoV2."""
    return sha256[:10]


def legacy_hash(path: str | os.PathLike[str]) -> str:
    """The 8-digit hash of the WebUI's first versions, from one 64 KiB window of the file.

    Raises FileProblem.
    """
    with opened(Path(path)) as file:
        file.seek(LEGACY_START)
        return hashlib.sha256(file.read(LEGACY_LENGTH)).hexdigest()[:8]


def network_hashes(chunks: Iterable[bytes | memoryview]) -> tuple[str, str]:
    """(sshs_model_hash, sshs_legacy_hash) of a serialised network given header first, then data."""
    model, window, reached = hashlib.sha256(), bytearray(), 0
    end = LEGACY_START + LEGACY_LENGTH
    for index, chunk in enumerate(chunks):
        if index:
            model.update(chunk)
        if reached < end and reached + len(chunk) > LEGACY_START:
            window += chunk[max(0, LEGACY_START - reached) : end - reached]
        reached += len(chunk)
    return model.hexdigest(), hashlib.sha256(window).hexdigest()[:8]


def kept_hash(path: str | os.PathLike[str], cache: FileCache, whole: bool) -> str | None:
    """`sha256_file` (whole) or `data_hash`, if it was computed before and the file is the same."""
    try:
        kind = _WHOLE if whole or not is_safetensors(path) else _DATA
        kept = cache.get(kind, path)
    except (FileProblem, OSError):  # removed meanwhile
        return None
    return kept if isinstance(kept, str) and len(kept) == 64 else None


def _kept(kind: str, path: Path, start: int, cache: FileCache | None) -> str:
    try:
        before = identity(path)
        kept = cache.get(kind, path) if cache else None
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror}); check the name") from None
    if isinstance(kept, str) and len(kept) == 64:
        return kept
    result = _sha256_from(path, start)
    if cache:
        cache.put(kind, path, result, before)
    return result


def _sha256_from(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    with opened(path) as file:
        file.seek(start)
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
