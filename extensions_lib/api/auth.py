"""Who may ask: the WebUI's own check, or names and passwords of our own."""

from __future__ import annotations

from collections.abc import Sequence
from secrets import compare_digest
from typing import Any

from extensions_lib.errors import CrucibleError

_HOSTS_OWN = ("/sdapi/v1/txt2img", "/sdapi/v1/options")


def host_dependencies(app: Any) -> list[Any] | None:
    """What the host's own API asks of a client before it answers; None where it has no API on."""
    for route in app.router.routes:
        if getattr(route, "path", None) in _HOSTS_OWN:
            return list(getattr(route, "dependencies", ()))
    return None


def basic_dependencies(told: str) -> list[Any]:
    """A dependency for `user:password`, or several after commas; none for an empty text.

    Raises CrucibleError for what is no such pair.
    """
    if not told:
        return []
    from fastapi import Depends, HTTPException
    from fastapi.security import HTTPBasic, HTTPBasicCredentials

    known = _pairs(told.split(","))

    def check(given: Any = Depends(HTTPBasic())) -> None:  # noqa: B008
        assert isinstance(given, HTTPBasicCredentials)
        wanted = known.get(given.username)
        # compared in any case, so that a wrong name takes as long as a wrong password
        right = compare_digest(given.password.encode(), (wanted or "").encode())
        if wanted is None or not right:
            raise HTTPException(
                status_code=401,
                detail="Incorrect username or password",
                headers={"WWW-Authenticate": "Basic"},
            )

    return [Depends(check)]


def _pairs(told: Sequence[str]) -> dict[str, str]:
    known = {}
    for each in told:
        name, colon, password = each.strip().partition(":")
        if not (name and colon and password):
            raise CrucibleError("--api-auth: takes user:password, or several after commas.")
        known[name] = password
    return known
