"""Attention: the published examples, products of nested factors, and any text."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions_lib.prompts.attention import BREAK, parse_attention

DOWN = 1 / 1.1
KNOWN = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ],
    "": [("", 1.0)],
    "()": [("", 1.0)],
    "[a]": [("a", DOWN)],
    "((a))": [("a", 1.1 * 1.1)],
    "(a: 1.3 )": [("a", 1.3)],
    "(a:-1)": [("a", -1.0)],
    "(a:+.5)b": [("a", 0.5), ("b", 1.0)],
    "a:1.3)": [("a:1.3)", 1.0)],
    "a) b]": [("a) b]", 1.0)],
    "(a [b) c]": [("a ", 1.1), ("b", 1.1 * DOWN), (" c", DOWN)],
    "[a:1.3]": [("a:1.3", DOWN)],
    r"\\(a)": [("\\", 1.0), ("a", 1.1)],
    "\\": [("", 1.0)],
    r"\x": [("x", 1.0)],
    "a BREAK b": [("a", 1.0), BREAK, ("b", 1.0)],
    "a\nBREAK\n b": [("a", 1.0), BREAK, ("b", 1.0)],
    "BREAK BREAK": [("", 1.0), BREAK, ("", 1.0), BREAK, ("", 1.0)],
    "BREAKING aBREAK": [("BREAKING aBREAK", 1.0)],
    "(a BREAK b:2)": [("a", 2.0), ("BREAK", -2.0), ("b", 2.0)],
    "(a:1.2.3)": [("a:1.2.3", 1.1)],
    "a:1.2.3)": [("a:1.2.3)", 1.0)],
}


@pytest.mark.parametrize(("text", "expected"), KNOWN.items())
def test_known_texts(text: str, expected: list[tuple[str, float]]) -> None:
    assert parse_attention(text) == expected


ANY = st.text(alphabet="()[]\\:.1-+ aBREAK\n", max_size=60) | st.text(max_size=60)


@settings(max_examples=80, deadline=None)
@given(ANY)
def test_any_text_gives_pieces_of_differing_weight(text: str) -> None:
    pieces = parse_attention(text)
    assert pieces
    for (_, weight), (_, after) in pairwise(pieces):
        assert weight != after


@settings(deadline=None)
@given(st.text(max_size=80).filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_itself(text: str) -> None:
    assert parse_attention(re.sub(r"([()\[\]\\])", r"\\\1", text)) == [(text, 1.0)]


@settings(deadline=None)
@given(st.text(max_size=80).filter(lambda text: not re.search(r"[()\[\]\\]|BREAK", text)))
def test_text_without_syntax_is_kept_whole(text: str) -> None:
    assert parse_attention(text) == [(text, 1.0)]


LEAVES = st.sampled_from("abc").map(lambda text: (text, [(text, 1.0)]))


def _grow(inner: st.SearchStrategy) -> st.SearchStrategy:
    factor = st.sampled_from([("(", ")", 1.1), ("[", "]", DOWN), ("(", ":1.5)", 1.5)])
    scaled = st.tuples(factor, inner).map(
        lambda pair: (
            pair[0][0] + pair[1][0] + pair[0][1],
            [(text, weight * pair[0][2]) for text, weight in pair[1][1]],
        )
    )
    joined = st.lists(inner, min_size=1, max_size=3).map(
        lambda items: (
            "".join(item[0] for item in items),
            [pair for item in items for pair in item[1]],
        )
    )
    return scaled | joined


@settings(max_examples=80, deadline=None)
@given(st.recursive(LEAVES, _grow, max_leaves=12))
def test_nested_factors_multiply(tree: tuple[str, list[tuple[str, float]]]) -> None:
    """Letter by letter: the factors are the same floats, not only near ones."""
    text, expected = tree
    letters = [(letter, weight) for part, weight in parse_attention(text) for letter in part]
    assert letters == expected
