"""Routes of a host's app: orders in JSON of bounded size, answers, and refusals that say why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import OptionProblem

if TYPE_CHECKING:
    from fastapi import HTTPException

Answer = Callable[[Any, dict[str, Any]], Any]
"""What a request and its order, {} for one without, are answered with."""

MOST_BYTES = 1 << 20  # of an order without a picture


def refusal(status: int, why: str) -> HTTPException:
    """The answer to an order that cannot be carried out."""
    from fastapi import HTTPException

    return HTTPException(status_code=status, detail=why)


async def read_json(request: Any, most: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a request's body, of which no more than `most` bytes are ever held.

    Raises HTTPException: 415 for another type (a page of another site can send those), 413, 422.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise refusal(415, "Send the order as application/json.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise refusal(413, f"The order is larger than {most >> 20} MB.")
    try:
        found = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise refusal(422, "The order is not JSON.") from None
    if not isinstance(found, dict):
        raise refusal(422, "The order must be a JSON object.")
    return found


class Routes:
    """Adds routes below `prefix`. `dependencies` come first: who may ask."""

    def __init__(self, app: Any, prefix: str, dependencies: Sequence[Any]) -> None:
        self._app, self._prefix, self._dependencies = app, prefix, list(dependencies)

    def add(self, method: str, path: str, answer: Answer) -> None:
        """Answers off the loop of events; an order that cannot be carried out says why."""
        from starlette.concurrency import run_in_threadpool

        async def asked(request: Any) -> Any:
            order = await read_json(request) if method == "POST" else {}
            return await run_in_threadpool(_guarded, answer, request, order)

        self.add_raw(method, path, asked)

    def add_raw(self, method: str, path: str, asked: Callable[[Any], Any]) -> None:
        """Answers with what `asked`, a coroutine function, gives for the request."""
        from fastapi import Request

        # A request is no field of the body: under deferred annotations FastAPI has to be told.
        asked.__annotations__["request"] = Request
        self._app.add_api_route(
            self._prefix + path, asked, methods=[method], dependencies=self._dependencies,
            include_in_schema=False, response_model=None,
        )  # fmt: skip


def _guarded(answer: Answer, request: Any, order: dict[str, Any]) -> Any:
    """A refusal of ours as an answer that says it."""
    try:
        return answer(request, order)
    except OptionProblem as problem:
        raise refusal(422, str(problem)) from problem
    except FileProblem as problem:
        raise refusal(404, str(problem)) from problem
    except CrucibleError as problem:
        raise refusal(409, str(problem)) from problem
