"""A WebUI as a Host: its model for whoever needs it alone, and pictures by its own sampler."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.hosts.base import GenerationRequest, GenerationResult, OnProgress, Progress

if TYPE_CHECKING:
    from extensions_lib.hosts.webui import Session
    from extensions_lib.models.loaded import LoadedModel

_POLL = 0.1  # seconds between two looks at how far the WebUI is


class WebUIHost:
    """The Host of `hosts.base` inside a WebUI. It waits its turn in the WebUI's own queue.

    Its queue lock is not reentrant: `exclusive` and `generate` exclude one another too, so a caller
    that wants pictures lets go of the model first.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.name = session, session.host.name

    def model(self) -> LoadedModel:
        """The checkpoint that the WebUI has loaded; it loads one first if need be.

        Raises:
            NetworkProblem: it is none that we know.
        """
        return self.session.model(self.session.host.current())

    @contextmanager
    def exclusive(self) -> Iterator[LoadedModel]:
        """The model for the caller alone, with no network on it, until the block ends."""
        from modules.call_queue import queue_lock

        with queue_lock:
            self.session.park()
            sd_model = self.session.host.current()
            model = self.session.model(sd_model)
            self.session.host.bare(sd_model)
            yield model

    @contextmanager
    def _clean(self, within: Callable[[], AbstractContextManager[Any]] | None) -> Iterator[None]:
        if within is None:
            yield
            return
        self.session.park()
        self.session.host.bare(self.session.host.current())
        with within():
            yield

    def network_folders(self) -> Sequence[Path]:
        return self.session.folders

    def generate(
        self,
        request: GenerationRequest,
        on_progress: OnProgress | None = None,
        stop: threading.Event | None = None,
        within: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> GenerationResult:
        """Makes the pictures as the WebUI's own Generate button does, without saving them.

        `within` is entered once it is this order's turn: it puts something on the clean model. No
        prompt's encoding from before is used then, and none that is made in it is kept.

        Raises:
            Stopped: before a picture was finished.
            CrucibleError: the WebUI could not make them; the message is its own.
        """
        from modules import processing, shared
        from modules.call_queue import queue_lock

        with queue_lock, self._clean(within):
            order = processing.StableDiffusionProcessingTxt2Img(**_order(request, shared))
            if within is not None:
                _encode_anew(order)
            shared.state.begin(job="crucible")
            watch = _Watch(shared.state, request, on_progress, stop)
            try:
                with watch, closing(order):
                    done = processing.process_images(order)
            except Exception as error:  # whatever its samplers raise: said, and traced below it
                raise CrucibleError(f"the WebUI could not make the picture: {error}") from error
            finally:
                # Somebody may have pressed Interrupt or Skip at the page.
                cut = watch.stopped or shared.state.interrupted or shared.state.skipped
                shared.state.end()
        result = _result(done, request, cut)
        if not result.images:
            raise _nothing(watch.stopped)
        return result


def _nothing(stopped: bool) -> CrucibleError:
    if stopped:
        return Stopped("Stopped before a picture was finished.")
    return CrucibleError("The WebUI was interrupted before a picture was finished.")


def _encode_anew(order: Any) -> None:
    """Gives an order its own caches of encoded prompts; the WebUI's are common to all orders."""
    for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
        if hasattr(order, name):
            setattr(order, name, [None, None])


def _order(request: GenerationRequest, shared: Any) -> dict[str, Any]:
    size = {}
    if request.width and request.height:
        size = {"width": request.width, "height": request.height}
    return {
        "sd_model": shared.sd_model,
        "prompt": list(request.prompts) or request.prompt,
        "negative_prompt": request.negative,
        "steps": request.steps,
        "sampler_name": request.sampler,
        "scheduler": request.schedule,
        "cfg_scale": request.cfg,
        "seed": request.seed,
        "batch_size": request.batch_size,
        "n_iter": request.batch_count,
        "do_not_save_samples": True,
        "do_not_save_grid": True,
        "override_settings": {
            "CLIP_stop_at_last_layers": request.clip_skip,
            "return_grid": False,
        },
        **size,
    }


def _result(done: Any, request: GenerationRequest, cut: bool) -> GenerationResult:
    """The finished pictures. The WebUI also hands over those under way, as far as they had come."""
    told = json.loads(done.js())
    first = done.index_of_first_image
    images = list(done.images)[first:]
    if cut:
        images = images[: -request.batch_size]
    messages = [line for line in (done.comments or "").splitlines() if line]
    if cut:
        messages.append("Stopped.")
    return GenerationResult(
        images=images,
        infotexts=list(told["infotexts"])[first:][: len(images)],
        seeds=list(told["all_seeds"])[: len(images)],
        messages=messages,
    )


class _Watch:
    """Looks, from a thread of its own, how far the WebUI is, and passes on a wish to stop."""

    def __init__(
        self,
        state: Any,
        request: GenerationRequest,
        on_progress: OnProgress | None,
        stop: threading.Event | None,
    ) -> None:
        self._state, self._request, self._tell = state, request, on_progress
        self._stop, self._over = stop, threading.Event()
        self._thread = threading.Thread(target=self._look, name="crucible-watch", daemon=True)
        self.stopped = False

    def __enter__(self) -> _Watch:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        told = None
        while not self._over.wait(_POLL):
            if self._stop is not None and self._stop.is_set():
                self.stopped = True
                # Said again each time: another window's click can clear the WebUI's own mark.
                self._state.interrupt()
            state, request = self._state, self._request
            at = (state.job_no, state.sampling_step)
            if self._tell is None or at == told or not state.sampling_steps:
                continue
            told = at
            share = (at[0] + at[1] / state.sampling_steps) / request.batch_count
            left = (time.monotonic() - self._started) * (1 / share - 1) if share else None
            self._tell(
                Progress(
                    step=at[1],
                    steps=state.sampling_steps,
                    image=at[0] * request.batch_size,
                    images=request.batch_count * request.batch_size,
                    eta_seconds=left,
                )
            )
