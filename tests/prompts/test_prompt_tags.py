"""Network tags: what is one, what it asks for, and what is wrong with it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions_lib.prompts.blocks import read_blocks
from extensions_lib.prompts.tags import NetworkRequest, network_requests, split_tags, with_weight


def asked(prompt: str) -> list[tuple]:
    return [(r.kind, r.name, r.te, r.unet, r.dyn) for r in network_requests(prompt)[1]]


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:a>", ("lora", "a", 1.0, 1.0, None)),
        ("<lora:a:0.5>", ("lora", "a", 0.5, 0.5, None)),
        ("<lora:a:0.5:0>", ("lora", "a", 0.5, 0.0, None)),
        ("<lora:a:0.5:1:8>", ("lora", "a", 0.5, 1.0, 8)),
        ("<lora:a:te=0.25>", ("lora", "a", 0.25, 0.25, None)),
        ("<lora:a:unet=0.25>", ("lora", "a", 1.0, 0.25, None)),
        ("<lora:a:dyn=4:unet=2:te=-1>", ("lora", "a", -1.0, 2.0, 4)),
        ("<lora:a:0.5:te=0.75>", ("lora", "a", 0.75, 0.75, None)),
        ("<lora:a:te=0.75:0.5>", ("lora", "a", 0.75, 0.75, None)),
        ("<lyco:sub/dir a=b:.5>", ("lora", "sub/dir a=b", 0.5, 0.5, None)),
        ("<hypernet:h>", ("hypernet", "h", 1.0, 1.0, None)),
        ("<hypernet:h:0.3>", ("hypernet", "h", 0.3, 0.3, None)),
        ("<lllite:c>", ("lllite", "c", 1.0, 1.0, None)),
        ("<lllite:c:0.3>", ("lllite", "c", 0.3, 0.3, None)),
        ("<lllite:c:weight=0.3:start=2>", ("lllite", "c", 0.0, 0.0, None)),
        ("<other:x:what:ever=1>", ("other", "x", 1.0, 1.0, None)),
        ("<lora:<b:0.5>", ("lora", "<b", 0.5, 0.5, None)),
    ],
)
def test_what_a_tag_asks_for(tag: str, expected: tuple) -> None:
    text, requests, problems = network_requests(f"a {tag}b")
    assert (text, problems) == ("a b", [])
    assert asked(tag) == [expected]
    assert requests[0].tag == tag


def test_tags_keep_their_order_and_repeat() -> None:
    prompt = "<lora:a:1>x<hypernet:h><lora:a:2>"
    assert [(kind, te) for kind, _, te, _, _ in asked(prompt)] == [
        ("lora", 1.0),
        ("hypernet", 1.0),
        ("lora", 2.0),
    ]
    assert network_requests(prompt)[0] == "x"


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("<lora:a:strong>", "'strong' is not a number"),
        ("<lora:a:>", "'' is not a number"),
        ("<lora:a:1:x>", "unet weight 'x'"),
        ("<lora:a:te=x>", "te weight 'x'"),
        ("<lora:a:x:te=1>", "'x' is not a number"),
        ("<lora:a:nan>", "not a finite number"),
        ("<lora:a:1:unet=-inf>", "not a finite number"),
        ("<lora:a:1@0.5,x@1>", "'x' is not a number"),
        ("<lora:a:1@0.5,0@0.2>", "do not rise"),
        ("<lora:a:1@-1>", "below 0"),
        ("<lora:a:1@1@2>", "more than one position"),
        ("<lora::1>", "the name is missing"),
        ("<hypernet:h:x>", "weight 'x' is not a number"),
        ("<lllite:c:x>", "weight 'x' is not a number"),
    ],
)
def test_a_bad_weight_leaves_out_that_tag_alone(tag: str, says: str) -> None:
    text, requests, problems = network_requests(f"a {tag}<lora:good:0.5>")
    assert text == "a "
    assert requests == [NetworkRequest("lora", "good", 0.5, 0.5, None, "<lora:good:0.5>")]
    assert [(p.tag, p.start) for p in problems] == [(tag, 2)]
    assert problems[0].message.startswith(tag)
    assert says in problems[0].message


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("<lora:a:0.5:0.5:x>", "dyn 'x'"),
        ("<lora:a:0.5:dyn=0>", "dyn '0'"),
        ("<lora:a:0.5:dyn=1.5>", "dyn '1.5'"),
        ("<lora:a:0.5:lbw=XYZ>", "no preset 'XYZ'"),
        ("<lora:a:0.5:lbw=1,2,3>", "3 block weights are given"),
        ("<lora:a:0.5:lbw=" + ",".join("1" * 61) + ">", "61 block weights for Flux are given"),
        ("<lora:a:0.5:lbw=1,1,1,1,1,1,1,1,1,1,1,y>", "'y' is not a number"),
        ("<lora:a:0.5:lbw=1,1,1,1,1,1,1,1,1,1,1,X>", "needs a value"),
        ("<lora:a:0.5:in=1,2>", "in has 2 weights"),
        ("<lora:a:0.5:step=5>", "not of the form 5-15"),
        ("<lora:a:0.5:stop=-1>", "below 0"),
        ("<lora:a:0.5:other=1>", "'other=1' has no meaning"),
        ("<lllite:a:0.5:lbw=MIDD>", "'lbw=MIDD' has no meaning"),
        ("<lllite:a:0.5:in=0>", "'in=0' has no meaning"),
        ("<lllite:a:0.5:hrte=1>", "'hrte=1' has no meaning"),
        ("<lllite:a:0.5:start=x>", "'x' is not a number"),
        ("<lora:a:0.5:0.5:dyn=x:7:9>", "'9' has no meaning"),
        ("<lora:a:0.5:x=1>", "'x=1' has no meaning"),
        ("<lora:a:0.5:start=9:stop=5>", "start 9 is not before stop 5"),
        ("<lora:a:0.5:start=0.6:stop=0.6>", "start 0.6 is not before stop 0.6"),
        ("<lora:a:0.5:start=0.6:stop=0>", "start 0.6 is not before stop 0"),
        ("<lora:a:0.5:step=7-7>", "start 7 is not before stop 7"),
    ],
)
def test_another_bad_argument_is_ignored_and_said(tag: str, says: str) -> None:
    _, requests, problems = network_requests(tag)
    assert [(r.te, r.unet) for r in requests] == [(0.5, 0.5)]
    assert any(says in p.message and tag in p.message for p in problems)


def test_sides_beside_a_list_of_blocks_are_said() -> None:
    _, (request,), (problem,) = network_requests("<lora:a:1:in=0:lbw=MIDD>")
    assert request.plan is not None and request.plan.blocks == read_blocks("MIDD")
    assert "'in=0' has no meaning" in problem.message


def test_steps_and_shares_do_not_tell_which_comes_first() -> None:
    _, (request,), problems = network_requests("<lora:a:1:start=3:stop=0.5>")
    assert not problems and request.plan is not None
    assert [request.plan.unet.at(step, 10) for step in (2, 3, 4, 5)] == [0, 1, 1, 0]


def test_a_message_is_never_as_long_as_a_tag_may_be() -> None:
    tag = "<lora:a:0.5:lbw=" + "X+" * 10_000 + ":dyn=" + "9" * 5000 + ">"
    _, (request,), problems = network_requests(tag)
    assert request.unet == 0.5
    assert len(problems) == 2 and problems[0].tag == tag
    assert all(len(p.message) < 900 and p.message.startswith(tag[:50]) for p in problems)
    assert "was ignored" in problems[0].message and "one weight in all" in problems[1].message


@pytest.mark.parametrize("text", ["<lora:>", "<lora>", "<:a>", "a < b: c", "<lora:a", "<a-b:c>"])
def test_what_is_no_tag_stays(text: str) -> None:
    assert network_requests(text) == (text, [], [])


def test_split_tags_says_where_and_what() -> None:
    text, (tag,) = split_tags("ab<lora:n:1:te=2:x=y=z>c")
    assert (text, tag.start, tag.end) == ("abc", 2, 23)
    assert (tag.kind, tag.name, tag.args, dict(tag.named)) == (
        "lora",
        "n",
        ("1", "x=y=z"),
        {"te": "2"},
    )


SOUP = st.lists(
    st.sampled_from(
        ["<", ">", "lora", ":", "a", "te=", "dyn=", "=", "1", "nan", ".5", " ", "<lora:", "lyco"]
    ),
    max_size=25,
).map("".join)


@settings(max_examples=80, deadline=None)
@given(SOUP | st.text(max_size=60))
def test_text_and_tags_make_up_the_prompt(prompt: str) -> None:
    text, tags = split_tags(prompt)
    rebuilt, position = "", 0
    for tag in tags:
        assert prompt[tag.start : tag.end] == tag.text
        gap = tag.start - len(rebuilt)
        rebuilt += text[position : position + gap] + tag.text
        position += gap
    assert rebuilt + text[position:] == prompt


@settings(max_examples=80, deadline=None)
@given(SOUP | st.text(max_size=60))
def test_each_tag_is_asked_for_or_a_problem(prompt: str) -> None:
    _, tags = split_tags(prompt)
    _, requests, problems = network_requests(prompt)
    assert {tag.text for tag in tags} == {r.tag for r in requests} | {p.tag for p in problems}
    assert all(math.isfinite(r.te) and math.isfinite(r.unet) for r in requests)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(st.text(alphabet="ab =é.-/", min_size=1).filter(str.strip), NUMBERS, NUMBERS)
def test_weights_come_back_exactly(name: str, te: float, unet: float) -> None:
    assert asked(f"<lora:{name}:{te!r}:{unet!r}>") == [("lora", name, te, unet, None)]


@pytest.mark.parametrize(
    ("prompt", "name", "expected"),
    [
        ("a <lora:x> b", None, "a <lora:x:0.3> b"),
        ("<lora:x:1:0.5> <lyco:y:te=0.2:unet=1>", None, "<lora:x:0.3> <lyco:y:0.3>"),
        ("<lora:x:1> <lora:y:1>", "y", "<lora:x:1> <lora:y:0.3>"),
        ("<lora:x:1:1:8> <lora:x:te=1:dyn=4>", "x", "<lora:x:0.3:dyn=8> <lora:x:0.3:dyn=4>"),
        ("<hypernet:h:1> <other:x:1>", None, "<hypernet:h:0.3> <other:x:1>"),
        ("<lllite:c:1:stop=0.5> <lllite:d>", None, "<lllite:c:0.3:stop=0.5> <lllite:d:0.3>"),
        ("no tag <", None, "no tag <"),
    ],
)
def test_with_weight(prompt: str, name: str | None, expected: str) -> None:
    assert with_weight(prompt, 0.3, name) == expected
