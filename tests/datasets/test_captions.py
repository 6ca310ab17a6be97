"""Captions: bytes, tags, and what becomes of one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extensions_lib.datasets import captions
from extensions_lib.datasets.captions import Caption, CaptionProblem, fold, retag, split

TEXTS = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"))


@given(st.binary(max_size=60))
def test_bytes_come_back_or_are_refused_by_name(raw: bytes) -> None:
    try:
        caption = captions.decoded(raw, "a.txt")
    except CaptionProblem as problem:
        assert str(problem).startswith("a.txt: ")
    else:
        assert caption.encoded == raw


@given(TEXTS, st.booleans())
def test_any_text_is_read_as_it_was_written(text: str, bom: bool) -> None:
    again = captions.decoded(Caption(text, bom).encoded, "a.txt")
    assert again.encoded == Caption(text, bom).encoded


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("1girl, hat".encode("utf-16"), "UTF-16"),
        ("1girl, café".encode("latin-1"), "not UTF-8 (byte 10)"),
        (b"\xef\xbb\xbfcaf\xe9", "not UTF-8 (byte 6)"),
        (b"\0\0\0\0", "zero bytes"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    with pytest.raises(CaptionProblem) as problem:
        captions.read(path)
    assert said in str(problem.value) and str(path) in str(problem.value)


def test_what_is_no_caption(tmp_path: Path) -> None:
    assert captions.read(tmp_path / "none.txt") is None
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "long.txt").write_bytes(b"a" * (captions.MOST_BYTES + 1))
    with pytest.raises(CaptionProblem, match=r"folder\.txt: cannot be read"):
        captions.read(tmp_path / "folder.txt")
    with pytest.raises(CaptionProblem, match=r"long\.txt: has over 1 MB"):
        captions.read(tmp_path / "long.txt")


def test_line_ends_and_mark_stay() -> None:
    caption = captions.decoded(b"\xef\xbb\xbfa, b\r\nc\r\n", "a.txt")
    assert caption.rewritten("a, b\nc\n") is caption  # as a text field gives it back
    assert caption.rewritten("a\nc\n").encoded == b"\xef\xbb\xbfa\r\nc\r\n"
    assert Caption("a\nb").rewritten("a\nc").encoded == b"a\nc"


def test_which_file_is_the_caption(tmp_path: Path) -> None:
    picture = tmp_path / "a.b.png"
    assert captions.caption_path(picture) == tmp_path / "a.b.txt"
    (tmp_path / "a.b.caption").write_text("x")
    assert captions.caption_path(picture) == tmp_path / "a.b.caption"
    (tmp_path / "a.b.txt").write_text("y")
    assert captions.caption_path(picture) == tmp_path / "a.b.txt"
    assert captions.caption_path(picture, ".caption") == tmp_path / "a.b.caption"


def test_names_by_template(tmp_path: Path) -> None:
    picture = tmp_path / "a.b.png"
    picture.write_bytes(b"abc")
    named = {
        "[name].[output_extension]": "a.b.txt",
        "[name]_[extension].[output_extension]": "a.b_png.txt",
        "[hash:md5].[output_extension]": "900150983cd24fb0d6963f7d28e17f72.txt",
        "tags of [name].txt": "tags of a.b.txt",
    }
    for template, name in named.items():
        assert captions.output_path(template, picture) == tmp_path / name
    assert (
        captions.output_path("[name].[output_extension]", picture, ".caption").suffix == ".caption"
    )
    wrong = [
        "[nam].txt",
        "[hash:shake_128].txt",
        "[hash].txt",
        "../[name].txt",
        "",
        "..",
        "[name].png",
    ]
    for template in [*wrong, "a/[name].txt", "a\\b.txt", "a:b.txt"]:
        with pytest.raises(CaptionProblem):
            captions.output_path(template, picture)
    with pytest.raises(CaptionProblem, match="cannot be read"):
        captions.output_path("[hash:md5].txt", tmp_path / "gone.png")


def test_copies_get_free_names(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert captions.copy_path(path).name == "a.txt.bak"
    (tmp_path / "a.txt.bak").touch()
    assert captions.copy_path(path).name == "a.txt.bak2"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Facial_Hair", "facial hair"),
        ("(facial hair:1.2)", "facial hair"),
        (r"saber \(fate\)", "saber_(fate)"),
        ("  long   hair ", "long hair"),
    ],
)
def test_spellings_of_one_tag(one: str, other: str) -> None:
    assert fold(one) == fold(other)


def test_other_tags_stay_apart() -> None:
    kaomoji = ["^_^", ">_<", "o_o", ":3", "(o)_(o)", "0_0", "_"]
    assert len({fold(tag) for tag in kaomoji}) == len(kaomoji)


def test_retag_touches_only_lines_that_change() -> None:
    text = "a,  b , c\r\n\r\n  d,e\r\nf,,g,"
    assert retag(text, lambda tags: tags) == text
    assert retag(text, lambda tags: [t for t in tags if t != "e"]) == "a,  b , c\r\n\r\nd\r\nf,,g,"
    assert retag(text, lambda tags: [*tags, "x"]) == "a, b, c, x\r\n\r\nd,e,x\r\nf,g,x"
    assert retag("\n", lambda tags: [*tags, "x"]) == "x\n"
    assert retag("", lambda tags: []) == ""


@given(st.lists(st.text("ab_ ,\r\n", max_size=6)), st.sampled_from(["a", "b b", "c_d"]))
def test_an_added_tag_can_be_removed(parts: list[str], tag: str) -> None:
    text = ",".join(parts)
    added = retag(text, lambda tags: [*tags, "new"])
    removed = retag(added, lambda tags: [t for t in tags if t != "new"])
    assert split(removed) == split(text)
    assert text.count("\n") == removed.count("\n")


def test_what_becomes_of_an_existing_caption() -> None:
    old, new = "hat, A man, standing\n", "Hat, smile, 1boy, smile"
    made = {
        "overwrite": new,
        "copy": new,
        "keep": None,
        "append": "hat, A man, standing, smile, 1boy\n",
        "prepend": "Hat, smile, 1boy, A man, standing\n",
    }
    for existing, text in made.items():
        assert captions.combined(old, new, existing) == text
        assert captions.combined(None, new, existing) == new
        assert captions.combined(" \n", new, existing) == new
    with pytest.raises(CaptionProblem, match="choose"):
        captions.combined(old, new, "ask")
    with pytest.raises(CaptionProblem, match="none of"):
        captions.combined(old, new, "merge")
    assert set(made) | {"ask"} == set(captions.EXISTING)


def test_a_name_that_fits_one_suffix_only(tmp_path: Path) -> None:
    picture = tmp_path / f"{'a' * 251}.png"
    assert captions.caption_path(picture) == picture.with_suffix(".txt")
    assert captions.read(picture.with_suffix(".caption")) is None
    assert captions.copy_path(picture.with_suffix(".txt")).name.endswith(".txt.bak")


def test_brackets_of_all_kinds_may_be_escaped() -> None:
    assert fold(r"a \[b\] \(c\)") == fold("a [b] (c)")
    assert fold(r"\\m/") == fold(r"\m/")
