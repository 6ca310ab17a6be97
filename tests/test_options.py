"""Options: one field, and every face made from it."""

import argparse
from dataclasses import dataclass

import pytest

from extensions_lib.options import (
    OptionProblem,
    add_arguments,
    changed,
    checked,
    from_arguments,
    option,
    options_of,
    schema,
    table,
)


@dataclass(frozen=True)
class Baking:
    heat: float = option(180.0, "of the oven; 10% more in winter", unit="°C", low=50, high=300)
    minutes: int = option(30, "in the oven", low=1)
    lid: bool = option(False, "with the lid on", group="Pot")
    herbs: tuple[str, ...] = option((), "added before", group="Pot")
    rack: str = option("middle", "where it stands", choices=("top", "middle"))
    salt: float | None = option(None, "none: as it comes", unit="g")
    cook: object = None  # not an option


def parsed(*words: str) -> Baking:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Baking)
    return from_arguments(Baking, parser.parse_args(words))


def test_one_field_says_all() -> None:
    heat, minutes, lid, herbs, rack, salt = options_of(Baking)
    assert (heat.type, heat.low, heat.high, heat.unit) == (float, 50, 300, "°C")
    assert (minutes.type, lid.type, lid.group) == (int, bool, "Pot")
    assert (herbs.type, herbs.many, rack.choices) == (str, True, ("top", "middle"))
    assert (salt.type, salt.optional, salt.label) == (float, True, "Salt")


def test_values_are_checked_and_typed() -> None:
    made = checked(Baking, {"heat": "200", "minutes": 5.0, "herbs": ["dill"], "salt": 2})
    assert made == Baking(heat=200.0, minutes=5, herbs=("dill",), salt=2.0)
    assert isinstance(made.minutes, int)
    assert changed(made) == {"heat": 200.0, "minutes": 5, "herbs": ("dill",), "salt": 2.0}
    assert changed(Baking()) == {}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"heat": 301}, "heat: takes a number from 50 to 300, not 301"),
        ({"heat": float("nan")}, "heat: takes"),
        ({"minutes": 1.5}, "minutes: takes a whole number of at least 1, not 1.5"),
        ({"minutes": True}, "minutes: takes"),
        ({"lid": "perhaps"}, "lid: takes true or false, not 'perhaps'"),
        ({"rack": "floor"}, "rack: takes one of top, middle, not 'floor'"),
        ({"heat": None}, "heat: takes a number from 50 to 300, and is empty"),
        ({"minutes": ""}, "minutes: takes a whole number of at least 1, and is empty"),
        ({"herbs": 5}, "herbs: takes a list"),
        ({"rack": 1}, "rack: takes"),
        ({"minuets": 3}, "minuets: there is no such option; did you mean minutes?"),
        ({"cook": "me"}, "cook: there is no such option"),
    ],
)
def test_a_wrong_value_is_named(values: dict, said: str) -> None:
    with pytest.raises(OptionProblem) as raised:
        checked(Baking, values)
    assert said in str(raised.value)


def test_the_command_line() -> None:
    assert parsed() == Baking()
    assert parsed("--heat", "90", "--lid", "--herbs", "dill, thyme", "--salt", "none") == Baking(
        heat=90.0, lid=True, herbs=("dill", "thyme")
    )
    assert parsed("--no-lid").lid is False
    with pytest.raises(OptionProblem, match="minutes"):
        parsed("--minutes", "0")


def test_help_says_range_unit_and_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Baking)
    said = " ".join(parser.format_help().split())
    assert "10% more in winter (a number from 50 to 300, °C; default 180.0)" in said
    assert "Pot" in said


def test_schema_and_table() -> None:
    properties = schema(Baking)["properties"]
    assert properties["heat"]["minimum"] == 50
    assert properties["herbs"] == {
        "type": "array",
        "items": {"type": "string"},
        "default": [],
        "description": "added before",
    }
    assert {"type": "null"} in properties["salt"]["anyOf"]
    assert "| `rack` | one of top, middle | middle | where it stands |" in table(Baking)
