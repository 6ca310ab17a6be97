"""The HTML of the Tagger's editor: gallery, tags with counts, history, the forms of its changes."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from extensions_lib.datasets import filters
from extensions_lib.ui import pieces
from extensions_lib.ui.tagger_desk import PAGE, Desk
from extensions_lib.ui.tagger_pieces import counted, plain

if TYPE_CHECKING:
    from extensions_lib.datasets.journal import Entry
    from extensions_lib.datasets.tag_set import Item
    from extensions_lib.ui.tagger_links import Links

MOST_TAGS = 200  # rows
MOST_STEPS = 100

FILTER = """
<form class="crucible-edit-filter" role="search" data-crucible-live="filter">
  <input class="crucible-field" name="filter" type="search" placeholder="1girl AND NOT hat"
    aria-label="Filter by tags" spellcheck="false" autocomplete="off">
  <details class="crucible-tagger-hint"><summary title="What a filter understands">?</summary>
  <p><code>1girl AND NOT hat</code> <code>(smile OR grin), *hair</code>
  <code>count &lt; 5</code> <code>untagged</code> <code>name:portraits/*</code></p></details>
</form>
"""
TAGS = """
<form class="crucible-edit-find" data-crucible-live="tags">
  <input class="crucible-field" name="find" type="search" placeholder="find a tag"
    aria-label="Find a tag" autocomplete="off" spellcheck="false">
  <select class="crucible-field" name="order" aria-label="Order">
    <option value="frequency">by frequency</option>
    <option value="alphabet">by alphabet</option></select>
</form>
"""
CHANGES = """
<form class="crucible-edit-add" data-crucible-do="add">
  <input class="crucible-field" name="tags" placeholder="tags, separated by commas"
    aria-label="Tags to add" autocomplete="off">
  <select class="crucible-field" name="place" aria-label="Where">
    <option value="end">at the end</option><option value="start">in front</option></select>
  <button class="crucible-press">Add tags</button>
</form>
<details class="crucible-edit-more"><summary>Search and replace</summary>
<form data-crucible-do="replace" data-crucible-form>
  <input class="crucible-field" name="search" placeholder="search" aria-label="Search for"
    autocomplete="off">
  <input class="crucible-field" name="by" placeholder="replace by (empty: remove)"
    aria-label="Replace by" autocomplete="off">
  <select class="crucible-field" name="how" aria-label="How">
    <option value="literal">as typed</option><option value="glob">with * and ?</option>
    <option value="regex">regular expression</option></select>
  <label><input type="checkbox" name="whole" checked> <span>whole tags</span></label>
  <label><input type="checkbox" name="ignore_case"> <span>any case</span></label>
  <div><button type="button" class="crucible-press" data-crucible-do="try">Preview</button>
  <button class="crucible-press">Replace</button></div>
</form></details>
<details class="crucible-edit-more"><summary>Tidy up</summary>
<form data-crucible-do="sort" data-crucible-form>
  <label><span>Tags that stay first</span>
  <input class="crucible-field" name="first" type="number" min="0" value="1"></label>
  <select class="crucible-field" name="by" aria-label="Order of the tags">
    <option value="alphabet">by alphabet</option>
    <option value="frequency">by frequency</option>
    <option value="length">by length</option></select>
  <label><input type="checkbox" name="backwards"> <span>backwards</span></label>
  <div><button class="crucible-press">Sort tags</button>
  <button type="button" class="crucible-press" data-crucible-do="dedupe">Remove double tags</button>
  </div>
</form>
<form data-crucible-do="shorten" data-crucible-form>
  <label><span>Tokens of a caption, at most</span>
  <input class="crucible-field" name="most" type="number" min="1" value="75"></label>
  <div><button class="crucible-press" title="Takes tags off the end of longer ones">Shorten</button>
  <button type="button" class="crucible-press" data-crucible-do="from-names"
    title="The picture's name, for those without a caption">Captions from names</button></div>
</form></details>
<details class="crucible-edit-more"><summary>Move pictures</summary>
<form data-crucible-do="put" data-crucible-form>
  <input class="crucible-field" name="to" placeholder="folder; 5_good: one in this set"
    aria-label="Folder to move to" autocomplete="off" spellcheck="false">
  <div><button class="crucible-press">Move with captions</button></div>
</form></details>
"""


def press(act: str, words: str, value: object = "", *, title: str = "", off: bool = False) -> str:
    """A button that gives an order."""
    told = f' title="{title}"' if title else ""
    return (
        f'<button type="button" class="crucible-press" data-crucible-do="{act}"'
        f' data-value="{html.escape(str(value), quote=True)}"{told}{" disabled" if off else ""}>'
        f"{words}</button>"
    )


def told(number: int) -> str:
    """The answer to an order, for the browser's line of orders."""
    return f'<i data-number="{number}"></i>'


# --- the bar above ----------------------------------------------------------------------------


def bar(desk: Desk, history: Sequence[Entry]) -> str:
    """How many pictures there are, pass and are picked; pages; undo and redo."""
    total, shown, picked = len(desk.tag_set), len(desk.shown), len(desk.picked)
    parts = [counted(total, "picture")]
    if shown != total or desk.view.filter.strip():
        parts.append(f"· {shown} pass the filter")
    if picked:
        parts.append(f"· {picked} picked")
    pages = max(1, -(-shown // PAGE))
    page = min(desk.view.page, pages)
    turn = ""
    if pages > 1:
        turn = (
            press("page", "‹", page - 1, title="Previous page", off=page <= 1)
            + f"<span>{page}/{pages}</span>"
            + press("page", "›", page + 1, title="Next page", off=page >= pages)
        )
    done = any(entry.state == "done" for entry in history)
    undone = any(entry.state == "undone" for entry in history)
    steps = (
        press("undo", "↶ Undo", title="Ctrl+Z", off=not done)
        + press("redo", "↷ Redo", title="Ctrl+Shift+Z", off=not undone)
        + press("reload", "⟳", title="Read the folder anew")
    )
    picking = press("all", "Pick all", off=picked == shown) + press("none", "None", off=not picked)
    in_force = html.escape(desk.view.filter, quote=True)
    return (
        f'<div class="crucible-edit-bar" data-filter="{in_force}"><p>{pieces.words(*parts)}</p>'
        f"<div>{picking}</div><div>{turn}</div><div>{steps}</div></div>"
    )


# --- the gallery ------------------------------------------------------------------------------


def gallery(desk: Desk, links: Links) -> str:
    """A page of pictures with their captions; picked ones are marked."""
    page = desk.tag_set.page(desk.view.page, PAGE, desk.shown)
    if not page.items:
        return '<p class="crucible-nothing">No picture passes the filter.</p>'
    shots = "".join(_shot(item, item.name in desk.view.picked, links) for item in page.items)
    return (
        '<ul class="crucible-shots" role="listbox" aria-multiselectable="true"'
        f' aria-label="Pictures">{shots}</ul>'
    )


def _shot(item: Item, picked: bool, links: Links) -> str:
    name = html.escape(item.name, quote=True)
    said, kind = item.text, ""
    if item.problem:
        said, kind = item.problem, " crucible-broken"
    elif not item.tags:
        kind = " crucible-untagged"
    pen = "" if item.problem else '<button class="crucible-pen" title="Edit the caption">✎</button>'
    caption = plain(said) if said else "<span>no caption</span>"
    return (
        f'<li class="crucible-shot{kind}" role="option" tabindex="0" data-name="{name}"'
        f' aria-selected="{"true" if picked else "false"}">'
        f'<img loading="lazy" alt="cannot be shown" src="{links.to(item.picture)}">{pen}'
        f'<b translate="no" title="{name}">{html.escape(item.name)}</b>'
        f'<p data-text="{html.escape(item.text, quote=True)}">{caption}</p></li>'
    )


# --- tags -------------------------------------------------------------------------------------


def tags(desk: Desk) -> str:
    """The tags of the pictures that changes go to, with counts and what can be done to each."""
    targets = desk.targets
    wanted = desk.view.find.casefold().replace("_", " ").strip()
    found = [
        (tag, count)
        for tag, count in desk.tag_set.frequency(targets, desk.view.order)
        if wanted in tag.casefold().replace("_", " ")
    ]
    if desk.picked:
        what = f"Tags of the {len(targets)} picked"
    else:
        what = f"Tags of {counted(len(targets), 'picture')}"
    rows = "".join(_tag(tag, count, len(targets)) for tag, count in found[:MOST_TAGS])
    if (more := len(found) - MOST_TAGS) > 0:
        rows += f"<li><span>+ {more}</span></li>"
    return f'<h3>{what}</h3><ul class="crucible-edit-tags">{rows}</ul>'


def _tag(tag: str, count: int, total: int) -> str:
    name, share = html.escape(tag, quote=True), count / max(1, total)
    give = press("give", "+", tag, title="Add to the others", off=count == total)
    return (
        f'<li data-tag="{name}"><button type="button" class="crucible-tagname" translate="no"'
        f' data-filter="{html.escape(_as_filter(tag), quote=True)}"'
        f' style="--share:{share:.1%}">{html.escape(tag)}</button><em>{count}</em>{give}'
        '<button type="button" class="crucible-press crucible-rename" title="Rename">✎</button>'
        f"{press('remove', '×', tag, title='Remove')}</li>"
    )


def _as_filter(tag: str) -> str:
    """As short as a filter that means just this tag can be."""
    if tag.replace(" ", "").replace("_", "").isalnum() and not (
        set(tag.split()) & {"AND", "OR", "NOT", "count", "untagged"}
    ):
        return tag
    return filters.quoted(tag)


# --- history ----------------------------------------------------------------------------------


def history(entries: Sequence[Entry]) -> str:
    """The steps, newest first; a click goes back, or forward, to after a step."""
    if not entries:
        return "<p>No change yet.</p>"
    newest = next((entry.id for entry in entries if entry.state == "done"), 0)
    rows = [_step(entry, entry.id == newest) for entry in entries[:MOST_STEPS]]
    if len(entries) <= MOST_STEPS:
        here = ' aria-current="step"' if newest == 0 else ""
        rows.append(f"<li{here}>{press('go', 'Before all changes', 0)}</li>")
    return f'<ol class="crucible-edit-steps">{"".join(rows)}</ol>'


def _step(entry: Entry, here: bool) -> str:
    when = time.strftime("%m-%d %H:%M", time.localtime(entry.when))
    cut = " <span>(interrupted)</span>" if entry.interrupted else ""
    kind = f' class="crucible-{entry.state}"' + (' aria-current="step"' if here else "")
    words = f'<span class="crucible-step">{html.escape(entry.title)}</span>{cut}'
    off = entry.state in ("dropped", "running")
    finish = press("finish", "Finish it") if entry.interrupted and here else ""
    return (
        f"<li{kind}>{press('go', words, entry.id, off=off)}{finish}"
        f'<small translate="no">{when} · {entry.count}</small></li>'
    )
