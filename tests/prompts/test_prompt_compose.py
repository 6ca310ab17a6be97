"""Prompts in parts joined by AND."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions_lib.prompts.compose import split_and


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [("", 1.0)]),
        ("a cat ", [("a cat", 1.0)]),
        ("a :1.2 AND b", [("a", 1.2), (" b", 1.0)]),
        ("a:-1 AND b : .5 AND c:2.", [("a", -1.0), (" b", 0.5), (" c", 2.0)]),
        ("SAND AND BAND", [("SAND", 1.0), (" BAND", 1.0)]),
        ("a AND", [("a", 1.0), ("", 1.0)]),
        ("a, AND: 2", [("a,", 1.0), ("", 2.0)]),
        ("(a:1.2) AND b", [("(a:1.2)", 1.0), (" b", 1.0)]),
        ("a:1:2", [("a:1", 2.0)]),
        ("a:1e3", [("a:1e3", 1.0)]),
        ("a:1.2.3", [("a:1.2.3", 1.0)]),
        ("a\nb :3\n", [("a\nb", 3.0)]),
        ("a and b", [("a and b", 1.0)]),
    ],
)
def test_known_prompts(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert split_and(prompt) == expected


WORDS = st.text(alphabet="ab, (é", min_size=1, max_size=12).map(str.strip).filter(bool)
WEIGHTS = st.none() | st.decimals(-9, 9, places=2, allow_nan=False).map(str)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WEIGHTS), min_size=1, max_size=5))
def test_parts_come_back(parts: list[tuple[str, str | None]]) -> None:
    prompt = " AND ".join(text if weight is None else f"{text} :{weight}" for text, weight in parts)
    expected = [(text, 1.0 if weight is None else float(weight)) for text, weight in parts]
    assert [(text.strip(), weight) for text, weight in split_and(prompt)] == expected


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="AND :1.-+\nab ") | st.text())
def test_any_text_has_a_part(prompt: str) -> None:
    assert len(split_and(prompt)) >= 1
