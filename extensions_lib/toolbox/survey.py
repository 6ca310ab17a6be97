"""A folder of model files: what each is, and which are the same under several names."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extensions_lib.errors import FileProblem
from extensions_lib.files.cache import FileCache
from extensions_lib.files.hashes import data_hash
from extensions_lib.toolbox.inspect import inspect
from extensions_lib.toolbox.work import QUIET, Watch

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass
class Survey:
    """Each file with what it is; groups of files with the same tensors, whatever their metadata."""

    folder: Path
    files: dict[Path, str] = field(default_factory=dict)
    duplicates: list[list[Path]] = field(default_factory=list)
    problems: dict[Path, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """As lines of text."""
        told = [f"{self._short(path)}: {what}" for path, what in self.files.items()]
        told += [f"{self._short(path)}: {problem}" for path, problem in self.problems.items()]
        for group in self.duplicates:
            told.append(f"the same content: {', '.join(map(self._short, group))}")
        return told or [f"{self.folder}: there are no model files in it"]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "files": {self._short(path): what for path, what in self.files.items()},
            "problems": {self._short(path): text for path, text in self.problems.items()},
            "duplicates": [[self._short(path) for path in group] for group in self.duplicates],
        }

    def _short(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def survey(folder: Path, watch: Watch = QUIET, cache: FileCache | None = None) -> Survey:
    """Looks at every model file below a folder. Raises FileProblem, Stopped.

    Only files whose tensors take the same bytes are hashed, to tell which are alike.
    """
    if not folder.is_dir():
        raise FileProblem(f"{folder}: there is no such folder; check the name")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    found = Survey(folder)
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in watch.over(paths, len(paths)):
        try:
            found.files[path] = _told(path)
            sizes[_data_size(path)].append(path)
        except FileProblem as problem:
            found.problems[path] = str(problem).removeprefix(f"{path}: ")
    for alike in sizes.values():
        if len(alike) > 1:
            by_hash: dict[str, list[Path]] = defaultdict(list)
            for path in alike:
                by_hash[data_hash(path, cache)].append(path)
            found.duplicates += [group for group in by_hash.values() if len(group) > 1]
    return found


def _told(path: Path) -> str:
    report = inspect(path, hashes=False)
    family = (
        f" for {report.family}" if report.family and str(report.family) not in report.what else ""
    )
    return report.what + family


def _data_size(path: Path) -> int:
    """Bytes of what `data_hash` looks at."""
    from extensions_lib.files.header import is_safetensors, read_header_text

    return read_header_text(path).data_size if is_safetensors(path) else path.stat().st_size
