"""`/tagger/v1/…` in the shapes of the existing tagger extensions, and `/sdapi/v1/interrogate`.

    POST /tagger/v1/interrogate {image, model, threshold}
        -> {"caption": {rating: score, …, tag: score, …}}                      (flat)
        -> {"caption": {"tag": {tag: score}, "rating": {rating: score}}}       (nested)
    GET  /tagger/v1/interrogators            -> {"models": [name, …]}
    POST /tagger/v1/unload-interrogators     -> "… models unloaded"

Two extensions answer the first differently. An order with `queue` or `name_in_queue`, which only
the one knows, is answered nested; for others `Service.shape` decides, or `?shape=` in the address.
With `options`, an object of selection options, the answer has the caption as `text` too.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from extensions_lib.api.pictures_in import MOST_BYTES, picture_of
from extensions_lib.api.routes import read_json, refusal
from extensions_lib.errors import CrucibleError
from extensions_lib.options import OptionProblem, checked
from extensions_lib.tagging.labels import RATING
from extensions_lib.tagging.pool import Models, Pool
from extensions_lib.tagging.selection import Selection, select, text

if TYPE_CHECKING:
    from PIL.Image import Image

    from extensions_lib.tagging.taggers import Tagger

SHAPES = ("flat", "nested")
_THRESHOLDS = {"flat": 0.35, "nested": 0.0}  # where an order names none
_MOST_QUEUED = 10_000  # pictures whose tags wait to be fetched
_PREFIX = "/tagger/v1"
_SD_INTERROGATE = "/sdapi/v1/interrogate"

Scores = dict[str, float]


@dataclass
class Service:
    """What the routes work with. `shape` is asked at each order; `busy` keeps the host's own work
    and ours from the same device."""

    pool: Pool
    shape: Callable[[], str] = lambda: "flat"
    busy: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    queues: Queues = field(default_factory=lambda: Queues())

    # --- what is there ------------------------------------------------------------------------

    def taggers(self) -> list[str]:
        """The taggers on this machine."""
        from extensions_lib.tagging.hub import is_here
        from extensions_lib.tagging.manifest import entries

        return [entry.name for entry in entries(self.pool.models) if is_here(entry)]

    def tagger(self, name: Any) -> Tagger:
        """Loads it by name; never by path. Raises HTTPException."""
        from extensions_lib.tagging.manifest import entries

        wanted = str(name).strip().casefold()
        for entry in entries(self.pool.models):
            if wanted in {each.casefold() for each in (entry.name, *entry.aliases)}:
                try:
                    tagger: Tagger = self.pool.tagger(entry.name)
                except CrucibleError as problem:
                    raise refusal(404, str(problem)) from problem
                return tagger
        raise refusal(404, "Model not found")

    # --- answering ----------------------------------------------------------------------------

    def interrogate(self, order: dict[str, Any], shape: str) -> dict[str, Any]:
        """One picture, or one for a queue. Raises HTTPException."""
        queue, name = (_text(order, key) for key in ("queue", "name_in_queue"))
        queued = bool(queue or name)
        if queued or "queue" in order or "name_in_queue" in order:
            shape = "nested"
        if queue and not name:
            return {"caption": self.queues.take(queue)}
        threshold = _threshold(order, shape)
        tagger = self.tagger(order.get("model"))
        image = picture_of(order.get("image"))
        with self.busy():
            [values] = tagger.score(tagger.prepare(image)[None])
        ratings, tags = split_scores(tagger, values, threshold, over=shape == "nested")
        if queued:
            key = str(order["image"])
            return {"caption": self.queues.put(tagger.name, queue, name, key, ratings, tags)}
        answer: dict[str, Any] = {"caption": {"tag": tags, "rating": ratings}}
        if shape == "flat":
            answer = {"caption": {**ratings, **tags}}
        if "options" in order:
            answer["text"] = _caption(tagger, values, order["options"])
        return answer

    def sd_interrogate(self, order: dict[str, Any]) -> dict[str, Any]:
        """The WebUI's own order: a caption as text; clip and deepdanbooru mean any such model."""
        image, name = picture_of(order.get("image")), str(order.get("model") or "clip")
        if name == "clip":
            return {"caption": self._sentence(image)}
        here = self.taggers()
        tagger = self.tagger(here[0] if name == "deepdanbooru" and here else name)
        with self.busy():
            [values] = tagger.score(tagger.prepare(image)[None])
        return {"caption": _caption(tagger, values, {"escape": True})}

    def _sentence(self, image: Image) -> str:
        from extensions_lib.tagging import captioners, interrogator

        missing: CrucibleError | None = None
        for kind in (interrogator, captioners):
            for entry in kind.entries(self.pool.models):
                try:
                    captioner = self.pool.captioner(entry.name, Models())
                except CrucibleError as problem:
                    missing = missing or problem
                    continue
                with self.busy():
                    [said] = captioner.caption([image])
                return str(said)
        raise refusal(404, str(missing))


def split_scores(
    tagger: Tagger, values: Any, threshold: float, *, over: bool
) -> tuple[Scores, Scores]:
    """All ratings, and tags from the threshold up (`over`: above it), the highest first."""
    ratings: Scores = {}
    tags: Scores = {}
    for place in (-values).argsort(kind="stable").tolist():
        label, score = tagger.labels[place], float(values[place])
        if label.category == RATING:
            ratings[label.name] = score
        elif score > threshold or (score == threshold and not over):
            tags[label.name] = score
    return ratings, tags


class Queues:
    """Tags that wait until a client fetches those of a whole queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, dict[str, Scores]] = {}
        self._counts: dict[str, dict[str, float]] = {}

    def put(
        self, model: str, queue: str, name: str, image: str, ratings: Scores, tags: Scores
    ) -> dict[str, dict[str, float]]:
        """Keeps one picture's; how many are under way by model and queue. Raises HTTPException."""
        if name == "<sha256>":
            name = hashlib.sha256(image.encode()).hexdigest()
        with self._lock:
            if sum(map(len, self._found.values())) >= _MOST_QUEUED:
                raise refusal(429, f"{_MOST_QUEUED} pictures wait already; fetch a queue first.")
            queue = queue or secrets.token_hex(4).upper()
            kept = self._found.setdefault(queue, {})
            free, number = name, 0
            while free in kept and not _is_hash(name):
                free, number = f"{name}#{number}", number + 1
            kept[free] = {**tags, **{f"rating:{each}": score for each, score in ratings.items()}}
            counts = self._counts.setdefault(model, {})
            counts[queue] = counts.get(queue, 0.0) + 1
            return {each: dict(queues) for each, queues in self._counts.items()}

    def take(self, queue: str) -> dict[str, Scores]:
        """All of a queue, which is gone then."""
        with self._lock:
            for counts in self._counts.values():
                counts.pop(queue, None)
            self._counts = {model: counts for model, counts in self._counts.items() if counts}
            return self._found.pop(queue, {})


def add_routes(app: Any, service: Service, dependencies: Sequence[Any] = ()) -> None:
    """Adds the routes that the host does not have. `dependencies` come first: who may ask."""
    from fastapi import Request
    from starlette.concurrency import run_in_threadpool

    async def interrogate(request: Request) -> Any:
        order = await read_json(request, MOST_BYTES)
        shape = request.query_params.get("shape") or service.shape()
        if shape not in SHAPES:
            raise refusal(422, f"shape: takes {' or '.join(SHAPES)}.")
        return await run_in_threadpool(_guarded, service.interrogate, order, shape)

    async def sd_interrogate(request: Request) -> Any:
        order = await read_json(request, MOST_BYTES)
        return await run_in_threadpool(_guarded, service.sd_interrogate, order)

    def interrogators() -> Any:
        return {"models": service.taggers()}

    def unload() -> Any:
        return f"{service.pool.unload()} models unloaded"

    # A request is no field of the body: under deferred annotations FastAPI has to be told.
    interrogate.__annotations__["request"] = sd_interrogate.__annotations__["request"] = Request
    there = {getattr(route, "path", None) for route in app.router.routes}
    for path, answer, method in (
        (f"{_PREFIX}/interrogate", interrogate, "POST"),
        (f"{_PREFIX}/interrogators", interrogators, "GET"),
        (f"{_PREFIX}/unload-interrogators", unload, "POST"),
        (_SD_INTERROGATE, sd_interrogate, "POST"),
    ):
        if path not in there:
            app.add_api_route(path, answer, methods=[method], dependencies=list(dependencies))


def _guarded(work: Callable[..., dict[str, Any]], *order: Any) -> dict[str, Any]:
    """A refusal of ours as an answer that says it."""
    try:
        return work(*order)
    except CrucibleError as problem:
        raise refusal(422 if isinstance(problem, OptionProblem) else 500, str(problem)) from problem


def _caption(tagger: Tagger, values: Any, options: Any) -> str:
    if not isinstance(options, dict):
        raise refusal(422, "options: takes an object of selection options.")
    selection = checked(Selection, options)
    return text(select(tagger.labels, values, selection, thresholds=tagger.thresholds), selection)


def _text(order: dict[str, Any], key: str) -> str:
    value = order.get(key, "")
    if not isinstance(value, str):
        raise refusal(422, f"{key}: takes a text.")
    return value


def _threshold(order: dict[str, Any], shape: str) -> float:
    value = order.get("threshold", _THRESHOLDS[shape])
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise refusal(422, "threshold: takes a number from 0 to 1.")
    return float(value)


def _is_hash(name: str) -> bool:
    return len(name) == 64 and all(each in "0123456789abcdef" for each in name)
