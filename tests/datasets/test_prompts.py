"""From captions to prompts, each operation and their order."""

from __future__ import annotations

from collections import Counter

import pytest

from extensions_lib.datasets.options import CaptionOptions, varying
from extensions_lib.datasets.prompts import prompt_of, variants


def prompts(caption: str | None, count: int = 200, epoch: int = 0, **options: object) -> list[str]:
    """The prompts of many items."""
    settings = CaptionOptions(**options)  # type: ignore[arg-type]
    return [prompt_of(caption, settings, seed=1, epoch=epoch, item=item) for item in range(count)]


def one(caption: str | None, class_tokens: str | None = None, **options: object) -> str:
    settings = CaptionOptions(**options)  # type: ignore[arg-type]
    return prompt_of(caption, settings, class_tokens, seed=1, epoch=0, item=0)


def test_a_caption_is_the_prompt_as_it_stands() -> None:
    assert one("a cat,  on a (mat:1.2), {x|y}") == "a cat,  on a (mat:1.2), {x|y}"
    assert one("\n first \nsecond") == "first"
    assert one(None, "sls 1girl") == "sls 1girl"
    assert one("", "sls 1girl") == ""
    assert one(None) == ""


def test_prefix_and_suffix() -> None:
    around = {"caption_prefix": "sls,", "caption_suffix": "best quality"}
    assert one("a cat", **around) == "sls, a cat best quality"
    assert one("", **around) == "sls, best quality"
    lines = set(prompts("one\ntwo", enable_wildcard=True, **around))
    assert lines == {"sls, one best quality", "sls, two best quality"}


def test_the_prefix_is_among_the_kept_tags_and_is_dropped_with_the_rest() -> None:
    found = prompts("a, b, c", caption_prefix="p,", keep_tokens=1, shuffle_caption=True)
    assert all(each.startswith("p, ") for each in found) and len(set(found)) == 6
    assert "" in prompts("a", caption_prefix="p", caption_dropout_rate=0.2)


def test_dropout_of_the_whole() -> None:
    empty = prompts("a cat", 4000, caption_dropout_rate=0.25).count("")
    assert 850 < empty < 1150
    assert prompts("a cat", caption_dropout_rate=1.0) == [""] * 200
    thirds = [
        prompts("a cat", 1, epoch=epoch, caption_dropout_every_n_epochs=3)[0] for epoch in range(6)
    ]
    assert thirds == ["a cat", "a cat", "", "a cat", "a cat", ""]


def test_wildcards() -> None:
    found = Counter(prompts("{red|blue} {cat|dog|}", 3000, enable_wildcard=True))
    assert set(found) == {f"{a} {b}" for a in ("red", "blue") for b in ("cat", "dog", "")}
    assert min(found.values()) > 400
    assert one("{{a|b}} {c}", enable_wildcard=True) == "{a|b} c"
    assert set(prompts("x\n\n{y|z}", enable_wildcard=True)) == {"x", "y", "z"}


def test_shuffle_keeps_the_first_tags() -> None:
    found = prompts("a, b, c, d, e", 1000, shuffle_caption=True, keep_tokens=2)
    assert set(found) == {
        f"a, b, {x}, {y}, {z}" for x in "cde" for y in "cde" for z in "cde" if len({x, y, z}) == 3
    }
    assert one("a,b,, c ,", shuffle_caption=True, keep_tokens=3) == "a, b, c"


def test_the_separator_goes_before_the_number_of_kept_tags() -> None:
    text = "a, b ||| c, d ||| e, f"
    options = {"keep_tokens_separator": "|||", "keep_tokens": 1}
    found = set(prompts(text, shuffle_caption=True, **options))
    assert found == {"a, b, c, d, e, f", "a, b, d, c, e, f"}
    assert one(text, **options) == "a, b, c, d, e, f"  # it never stays in the prompt
    some = set(prompts(text, caption_tag_dropout_rate=0.5, **options))
    assert some == {"a, b, c, d, e, f", "a, b, c, e, f", "a, b, d, e, f", "a, b, e, f"}


def test_dropout_of_tags() -> None:
    found = prompts("k, " + ", ".join("abcdefgh"), 500, keep_tokens=1, caption_tag_dropout_rate=0.3)
    kept = [each.split(", ")[1:] for each in found]
    assert all(each.startswith("k") for each in found)
    assert all(each == sorted(each) for each in kept)  # in their order
    assert 0.66 < sum(map(len, kept)) / 4000 < 0.74


@pytest.mark.parametrize(
    ("step", "tags"), [(0, "k, a"), (4, "k, a"), (5, "k, a, b"), (10, "k, a, b, c"), (20, "all")]
)
def test_warm_up(step: int, tags: str) -> None:
    # of 5 tags, from 1 to 5 in 20 steps: 1 + floor(step · 4 / 20)
    options = CaptionOptions(keep_tokens=1, token_warmup_step=20, token_warmup_min=1)
    share = CaptionOptions(keep_tokens=1, token_warmup_step=0.2, token_warmup_min=1)
    wanted = "k, a, b, c, d, e" if tags == "all" else tags
    for each in (options, share):
        got = prompt_of("k, a, b, c, d, e", each, seed=0, epoch=0, item=0, step=step, steps=100)
        assert got == wanted


def test_warm_up_comes_before_the_shuffle_and_the_dropout() -> None:
    settings = CaptionOptions(
        token_warmup_step=10, token_warmup_min=2, shuffle_caption=True, caption_tag_dropout_rate=0.1
    )
    found = {
        tag
        for item in range(100)
        for tag in prompt_of("a, b, c, d", settings, seed=0, epoch=0, item=item).split(", ")
    }
    assert found <= {"a", "b", ""}


def test_the_secondary_separator_keeps_tags_together_until_the_end() -> None:
    found = set(prompts("a;;;b, c", secondary_separator=";;;", shuffle_caption=True))
    assert found == {"a,b, c", "c, a,b"}
    assert one("a;;;b", secondary_separator=";;;") == "a,b"


def test_another_separator_of_tags() -> None:
    found = set(prompts("a, b; c", caption_separator=";", shuffle_caption=True))
    assert found == {"a, b, c", "c, a, b"}


def test_prompts_follow_from_seed_epoch_and_item() -> None:
    options = CaptionOptions(shuffle_caption=True)
    text = ", ".join("abcdefghij")

    def of(seed: int, epoch: int, item: int) -> str:
        return prompt_of(text, options, seed=seed, epoch=epoch, item=item)

    assert of(3, 4, 5) == of(3, 4, 5) == "b, h, i, g, f, d, e, j, a, c"  # on every system
    assert len({of(3, 4, 5), of(3, 4, 6), of(3, 5, 5), of(4, 4, 5)}) == 4


def test_variants_are_all_that_a_prompt_can_be() -> None:
    settings = CaptionOptions(caption_dropout_rate=0.5, caption_prefix="p")
    assert not varying(settings)
    assert variants("a", settings) == ["p a", ""]
    assert set(prompts("a", caption_dropout_rate=0.5, caption_prefix="p")) == {"p a", ""}
    assert variants(None, CaptionOptions(), "girl") == ["girl"]
    assert variants("", CaptionOptions(caption_dropout_every_n_epochs=2)) == [""]
