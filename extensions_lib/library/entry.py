"""One network file of the library, and the files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from extensions_lib.errors import FileProblem
from extensions_lib.files.cache import FileCache, Identity
from extensions_lib.files.hashes import (
    kept_hash,
    network_hash,
    sha256_file,
    short_network_hash,
)
from extensions_lib.files.header import read_header_text
from extensions_lib.files.safe import is_pickle, read_any_header, write_text
from extensions_lib.library.scan import Found
from extensions_lib.models.families import Family


@dataclass
class Entry:
    """A network file. What needs a file to be opened is read when asked for, once per refresh."""

    found: Found
    alias: str | None = None  # ss_output_name; the name that a picture states for its embedding
    kind: str = ""  # "LoRA", "LoCon", "Embedding", …; "" if it is nothing known
    family: Family | None = None  # by shapes
    layers: int = 0
    widths: Mapping[str, int] = field(default_factory=dict)  # of an embedding's parts, or contexts
    vectors: int = 0  # of an embedding
    problem: str | None = None  # why it cannot be used
    stated_hash: str | None = None  # by its own metadata
    cache: FileCache | None = field(default=None, repr=False, compare=False)
    whole_hash: bool = False  # known by the hash of all bytes, not by that of the tensors

    @property
    def name(self) -> str:
        """The file's stem."""
        return self.found.stem

    @property
    def relative(self) -> str:
        """Path within its folder, "/"-separated, without suffix: "sub/name"."""
        return self.found.relative

    @property
    def identity(self) -> Identity:
        """Size in bytes, time of the last change in ns, at the last refresh."""
        return self.found.identity

    @cached_property
    def path(self) -> Path:
        """The file."""
        return Path(self.found.path)

    @property
    def preview(self) -> Path | None:
        """The picture shown for it: stem.png, stem.preview.png, or jpg, jpeg, webp, gif."""
        found = self.found.sidecars.preview
        return None if found is None else Path(found)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The file's own metadata. Raises FileProblem if the file is broken."""
        if self.problem or is_pickle(self.path):
            return dict(read_any_header(self.path).metadata)
        # What the index found in order need not be checked again.
        return dict(read_header_text(self.path).metadata)

    @cached_property
    def user(self) -> dict[str, Any]:
        """What stem.json says ("activation text", "preferred weight", …); {} if there is none.

        Raises FileProblem if the file is not a JSON object.
        """
        beside = self.found.sidecars.user
        return {} if beside is None else _read_user(Path(beside))

    @cached_property
    def description(self) -> str:
        """From stem.json, else stem.txt, else stem.description.txt; "" if there is none.

        Raises FileProblem if stem.json is not a JSON object.
        """
        stated = self.user.get("description")
        if isinstance(stated, str):
            return stated
        notes = self.found.sidecars.notes
        if notes is None:
            return ""
        try:
            return Path(notes).read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise FileProblem(f"{notes}: cannot be read ({error})") from error

    @cached_property
    def hash(self) -> str:
        """By which pictures name it: of the tensors, or of the file; 64 hex. Raises FileProblem."""
        if self.whole_hash:
            return sha256_file(self.path, self.cache)
        return network_hash(self.path, self.cache)

    @property
    def short_hash(self) -> str:
        """12 digits, as in infotext. Raises FileProblem."""
        return short_network_hash(self.hash)

    @property
    def known_hash(self) -> str | None:
        """`hash` if it can be told without reading the whole file, else None."""
        if "hash" in self.__dict__ or self.stated_hash:
            return self.__dict__.get("hash") or self.stated_hash
        return None if self.cache is None else kept_hash(self.path, self.cache, self.whole_hash)

    def write_user(self, changes: Mapping[str, Any]) -> None:
        """Writes these keys into stem.json and leaves its other keys; None removes a key.

        Raises FileProblem, also where an existing stem.json is broken: it is not overwritten.
        """
        path = self.path.with_suffix(".json")
        current = _read_user(path) if path.exists() else {}
        for key, value in changes.items():
            if value is None:
                current.pop(key, None)
            else:
                current[key] = value
        write_text(path, json.dumps(current, indent=4, ensure_ascii=False) + "\n")
        self.__dict__.pop("description", None)
        self.__dict__["user"] = current  # until the next refresh finds the file


def _read_user(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileProblem(f"{path}: is not readable JSON ({error}); correct or remove it") from None
    if not isinstance(parsed, dict):
        raise FileProblem(f"{path}: should hold a JSON object; correct or remove it")
    return parsed
