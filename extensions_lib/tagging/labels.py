"""The tags that a tagger knows, in the order of its outputs, from any of the field's lists."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from extensions_lib.errors import FileProblem

RATING, GENERAL, CHARACTER = "rating", "general", "character"
# The numbers of Danbooru's categories, and 9, which WD's lists use for ratings.
DANBOORU: Mapping[str, str] = {
    "0": GENERAL,
    "1": "artist",
    "3": "copyright",
    "4": CHARACTER,
    "5": "meta",
    "9": RATING,
}
# All that the lists of known taggers have.
CATEGORIES = frozenset(
    {
        *DANBOORU.values(),
        *("species", "invalid", "lore"),  # e621
        *("year", "quality", "model"),
    }
)
# Lists by their usual names, the surest first; `-metadata.json` stands for a name's end.
LISTS = (
    "selected_tags.csv",
    "tags-selected.csv",
    "tag_mapping.json",
    "-metadata.json",
    "top_tags.txt",
    "classes.json",
    "tags.txt",
    "tags.json",
    "tags.csv",
)
_MOST_BYTES = 64 << 20
_RATINGS = ("rating:", "rating_")


class Label(NamedTuple):
    """A tag and its category, in lower case: general, character, rating, artist, …"""

    name: str
    category: str


def find_list(folder: Path) -> Path | None:
    """The tag list in a model's folder, by name; None if there is none."""
    names = sorted(item.name for item in folder.iterdir() if item.is_file())
    for wanted in LISTS:
        for name in names:
            if name == wanted or (wanted.startswith("-") and name.endswith(wanted)):
                return folder / name
    return None


def read_labels(path: Path, categories: Mapping[str, str] = DANBOORU) -> tuple[Label, ...]:
    """The labels of a list: CSV with the columns `name` and `category`, a text of one tag a line,
    or JSON (a list, tags by index, `idx_to_tag` with `tag_to_category`).

    `categories` names the numbers in the list; a number that it lacks stays itself. Raises
    FileProblem for a list that cannot be read, has gaps, or holds no tag.
    """
    text = _text(path)
    try:
        if path.suffix.lower() == ".csv":
            found = _from_csv(text)
        elif path.suffix.lower() == ".json":
            found = _from_json(json.loads(text))
        else:
            found = [(line.strip(), "") for line in text.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise FileProblem(f"{path}: is no list of tags ({error}); get it again.") from error
    if not found:
        raise FileProblem(f"{path}: holds no tag; get it again.")
    return tuple(_label(name, category, categories) for name, category in found)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FileProblem(f"{path}: is too large for a list of tags; check the file.")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileProblem(
            f"{path}: there is no such file; put the model's tag list there."
        ) from None
    except UnicodeDecodeError as error:
        raise FileProblem(f"{path}: is no text in UTF-8 ({error}); get it again.") from error
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror}).") from error


def _label(name: str, category: str, categories: Mapping[str, str]) -> Label:
    category = categories.get(category, category).lower()
    if name.startswith("rating:"):
        category = RATING
    if category == RATING and name.startswith(_RATINGS):
        name = name[len("rating:") :]
    return Label(name, category or GENERAL)


def _from_csv(text: str) -> list[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "name" not in (rows.fieldnames or ()):
        raise ValueError("no column 'name'")
    found = []
    for number, row in enumerate(rows, 1):
        if row["name"] is None:
            raise ValueError(f"entry {number} has no name")
        found.append((row["name"].strip(), (row.get("category") or "").strip()))
    return found


def _from_json(data: Any) -> list[tuple[str, str]]:
    if isinstance(data, list):
        if not all(isinstance(name, str) for name in data):
            raise ValueError("a list of something else than names")
        return [(name, "") for name in data]
    if not isinstance(data, dict):
        raise ValueError("neither a list nor an object")
    for nest in ("dataset_info", "tag_mapping"):
        if isinstance(data.get(nest), dict):
            data = data[nest]
    by_index = data.get("idx_to_tag", data)
    of_tag = data.get("tag_to_category", {})
    rows = [by_index[str(i)] for i in range(len(by_index))]  # KeyError: a gap
    return [
        (str(row["tag"]), str(row.get("category", "")))
        if isinstance(row, dict)
        else (str(row), str(of_tag.get(row, "")))
        for row in rows
    ]
