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
from extensions_lib.files.hashes import network_hash, sha256_file, short_network_hash
from extensions_lib.files.safe import read_any_header, write_text
from extensions_lib.models.families import Family


@dataclass(frozen=True)
class Sidecars:
    """The files beside a network, as found at the last refresh, each with its identity."""

    preview: Path | None = None
    notes: Path | None = None  # stem.txt or stem.description.txt
    user: Path | None = None  # stem.json
    civitai: Path | None = None  # stem.civitai.info
    identities: tuple[Identity, ...] = ()


@dataclass
class Entry:
    """A network file. What needs a file to be opened is read when asked for, once per refresh."""

    name: str  # the file's stem
    path: Path
    relative: str  # path within its folder, "/"-separated, without suffix: "sub/name"
    identity: Identity  # size in bytes, time of the last change in ns
    alias: str | None = None  # ss_output_name; the name that a picture states for its embedding
    kind: str = ""  # "LoRA", "LoCon", "Embedding", …; "" if it is nothing known
    family: Family | None = None  # by shapes
    layers: int = 0
    widths: Mapping[str, int] = field(default_factory=dict)  # of an embedding's parts, or contexts
    vectors: int = 0  # of an embedding
    problem: str | None = None  # why it cannot be used
    sidecars: Sidecars = field(default_factory=Sidecars)
    cache: FileCache | None = field(default=None, repr=False, compare=False)
    whole_hash: bool = False  # known by the hash of all bytes, not by that of the tensors

    @property
    def preview(self) -> Path | None:
        """The picture shown for it: stem.png, stem.preview.png, or jpg, jpeg, webp, gif."""
        return self.sidecars.preview

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The file's own metadata. Raises FileProblem if the file is broken."""
        return dict(read_any_header(self.path).metadata)

    @cached_property
    def user(self) -> dict[str, Any]:
        """What stem.json says ("activation text", "preferred weight", …); {} if there is none.

        Raises FileProblem if the file is not a JSON object.
        """
        return {} if self.sidecars.user is None else _read_user(self.sidecars.user)

    @cached_property
    def description(self) -> str:
        """From stem.json, else stem.txt, else stem.description.txt; "" if there is none.

        Raises FileProblem if stem.json is not a JSON object.
        """
        stated = self.user.get("description")
        if isinstance(stated, str):
            return stated
        if self.sidecars.notes is None:
            return ""
        try:
            return self.sidecars.notes.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise FileProblem(f"{self.sidecars.notes}: cannot be read ({error})") from error

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
        for stale in ("user", "description"):
            self.__dict__.pop(stale, None)
        self.sidecars = Sidecars(
            self.preview, self.sidecars.notes, path, self.sidecars.civitai, ()
        )  # without identities, so that the next refresh looks again


def _read_user(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileProblem(f"{path}: is not readable JSON ({error}); correct or remove it") from None
    if not isinstance(parsed, dict):
        raise FileProblem(f"{path}: should hold a JSON object; correct or remove it")
    return parsed
