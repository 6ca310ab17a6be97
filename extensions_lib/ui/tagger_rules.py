"""The Tagger's rules in the page: each a sentence of fields, with what it would change."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from extensions_lib.datasets.rules import Rule
from extensions_lib.errors import CrucibleError
from extensions_lib.ui import pieces, tagger_pieces
from extensions_lib.ui.compat import at_once, only_last
from extensions_lib.ui.tagger_desk import View
from extensions_lib.ui.tagger_edit import EMPTY, Wire, on_order, wire
from extensions_lib.ui.tagger_folder import SetFields
from extensions_lib.ui.tagger_gallery import press
from extensions_lib.ui.tagger_look import Changes, said
from extensions_lib.ui.tagger_pieces import counted
from extensions_lib.ui.tagger_room import TaggerRoom
from extensions_lib.ui.tagger_rulebook import Answer, RuleBook

ABOUT = (
    "<p class='crucible-tagger-quiet'>Rules go from top to bottom over every caption of the set,"
    " and are kept with it. Nothing changes before they are applied, and that can be undone.</p>"
)
MATCHES = (("all", "all of"), ("any", "any of"), ("none", "none of"))
KEEPS = (("replace", "replace them by"), ("keep", "keep them and add"))
PLACES = (("found", "in their place"), ("start", "in front"), ("end", "at the end"))
SCOPES = (
    ("all", "all pictures"),
    ("folder", "the folders"),
    ("pictures", "the pictures"),
    ("filter", "pictures that pass"),
)


@dataclass(frozen=True)
class RulesTab:
    """The components."""

    room: TaggerRoom
    wire: Wire
    head: gr.HTML
    notes: gr.HTML
    list: gr.HTML
    result: gr.HTML


def build_rules(room: TaggerRoom, source: SetFields, view: gr.State, tab: gr.Tab) -> None:
    """Builds the rules inside their tab and wires them; `view` is the editor's."""
    with gr.Column(elem_id="crucible-rules", elem_classes=["crucible-wired", "crucible-desk"]):
        orders = wire("crucible-rules")
        head = gr.HTML(EMPTY, elem_id="crucible-rules-head")
        notes = said("crucible-rules-notes")
        rules = gr.HTML(elem_id="crucible-rules-list")
        result = said("crucible-rules-result")
    made = RulesTab(room, orders, head, notes, rules, result)
    outputs = [head, notes, rules, result]

    def act(order: dict[str, Any], view: View, folder: str, subfolders: bool) -> Changes:
        return _answer(made, view, folder, subfolders, order)

    def arrive(view: View, folder: str, subfolders: bool) -> Changes:
        return _answer(made, view, folder, subfolders, {"do": "open"})

    on_order(orders, act, [view, *source], outputs)
    for moment in (tab.select, source.folder.change, source.subfolders.change):
        moment(arrive, [view, *source], outputs, **at_once(), **only_last())


def _answer(
    tab: RulesTab, view: View, folder: str, subfolders: bool, order: dict[str, Any]
) -> Changes:
    blank = dict.fromkeys((tab.notes, tab.list, tab.result), "")
    if not (folder or "").strip():
        return {**blank, tab.head: EMPTY}
    try:
        path = tab.room.folder(folder)
        tag_set = tab.room.tag_set(path, subfolders, fresh=order["do"] == "open")
        picked = view.picked if (view.folder, view.subfolders) == (path, subfolders) else ()
        book = RuleBook(tag_set, path, frozenset(picked))
    except CrucibleError as problem:
        said = pieces.messages([str(problem)], "error")
        return {**blank, tab.head: "", tab.notes: said}
    answer = book.do(order)
    problems = [answer.problem] if answer.problem else []
    changes: Changes = {
        tab.notes: pieces.messages(problems, "error")
        + "".join(tagger_pieces.status(each) for each in answer.said),
        tab.head: _head(book, answer),
        tab.result: "" if answer.preview is None else _preview(answer),
    }
    if answer.redraw:
        changes[tab.list] = _list(answer.rules)
    return changes


# --- the HTML ---------------------------------------------------------------------------------


def _head(book: RuleBook, answer: Answer) -> str:
    """The main button, which says what it will do, and what each rule would change."""
    try:
        total = len(book.preview().changes)
        told = {place: _would(book.count(place)) for place in range(len(answer.rules))}
    except CrucibleError as problem:  # a file that was edited by hand
        return pieces.messages([str(problem)], "error")
    on = sum(rule.on for rule in answer.rules)
    words = f"Apply {counted(on, 'rule')} to {counted(total, 'caption')}"
    counts = "".join(
        f'<li data-rule="{place}" data-problem="{place in answer.typed}">'
        f"{html.escape(answer.typed.get(place, count))}</li>"
        for place, count in told.items()
    )
    main = press("apply", words, off=not total).replace(
        "crucible-press", "crucible-press crucible-main"
    )
    return (
        f'<div class="crucible-rules-head">{main}{press("show", "Preview", "all", off=not total)}'
        f"{press('undo', '↶ Undo')}{press('new', '+ New rule')}</div>{ABOUT}"
        f'<ul class="crucible-rule-counts" data-changed="{answer.changed}" hidden>{counts}</ul>'
    )


def _would(count: int) -> str:
    return f"would change {counted(count, 'caption')}"


def _preview(answer: Answer) -> str:
    assert answer.preview is not None
    return tagger_pieces.would_change(answer.preview.changes)


def _list(rules: Sequence[Rule]) -> str:
    if not rules:
        return (
            '<p class="crucible-nothing">No rules yet. A rule makes one tag of several ("1boy,'
            ' facial hair" → "Smith"), gives'
            " chosen pictures a group's tag, or drops what always belongs to the subject.</p>"
        )
    last = len(rules) - 1
    return "".join(_rule(place, rule, place == last) for place, rule in enumerate(rules))


def _rule(place: int, rule: Rule, last: bool) -> str:
    on = " checked" if rule.on else ""
    buttons = (
        press("show", "Preview", place)
        + press("up", "↑", place, title="Earlier", off=place == 0)
        + press("down", "↓", place, title="Later", off=last)
        + press("copy", "Copy", place, title="Copy this rule")
        + press("drop", "×", place, title="Delete this rule")
    )
    where = html.escape("\n".join(rule.where))
    return f"""
<form class="crucible-rule" data-crucible-live="change" data-value="{place}">
<div><label><input type="checkbox" name="on"{on} title="In force"> <b>{place + 1}</b></label>
{_field("name", rule.name, "name of the rule")}<span class="crucible-rule-told"></span>
{buttons}</div>
<div><span>When a caption has</span>{_choice("match", MATCHES, rule.match)}
{_field("tags", ", ".join(rule.tags), "any tags")}<span>but none of</span>
{_field("unless", ", ".join(rule.unless), "")}</div>
<div>{_choice("keep", KEEPS, "keep" if rule.keep else "replace")}
{_field("add", ", ".join(rule.add), "nothing")}{_choice("place", PLACES, rule.place)}
<span>and drop</span>{_field("drop", ", ".join(rule.drop), "nothing")}</div>
<div data-scope="{rule.scope}"><span>in</span>{_choice("scope", SCOPES, rule.scope)}
<textarea class="crucible-field" name="where" rows="1" aria-label="Where" spellcheck="false"
placeholder="one a line">{where}</textarea>
{press("take", "Take those picked in Edit", place)}</div>
</form>"""


_LABELS = {
    "name": "Name",
    "tags": "Tags to match",
    "unless": "Tags that must not be there",
    "add": "Tags to put in",
    "drop": "Tags to drop",
}


def _field(name: str, value: str, placeholder: str) -> str:
    return (
        f'<input class="crucible-field" name="{name}" value="{html.escape(value, quote=True)}"'
        f' placeholder="{placeholder}" aria-label="{_LABELS[name]}" autocomplete="off"'
        ' spellcheck="false">'
    )


def _choice(name: str, choices: Sequence[tuple[str, str]], value: str) -> str:
    options = "".join(
        f'<option value="{each}"{" selected" if each == value else ""}>{word}</option>'
        for each, word in choices
    )
    return f'<select class="crucible-field" name="{name}" aria-label="{name}">{options}</select>'
