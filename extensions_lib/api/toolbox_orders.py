"""The toolbox in a host: which files may be named and where they are, and orders carried out.

What REST and the tab are asked comes as texts; here it becomes paths, options and calls of tools.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.api.typed import typed_path
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import checked
from extensions_lib.toolbox import sorts
from extensions_lib.toolbox.survey import SUFFIXES
from extensions_lib.toolbox.tools import TOOLS, Tool
from extensions_lib.toolbox.work import Output, ToolProblem, Watch, Written

if TYPE_CHECKING:
    from extensions_lib.files.cache import FileCache
    from extensions_lib.models.place import Place
    from extensions_lib.toolbox.report import Report
    from extensions_lib.toolbox.spectrum import LayerFigures
    from extensions_lib.toolbox.survey import Survey
    from extensions_lib.training.cache_ahead import Cached

_LISTED = 5.0  # seconds for which a list of files is good
_CACHE_PATHS = (
    "train_data_dir",
    "reg_data_dir",
    "dataset_config",
    "conditioning_data_dir",
    "validation_data_dir",
    "cache_dir",
)


@dataclass
class Desk:
    """`base`: where relative paths begin. `folders` gives where files of a sort (toolbox.sorts) lie
    in this host, first where new ones go; `loaded` is the checkpoint in use. `place` makes what
    pictures and caches are made in, at the first order. `only_below`: where strangers may reach
    this, the one folder, besides those of models, below which they may name files.
    """

    base: Path
    folders: Callable[[str], Sequence[Path]]
    loaded: Callable[[], Path | None]
    place: Callable[[], Place]
    cache: Path | None = None
    only_below: Path | None = None
    dropped: set[Path] = field(default_factory=set)  # files that people gave to the page
    _place: Place | None = None
    _listed: dict[str, tuple[float, list[Path]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def here(self) -> Place:
        """What pictures and caches are made in."""
        with self._lock:
            if self._place is None:
                self._place = self.place()
            return self._place

    @cached_property
    def facts(self) -> FileCache | None:
        """What is kept of files, such as hashes."""
        from extensions_lib.files.cache import FileCache

        return None if self.cache is None else FileCache(self.cache)

    # --- paths --------------------------------------------------------------------------------

    def path(self, text: str | None, what: str = "a file") -> Path:
        """A path as typed, or the name of a model file that the host has.

        Quotes of a file manager and `~` are understood. Raises CrucibleError for none, and for one
        that may not be named.
        """
        asked = f"Name {what}: type its path, or its name if it is a model here."
        path = typed_path(text, self.base, asked)
        if not os.path.lexists(path) and not set(text or "") & set("/\\"):
            path = self._of_name(path.name) or path
        self._check(path)
        return path

    def _of_name(self, name: str) -> Path | None:
        for anew in (False, True):
            if anew:
                self._listed.clear()
            for sort in sorts.PLACES:
                for each in self.listed(sort):
                    if name in (each.name, each.stem):
                        return each
        return None

    def _check(self, path: Path) -> None:
        """Raises CrucibleError for what strangers may not name."""
        if self.only_below is None or path in self.dropped:
            return
        models = [folder for sort in sorts.PLACES for folder in self.folders(sort)]
        real = path.resolve()
        if not any(_is_below(real, folder.resolve()) for folder in (self.only_below, *models)):
            raise CrucibleError(
                "This page is open to the network without a password, so only files below"
                f" {self.only_below} and the folders of models can be named."
            )

    def weighted(self, text: str) -> str:
        """A network with weights behind it, `FILE:0.8`, with its path as it is meant."""
        pieces = text.strip().split(":")
        for end in range(len(pieces), 0, -1):
            path = self.path(":".join(pieces[:end]), "a network")
            if path.is_file():
                return ":".join([str(path), *pieces[end:]])
        raise FileProblem(f"{pieces[0]}: there is no such file; check the name")

    def listed(self, sort: str) -> list[Path]:
        """The files in the host's folders of a sort, by name."""
        when, found = self._listed.get(sort, (0.0, []))
        if time.monotonic() - when > _LISTED or not when:
            found = sorted(set(self._walk(sort)), key=lambda path: str(path).lower())
            self._listed[sort] = time.monotonic(), found
        return found

    def _walk(self, sort: str) -> Iterator[Path]:
        for folder in self.folders(sort):
            for root, _, names in os.walk(folder, followlinks=True):
                yield from (Path(root, name) for name in names if name.lower().endswith(SUFFIXES))

    def shown(self, path: Path) -> str:
        """A path as one would type it here: below `base` from there."""
        try:
            return path.relative_to(self.base).as_posix()
        except ValueError:
            return str(path)

    def found(self, sort: str, words: str, most: int = 50) -> list[str]:
        """Paths of files of a sort ("" any) in which all the words occur."""
        wanted = words.lower().split()
        kinds = [sort] if sort else list(sorts.PLACES)
        paths = dict.fromkeys(path for kind in kinds for path in self.listed(kind))
        said = (self.shown(path) for path in paths)
        return [text for text in said if all(word in text.lower() for word in wanted)][:most]

    # --- orders -------------------------------------------------------------------------------

    def inspect(self, text: str, *, hashes: bool = True, against: str = "") -> Report:
        """What a file is. `against` names a checkpoint, "loaded" the one in use."""
        from extensions_lib.toolbox.inspect import inspect

        checkpoint = self.loaded() if against == "loaded" else None
        if against and against != "loaded":
            checkpoint = self.path(against, "a checkpoint")
        path = self.path(text)
        if not os.path.lexists(path):
            raise FileProblem(f"{path}: there is no such file; check the path.")
        return inspect(path, hashes=hashes, cache=self.facts, checkpoint=checkpoint)

    def home(self, sort: str) -> Path | None:
        """Where a file of a sort belongs here."""
        return next(iter(self.folders(sort)), None) if sort in sorts.PLACES else None

    def is_at_home(self, path: Path, sort: str) -> bool:
        """Whether it lies where the host looks for such files."""
        return any(_is_below(path.resolve(), each.resolve()) for each in self.folders(sort))

    def move(self, text: str) -> Path:
        """Moves a file where it belongs; returns its new path. Raises CrucibleError."""
        from extensions_lib.toolbox.places import move_into

        path = self.path(text)
        sort = sorts.sort_of(path)
        home = self.home(sort)
        if home is None:
            raise ToolProblem(f"{path}: has no place here")
        if self.is_at_home(path, sort):
            return path
        moved = move_into(path, home)
        self.dropped.discard(path)
        self.new_files()
        return moved

    def run(
        self, word: str, given: Mapping[str, Any], how: Any, order: Output, watch: Watch
    ) -> Written:
        """Runs a tool on inputs as texts. Raises CrucibleError, Stopped."""
        tool = TOOLS[word]
        meant = self._inputs(tool, tool.check(given))
        first = meant[tool.inputs[-1 if word == "extract" else 0].name]
        first = first[0] if isinstance(first, list) else first
        told = {name: str(self.path(value)) for name in tool.paths if (value := getattr(how, name))}
        order = replace(order, out=self._out(order.out, Path(_file_of(first)), tool.makes))
        result = tool.run(meant, replace(how, **told), order, watch)
        self.new_files()
        return result

    def _inputs(self, tool: Tool, given: Mapping[str, Any]) -> dict[str, Any]:
        meant: dict[str, Any] = {}
        for each in tool.inputs:
            value = given[each.name]
            if each.weighted:
                meant[each.name] = [self.weighted(text) for text in value]
            else:
                meant[each.name] = str(self.path(value, each.help))
        return meant

    def _out(self, asked: str, first: Path, makes: str) -> str:
        """Where a result goes: a plain name into the folder where the host would find it.

        That is the input's own where it lies at home, else the folder of such files.
        """
        plain = asked.strip().strip("\"'")
        if set(plain) & set("/\\") or "\0" in plain:
            return str(self.path(plain, "the result"))
        sort = makes or (sorts.sort_of(first) if os.path.lexists(first) else "")
        home = self.home(sort)
        if home is None or self.is_at_home(first, sort):
            folder = first.parent
        else:
            folder = home
            folder.mkdir(parents=True, exist_ok=True)
        if plain:
            return str(folder / plain)
        return "" if folder == first.parent else str(folder)

    def spectrum(self, text: str, base: str, watch: Watch) -> list[LayerFigures]:
        """The energy by rank of a network's layers. Raises CrucibleError, Stopped."""
        from extensions_lib.toolbox.resize import spectrum

        named = str(self.path(base, "a checkpoint")) if base else ""
        return spectrum(self.path(text, "a network"), named, watch)

    def survey(self, text: str, watch: Watch) -> Survey:
        """A folder of files. Raises CrucibleError, Stopped."""
        from extensions_lib.toolbox.survey import survey

        return survey(self.path(text, "a folder"), watch, self.facts)

    def write_caches(
        self,
        options: Any,
        tell: Callable[[str, int, int], None],
        stop: threading.Event,
    ) -> Cached:
        """Latents and text states of a data set, ahead. Raises CrucibleError, Stopped."""
        from extensions_lib.datasets.folders import subsets_of
        from extensions_lib.training.cache_ahead import write_caches

        named = {name: value for name in _CACHE_PATHS if (value := getattr(options, name))}
        told = {name: str(self.path(value, "a folder")) for name, value in named.items()}
        options = replace(options, **told)
        if self.only_below is not None and options.dataset_config:
            for subset in subsets_of(options):
                guide = subset.overrides.get("conditioning_data_dir")
                for path in (subset.folder, subset.metadata_file, guide):
                    if path is not None:
                        self._check(Path(path))
        return write_caches(self.here(), options, tell, stop)

    def new_files(self) -> None:
        """Files came: lists are read anew, and the host looks through its folders."""
        self._listed.clear()
        self.here().new_files()


def options_of(word: str, values: Mapping[str, Any]) -> tuple[Any, Output, dict[str, Any]]:
    """An order's options, where the result goes, and its inputs. Raises OptionProblem."""
    import dataclasses

    tool = TOOLS[word]
    inputs = {each.name for each in tool.inputs}
    outputs = {each.name for each in dataclasses.fields(Output)}
    how = {k: v for k, v in values.items() if k not in inputs | outputs}
    order = {k: v for k, v in values.items() if k in outputs}
    return (
        checked(tool.options, how),
        checked(Output, order),
        {k: v for k, v in values.items() if k in inputs},
    )


def _file_of(weighted: str) -> str:
    """The file of a network with weights, which is there."""
    pieces = weighted.split(":")
    ends = range(len(pieces), 0, -1)
    return next((t for e in ends if Path(t := ":".join(pieces[:e])).exists()), weighted)


def _is_below(path: Path, folder: Path) -> bool:
    return folder == path or folder in path.parents
