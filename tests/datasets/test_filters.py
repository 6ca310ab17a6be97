"""Filters: what they mean, and that wrong ones say where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extensions_lib.datasets import filters
from extensions_lib.datasets.captions import fold
from extensions_lib.datasets.filters import FilterProblem

TAGS = ["1girl", "blue hair", "saber_(fate)", ":)", "a, b", "AND", "black and white", "x*y"]


def passes(text: str, *tags: str, name: str = "a.png") -> bool:
    return filters.parse(text).matches({fold(tag) for tag in tags}, name)


@pytest.mark.parametrize(
    ("text", "tags", "expected"),
    [
        ("", ["a"], True),
        ("a", ["a"], True),
        ("a", ["ab"], False),
        ("1girl AND NOT hat OR (a, b)", ["1girl"], True),
        ("1girl AND NOT hat OR (a, b)", ["1girl", "hat"], False),
        ("1girl AND NOT hat OR (a, b)", ["hat", "a", "b"], True),
        ("a OR b, c", ["a"], True),  # AND and comma bind closer than OR
        ("a OR b, c", ["b"], False),
        ("a, b, ", ["a", "b"], True),
        ("NOT NOT a", ["a"], True),
        ("NOT(a OR b)", ["c"], True),
        ("NOT (a OR b)", ["a"], False),
        ("blue hair", ["Blue_Hair"], True),
        ("blue_hair", ["(blue hair:1.3)"], True),
        ('"saber (fate)"', [r"saber \(fate\)"], True),
        ("saber_(fate)", ["saber (fate)"], True),
        (r"saber \(fate\), 1girl", ["saber_(fate)", "1girl"], True),
        ("(saber_(fate))", ["saber (fate)"], True),
        ('":)"', [":)"], True),
        ('"black AND white"', ["black and white"], True),
        ("* hair", ["blue_hair"], True),
        ("*hair", ["hairband"], False),
        ("blue_*", ["blue eyes"], True),
        ("[br]lue hair", ["Blue Hair"], True),
        ("?girl", ["1girl"], True),
        ("[", ["["], True),
        (r"x\*y", ["x*y"], True),
        (r"x\*y", ["xxy"], False),
        ("count>3", ["a", "b", "c"], False),
        ("count >= 3", ["a", "b", "c"], True),
        ("NOT count=3", ["a", "b", "c"], False),
        ("count!=2 , count<9", ["a"], True),
        ("count", ["count"], True),
        ("untagged", [], True),
        ("untagged", ["untagged"], False),
        ('"untagged"', ["untagged"], True),
        ("name:sub/*", [], False),
        ("NOT name:*.jpg AND name:A*", [], True),
    ],
)
def test_meaning(text: str, tags: list[str], expected: bool) -> None:
    assert passes(text, *tags) is expected


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("a AND", 5, "missing at the end"),
        ("AND a", 0, "missing before AND"),
        ("a OR OR b", 5, "missing before OR"),
        ("(a, b", 0, "not closed"),
        ("a)", 1, "not opened"),
        ("a ()", 2, "AND, OR or a comma is missing"),
        ("()", 1, "missing before )"),
        ('a AND "b', 6, "not closed"),
        ('a "b"', 2, "AND, OR or a comma is missing"),
        ('""', 0, "no tag between"),
        ("a,,b", 2, "missing before ,"),
        ("NOT", 3, "missing at the end"),
        ("(" * 101 + "a" + ")" * 101, 100, "too many brackets"),
    ],
)
def test_problems_say_where(text: str, place: int, said: str) -> None:
    with pytest.raises(FilterProblem) as problem:
        filters.parse(text)
    assert problem.value.place == place
    assert said in str(problem.value) and f"sign {place + 1}" in str(problem.value)


@given(st.text('ab ()",*?[]\\!:_>=3ANDORTcount', max_size=40))
def test_any_text_is_a_filter_or_a_problem(text: str) -> None:
    try:
        passes(text, *TAGS)
    except FilterProblem as problem:
        assert 0 <= problem.place <= len(text)


# A filter as nested tuples: (tag,), ("NOT", f), ("AND"|"OR", f, g).
TREES = st.recursive(
    st.sampled_from(TAGS).map(lambda tag: (tag,)),
    lambda inner: st.one_of(
        st.tuples(st.just("NOT"), inner), st.tuples(st.sampled_from(["AND", "OR"]), inner, inner)
    ),
    max_leaves=12,
)


def written(tree: tuple, comma: str = " AND ") -> str:
    if len(tree) == 1:
        return filters.quoted(tree[0])
    if len(tree) == 2:
        return f"NOT ({written(tree[1])})"
    joint = comma if tree[0] == "AND" else " OR "
    return f"({written(tree[1], comma)}){joint}({written(tree[2], comma)})"


def meant(tree: tuple, tags: set[str]) -> bool:
    if len(tree) == 1:
        return tree[0] in tags
    if len(tree) == 2:
        return not meant(tree[1], tags)
    one, other = (meant(part, tags) for part in tree[1:])
    return (one and other) if tree[0] == "AND" else (one or other)


@given(TREES, st.sets(st.sampled_from(TAGS)), st.sampled_from([" AND ", ", ", ","]))
def test_any_filter_means_what_it_says(tree: tuple, tags: set[str], comma: str) -> None:
    assert passes(written(tree, comma), *tags) is meant(tree, tags)


@given(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12))
def test_a_quoted_tag_means_itself(tag: str) -> None:
    if fold(tag):
        assert passes(filters.quoted(tag), tag)
        assert not passes(filters.quoted(tag), tag + "x")


def test_tags_that_a_filter_names() -> None:
    assert filters.parse('Blue_hair AND NOT "a, b" OR c*').tags == ("blue hair", "a, b")
