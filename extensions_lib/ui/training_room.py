"""What the Training tab works with: runs, paths that may be named, addresses of pictures."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.api.training import PREFIX, Service, add_routes
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.training.options import TrainingOptions
from extensions_lib.ui.tagger_links import Links

if TYPE_CHECKING:
    from extensions_lib.demo.lesson_set import LessonSet
    from extensions_lib.models.place import Place

_PATHS = (
    "train_data_dir",
    "reg_data_dir",
    "dataset_config",
    "conditioning_data_dir",
    "validation_data_dir",
    "cache_dir",
    "network_weights",
)


@dataclass
class TrainingRoom:
    """`place` makes what runs are in, at the first order; `outputs` holds a folder of theirs;
    `base` names the checkpoint in use, `checkpoint` says where it lies.

    `path` reads a path as it was typed; it raises CrucibleError for one that may not be named.
    `strangers`: the page is open to them, so no code of their choice is run.
    """

    place: Callable[[], Place]
    base: Callable[[], str]
    checkpoint: Callable[[], Path | None]
    outputs: Path
    path: Callable[[str | None], Path]
    links: Links
    strangers: bool = False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @cached_property
    def service(self) -> Service:
        """The runs, for the tab and for REST."""
        return Service(self.place, self.outputs / "training", self.base, self.allowed)

    def family(self) -> str:
        """The family whose presets suit the checkpoint in use; empty where it cannot be told."""
        path = self.checkpoint()
        try:
            return "" if path is None else _family(path, os.stat(path).st_mtime_ns)
        except (CrucibleError, OSError):  # said where it is loaded; nothing suits it
            return ""

    def draw_demo_set(self) -> LessonSet:
        """Draws pictures of a shape that the demo checkpoint has never seen. Raises FileProblem."""
        from extensions_lib.demo.lesson_set import draw_lesson

        folder = self.outputs / "demo-set"
        try:
            return draw_lesson(folder)
        except OSError as problem:
            raise FileProblem(f"{folder} cannot be written: {problem.strerror}.") from None

    @property
    def route(self) -> str:
        """Where the tab's script asks; whoever has the address was shown the page."""
        return f"{PREFIX}/live/{self.token}"

    def add_page_routes(self, app: Any) -> None:
        """Adds the routes for the tab's own script."""
        add_routes(app, self.service, self.route)

    def allowed(self, options: TrainingOptions) -> TrainingOptions:
        """The options with their paths as they are meant. Raises CrucibleError."""
        named = {name: value for name in _PATHS if (value := getattr(options, name))}
        told: dict[str, Any] = {name: str(self.path(value)) for name, value in named.items()}
        options = replace(options, **told)
        if not self.strangers:
            return options
        if "." in options.optimizer_type:
            raise CrucibleError(
                "optimizer_type: this page is open to the network without a password, so only the "
                "optimizers known by name can be chosen."
            )
        if options.dataset_config:
            from extensions_lib.datasets.folders import subsets_of

            for subset in subsets_of(options):
                for path in (subset.folder, subset.metadata_file):
                    if path is not None:
                        self.path(str(path))
                if guide := subset.overrides.get("conditioning_data_dir"):
                    self.path(str(guide))
        return options


@lru_cache(maxsize=8)
def _family(path: Path, changed: int) -> str:
    from extensions_lib.files.checkpoints import checkpoint_structure
    from extensions_lib.training.presets import family_of

    return family_of(checkpoint_structure(path))
