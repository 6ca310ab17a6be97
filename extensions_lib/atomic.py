"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from extensions_lib.errors import FileProblem


def reason(error: OSError) -> str:
    """Why the system refused, in words."""
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space"
    return error.strerror or str(error)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Gives a temporary path in the same folder; when the block ends well it becomes `path`.

    The folder is made if missing. A link at `path` stays a link. On any failure the temporary
    file is removed and the old file is as it was. `durable`: the new file also survives a power
    failure right after; False where the same bytes are kept elsewhere (many times faster).
    Raises FileProblem for what the disk refuses (full, read-only, …).
    """
    asked = Path(path)
    target = os.path.realpath(asked)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f"{name[:120]}.{secrets.token_hex(4)}.tmp")
    placed = False
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.isdir(target):
            raise FileProblem(f"{asked}: is a folder; name a file")
        open(temporary, "xb").close()
        yield Path(temporary)
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):  # there is no old file
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        placed = True
        if durable:
            _sync_folder(folder)
    except OSError as error:
        raise FileProblem(
            f"{asked}: cannot be written ({reason(error)}); the old file, if any, is unchanged"
        ) from error
    finally:
        if not placed:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Makes the rename itself durable, where the system knows how (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # some network file systems cannot sync a folder; the file's own bytes are safe already
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text atomically. Raises FileProblem."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
