"""The toolbox by REST, and what the script of its tab asks.

    POST …/inspect {path, against?, hashes?}   what a file is; against: a checkpoint, or "loaded"
    POST …/move {path}                         puts it where it belongs, over no other file
    POST …/convert {file, option: value, …}    begins a job: {"job": KEY}; so do merge {networks},
                                               resize {file}, extract {base_file, tuned_file},
                                               bake {file, networks}, spectrum {path, base?},
                                               survey {path} and cache {option: value, …}
    GET  …/WORD/options                        JSON schema of what a tool is given
    GET  …/jobs                                jobs, the newest first
    GET  …/jobs/KEY                            how it stands, and its result
    POST …/jobs/KEY/stop
    GET  …/files?sort=network&words=…          model files of the host

Orders are `application/json`. A result has the names that the shell has.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from extensions_lib.api.routes import Answer, Routes
from extensions_lib.api.toolbox_orders import Desk, options_of
from extensions_lib.errors import FileProblem
from extensions_lib.options import OptionProblem, checked, schema
from extensions_lib.toolbox.tools import TOOLS, figures_of, kept_of
from extensions_lib.toolbox.work import Output, Watch, Written

if TYPE_CHECKING:
    from extensions_lib.ui.jobs import Jobs, Tell, Update

PREFIX = "/crucible/toolbox"
_REMEMBERED = 50  # jobs

Work = Callable[["Tell", threading.Event], Any]


@dataclass
class Ordered:
    """A job, and how it stands."""

    key: str
    word: str
    begun: float = field(default_factory=time.time)
    update: Update | None = None
    left: float | None = None  # seconds

    def told(self) -> dict[str, Any]:
        """As JSON."""
        update = self.update
        found: dict[str, Any] = {"job": self.key, "tool": self.word, "begun": self.begun}
        found["state"] = update.state if update else "waiting"
        if update is None:
            return found
        found |= {"ahead": update.ahead, "message": update.message, "seconds_left": self.left}
        if update.state == "working" and update.progress is not None:
            found["done"], found["total"] = update.progress[-2:]
        if update.result is not None:
            found["result"] = plain(update.result)
        return found


class Pace:
    """The time that is left at the rate so far."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: int | None = None

    def left(self, done: int, total: int) -> float | None:
        """Seconds; None before there is a rate."""
        if self._first is None or done < self._first:
            self._first, self._started = done, time.monotonic()
        spent, made = time.monotonic() - self._started, done - self._first
        return spent / made * (total - done) if made and spent > 0.5 else None


@dataclass
class Service:
    """Orders that are carried out one after the other, those of the tab among them."""

    desk: Desk
    jobs: Jobs
    _ordered: OrderedDict[str, Ordered] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, word: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Begins a job. Raises CrucibleError for an order that makes no sense."""
        ordered = Ordered(secrets.token_hex(8), word)
        work = self._work(word, values)
        with self._lock:
            self._ordered[ordered.key] = ordered
            ended = [k for k, v in self._ordered.items() if v.update and v.update.state in _ENDED]
            for key in ended[: max(0, len(self._ordered) - _REMEMBERED)]:
                del self._ordered[key]
        threading.Thread(target=self._follow, args=(ordered, work), daemon=True).start()
        return {"job": ordered.key}

    def _follow(self, ordered: Ordered, work: Work) -> None:
        pace = Pace()
        for update in self.jobs.run(ordered.key, work):
            if update.state == "working" and update.progress is not None:
                ordered.left = pace.left(*update.progress[-2:])
            ordered.update = update

    def _work(self, word: str, values: Mapping[str, Any]) -> Work:
        if word in TOOLS:
            return self.tool(word, *options_of(word, values))
        if word == "cache":
            from extensions_lib.training.cache_options import Caching

            options = checked(Caching, values)
            return lambda tell, stop: self.desk.write_caches(options, lambda *at: tell(at), stop)
        path, base = _text(values, "path"), _text(values, "base")
        if word == "survey":
            return lambda tell, stop: self.desk.survey(path, watch(tell, stop))
        return lambda tell, stop: self.desk.spectrum(path, base, watch(tell, stop))

    def tool(self, word: str, how: Any, order: Output, given: Mapping[str, Any]) -> Work:
        """A tool as a job. Raises OptionProblem for inputs that are missing."""
        TOOLS[word].check(given)
        return lambda tell, stop: self.desk.run(word, given, how, order, watch(tell, stop))

    def status(self, key: str) -> dict[str, Any]:
        """How a job stands. Raises FileProblem where there is none."""
        return self._job(key).told()

    def all(self) -> list[dict[str, Any]]:
        """The jobs, the newest first, without their results."""
        with self._lock:
            known = list(self._ordered.values())
        told = [each.told() for each in reversed(known)]
        return [{k: v for k, v in each.items() if k != "result"} for each in told]

    def stop(self, key: str) -> dict[str, Any]:
        """Asks a job to stop."""
        found = self._job(key)
        self.jobs.stop(key)
        return found.told()

    def _job(self, key: str) -> Ordered:
        with self._lock:
            found = self._ordered.get(key)
        if found is None:
            raise FileProblem(f"{key}: there is no such job.")
        return found


_ENDED = ("done", "stopped", "failed")


def watch(tell: Tell, stop: threading.Event) -> Watch:
    """A tool's view of a job."""
    return Watch(lambda done, total: tell((done, total)), stop)


def plain(result: Any) -> Any:
    """A result as JSON has it."""
    if isinstance(result, Written):
        found = {k: v for k, v in vars(result).items() if k != "layers"}
        found["path"] = str(result.path)
        kept = kept_of(result)
        if kept is not None:
            found["kept"] = kept.share
        figures = figures_of(result)
        layers = getattr(result, "layers", None)
        found["layers"] = [_figure(each) for each in figures] if figures else layers or []
        return found
    if isinstance(result, list):
        return [_figure(each) for each in result]
    return result.to_dict() if hasattr(result, "to_dict") else asdict(result)


def _figure(each: Any) -> dict[str, Any]:
    return {**asdict(each), "shape": list(each.shape), "curve": list(each.curve)}


def _text(order: Mapping[str, Any], key: str) -> str:
    value = order.get(key, "")
    if not isinstance(value, str):
        raise OptionProblem(f"{key}: takes a text.")
    return value


def schema_of(word: str) -> dict[str, Any]:
    """What a tool is given: inputs, options, and where the result goes."""
    if word == "cache":
        from extensions_lib.training.cache_options import Caching

        return schema(Caching)
    tool = TOOLS[word]
    inputs: dict[str, Any] = {}
    for each in tool.inputs:
        text: dict[str, Any] = {"type": "string"}
        if each.many:
            text = {"type": "array", "items": text, "minItems": each.least}
        inputs[each.name] = {**text, "description": each.help}
    found = schema(tool.options)
    found["properties"] = inputs | found["properties"] | schema(Output)["properties"]
    found["required"] = [each.name for each in tool.inputs if each.least]
    return found


# --- routes -----------------------------------------------------------------------------------


def add_routes(
    app: Any, service: Service, prefix: str = PREFIX, dependencies: Sequence[Any] = ()
) -> None:
    """Adds the routes below `prefix`. `dependencies` come first: who may ask."""
    add = Routes(app, prefix, dependencies).add

    desk = service.desk

    def inspect(_: Any, order: dict[str, Any]) -> Any:
        hashes = order.get("hashes", True)
        if not isinstance(hashes, bool):
            raise OptionProblem("hashes: takes true or false.")
        report = desk.inspect(_text(order, "path"), hashes=hashes, against=_text(order, "against"))
        return json.loads(report.to_json())

    def files(request: Any, _: dict[str, Any]) -> Any:
        asked = request.query_params
        return {"files": desk.found(asked.get("sort", ""), asked.get("words", ""))}

    def beginning(word: str) -> Answer:
        return lambda _, order: service.begin(word, order)

    def described(word: str) -> Answer:
        return lambda _, __: schema_of(word)

    add("POST", "/inspect", inspect)
    add("POST", "/move", lambda _, order: {"path": str(desk.move(_text(order, "path")))})
    add("GET", "/files", files)
    for word in (*TOOLS, "cache"):
        add("GET", f"/{word}/options", described(word))
        add("POST", f"/{word}", beginning(word))
    for word in ("spectrum", "survey"):
        add("POST", f"/{word}", beginning(word))
    add("GET", "/jobs", lambda _, __: {"jobs": service.all()})
    add("GET", "/jobs/{key}", lambda request, _: service.status(request.path_params["key"]))
    add("POST", "/jobs/{key}/stop", lambda request, _: service.stop(request.path_params["key"]))
