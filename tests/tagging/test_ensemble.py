"""Several taggers as one."""

from __future__ import annotations

import numpy as np
import pytest

from extensions_lib.errors import CrucibleError
from extensions_lib.tagging.ensemble import Ensemble
from extensions_lib.tagging.labels import Label

ONE = (
    Label("general", "rating"),
    Label("long_hair", "general"),
    Label("saber", "general"),
    Label("Smile", "general"),
)
OTHER = (
    Label("long hair", "general"),
    Label("saber", "character"),
    Label("general", "general"),
    Label("hat", "general"),
)
FIRST = np.array([[0.9, 0.8, 0.1, 0.4]], np.float32)
SECOND = np.array([[0.6, 0.5, 0.2, 0.3]], np.float32)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("union", [0.9, 0.8, 0.5, 0.4, 0.2, 0.3]), ("average", [0.9, 0.7, 0.3, 0.4, 0.2, 0.3])],
)
def test_tags_are_joined_by_name(how: str, expected: list[float]) -> None:
    made = Ensemble([ONE, OTHER], how)
    assert made.labels == (
        Label("general", "rating"),
        Label("long_hair", "general"),
        Label("saber", "character"),
        Label("Smile", "general"),
        Label("general", "general"),  # no rating
        Label("hat", "general"),
    )
    np.testing.assert_allclose(made.join([FIRST, SECOND])[0], expected, rtol=1e-6)


def test_one_tagger_is_itself() -> None:
    for how in ("union", "average"):
        made = Ensemble([ONE], how)
        assert made.labels == ONE
        np.testing.assert_array_equal(made.join([FIRST]), FIRST)


def test_a_name_that_a_list_has_twice_counts_once() -> None:
    made = Ensemble([(Label("a", "general"), Label("A", "general"))], "average")
    assert made.labels == (Label("a", "general"),)
    assert made.join([np.array([[0.2, 0.6]], np.float32)]).tolist() == [[pytest.approx(0.6)]]


def test_the_order_of_pictures_stays() -> None:
    values = np.random.default_rng(0).random((5, 4), np.float32)
    made = Ensemble([ONE, OTHER], "average")
    together = made.join([values, values[::-1]])
    for i in range(5):
        alone = made.join([values[i : i + 1], values[::-1][i : i + 1]])
        np.testing.assert_array_equal(together[i], alone[0])


def test_thresholds() -> None:
    each = [{"general": 0.35, "character": 0.85}, {"general": 0.25}]
    assert Ensemble([ONE, OTHER]).thresholds(each) == {"general": 0.25, "character": 0.85}
    assert Ensemble([ONE, OTHER], "average").thresholds(each)["general"] == pytest.approx(0.3)


def test_another_way_is_refused() -> None:
    with pytest.raises(CrucibleError, match="takes union or average, not 'sum'"):
        Ensemble([ONE], "sum")
