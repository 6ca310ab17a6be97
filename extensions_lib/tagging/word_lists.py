"""Lists of words that the CLIP interrogator chooses from: one text file each, one word to a line.

Small ones come with the extension, in words/ beside this file. A person's own lie in
models/interrogator/words: a file of the same name stands in for ours, another is one list more.
`flavors.top3.txt` is the list "flavors", of which the mode "classic" takes three.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from extensions_lib.errors import FileProblem

NEGATIVE = "negative"  # the list that only the mode of that name takes
SHIPPED = Path(__file__).with_name("words")
_TOP = re.compile(r"^(?P<name>.+?)(?:\.top(?P<top>\d+))?$")
_DEFAULT_TOP = {"flavors": 3}


@dataclass(frozen=True)
class WordList:
    """Words without duplicates, in the file's order; `top`: how many of them "classic" takes."""

    name: str
    words: tuple[str, ...]
    top: int = 1


def read_lists(folder: Path | None) -> dict[str, WordList]:
    """The lists by name: ours, with those of the folder in their place.

    A folder that does not exist is one without lists. Raises FileProblem for a file that is no
    text in UTF-8 or cannot be read.
    """
    found = _of_folder(SHIPPED)
    if folder is not None and folder.is_dir():
        found |= _of_folder(folder)
    return found


def _of_folder(folder: Path) -> dict[str, WordList]:
    lists = {}
    for file in sorted(folder.glob("*.txt")):
        match = _TOP.match(file.stem)
        assert match is not None
        name = match["name"].lower()
        top = int(match["top"]) if match["top"] else _DEFAULT_TOP.get(name, 1)
        lists[name] = WordList(name, _words(file, name), top)
    return lists


def _words(file: Path, name: str) -> tuple[str, ...]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FileProblem(f"{file}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise FileProblem(f"{file}: is no text in UTF-8 ({error.reason}); save it so.") from error
    lines = (" ".join(line.split()) for line in text.splitlines())
    words = [line for line in lines if line and not line.startswith("#")]
    if name == "artists":
        words = [word if word.lower().startswith("by ") else f"by {word}" for word in words]
    return tuple(dict.fromkeys(words))
