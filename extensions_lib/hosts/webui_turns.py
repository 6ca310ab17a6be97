"""A WebUI's checkpoint in the turns of a training run; between them it makes pictures."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError, Stopped

if TYPE_CHECKING:
    from extensions_lib.hosts.webui_host import WebUIHost
    from extensions_lib.models.trainable import Trainable


class WebUITurns:
    """The turns of one run: each has the model to itself, under the WebUI's queue lock."""

    def __init__(self, host: WebUIHost) -> None:
        self._host = host
        self._of: Callable[[], Any] = lambda: None  # the WebUI's object, held weakly
        self._file = ""

    @contextmanager
    def turn(self, stop: threading.Event | None = None) -> Iterator[Trainable]:
        """The model with nothing on it, after whoever waits already, until the block ends.

        The modules and their weights are the same in every turn, so that what was attached in one
        can be attached in the next.

        Raises:
            Stopped: `stop` was set by the time the turn came.
            CrucibleError: the WebUI has another checkpoint by now, or none that can be trained on.
        """
        webui = self._host.session.host
        with self._host.exclusive() as loaded:
            if stop is not None and stop.is_set():
                raise Stopped("Stopped while waiting for another job.")
            sd_model = webui.current()
            self._check(sd_model, str(loaded.path))
            webui.forget_builtin()
            with webui.training_on(sd_model, loaded) as trainable:
                yield trainable

    def _check(self, sd_model: Any, file: str) -> None:
        if not self._file:
            self._of, self._file = weakref.ref(sd_model), file
        if self._of() is not sd_model or self._file != file:
            raise CrucibleError(
                f"The WebUI has loaded another checkpoint; load {self._file} again and resume."
            )
