"""Infotext: the exact form, reading as the inverse, and foreign texts."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from extensions_lib.prompts.infotext import (
    legacy_tags,
    read_hashes,
    read_infotext,
    rename_by_hash,
    write_hashes,
    write_infotext,
)

SETTINGS = {
    "Steps": 20,
    "Sampler": "DPM++ 2M",
    "Schedule type": "Karras",
    "CFG scale": 7.0,
    "Seed": 1,
    "Size": "128x128",
    "Model hash": "0123456789",
    "Model": "demo",
    "VAE": None,
    "Lora hashes": "a: 0123456789ab, b: ba9876543210",
    "Tiling": "Tiling",
    "Version": "v1.10.1",
}
WRITTEN = (
    "a cat, <lora:a:1>\nNegative prompt: bad, worse\nSteps: 20, Sampler: DPM++ 2M, "
    "Schedule type: Karras, CFG scale: 7.0, Seed: 1, Size: 128x128, Model hash: 0123456789, "
    'Model: demo, Lora hashes: "a: 0123456789ab, b: ba9876543210", Tiling, Version: v1.10.1'
)


def test_the_exact_form() -> None:
    assert write_infotext("a cat, <lora:a:1>", "bad, worse", SETTINGS) == WRITTEN


def test_reading_it_back() -> None:
    expected = {key: str(value) for key, value in SETTINGS.items() if value is not None}
    del expected["Size"]
    assert read_infotext(WRITTEN) == {
        "Prompt": "a cat, <lora:a:1>",
        "Negative prompt": "bad, worse",
        "Size-1": "128",
        "Size-2": "128",
        **expected,
    }


def test_no_negative_prompt_has_no_line() -> None:
    assert write_infotext("p", "", {"Steps": 1}) == "p\nSteps: 1"
    assert write_infotext("", "", {"Steps": 1}) == "Steps: 1"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("a,b", '"a,b"'),
        ("a:b", '"a:b"'),
        ("a\nb", r'"a\nb"'),
        ('say "é", ok', r'"say \"é\", ok"'),
        ('a"b', 'a"b'),
        ("a\\b", "a\\b"),
        (True, "True"),
        ("", '""'),
        (" a", '" a"'),
        ('"a"', r'"\"a\""'),
        ((1, 2), '"(1, 2)"'),
    ],
)
def test_quoting(value: object, written: str) -> None:
    text = write_infotext("p", "", {"Key": value, "Steps": 1, "Seed": 2, "Model": "m"})
    assert text == f"p\nKey: {written}, Steps: 1, Seed: 2, Model: m"
    assert read_infotext(text)["Key"] == str(value)


def test_a_published_example() -> None:
    text = (
        "girl with an artist's beret, ((eyeshadow)), (coquettish), detailed\n"
        "Negative prompt: ugly, fat, (((deformed))), [blurry]\nsecond line\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, "
        "Model hash: 45dee52b\n"
    )
    assert read_infotext(text) == {
        "Prompt": "girl with an artist's beret, ((eyeshadow)), (coquettish), detailed",
        "Negative prompt": "ugly, fat, (((deformed))), [blurry]\nsecond line",
        "Steps": "20",
        "Sampler": "Euler a",
        "CFG scale": "7",
        "Seed": "965400086",
        "Size-1": "512",
        "Size-2": "512",
        "Model hash": "45dee52b",
    }


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        ("", "", ""),
        ("just a prompt", "just a prompt", ""),
        ("a: b, c: d", "a: b, c: d", ""),
        (" a \n\n  b\nNegative prompt:\nc", "a\n\nb", "c"),
        ("Steps: 1, Seed: 2", "Steps: 1, Seed: 2", ""),
    ],
)
def test_texts_without_settings_are_prompts(text: str, prompt: str, negative: str) -> None:
    assert read_infotext(text) == {"Prompt": prompt, "Negative prompt": negative}


def test_odd_settings() -> None:
    fields = read_infotext(
        'Steps: 1, - odd/name-x: 5 , bad" key" zz: "a" b, Seed: , Hash: "x\\q", One: "'
    )
    assert fields == {
        "Prompt": "",
        "Negative prompt": "",
        "Steps": "1",
        "odd/name-x": "5 ",
        "zz": '"a" b',
        "Hash": '"x\\q"',
        "One": '"',
    }


LINES = (
    st.text(max_size=20)
    .map(lambda text: text.replace("\n", "").strip())
    .filter(lambda text: text and not text.startswith("Negative prompt:"))
)
PROMPTS = st.lists(LINES, max_size=3).map("\n".join)
KEYS = st.from_regex(r"[A-Z][A-Za-z /]{0,8}[a-z]", fullmatch=True)
VALUES = st.text(max_size=15) | st.sampled_from(["12x34", '"', "a, b: c", "a\\", '"q"', "x\n"])


@settings(max_examples=80, deadline=None)
@given(PROMPTS, PROMPTS, st.dictionaries(KEYS, VALUES, min_size=3, max_size=8), st.sets(KEYS))
def test_reading_is_the_inverse_of_writing(
    prompt: str, negative: str, values: dict[str, str], flags: set[str]
) -> None:
    assume(all(key != value for key, value in values.items()))
    written = {**values, **{key: key for key in flags - set(values)}}
    expected = {"Prompt": prompt, "Negative prompt": negative}
    for key, value in written.items():
        if re.fullmatch(r"\d+x\d+", value):
            expected[f"{key}-1"], expected[f"{key}-2"] = value.split("x")
        else:
            expected[key] = value
    assert read_infotext(write_infotext(prompt, negative, written)) == expected


FRAGMENTS = [
    *("Steps: 20", "Size: 5x6", ", ", ",", ":", " ", '"', "\\", "\n", "Negative prompt: ", "a"),
    *('k: "q\\n"', "Model hash: ab", "x y/z-", "-", "é_", '""', "1", ": ", "\t", "foo"),
]
FOREIGN = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)


@settings(max_examples=80, deadline=None)
@given((FOREIGN | st.text()).map(lambda text: text + "\nSteps: 1, Seed: 2, CFG scale: 3, " + text))
def test_what_was_read_from_a_foreign_text_is_kept_by_writing(text: str) -> None:
    fields = read_infotext(text)
    again = dict(fields)
    prompt, negative = again.pop("Prompt"), again.pop("Negative prompt")
    assume(sum(key != value for key, value in again.items()) >= 3)
    assume(all(key != value or key == key.strip() for key, value in again.items()))
    assume(text.count("Negative prompt:") < 2)
    assert read_infotext(write_infotext(prompt, negative, again)) == fields


@settings(max_examples=80, deadline=None)
@given(FOREIGN | st.text())
def test_any_text_can_be_read(text: str) -> None:
    fields = read_infotext(text)
    assert {"Prompt", "Negative prompt"} <= set(fields)
    assert all(isinstance(value, str) for value in fields.values())


def test_hashes() -> None:
    assert write_hashes({"a:b,c": "0123456789ab", "d": "ff"}) == "abc: 0123456789ab, d: ff"
    assert read_hashes("abc: 0123456789ab, d: ff, rubbish") == {"abc": "0123456789ab", "d": "ff"}
    assert (write_hashes({}), read_hashes("")) == ("", {})


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.text(alphabet="0123456789abcdef", min_size=12, max_size=12)))
def test_hashes_come_back(hashes: dict[str, str]) -> None:
    clean = {re.sub("[:,]", "", name).strip(): short for name, short in hashes.items()}
    assume(len(clean) == len(hashes))
    settings_ = {"Steps": 1, "Seed": 2, "Lora hashes": write_hashes(hashes), "Version": "v"}
    fields = read_infotext(write_infotext("p", "", settings_))
    assert read_hashes(fields["Lora hashes"]) == clean


def test_names_follow_the_hashes() -> None:
    prompt = "<lora:old:0.5> <lora:old> <lyco:x:y:1> <lora:unknown:1> <hypernet:old:1>"
    here = {"aa": "new"}.get
    assert rename_by_hash(prompt, {"old": "aa", "x": "bb"}, here) == (
        "<lora:new:0.5> <lora:new> <lyco:x:y:1> <lora:unknown:1> <hypernet:old:1>"
    )


def test_networks_named_as_settings() -> None:
    fields = {
        "Hypernet": "h",
        "AddNet Module 1": "LoRA",
        "AddNet Model 1": "style(0123abcd)",
        "AddNet Weight A 1": "0.7",
        "AddNet Module 2": "Other",
        "AddNet Model 2": "x",
        "AddNet Module 3": "LoRA",
        "AddNet Model 3": "plain",
    }
    assert legacy_tags(fields) == "<hypernet:h:1.0><lora:style:0.7><lora:plain:1.0>"
    assert legacy_tags({"Steps": "1"}) == ""
