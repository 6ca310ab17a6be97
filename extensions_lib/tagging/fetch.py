"""Downloads by huggingface_hub, as a process that can be ended: run by `hub.fetch`.

Reads from stdin what is wanted, writes to stdout a line of JSON at a time: progress, then `found`
with the paths, or `problem` with a sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TRIES = 4  # in a row without one new byte
_TICK = 0.2  # seconds
_SHA256 = re.compile("[0-9a-f]{64}")


class Problem(Exception):
    """A refusal for the person, in one sentence."""


def main() -> None:
    """Does what stdin asks for."""
    asked = json.load(sys.stdin)
    repo, paths = asked["repo"], asked["paths"]
    cache = Path(asked["cache"]) if asked["cache"] else None
    try:
        found = [
            download(repo, path, cache, number, len(paths)) for number, path in enumerate(paths)
        ]
        say(found=[str(path) for path in found])
    except Problem as problem:
        say(problem=str(problem))


def say(**told: Any) -> None:
    """One line to the parent; ends this process if there is none any more."""
    try:
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(1)


def download(repo: str, path: str, cache: Path | None, number: int, count: int) -> Path:
    """One file, gone on with after every cut as long as something comes."""
    import huggingface_hub
    from huggingface_hub import constants

    folder = cache or Path(constants.HF_HUB_CACHE)
    blobs = folder / f"models--{repo.replace('/', '--')}" / "blobs"
    about, commit = _asked_of(repo, path)
    name = Path(path).name
    before = _arrived(blobs, about.etag)
    left = _TRIES
    with watching(blobs, about, name, number, count):
        while True:
            try:
                at = huggingface_hub.hf_hub_download(
                    repo, path, revision=commit, cache_dir=str(folder)
                )
                break
            except Exception as error:
                if not _is_network(error):
                    raise Problem(_refusal(repo, path, error)) from error
                now = _arrived(blobs, about.etag)
                left = _TRIES if now > before else left - 1
                before = max(now, before)
                if not left:
                    raise Problem(
                        f"{repo}: the connection was cut while {name} was downloaded"
                        f" ({_short(error)}); try again, it goes on where it stopped."
                    ) from error
                time.sleep(min(5.0, 0.2 * 2 ** (_TRIES - left)))
    found = Path(at)
    check(found, about)
    _point_main(folder, repo, commit)
    return found


def _asked_of(repo: str, path: str) -> tuple[Any, str]:
    """What the hub says of a file: its ETag (the sha256 of large files), size, and the commit."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if not constants.HF_HUB_OFFLINE and (why := unreachable(constants.ENDPOINT)):
        raise Problem(_not_reached(repo, why))
    try:
        about = get_hf_file_metadata(hf_hub_url(repo, path, revision="main"))
    except Exception as error:
        raise Problem(_refusal(repo, path, error)) from error
    if about.etag is None or about.commit_hash is None:
        raise Problem(
            f"{repo}: the server does not answer as the model hub does; check the mirror's address."
        )
    return about, about.commit_hash


def unreachable(endpoint: str) -> str | None:
    """Why no connection can be made at all; huggingface_hub itself tries for 20 seconds."""
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.URLError as error:  # also any answer that is not 200, which is one
        if isinstance(error.reason, (ConnectionError, socket.gaierror, TimeoutError)):
            return str(error.reason)
    except (OSError, http.client.HTTPException):
        pass  # an odd answer is one too
    return None


def _not_reached(repo: str, why: str) -> str:
    from huggingface_hub import constants

    return (
        f"{repo}: {constants.ENDPOINT} cannot be reached ({why}); check the network or the mirror,"
        " or put the files under models/."
    )


def _refusal(repo: str, path: str, error: Exception) -> str:
    from huggingface_hub import constants

    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return (
            f"{repo}: its author asks you to accept terms first; do so on"
            f" {constants.ENDPOINT}/{repo} and set HF_TOKEN."
        )
    if "RepositoryNotFoundError" in kinds:
        return f"{repo}: there is no such repository at {constants.ENDPOINT}, or it is private."
    if kinds & {"EntryNotFoundError", "RemoteEntryNotFoundError"}:
        return f"{repo}: has no file {path} at {constants.ENDPOINT}; check the tagger's entry."
    if "OfflineModeIsEnabled" in kinds or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true"):
        return (
            f"{repo}: downloads are switched off by HF_HUB_OFFLINE; unset it, or put the files"
            " under models/."
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return (
            f"{error.filename}: cannot be written ({error.strerror}); free the disk or its rights."
        )
    if _is_network(error):
        return _not_reached(repo, _short(error))
    return f"{repo}: {path} cannot be downloaded ({_short(error)})."


def _is_network(error: Exception) -> bool:
    """Whether trying again may help: what requests, urllib3 and httpx raise for connections."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    named = {
        *("ConnectionError", "Timeout", "ChunkedEncodingError", "TransportError"),
        *("ProtocolError", "ConsistencyError", "LocalEntryNotFoundError"),
    }
    if any(kind.__name__ in named for kind in type(error).__mro__):
        return os.environ.get("HF_HUB_OFFLINE", "") not in ("1", "true")
    return "Consistency check failed" in str(error)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


# --- progress ---------------------------------------------------------------------------------


def _arrived(blobs: Path, etag: str) -> int:
    """Bytes of the file that are on the disk."""
    sizes = [0]
    with contextlib.suppress(OSError):
        for item in blobs.iterdir():
            if item.name.startswith(etag):
                sizes.append(item.stat().st_size)
    return max(sizes)


@contextlib.contextmanager
def watching(blobs: Path, about: Any, name: str, number: int, count: int) -> Iterator[None]:
    """Tells of the growing file until the block ends, and once at its end."""
    over = threading.Event()

    def tell() -> None:
        told = {"file": name, "total": about.size, "number": number, "files": count}
        say(done=_arrived(blobs, about.etag), **told)

    def watch() -> None:
        while not over.wait(_TICK):
            tell()

    watcher = threading.Thread(target=watch, daemon=True)
    tell()
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    tell()


# --- afterwards -------------------------------------------------------------------------------


def check(found: Path, about: Any) -> None:
    """Compares size and checksum; a file that is not what the hub has is removed."""
    size = found.stat().st_size
    wrong = None
    if about.size is not None and size != about.size:
        wrong = f"{size} bytes instead of {about.size}"
    elif _SHA256.fullmatch(about.etag) and _sha256(found) != about.etag:
        wrong = "another checksum than the hub's"
    if wrong is None:
        return
    blob = found.resolve()
    found.unlink()
    blob.unlink(missing_ok=True)
    raise Problem(
        f"{found.name}: arrived with {wrong} and was removed; try again, or take another mirror."
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _point_main(folder: Path, repo: str, commit: str) -> None:
    """Notes in the cache that `main` is this commit, as huggingface_hub does for a branch."""
    ref = folder / f"models--{repo.replace('/', '--')}" / "refs" / "main"
    ref.parent.mkdir(parents=True, exist_ok=True)
    beside = ref.with_name(f"main.{os.getpid()}")
    beside.write_text(commit, encoding="utf-8")
    os.replace(beside, ref)


if __name__ == "__main__":
    main()
