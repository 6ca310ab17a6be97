"""Rules: what training wants of captions, said once and kept with the set.

    Rule(tags=("1boy", "facial hair"), add=("Smith",))         a set of tags becomes one
    Rule(match="any", tags=("* hair", "* eyes"))               what always belongs is dropped
    Rule(add=("Smith_group1",), scope="pictures", where=(…))   chosen pictures get a group's tag

Rules go in order, each on what the ones before it made; only those that are `on`. Tags match as
filters match them: whole, by any spelling of `captions.fold`, with globs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extensions_lib.atomic import reason, write_text
from extensions_lib.datasets import filters
from extensions_lib.datasets.captions import fold, retag, split, unique
from extensions_lib.datasets.edits import Edit
from extensions_lib.errors import CrucibleError

FILE = "crucible-rules.json"
MATCHES = ("all", "any", "none")
SCOPES = ("all", "folder", "pictures", "filter")
PLACES = ("found", "start", "end")


class RuleProblem(CrucibleError):
    """A rule that cannot be understood or kept."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    It applies to a caption that has all, any or none of `tags` (no `tags`: to every one) and none
    of `unless`. Then the tags that matched are taken out unless `keep`, those of `drop` as well,
    and those of `add` put in that it lacks: where the first of the matched tags "found" was (else
    in front), at the "start" or at the "end".

    `scope` "all", "folder" (and folders below), "pictures" or "filter"; `where` says which: paths
    within the set with "/", or one filter as text. `extra` are keys of the file that are not
    known here.
    """

    name: str = ""
    tags: tuple[str, ...] = ()
    match: str = "all"
    unless: tuple[str, ...] = ()
    keep: bool = False
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    place: str = "found"
    scope: str = "all"
    where: tuple[str, ...] = ()
    on: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name, choices in (("match", MATCHES), ("place", PLACES), ("scope", SCOPES)):
            if getattr(self, name) not in choices:
                raise RuleProblem(
                    f"{self.title}: {name} is {getattr(self, name)!r};"
                    f" it takes {', '.join(choices)}."
                )
        if self.scope == "filter" and len(self.where) != 1:
            raise RuleProblem(f"{self.title}: a scope by filter takes one filter in 'where'.")

    @property
    def title(self) -> str:
        """Its name, or what it does in short."""
        if self.name:
            return f"Rule {self.name}"
        gone = () if self.keep or self.match == "none" else self.tags
        does = [f"add {', '.join(self.add)}"] if self.add else []
        does += [f"drop {', '.join((*gone, *self.drop))}"] if (*gone, *self.drop) else []
        return f"Rule to {' and '.join(does) or 'do nothing'}"


# --- applying ---------------------------------------------------------------------------------


class Rules:
    """Rules made ready to be applied. Raises CrucibleError for a filter that is none."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._ready = [_Ready(rule) for rule in rules if rule.on]

    def applied(self, text: str, name: str) -> str:
        """The caption of the picture `name` (its path within the set) after all rules."""
        for ready in self._ready:
            text = retag(text, lambda tags, ready=ready: ready.applied(tags, name))  # type: ignore[misc]
        return text

    def edit(self) -> Edit:
        """The rules as a change to preview and do."""
        on = [ready.rule for ready in self._ready]
        title = on[0].title if len(on) == 1 else f"Apply {len(on)} rules"
        return Edit(title, self.applied)


class _Ready:
    """One rule with its patterns compiled."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.tests, self.unless, self.drop = (
            [filters.tag_test(tag) for tag in tags if tag.strip()]
            for tags in (rule.tags, rule.unless, rule.drop)
        )
        self.add = split(",".join(rule.add))
        self.filter = filters.parse(rule.where[0]) if rule.scope == "filter" else None
        self.folders = tuple(where.strip("/") + "/" for where in rule.where)
        self.pictures = frozenset(rule.where)

    def applied(self, tags: list[str], name: str) -> list[str]:
        folded = {fold(tag) for tag in tags}
        if not self.within(folded, name):
            return tags
        hits = [set(test(folded)) for test in self.tests]
        fits = {"all": all(hits), "any": any(hits) or not hits, "none": not any(hits)}
        if not fits[self.rule.match] or any(test(folded) for test in self.unless):
            return tags
        gone = set() if self.rule.keep else set().union(*hits)
        gone.update(tag for test in self.drop for tag in test(folded))
        first = next((i for i, tag in enumerate(tags) if any(fold(tag) in h for h in hits)), 0)
        kept = [tag for tag in tags if fold(tag) not in gone]
        new = unique(self.add, also=kept)
        at = {"start": 0, "end": len(kept)}.get(self.rule.place)
        if at is None:
            at = sum(fold(tag) not in gone for tag in tags[:first])
        return kept[:at] + new + kept[at:]

    def within(self, folded: set[str], name: str) -> bool:
        scope = self.rule.scope
        if scope == "all":
            return True
        if scope == "folder":
            return any(folder == "/" or name.startswith(folder) for folder in self.folders)
        if scope == "pictures":
            return name in self.pictures
        assert self.filter is not None
        return self.filter.matches(folded, name)


# --- the file ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class RuleFile:
    """The rules kept with a set; `extra` are keys beside them that are not known here."""

    rules: tuple[Rule, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def load(folder: str | Path) -> RuleFile:
    """The rules of a set, none where there is no file. Raises RuleProblem."""
    path = Path(folder) / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return RuleFile()
    except OSError as error:
        raise RuleProblem(f"{path}: cannot be read ({reason(error)}).") from error
    except (ValueError, RecursionError) as error:
        raise RuleProblem(f"{path}: is not JSON ({error}); mend it or move it away.") from None
    if not isinstance(content, dict) or not isinstance(content.get("rules", []), list):
        raise RuleProblem(f'{path}: holds no {{"rules": […]}}; mend it or move it away.')
    content = dict(content)
    rules = content.pop("rules", [])
    made = tuple(_rule(values, f"{path}: rule {i}") for i, values in enumerate(rules, 1))
    return RuleFile(made, content)


def save(folder: str | Path, kept: RuleFile) -> Path:
    """Writes the rules with the set, atomically; the file's path. Raises FileProblem."""
    path = Path(folder) / FILE
    content = {"rules": [_values(rule) for rule in kept.rules], **kept.extra}
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


_TUPLES = ("tags", "unless", "add", "drop", "where")
_KNOWN = {each.name: each for each in dataclasses.fields(Rule) if each.name != "extra"}


def _values(rule: Rule) -> dict[str, Any]:
    """A rule as JSON: what is at its default is left out, but for what it matches and does."""
    always = ("name", "match", "tags", "add")
    return {
        **{
            name: list(value) if isinstance(value := getattr(rule, name), tuple) else value
            for name, each in _KNOWN.items()
            if name in always or getattr(rule, name) != each.default
        },
        **rule.extra,
    }


def _rule(values: Any, where: str) -> Rule:
    if not isinstance(values, dict):
        raise RuleProblem(f"{where} is no object with match, tags, add, …; mend it.")
    known: dict[str, Any] = {}
    for name, value in values.items():
        if name not in _KNOWN:
            continue
        kind = type(_KNOWN[name].default)
        if name in _TUPLES:
            value = [value] if isinstance(value, str) else value
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise RuleProblem(f"{where}: '{name}' takes a list of texts, not {value!r}.")
            value = tuple(value)
        elif not isinstance(value, kind):
            said = "true or false" if kind is bool else "a text"
            raise RuleProblem(f"{where}: '{name}' takes {said}, not {value!r}.")
        known[name] = value
    extra = {name: value for name, value in values.items() if name not in _KNOWN}
    try:
        return Rule(**known, extra=extra)
    except RuleProblem as problem:
        raise RuleProblem(f"{where}: {problem}") from None
