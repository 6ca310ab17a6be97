"""Long prompts: the work grows with the length, counted in executed lines instead of seconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from extensions_lib.prompts.attention import parse_attention
from extensions_lib.prompts.chunks import chunk_tokens
from extensions_lib.prompts.compose import split_and
from extensions_lib.prompts.infotext import read_infotext
from extensions_lib.prompts.schedule import schedule
from extensions_lib.prompts.tags import network_requests

ROOM = "extensions_lib/prompts/"
READERS: dict[str, Callable[[str], object]] = {
    "schedule": lambda text: schedule(text, 4),
    "attention": parse_attention,
    "compose": split_and,
    "infotext": read_infotext,
    "tags": network_requests,
    "chunks": lambda text: chunk_tokens([([ord(letter) for letter in text], 1.0)]),
}
UNITS = {
    "words": "a cat, ",
    "edits": "[a:b:3] ",
    "turns": "[a|b|] ",
    "open": "[",
    "open mixed": "[(",
    "closed": "])",
    "half edits": "[a:",
    "colons": ":",
    "number ends": ":1)",
    "tags": "<lora:a:1>",
    "half tags": "<lora:a",
    "fields": "Steps: 1, ",
    "quotes": '"\\',
    "parts": "a :1 AND ",
    "spaces": " ",
}


def lines_run(reader: Callable[[str], object], text: str) -> int:
    """How many lines of the room run."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal count
        if ROOM not in Path(frame.f_code.co_filename).as_posix():
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        reader(text)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS.keys())
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_four_times_the_text_is_about_four_times_the_work(
    reader: Callable[[str], object], unit: str
) -> None:
    if reader is parse_attention and unit == "number ends":
        unit = "(a:1)"
    short = lines_run(reader, unit * (500 // len(unit)))
    long = lines_run(reader, unit * (2_000 // len(unit)))
    assert long <= 4.5 * short + 200


def test_deep_forms_cost_no_more_than_flat_ones() -> None:
    flat = "[a:b:3]" * 300
    for deep in ("[a:" * 300 + "b:3]" + ":3]" * 299, "[a|" * 300 + "]" * 300):
        per_span = [
            lines_run(READERS["schedule"], text) / len(schedule(text, 4)) for text in (deep, flat)
        ]
        assert per_span[0] <= 2 * per_span[1]


def test_ten_thousand_characters_are_read_by_everything() -> None:
    for unit in UNITS.values():
        text = unit * (10_000 // len(unit)) + "tail"
        assert schedule(text, 5)[-1].until == 5
        assert parse_attention(text)
        assert split_and(text)[-1][0].endswith("tail")
        assert "tail" in "".join(read_infotext(text).values())
        assert network_requests(text)[0].endswith("tail")


def test_the_room_needs_the_standard_library_alone() -> None:
    rooms = Path(sys.modules["extensions_lib.prompts.tags"].__file__ or "").parent
    names = [path.stem for path in rooms.glob("*.py") if path.stem != "__init__"]
    code = (
        "import sys\n"
        + "".join(f"import extensions_lib.prompts.{name}\n" for name in names)
        + "allowed = set(sys.stdlib_module_names) | {'extensions_lib'}\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(top for top in tops - allowed if not top.startswith('__')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=rooms.parent.parent,
    )
    assert len(names) == 9
    assert done.stdout.strip() == "[]"
