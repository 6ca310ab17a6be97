"""Prompt editing: the published examples, trees of every form, and texts of no form at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions_lib.prompts.schedule import Span, schedule, text_at

PUBLISHED = {
    "test": [(10, "test")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3]": [(3, "a "), (10, "a b")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [unbalanced": [(10, "a [unbalanced")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "a [{b|d{:.5] c": [(10, "a [{b|d{:.5] c")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[a|(b:1.1)]": [(n, ("(b:1.1)", "a")[n % 2]) for n in range(1, 11)],
    "[fe|]male": [(n, ("male", "female")[n % 2]) for n in range(1, 11)],
    "[fe|||]male": [(n, "female" if n % 4 == 1 else "male") for n in range(1, 11)],
}

FURTHER = {
    "": [(10, "")],
    "[a::4]b": [(4, "ab"), (10, "b")],
    "[a:b:0]": [(10, "b")],
    "[a:b:-2]": [(10, "b")],
    "[a:b:99]": [(10, "a")],
    "[a:b:1.0]": [(10, "a")],
    "[a:b:1]": [(1, "a"), (10, "b")],
    "[a:b:1e0]": [(1, "a"), (10, "b")],
    "[a:b:1e999]": [(10, "a")],
    "[a:b:-1e999]": [(10, "b")],
    "[a:b:.29]": [(2, "a"), (10, "b")],
    "([a:b:4]:1.2)": [(4, "(a:1.2)"), (10, "(b:1.2)")],
    r"\[a:b:4]": [(10, r"\[a:b:4]")],
    r"[a\|\::4]": [(4, ""), (10, r"a\|\:")],
    "a | b [c:4]": [(10, "a | b [c:4]")],
    "[c:4] \\": [(10, "[c:4] \\")],
    "[a:b:c:4]": [(10, "[a:b:c:4]")],
    "[a:b:1.2.3]": [(10, "[a:b:1.2.3]")],
    "[x:[a:b:4]": [(4, "[x:a"), (10, "[x:b")],
    "(a [b) c:3] [d:e:4]": [(4, "(a [b) c:3] d"), (10, "(a [b) c:3] e")],
    "10:30 [a:b:4] :)": [(4, "10:30 a :)"), (10, "10:30 b :)")],
    "[a:b:\u0664]": [(10, "[a:b:\u0664]")],
}


@pytest.mark.parametrize(("prompt", "expected"), [*PUBLISHED.items(), *FURTHER.items()])
def test_known_prompts(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert schedule(prompt, 10) == [Span(*span) for span in expected]


def test_the_long_published_example() -> None:
    prompt = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][: in background:0.25] [shoddy:masterful:0.5]"
    )
    start = "fantasy landscape with a "
    assert schedule(prompt, 100) == [
        Span(25, start + "mountain and an oak in foreground shoddy"),
        Span(50, start + "lake and an oak in foreground in background shoddy"),
        Span(60, start + "lake and an oak in foreground in background masterful"),
        Span(75, start + "lake and an oak in background masterful"),
        Span(100, start + "lake and a christmas tree in background masterful"),
    ]


def test_neighbouring_forms_change_together_and_apart() -> None:
    assert schedule("[a|b] [c:d:2]", 4) == [
        Span(1, "a c"), Span(2, "b c"), Span(3, "a d"), Span(4, "b d"),
    ]  # fmt: skip


# A tree is a function of step and steps, together with the way it is written.
Tree = tuple  # ("text", t) | ("join", [...]) | ("wrap", open, inner, close) | edit | turns
WORDS = st.sampled_from(["a", "b c", " ", "", ", d", r"\(e\)", r"\|", "é"])
WHENS = st.sampled_from(["1", "3", " 7 ", "0.5", ".25", "2.", "12", "0", "-3", "1e0", "0.99", "+4"])


def _grow(inner: st.SearchStrategy) -> st.SearchStrategy:
    wraps = st.sampled_from([("(", ")"), ("(", ":1.2)"), ("[", "]")])
    return st.one_of(
        st.tuples(st.just("join"), st.lists(inner, max_size=3)),
        st.tuples(st.just("wrap"), wraps, inner),
        st.tuples(st.just("edit"), st.none() | inner, inner, WHENS),
        st.tuples(st.just("turns"), st.lists(inner, min_size=2, max_size=4)),
    )


TREES = st.recursive(st.tuples(st.just("text"), WORDS), _grow, max_leaves=12)


def written(tree: Tree) -> str:
    match tree:
        case ("text", text):
            return text
        case ("join", items):
            return "".join(map(written, items))
        case ("wrap", (opening, closing), inner):
            return opening + written(inner) + closing
        case ("edit", before, after, when):
            return f"[{'' if before is None else written(before) + ':'}{written(after)}:{when}]"
        case _:
            return "[" + "|".join(map(written, tree[1])) + "]"


def step_of(when: str, steps: int) -> int:
    return min(steps, int(float(when) * steps) if "." in when else int(float(when)))


def at(tree: Tree, step: int, steps: int) -> str:
    match tree:
        case ("text", text):
            return text
        case ("join", items):
            return "".join(at(item, step, steps) for item in items)
        case ("wrap", (opening, closing), inner):
            return opening + at(inner, step, steps) + closing
        case ("edit", before, after, when):
            if step > step_of(when, steps):
                return at(after, step, steps)
            return "" if before is None else at(before, step, steps)
        case _:
            return at(tree[1][(step - 1) % len(tree[1])], step, steps)


@settings(max_examples=100, deadline=None)
@given(TREES, st.integers(1, 12))
def test_every_step_of_every_form(tree: Tree, steps: int) -> None:
    spans = schedule(written(tree), steps)
    for step in range(1, steps + 1):
        assert text_at(spans, step) == at(tree, step, steps)


SOUP = st.text(alphabet="[]():|\\ab 1.5-\n", max_size=60) | st.text(max_size=60)


@settings(max_examples=100, deadline=None)
@given(SOUP, st.integers(1, 30))
def test_spans_cover_all_steps_in_increasing_order(prompt: str, steps: int) -> None:
    ends = [span.until for span in schedule(prompt, steps)]
    assert ends == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] == steps


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab ():,.1\n", max_size=60), st.integers(1, 30))
def test_without_square_brackets_nothing_changes(prompt: str, steps: int) -> None:
    assert schedule(prompt, steps) == [Span(steps, prompt)]


@settings(max_examples=100, deadline=None)
@given(SOUP, st.integers(-2, 0))
def test_no_steps_is_one_span(prompt: str, steps: int) -> None:
    assert [span.until for span in schedule(prompt, steps)] == [steps]


@pytest.mark.parametrize("depth", [5_000, 20_000])
def test_nesting_has_no_limit(depth: int) -> None:
    edits = "[a:" * depth + "b" + ":1]" * depth
    assert schedule(edits, 2) == [Span(1, "a"), Span(2, "b")]
    wrapped = "[" * depth + "a" + "]" * depth
    assert schedule(wrapped, 2) == [Span(2, wrapped)]
    assert schedule("[(" * depth, 2) == [Span(2, "[(" * depth)]
