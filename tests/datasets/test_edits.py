"""Edits: what each does to a caption."""

from __future__ import annotations

import pytest

from extensions_lib.datasets import edits
from extensions_lib.datasets.edits import Edit, EditProblem


def _words(text: str) -> int:
    return len(text.split())


def done(edit: Edit, text: str, name: str = "a.png") -> str:
    return edit.change(text, name)


@pytest.mark.parametrize(
    ("edit", "text", "expected"),
    [
        (edits.add("hat, smile"), "a,  Hat", "a, Hat, smile"),
        (edits.add("hat"), "", "hat"),
        (edits.add("sls", "start"), "a, b", "sls, a, b"),
        (edits.add("x", "start", after=1), "sls, a", "sls, x, a"),
        (edits.add("x", "start", after=9), "sls, a", "sls, a, x"),
        (edits.remove("a, c"), "a, b, c, A", "b, A"),
        (edits.remove(["a, b"]), "a, b", "a, b"),  # one tag with a comma in it: there is none
        (edits.rename("a", "x, y"), "b, a, c, y", "b, x, y, c"),
        (edits.rename("a", "b"), "b, a", "b"),
        (edits.rename("z", "b"), "a,b ,  b", "a,b ,  b"),
        (edits.replace("hair", "fur"), "hair, long hair", "fur, long hair"),
        (edits.replace("* hair", ""), "hair, long hair, * hair", "hair, long hair"),
        (edits.replace("* hair", "", "glob"), "hair, long hair, Red Hair", "hair, Red Hair"),
        (edits.replace("* hair", "x", "glob", ignore_case=True), "long hair, Red Hair", "x"),
        (edits.replace("[!l]* ha?r", "x", "glob"), "long hair, red hair", "long hair, x"),
        (
            edits.replace(r"(\w+) hair", r"\1 fur", "regex"),
            "a red hair, red hair",
            "a red hair, red fur",
        ),
        (edits.replace("hair", "fur", whole_tags=False), "long hair, hair", "long fur, fur"),
        (edits.replace("a*d", "X", "glob", whole_tags=False), "abcd, ab, d", "X, ab, d"),
        (edits.replace(r"(?<=a), ", "; ", "regex", whole_tags=False), "a, b, c", "a; b, c"),
        (edits.replace(r"\n", "\n\n", "regex", whole_tags=False), "a\nb", "a\n\nb"),
        (edits.replace(".", r"\1", whole_tags=False), "a.b", r"a\1b"),
        (edits.replace("hat", "", whole_tags=False), "a, hat, b", "a, b"),
        (edits.replace("hat", "", whole_tags=False), "hat, a\nb,c, hat\nhat", "a\nb,c\n"),
        (edits.replace("hat", "", whole_tags=False), "a, , hats", "a, , s"),
        (edits.replace("hat|cap", "", "regex", whole_tags=False), "hat, cap,", ""),
        (edits.dedupe(), "a, b, A, c_d, c d", "a, b, c_d"),
        (edits.sort(keep_first=1), "x, c, B, a", "x, a, B, c"),
        (edits.sort("frequency", frequency={"a": 1, "b": 7}), "a, c, b", "b, a, c"),
        (edits.sort("length"), "ccc, a, bb, aa", "a, aa, bb, ccc"),
        (edits.sort("length", keep_first=1, backwards=True), "x, a, ccc, bb", "x, ccc, bb, a"),
        (edits.shorten(3, _words), "a b, c, d", "a b, c"),
        (edits.shorten(4, _words), "a b,  c, d", "a b,  c, d"),
        (edits.shorten(1, _words), "a sentence of many words", "a sentence of many words"),
        (edits.shorten(2, _words), "a b c, d\ne, f, g", "a b c\ne, f"),
        (edits.shorten(1, _words), "", ""),
        (edits.write({"a.png": "new"}), "old", "new"),
        (edits.write({"b.png": "new"}), "old", "old"),
    ],
)
def test_edits(edit: Edit, text: str, expected: str) -> None:
    assert done(edit, text) == expected


def test_several_lines_are_several_captions() -> None:
    assert done(edits.add("x"), "a, b\n\nc\n") == "a, b, x\n\nc, x\n"
    assert done(edits.remove("a"), "a, b\nb, a") == "b\nb"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("00012-3-red_hat, smile.png", "red hat, smile"),
        ("5_good/a cat on a mat.webp", "a cat on a mat"),
        ("0012 - 1girl, 2023.jpg", "1girl, 2023"),
        ("1girl.png", "1girl"),
        ("v1.5 test.png", "v1.5 test"),
        ("00012-3.png", ""),
    ],
)
def test_a_name_becomes_the_caption_where_there_is_none(name: str, expected: str) -> None:
    assert done(edits.from_names(), "", name) == expected
    assert done(edits.from_names(), " ,\n", name) == (expected or " ,\n")
    assert done(edits.from_names(), "own", name) == "own"


@pytest.mark.parametrize("how", edits.SEARCHES)
def test_a_search_that_finds_nothing_changes_nothing(how: str) -> None:
    text = " a ,b,, b,\r\n"
    for whole in (True, False):
        assert done(edits.replace("zzz", "y", how, whole_tags=whole), text) == text


def test_problems_are_said() -> None:
    with pytest.raises(EditProblem, match="at least one tag"):
        edits.add(" , ")
    with pytest.raises(EditProblem, match="search field is empty"):
        edits.replace("", "x")
    with pytest.raises(EditProblem, match="no regular expression"):
        edits.replace("(", "x", "regex")
    with pytest.raises(EditProblem, match="none of literal"):
        edits.replace("a", "x", "fuzzy")
    with pytest.raises(EditProblem, match="none of alphabet, frequency, length"):
        edits.sort("score")
    with pytest.raises(EditProblem, match="at least 1 token"):
        edits.shorten(0, _words)
    with pytest.raises(EditProblem, match="none of end, start"):
        edits.add("a", "middle")
    with pytest.raises(EditProblem, match="cannot be put in place"):
        done(edits.replace("a", r"\7", "regex", whole_tags=False), "a")


def test_a_regular_expression_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "_PATIENCE", 0.05)
    with pytest.raises(EditProblem, match="takes too long"):
        done(edits.replace(r"(a|aa)+$", "x", "regex", whole_tags=False), "a" * 60 + "b")
