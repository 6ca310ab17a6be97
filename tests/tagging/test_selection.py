"""Selection: from scores to tags, by the properties that every caption must have."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions_lib.datasets.captions import fold
from extensions_lib.options import OptionProblem, checked
from extensions_lib.prompts.attention import parse_attention
from extensions_lib.tagging.scores import sparse
from extensions_lib.tagging.selection import (
    KAOMOJI,
    MCUT_FLOOR,
    Selected,
    Selection,
    Selector,
    resolved,
    select,
    text,
)


class Label(NamedTuple):
    name: str
    category: str


LABELS = (
    Label("safe", "rating"),
    Label("explicit", "rating"),
    Label("1girl", "general"),
    Label("long_hair", "general"),
    Label("^_^", "general"),
    Label("smile_(mouth)", "general"),
    Label("hat", "general"),
    Label("saber_(fate)", "character"),
    Label("highres", "meta"),
)
SCORES = np.array([0.9, 0.1, 0.97, 0.8, 0.6, 0.5, 0.3, 0.9, 0.99], np.float32)


def caption(values: np.ndarray = SCORES, **options: object) -> str:
    made = checked(Selection, options)
    return text(select(LABELS, values, made), made)


def names(found: Selected) -> list[str]:
    return [tag.text for tag in found.tags]


def test_defaults() -> None:
    found = select(LABELS, SCORES, Selection())
    assert found.rating == ("safe", pytest.approx(0.9))
    assert names(found) == ["1girl", "saber (fate)", "long hair", "^_^", "smile (mouth)"]
    assert found.tags[1].category == "character"


def test_thresholds_by_category() -> None:
    assert caption(general=0.9) == "1girl, saber (fate)"
    assert caption(character=0.95, general=0.75) == "1girl, long hair"
    assert "highres" in caption(categories="general,meta").split(", ")
    assert "highres" not in caption(categories="general,meta", thresholds="meta=0.995")
    assert caption(categories="rating,character") == "safe, saber (fate)"


def test_a_model_gives_its_own_thresholds_where_none_is_chosen() -> None:
    own = {"general": 0.7, "character": 0.95, "meta": 0.2}
    assert names(select(LABELS, SCORES, Selection(), thresholds=own)) == ["1girl", "long hair"]
    chosen = Selection(character=0.85)
    assert resolved(chosen, own) == Selection(general=0.7, character=0.85)
    assert names(select(LABELS, SCORES, chosen, thresholds=own))[1] == "saber (fate)"


def test_lists() -> None:
    assert caption(exclude="Long Hair, smile_(mouth)") == "1girl, saber (fate), ^_^"
    assert caption(exclude=r"smile \(mouth\),^_^") == "1girl, saber (fate), long hair"
    assert caption(keep="hat", max_tags=1) == "1girl, hat"
    assert caption(keep="hat", keep_from=0.4, max_tags=1) == "1girl"
    assert caption(keep="hat", exclude="hat", general=0.9) == "1girl, saber (fate), hat"
    assert (
        caption(replace="long hair -> hair, 1girl -> ") == "saber (fate), hair, ^_^, smile (mouth)"
    )
    assert caption(replace="long_hair->Smith_x", general=0.75) == "1girl, saber (fate), Smith_x"


def test_two_tags_that_become_one_are_written_once() -> None:
    assert caption(replace="1girl -> a, long_hair -> a", general=0.75) == "a, saber (fate)"


def test_globs_and_regexes_only_when_asked_for() -> None:
    assert caption(exclude="*hair*") == caption()
    assert caption(exclude="*hair,*_(*)", match="glob") == "1girl, ^_^"
    assert caption(exclude=r".*\(.*\)|\^.*", match="regex") == "1girl, long hair"
    assert "short hair" in caption(replace=r"long (.+) -> short \1", match="regex")
    assert caption(exclude="girl", match="regex") == caption()  # whole tags


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"match": "regex", "exclude": "(hair"}, "'(hair' is no regex"),
        ({"match": "regex", "replace": r"(hat|1girl) -> \2"}, "cannot be filled in"),
        ({"replace": "hat"}, "write it as old -> new"),
        ({"replace": " -> hat"}, "write it as old -> new"),
        ({"thresholds": "artist"}, "as artist=0.5"),
        ({"thresholds": "artist=2"}, "as artist=0.5"),
        ({"general": 1.1}, "general: takes"),
    ],
)
def test_what_cannot_be_read_is_named(options: dict, said: str) -> None:
    with pytest.raises(OptionProblem) as raised:
        caption(**options)
    assert said in str(raised.value)


def test_trigger_and_additional() -> None:
    assert caption(trigger="smith_v1", additional="photo (old)", general=0.95, character=1) == (
        "smith_v1, 1girl, photo (old)"
    )
    assert caption(trigger="Hat", additional="1GIRL", general=0.2, character=1).count("hat") == 0
    assert caption(np.zeros(9, np.float32), trigger="smith") == "smith"
    assert caption(np.zeros(9, np.float32)) == ""


def test_spelling() -> None:
    assert caption(spaces=False).startswith("1girl, saber_(fate), long_hair, ^_^")
    assert "^ ^" in caption(kaomoji="")
    assert r"saber \(fate\)" in caption(escape=True)
    assert caption(weighted=True, general=0.7) == (
        r"(1girl:0.97), (saber \(fate\):0.90), (long hair:0.80)"
    )


def test_order() -> None:
    assert caption(sort="alphabet") == "1girl, ^_^, long hair, saber (fate), smile (mouth)"
    assert caption(sort="model") == "1girl, long hair, ^_^, smile (mouth), saber (fate)"
    chosen = Selection(sort="frequency")
    found = select(LABELS, SCORES, chosen, {"^_^": 9, "long hair": 4})
    assert names(found)[:3] == ["^_^", "long hair", "1girl"]


def test_mcut_cuts_at_the_largest_gap_with_a_floor_for_characters() -> None:
    labels = [Label(f"g{i}", "general") for i in range(4)] + [
        Label(f"c{i}", "character") for i in (0, 1)
    ]
    low = np.array([0.12, 0.10, 0.03, 0.02, 0.13, 0.01], np.float32)
    assert names(select(labels, low, Selection(mcut=True))) == ["g0", "g1"]
    high = np.array([0.9, 0.8, 0.2, 0.1, 0.3, 0.01], np.float32)
    assert names(select(labels, high, Selection(mcut=True))) == ["g0", "g1", "c0"]
    assert MCUT_FLOOR == 0.15


# --- properties -------------------------------------------------------------------------------

scores = st.lists(st.integers(0, 1000), min_size=9, max_size=9).map(
    lambda many: np.array(many, np.float32) / 1000
)
some_labels = st.lists(st.sampled_from([label.name for label in LABELS]), max_size=4).map(tuple)
selections = st.builds(
    Selection,
    general=st.none() | st.integers(0, 100).map(lambda n: n / 100),
    character=st.none() | st.integers(0, 100).map(lambda n: n / 100),
    mcut=st.booleans(),
    max_tags=st.none() | st.integers(1, 9),
    exclude=some_labels,
    keep=some_labels,
    sort=st.sampled_from(["score", "alphabet", "model"]),
    spaces=st.booleans(),
    trigger=st.sampled_from(["", "smith"]),
)


@given(scores, selections)
def test_the_kept_form_of_scores_selects_the_same(values: np.ndarray, selection: Selection) -> None:
    """Up to the rounding of half floats, and what lies below the floor."""
    values = values.astype(np.float16).astype(np.float32)
    values[values < 0.01] = 0
    assert select(LABELS, sparse(values), selection) == select(LABELS, values, selection)


@given(scores, selections, st.integers(0, 100))
def test_a_higher_threshold_only_takes_away(
    values: np.ndarray, selection: Selection, more: int
) -> None:
    import dataclasses

    low = dataclasses.replace(selection, mcut=False, max_tags=None)
    least = resolved(low, {})
    assert least.general is not None
    high = dataclasses.replace(least, general=max(least.general, more / 100))
    tags = names(select(LABELS, values, low))
    kept = names(select(LABELS, values, high))
    assert kept == [tag for tag in tags if tag in kept]


@given(scores, selections)
def test_every_caption(values: np.ndarray, selection: Selection) -> None:
    found = select(LABELS, values, selection)
    texts = names(found)
    assert len({each.casefold() for each in texts}) == len(texts)
    own = [tag for tag in found.tags if tag.category not in ("trigger", "additional")]
    keep = {fold(each) for each in selection.keep}
    exclude = {fold(each) for each in selection.exclude} - keep
    assert not {fold(tag.text) for tag in own} & exclude
    if selection.max_tags is not None:
        assert sum(fold(tag.text) not in keep for tag in own) <= selection.max_tags
    for label, value in zip(LABELS, values, strict=True):
        if fold(label.name) in keep and value >= selection.keep_from and value > 0:
            assert fold(label.name) in {fold(each) for each in texts}
    if selection.trigger:
        assert texts[0] == selection.trigger
    if selection.sort == "score":
        assert [tag.score for tag in own] == sorted((tag.score for tag in own), reverse=True)


@given(
    st.lists(
        st.text(st.sampled_from("ab_()[]\\:^. 1"), min_size=1, max_size=8).filter(
            lambda name: name.strip("_ ")
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda name: fold(f"x{name}x"),
    )
)
@settings(max_examples=300)
def test_weighted_captions_read_back_as_they_were_meant(tags: list[str]) -> None:
    labels = [Label(f"x{tag}x", "general") for tag in tags]
    values = np.linspace(0.9, 0.5, len(tags), dtype=np.float32)
    chosen = Selection(weighted=True)
    found = select(labels, values, chosen)
    read = parse_attention(text(found, chosen))
    assert "".join(each for each, _ in read) == ", ".join(names(found))
    weights = [weight for piece, weight in read if weight != 1.0]
    assert weights == pytest.approx([round(float(value), 2) for value in values], abs=0.011)


@given(st.sampled_from(KAOMOJI))
def test_faces_keep_their_underscores(face: str) -> None:
    found = select([Label(face, "general")], np.ones(1, np.float32), Selection())
    assert names(found) == [face]


def test_ten_thousand_captions_need_no_labels_list_again() -> None:
    """A selector is made once; a thousand of its captions are those of the plain function."""
    labels = [Label(f"tag_{i}", "general") for i in range(2000)]
    draw = np.random.default_rng(0)
    selector = Selector(labels, Selection(general=0.5))
    for _ in range(20):
        values = draw.random(2000, np.float32) ** 8
        expected = [f"tag {i}" for i in np.argsort(-values, kind="stable") if values[i] >= 0.5]
        assert names(selector.select(values)) == expected
        assert re.fullmatch(r"tag \d+", expected[0])


def test_a_category_that_there_is_none_of_is_said() -> None:
    assert caption(categories="Character") == "saber (fate)"
    assert caption(categories="character", thresholds="Character=0.95") == ""
    assert caption(categories="general,artist") == caption(categories="general")
    with pytest.raises(OptionProblem, match="'generl' is none; is it general"):
        caption(categories="generl")
    with pytest.raises(OptionProblem, match="'zzz' is none; there are artist, "):
        caption(thresholds="zzz=0.5")
    own = (Label("noir", "style"),)
    styled = checked(Selection, {"categories": "style"})
    assert names(select(own, np.array([0.9], np.float32), styled)) == ["noir"]
