"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from extensions_lib.errors import FileProblem

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Signs of a name in a temporary one: at four bytes each they fit into the 255 of a file system.
KEPT = 50
_OURS = re.compile(r".+\.crucible-[0-9a-f]{8}\.tmp")
_YOUNG = 60  # seconds: it may be about to be marked as held
_OLD = 24 * 3600  # seconds, where a system cannot tell whether a file is held


def temporary_name(path: Path) -> Path:
    """A new name beside `path` that `sweep` knows as ours."""
    return path.with_name(f"{path.name[:KEPT]}.crucible-{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def held(path: str | os.PathLike[str]) -> Iterator[None]:
    """Marks a file or folder as being written, until the block ends or the program dies."""
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def sweep(folder: str | os.PathLike[str]) -> int:
    """Removes what killed programs left of new files in a folder; how many there were.

    Only names made by `temporary_name` that nobody holds; where that cannot be told they stay.
    """
    count = 0
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return 0
    for entry in entries:
        if not _OURS.fullmatch(entry.name) or entry.is_symlink() or not _is_left(entry):
            continue
        with contextlib.suppress(OSError):  # it is another person's
            if entry.is_dir():
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
            count += 1
    return count


def _is_left(entry: os.DirEntry[str]) -> bool:
    try:
        age = time.time() - entry.stat().st_mtime
        if fcntl is None:
            return age > _OLD
        if age < _YOUNG:
            return False
        handle = os.open(entry.path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False  # somebody writes it, or there are no locks here
    finally:
        os.close(handle)


def place_new(temporary: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Gives a file its name if that is free. Raises FileExistsError, OSError."""
    if os.name == "nt":
        os.rename(temporary, target)  # which refuses a name that is taken
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise  # it lies on another disk
        # a file system without links: the name is taken first, then filled
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(temporary, target)
        return
    os.unlink(temporary)


def reason(error: OSError) -> str:
    """Why the system refused, in words."""
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space"
    return error.strerror or str(error)


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], *, durable: bool = True, fresh: bool = False
) -> Iterator[Path]:
    """Gives a temporary path in the same folder; when the block ends well it becomes `path`.

    The folder is made if missing. A link at `path` stays a link. On any failure the temporary
    file is removed and the old file is as it was. `durable`: the new file also survives a power
    failure right after; False where the same bytes are kept elsewhere (many times faster).
    `fresh`: nothing is replaced, a file that is at `path` by the end stays; and what is left of
    the temporary one if the program is killed, the next `sweep` removes.
    Raises FileProblem for what the disk refuses (full, read-only, …).
    """
    asked = Path(path)
    target = os.path.realpath(asked)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f"{name[:KEPT]}.{secrets.token_hex(4)}.tmp")
    if fresh:
        temporary = str(temporary_name(Path(target)))
    placed = False
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.isdir(target):
            raise FileProblem(f"{asked}: is a folder; name a file")
        open(temporary, "xb").close()
        with held(temporary) if fresh else contextlib.nullcontext():
            yield Path(temporary)
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        if fresh:
            _place_fresh(temporary, target, asked)
        else:
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


def _place_fresh(temporary: str, target: str, asked: Path) -> None:
    try:
        place_new(temporary, target)
    except FileExistsError as error:
        raise FileProblem(
            f"{asked}: has come to be there meanwhile and was left as it is; give another name"
        ) from error


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
