"""The runs of one program: the one under way, and those that lie on disk."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.datasets.dataset_file import read_toml
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import checked
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.outputs import OPTIONS, copy_to
from extensions_lib.training.record import read_record

if TYPE_CHECKING:
    from extensions_lib.models.place import Place
    from extensions_lib.training.run import Run


@dataclass(frozen=True)
class Past:
    """A run on disk. `state` is the step from which it can go on, None: there is none."""

    name: str
    folder: Path
    changed: float
    step: int
    steps: int
    state: int | None
    message: str


class Runs:
    """Begins runs below `folder`, one at a time, on what `place` has loaded."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.folder = place, folder
        self._lock = threading.Lock()
        self._current: Run | None = None

    @property
    def current(self) -> Run | None:
        """The run under way, or the last one of this program."""
        return self._current

    def is_busy(self) -> bool:
        """Whether a run is under way."""
        from extensions_lib.training.run import ENDED

        return self._current is not None and self._current.status().state not in ENDED

    def start(self, options: TrainingOptions) -> Run:
        """Begins a run. Raises CrucibleError where one is under way, or its file exists."""
        from extensions_lib.training.run import Run

        with self._lock:
            self._refuse_a_second()
            run = Run(self.place, options, self._free_folder(options.output_name))
            return self._begin(run)

    def resume(self, name: str) -> Run:
        """Goes on with a run of the past. Raises CrucibleError."""
        from extensions_lib.training.run import Run

        with self._lock:
            self._refuse_a_second()
            folder = self._of(name)
            return self._begin(Run(self.place, self.options(name), folder, resume=True))

    def _begin(self, run: Run) -> Run:
        self._current = run
        run.start()
        return run

    def _refuse_a_second(self) -> None:
        if self.is_busy() and self._current is not None:
            raise CrucibleError(
                f"{self._current.name} is being trained: stop it first, or wait for its end."
            )

    def _free_folder(self, name: str) -> Path:
        from extensions_lib.training import ranks

        if not ranks.rank().is_first:
            return self.folder / name  # the first process writes, the others do not
        number, folder = 1, self.folder / name
        while folder.exists():
            number += 1
            folder = self.folder / f"{name}~{number}"
        return folder

    def _of(self, name: str) -> Path:
        """The folder of a run. Raises FileProblem where there is none of that name."""
        folder = self.folder / name
        if folder.parent != self.folder or not (folder / OPTIONS).is_file():
            raise FileProblem(f"{name}: there is no such run in {self.folder}.")
        return folder

    def options(self, name: str) -> TrainingOptions:
        """The options of a run of the past."""
        return checked(TrainingOptions, read_toml(self._of(name) / OPTIONS))

    def past(self) -> list[Past]:
        """The runs on disk, the newest first."""
        if not self.folder.is_dir():
            return []
        found = [self._past(folder) for folder in self.folder.iterdir() if _is_run(folder)]
        return sorted(found, key=lambda each: -each.changed)

    def _past(self, folder: Path) -> Past:
        from extensions_lib.training.state import states

        record = read_record(folder)
        said = [each["said"] for each in record if "said" in each]
        kept = states(folder / "states")
        try:
            steps = self.options(folder.name).max_train_steps
        except CrucibleError:  # written by another version, or by hand: it is listed all the same
            steps = 0
        return Past(
            folder.name,
            folder,
            folder.stat().st_mtime,
            max((each["step"] for each in record), default=0),
            steps,
            int(kept[-1].stem.split("-")[1]) if kept else None,
            said[-1] if said else "",
        )

    def delete(self, name: str) -> None:
        """Removes a run's folder, not its network. Raises CrucibleError for the one under way."""
        folder = self._of(name)
        if self.is_busy() and self._current is not None and self._current.folder == folder:
            raise CrucibleError(f"{name} is being trained: stop it first.")
        aside = folder.with_name(f".{folder.name}.{time.time_ns()}")
        folder.rename(aside)  # gone at once, also where removing it takes its time
        shutil.rmtree(aside)

    def use(self, name: str, step: int) -> Path:
        """Copies what a run saved at a step to the networks; the path. Raises FileProblem."""
        saved = sorted((self._of(name) / "saved").glob(f"*-step{step:08d}.*"))
        if not saved:
            raise FileProblem(f"{name}: nothing was saved at step {step}.")
        path = copy_to(saved[0], self.place.folder(self.options(name).train))
        self.place.new_files()
        return path


def _is_run(folder: Path) -> bool:
    return not folder.name.startswith(".") and (folder / OPTIONS).is_file()
