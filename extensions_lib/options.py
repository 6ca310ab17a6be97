"""Options: one dataclass field each, from which tab, command line, files, REST and docs are made.

    @dataclass(frozen=True)
    class Selection:
        general: float = option(0.35, "score from which a general tag is kept", low=0, high=1)

The field's annotation is its type: bool, int, float, str, a tuple of one of these, as
`tuple[str, ...]`, or any of them `| None`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, TypeVar

from extensions_lib.errors import CrucibleError

T = TypeVar("T")
_KEY = "option"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class OptionProblem(CrucibleError):
    """A value that an option does not take, or an option that there is none of."""


@dataclass(frozen=True)
class Option:
    """One option as the faces show it.

    `type` is that of one value; `many` where it takes a list of them; `optional` where None is one.
    `low` and `high` are the ends of the range, both included. `group` is the heading it stands
    under, "" the first row. `label` is its name for people.
    """

    name: str
    type: type
    default: Any
    help: str
    label: str = ""
    group: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[Any, ...] = ()
    many: bool = False
    optional: bool = False

    def check(self, value: Any) -> Any:
        """The value in the option's type. Strings are read as on a command line.

        Raises OptionProblem, naming the option, what it takes and what was given.
        """
        if value is None or (self.optional and isinstance(value, str) and value.lower() == "none"):
            if self.optional:
                return None
            raise self._problem(value)
        if not self.many:
            return self._one(value)
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, Sequence):
            raise self._problem(value)
        return tuple(self._one(part) for part in value)

    def _one(self, value: Any) -> Any:
        try:
            value = self._typed(value)
        except (TypeError, ValueError):
            raise self._problem(value) from None
        if self.choices and value not in self.choices:
            raise self._problem(value)
        outside = (self.low is not None and not value >= self.low) or (
            self.high is not None and not value <= self.high
        )
        if outside:
            raise self._problem(value)
        return value

    def _typed(self, value: Any) -> Any:
        if self.type is bool:
            if isinstance(value, bool):
                return value
            word = str(value).strip().lower()
            if word not in (*_TRUE, *_FALSE):
                raise ValueError(value)
            return word in _TRUE
        if isinstance(value, bool) or (self.type is str and not isinstance(value, str)):
            raise ValueError(value)
        if self.type is int and isinstance(value, float) and value != int(value):
            raise ValueError(value)
        return self.type(value)

    def takes(self) -> str:
        """What it takes, in words."""
        if self.choices:
            said = "one of " + ", ".join(str(choice) for choice in self.choices)
        else:
            said = _WORDS.get(self.type, self.type.__name__)
            if self.low is not None and self.high is not None:
                said += f" from {self.low:g} to {self.high:g}"
            elif self.low is not None:
                said += f" of at least {self.low:g}"
            elif self.high is not None:
                said += f" of at most {self.high:g}"
        if self.many:
            said = f"a list, each {said}"
        return f"{said}, or none" if self.optional else said

    def _problem(self, value: Any) -> OptionProblem:
        if value is None or value == "":
            return OptionProblem(f"{self.name}: takes {self.takes()}, and is empty.")
        return OptionProblem(f"{self.name}: takes {self.takes()}, not {value!r}.")


def option(
    default: Any,
    help: str,
    *,
    label: str = "",
    group: str = "",
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    choices: Sequence[Any] = (),
) -> Any:
    """A dataclass field that is an option; `default` of its type."""
    told = {
        "help": help,
        "label": label,
        "group": group,
        "unit": unit,
        "low": low,
        "high": high,
        "step": step,
        "choices": tuple(choices),
    }
    return dataclasses.field(default=default, metadata={_KEY: told})


def options_of(kind: type) -> list[Option]:
    """The options of a dataclass, in its order; fields that are none are left out."""
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        if _KEY not in field.metadata:
            continue
        told = dict(field.metadata[_KEY])
        told["label"] = told["label"] or field.name.replace("_", " ").capitalize()
        single, many, optional = _shape(hints[field.name])
        assert field.default is not MISSING
        found.append(
            Option(field.name, single, field.default, many=many, optional=optional, **told)
        )
    return found


def _shape(hint: Any) -> tuple[type, bool, bool]:
    """The type of one value, whether there may be many, whether None is one."""
    optional = many = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        optional = len(parts) < len(typing.get_args(hint))
        [hint] = parts
    if typing.get_origin(hint) is tuple:
        many, hint = True, typing.get_args(hint)[0]
    return hint, many, optional


def checked(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass with these values, each checked; what is not named keeps its default.

    Raises OptionProblem for a value out of range or a name that is no option, with the nearest.
    """
    known = {each.name: each for each in options_of(kind)}
    for name in values:
        if name not in known:
            raise OptionProblem(f"{name}: there is no such option{_nearest(name, known)}")
    return kind(**{name: known[name].check(value) for name, value in values.items()})


def _nearest(name: str, known: Mapping[str, Option]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else "."


def changed(values: Any) -> dict[str, Any]:
    """The options of a dataclass object that are not at their default."""
    named = {each.name: getattr(values, each.name) for each in options_of(type(values))}
    defaults = {each.name: each.default for each in options_of(type(values))}
    return {name: value for name, value in named.items() if value != defaults[name]}


def add_arguments(parser: argparse.ArgumentParser, kind: type) -> None:
    """An argument of the command line for each option: --with-dashes; bools also as --no-…."""
    groups: dict[str, Any] = {"": parser}
    for each in options_of(kind):
        if each.group not in groups:
            groups[each.group] = parser.add_argument_group(each.group)
        flag = "--" + each.name.replace("_", "-")
        said = each.help.replace("%", "%%")
        unset: dict[str, Any] = {"dest": each.name, "default": argparse.SUPPRESS}
        if each.type is bool and not each.many:
            unset["action"] = argparse.BooleanOptionalAction
            groups[each.group].add_argument(flag, help=f"{said} (default {each.default})", **unset)
            continue
        unit = f", {each.unit}" if each.unit else ""
        metavar = each.name.upper().replace("_", "-")
        default = ",".join(map(str, each.default)) if each.many else each.default
        default = "none" if default in (None, "") else default
        said = f"{said} ({each.takes()}{unit}; default {default})".replace("%%", "%")
        groups[each.group].add_argument(
            flag, metavar=metavar, help=said.replace("%", "%%"), **unset
        )


def from_arguments(kind: type[T], namespace: argparse.Namespace) -> T:
    """The dataclass as the command line gave it. Raises OptionProblem."""
    names = {each.name for each in options_of(kind)}
    given = {name: value for name, value in vars(namespace).items() if name in names}
    return checked(kind, given)


def schema(kind: type) -> dict[str, Any]:
    """JSON schema of the options."""
    words = {bool: "boolean", int: "integer", float: "number", str: "string"}
    properties = {}
    for each in options_of(kind):
        one: dict[str, Any] = {"type": words[each.type]}
        if each.low is not None:
            one["minimum"] = each.low
        if each.high is not None:
            one["maximum"] = each.high
        if each.choices:
            one["enum"] = list(each.choices)
        if each.many:
            one = {"type": "array", "items": one}
        if each.optional:
            one = {"anyOf": [one, {"type": "null"}]}
        default = list(each.default) if isinstance(each.default, tuple) else each.default
        properties[each.name] = {**one, "default": default, "description": each.help}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def table(kind: type) -> str:
    """A table of the options in Markdown."""
    lines = ["| option | takes | default | |", "|---|---|---|---|"]
    for each in options_of(kind):
        unit = f", {each.unit}" if each.unit else ""
        default = ", ".join(map(str, each.default)) if each.many else each.default
        said = "none" if default in (None, "") else str(default)
        said = said.replace("|", "\\|").replace("<", "\\<")
        takes, told = (text.replace("|", "\\|") for text in (each.takes(), each.help))
        lines.append(f"| `{each.name}` | {takes}{unit} | {said} | {told} |")
    return "\n".join(lines)
