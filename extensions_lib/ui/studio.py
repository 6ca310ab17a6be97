"""One host, many windows: orders of pictures stand in line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from extensions_lib.errors import CrucibleError
from extensions_lib.ui.jobs import Jobs, Tell, Update

if TYPE_CHECKING:
    from extensions_lib.hosts.base import GenerationRequest, GenerationResult
    from extensions_lib.hosts.standalone.host import StandaloneHost


class Studio:
    """The line of jobs in front of a host (which loads its model when the first one runs)."""

    def __init__(self, host: StandaloneHost) -> None:
        self.host = host
        self._jobs = Jobs()

    def warm_up(self) -> None:
        """Loads the model in the background, so that the first picture comes sooner."""

        def load() -> None:
            try:
                self.host.model()
            except CrucibleError:
                # Said again, at the picture, when the person presses Generate.
                return

        threading.Thread(target=load, name="warm-up", daemon=True).start()

    def stop(self, window: str) -> None:
        """Asks this window's job to stop; within a step it does."""
        self._jobs.stop(window)

    def run(
        self, request: GenerationRequest, window: str, checkpoint: Path | None = None
    ) -> Iterator[Update]:
        """Waits for its turn, then generates; see `Jobs.run`."""

        def job(tell: Tell, stop: threading.Event) -> GenerationResult:
            if checkpoint is not None:
                self.host.use_checkpoint(checkpoint)
            return self.host.generate(request, tell, stop)

        return self._jobs.run(window, job)
