"""Rules: what they make of captions, and the file they are kept in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extensions_lib.datasets import rules
from extensions_lib.datasets.filters import FilterProblem
from extensions_lib.datasets.rules import Rule, RuleFile, RuleProblem, Rules


def after(text: str, *some: Rule, name: str = "a.png") -> str:
    return Rules(some).applied(text, name)


SMITH = Rule(tags=("1boy", "facial hair"), add=("Smith",))


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        (SMITH, "solo, 1boy, hat, Facial_Hair, smile", "solo, Smith, hat, smile"),
        (SMITH, "solo, 1boy, hat", "solo, 1boy, hat"),
        (SMITH, "Smith, 1boy, facial hair", "Smith"),
        (Rule(tags=("1boy",), add=("Smith",), place="start"), "a, 1boy", "Smith, a"),
        (Rule(tags=("1boy",), add=("Smith",), place="end"), "1boy, a", "a, Smith"),
        (Rule(tags=("a",), keep=True, add=("x",)), "b, a, c", "b, x, a, c"),
        (Rule(tags=("* hair", "* eyes"), match="any"), "1girl, red hair, blue_eyes", "1girl"),
        (Rule(tags=("* hair", "1girl"), add=("x",)), "red hair, 1girl", "x"),
        (Rule(tags=("* hair", "1girl"), add=("x",)), "1girl", "1girl"),
        (Rule(tags=("a", "b"), match="any", add=("x",)), "c, b", "c, x"),
        (Rule(tags=("a", "b"), match="none", add=("x",), place="end"), "c", "c, x"),
        (Rule(tags=("a", "b"), match="none", add=("x",)), "c, b", "c, b"),
        (Rule(tags=("a",), unless=("b*",), add=("x",)), "a, bb", "a, bb"),
        (Rule(tags=("a",), drop=("d", "e"), keep=True), "a, d, f", "a, f"),
        (Rule(add=("g1",), place="end"), "", "g1"),
        (Rule(add=("g1",), match="any"), "a", "g1, a"),
        (Rule(tags=("a", " "), add=("x, y",)), "a", "x, y"),
        (Rule(tags=("a",), add=("x",), on=False), "a", "a"),
        (Rule(tags=("a",)), "a\r\nb, a", "\r\nb"),
    ],
)
def test_one_rule(rule: Rule, text: str, expected: str) -> None:
    assert after(text, rule) == expected


def test_scopes() -> None:
    folder = Rule(add=("x",), scope="folder", where=("sub/deep", "other/"))
    chosen = Rule(add=("x",), scope="pictures", where=("sub/a.png",))
    passing = Rule(add=("x",), scope="filter", where=("b AND NOT name:sub/*",))
    for rule, name, hit in [
        (folder, "sub/deep/a.png", True),
        (folder, "sub/deeper/a.png", False),
        (folder, "other/more/a.png", True),
        (folder, "a.png", False),
        (Rule(add=("x",), scope="folder", where=("",)), "a.png", True),
        (chosen, "sub/a.png", True),
        (chosen, "a.png", False),
        (passing, "a.png", True),
        (passing, "sub/a.png", False),
    ]:
        assert after("b", rule, name=name) == ("x, b" if hit else "b"), (rule, name)


def test_rules_go_in_order() -> None:
    one, two = Rule(tags=("a",), add=("b",)), Rule(tags=("b",), add=("c",))
    assert after("a", one, two) == "c"
    assert after("a", two, one) == "b"


@given(st.lists(st.sampled_from(["1boy", "facial hair", "Smith", "a", "b"]), max_size=6))
def test_a_rule_done_twice_is_done_once(tags: list[str]) -> None:
    group = Rule(add=("g",), drop=("b",))
    once = after(", ".join(tags), SMITH, group)
    assert after(once, SMITH, group) == once


def test_titles_name_the_change() -> None:
    assert Rules([SMITH]).edit().title == "Rule to add Smith and drop 1boy, facial hair"
    assert Rules([Rule(name="Smith"), Rule(on=False)]).edit().title == "Rule Smith"
    assert Rules([SMITH, SMITH]).edit().title == "Apply 2 rules"


def test_the_file_can_be_read_and_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    content = {
        "comment": "mine",
        "rules": [
            {"name": "Smith", "tags": ["1boy", "facial hair"], "add": "Smith", "colour": "red"},
            {"match": "any", "drop": ["hat"], "scope": "filter", "where": ["a OR b"], "on": False},
        ],
    }
    path = tmp_path / rules.FILE
    path.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    kept = rules.load(tmp_path)
    assert kept.rules[0] == Rule(name="Smith", tags=("1boy", "facial hair"), add=("Smith",))
    assert kept.rules[1].where == ("a OR b",) and not kept.rules[1].on
    rules.save(tmp_path, kept)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["comment"] == "mine"
    assert written["rules"][0]["colour"] == "red"
    assert written["rules"][0]["add"] == ["Smith"]
    assert "scope" not in written["rules"][0]
    again = rules.load(tmp_path)
    assert again == kept and again.rules[0].extra == {"colour": "red"}


@given(
    st.builds(
        Rule,
        name=st.text(max_size=5),
        tags=st.lists(st.text(max_size=5), max_size=3).map(tuple),
        match=st.sampled_from(rules.MATCHES),
        add=st.lists(st.text(max_size=5), max_size=3).map(tuple),
        keep=st.booleans(),
        scope=st.sampled_from(["all", "folder", "pictures"]),
        where=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    )
)
def test_every_rule_comes_back(tmp_path_factory: pytest.TempPathFactory, rule: Rule) -> None:
    folder = tmp_path_factory.mktemp("rules")
    rules.save(folder, RuleFile((rule,)))
    assert rules.load(folder).rules == (rule,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", 'holds no {"rules"'),
        ('{"rules": {}}', 'holds no {"rules"'),
        ('{"rules": [3]}', "rule 1 is no object"),
        ('{"rules": [{}, {"tags": 3}]}', "rule 2: 'tags' takes a list of texts"),
        ('{"rules": [{"keep": "yes"}]}', "'keep' takes true or false"),
        ('{"rules": [{"match": "some"}]}', "it takes all, any, none"),
        ('{"rules": [{"scope": "filter"}]}', "takes one filter"),
    ],
)
def test_a_wrong_file_is_said_and_left(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / rules.FILE
    path.write_text(text)
    with pytest.raises(RuleProblem) as problem:
        rules.load(tmp_path)
    assert said in str(problem.value) and str(path) in str(problem.value)
    assert path.read_text() == text


def test_no_file_is_no_rules(tmp_path: Path) -> None:
    assert rules.load(tmp_path) == RuleFile()


def test_a_wrong_filter_is_said_before_anything_is_done() -> None:
    with pytest.raises(FilterProblem, match="not closed"):
        Rules([Rule(scope="filter", where=("(a",))])
