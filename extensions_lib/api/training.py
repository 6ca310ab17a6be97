"""Training by REST, for programs and for the Training tab itself.

    POST   …/start {option: value, …}       begins a run; the options are those of `options`
    GET    …/status?run=KEY&since=N         the run under way, or the last; from its N-th step on
    GET    …/events                         the same as server-sent events, until a run ends
    POST   …/pause  …/go-on  …/save-now  …/stop
    GET    …/runs                           those on disk, the newest first
    GET    …/runs/NAME                      its options and its curves
    GET    …/runs/NAME/samples/FILE         a picture made on the way
    POST   …/runs/NAME/resume
    POST   …/runs/NAME/use {step: 300}      copies what was saved at a step to the networks
    DELETE …/runs/NAME
    GET    …/options                        JSON schema of the options

Orders are `application/json`, `{}` where there is nothing to say.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.api.routes import Answer, Routes
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import OptionProblem, changed, checked, schema
from extensions_lib.training.options import TrainingOptions

if TYPE_CHECKING:
    from extensions_lib.models.place import Place
    from extensions_lib.training.run import Run
    from extensions_lib.training.runs import Runs

PREFIX = "/crucible/training"
_SAMPLE = re.compile(r"step-\d{8}-\d+\.png")
_AGAIN = 0.5  # seconds between two looks of the event stream
_ACTS = {
    "pause": "pause",
    "go-on": "go_on",
    "save-now": "save_now",
    "stop": "stop",
}


@dataclass
class Service:
    """The runs of a program as others see and steer them.

    `place` makes what they run in, at the first order; `folder` holds them. `base` names the
    checkpoint in use. `allowed` gives options with their paths as they are meant, and raises
    CrucibleError for one that may not be named.
    """

    place: Callable[[], Place]
    folder: Path
    base: Callable[[], str] = lambda: ""
    allowed: Callable[[TrainingOptions], TrainingOptions] = lambda options: options
    _runs: Runs | None = None
    _place: Place | None = None
    _seen: Run | None = None
    _number: int = 0
    _token: str = field(default_factory=lambda: secrets.token_hex(4))
    _approved: TrainingOptions | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def here(self) -> Place:
        """What the runs are in."""
        with self._lock:
            if self._place is None:
                self._place = self.place()
            return self._place

    def runs(self) -> Runs:
        """The runs; torch is loaded for them."""
        place = self.here()
        with self._lock:
            if self._runs is None:
                from extensions_lib.training.runs import Runs

                self._runs = Runs(place, self.folder)
            return self._runs

    # --- looking on ---------------------------------------------------------------------------

    def status(self, key: str = "", since: int = 0) -> dict[str, Any]:
        """How the run stands. To one who has seen `since` steps of the run `key`, only the rest."""
        run = self._runs.current if self._runs is not None else None
        if run is None:
            return {"run": "", "busy": False, "next": 0, "base": self.base()}
        now = self._key(run)
        since = since if key == now else 0
        assert self._runs is not None
        told = asdict(run.status())
        told["loss_mean"] = told.pop("loss")
        curves = curves_of(run.record.entries, since)
        told |= {"run": now, "folder": run.folder.name, "busy": self._runs.is_busy()}
        told["base"] = self.base()
        return {**told, **curves, "since": since, "next": since + len(curves["loss"])}

    def _key(self, run: Run) -> str:
        with self._lock:
            if run is not self._seen:
                self._seen, self._number = run, self._number + 1
            return f"{self._token}-{self._number}"

    def past(self) -> list[dict[str, Any]]:
        """The runs on disk."""
        runs = self.runs()
        busy = runs.current.folder if runs.is_busy() and runs.current is not None else None
        return [
            {
                "name": each.name,
                "changed": each.changed,
                "step": each.step,
                "steps": each.steps,
                "state": each.state,
                "message": each.message,
                "busy": each.folder == busy,
            }
            for each in runs.past()
        ]

    def about(self, name: str) -> dict[str, Any]:
        """The options of a run on disk that are not at their default, and its curves."""
        from extensions_lib.training.record import read_record

        options = self.runs().options(_plain(name))
        record = read_record(self.folder / name)

        def entries(key: str, since: int = 0) -> list[dict[str, Any]]:
            return [each for each in record if key in each][since:]

        return {"name": name, "options": changed(options), **curves_of(entries, 0)}

    def sample(self, name: str, file: str) -> Path:
        """A picture made on the way. Raises FileProblem where there is none."""
        path = self.folder / _plain(name) / "samples" / file
        if not _SAMPLE.fullmatch(file) or not path.is_file():
            raise FileProblem(f"{name}: there is no sample {file}.")
        return path

    # --- steering -----------------------------------------------------------------------------

    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Begins a run with these options. Raises CrucibleError."""
        return self.begin(checked(TrainingOptions, values))

    def begin(self, options: TrainingOptions) -> dict[str, Any]:
        """Begins a run, unless something speaks against it. Raises CrucibleError."""
        options = self.allowed(options)
        if options != self._approved:
            from extensions_lib.training.preflight import look_ahead

            found = look_ahead(self.here(), options)
            if found.problems:
                raise CrucibleError("\n".join(found.problems))
        self._approved = None  # what was found may be another by the next time
        self.runs().start(options)
        return self.status()

    def approve(self, options: TrainingOptions) -> None:
        """These options were looked at, and nothing speaks against them."""
        self._approved = options

    def act(self, what: str) -> dict[str, Any]:
        """Pauses, goes on, saves, stops. Raises CrucibleError where nothing is under way."""
        runs = self._runs
        if runs is None or runs.current is None or not runs.is_busy():
            raise CrucibleError("No training is under way.")
        getattr(runs.current, _ACTS[what])()
        return self.status()

    def resume(self, name: str) -> dict[str, Any]:
        """Goes on with a run of the past. Raises CrucibleError."""
        runs = self.runs()
        self.allowed(runs.options(_plain(name)))
        runs.resume(name)
        return self.status()

    def use(self, name: str, step: Any) -> dict[str, Any]:
        """Copies what was saved at a step to the networks. Raises CrucibleError."""
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise OptionProblem("step: takes the number of a step.")
        path = self.runs().use(_plain(name), step)
        return {"network": path.stem}

    def delete(self, name: str) -> dict[str, Any]:
        """Removes a run from disk, not its network. Raises CrucibleError."""
        self.runs().delete(_plain(name))
        return {"deleted": name}


def _plain(name: str) -> str:
    """A name that is no way out of the folder. Raises FileProblem."""
    if not name or name.startswith(".") or set(name) & set("/\\\0"):
        raise FileProblem(f"{name}: there is no such run.")
    return name


def curves_of(
    entries: Callable[[str, int], Sequence[Mapping[str, Any]]], since: int
) -> dict[str, list[Any]]:
    """What a record holds, as lists: loss [step, loss, highest learning rate] from entry `since`
    on; all of the others, which are few: validation [step, loss], samples, saved, said.
    """
    return {
        "loss": [
            [each["step"], _short(each["loss"]), _short(max(each["rates"].values(), default=0.0))]
            for each in entries("loss", since)
        ],
        "validation": [
            [each["step"], _short(each["validation"])] for each in entries("validation", 0)
        ],
        "samples": [
            {"step": each["step"], "number": each["number"], "prompt": each["prompt"],
             "file": each["sample"]}
            for each in entries("sample", 0)
        ],
        "saved": [
            {"step": each["step"], "name": Path(each["saved"]).name, "final": each["final"]}
            for each in entries("saved", 0)
        ],
        "said": [[each["step"], each["said"]] for each in entries("said", 0)],
    }  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.5g}")


# --- routes -----------------------------------------------------------------------------------


def add_routes(
    app: Any, service: Service, prefix: str = PREFIX, dependencies: Sequence[Any] = ()
) -> None:
    """Adds the routes below `prefix`. `dependencies` come first: who may ask."""
    from fastapi.responses import FileResponse, StreamingResponse

    routes = Routes(app, prefix, dependencies)
    add = routes.add

    def named(request: Any) -> str:
        return str(request.path_params["name"])

    def acting(what: str) -> Answer:
        return lambda _, __: service.act(what)

    def status(request: Any, _: dict[str, Any]) -> Any:
        asked = request.query_params
        since = asked.get("since", "0")
        if not since.isdecimal():
            raise OptionProblem("since: takes a number of steps.")
        return service.status(asked.get("run", ""), int(since))

    def sample(request: Any, _: dict[str, Any]) -> Any:
        path = service.sample(named(request), str(request.path_params["file"]))
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    async def events(request: Any) -> Any:
        return StreamingResponse(told(service, request), media_type="text/event-stream")

    add("GET", "/status", status)
    add("GET", "/options", lambda _, __: schema(TrainingOptions))
    add("POST", "/start", lambda _, order: service.start(order))
    for what in _ACTS:
        add("POST", f"/{what}", acting(what))
    add("GET", "/runs", lambda _, __: {"runs": service.past()})
    add("GET", "/runs/{name}", lambda request, _: service.about(named(request)))
    add("GET", "/runs/{name}/samples/{file}", sample)
    add("POST", "/runs/{name}/resume", lambda request, _: service.resume(named(request)))
    add("POST", "/runs/{name}/use", lambda req, order: service.use(named(req), order.get("step")))
    add("DELETE", "/runs/{name}", lambda request, _: service.delete(named(request)))
    routes.add_raw("GET", "/events", events)


async def told(service: Service, request: Any) -> AsyncIterator[str]:
    """Server-sent events: the status whenever it has changed, until a run ends."""
    from starlette.concurrency import run_in_threadpool

    key, since, last, busy = "", 0, "", False
    while not await request.is_disconnected():
        status = await run_in_threadpool(service.status, key, since)
        text = json.dumps(status)
        if text != last:
            yield f"data: {text}\n\n"
        if busy and not status["busy"]:
            return
        key, since, last, busy = status["run"], status["next"], text, status["busy"]
        await asyncio.sleep(_AGAIN)
