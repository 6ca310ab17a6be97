"""What a file is, as HTML: what matters first, long lists in lists that open. All is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from extensions_lib.toolbox import sorts
from extensions_lib.ui import pieces
from extensions_lib.ui.tagger_pieces import plain

if TYPE_CHECKING:
    from extensions_lib.toolbox.metadata import Page
    from extensions_lib.toolbox.report import Report
    from extensions_lib.toolbox.survey import Survey

_LISTED = 400  # lines of an opened list
_TAGS = 120
_COMPONENTS = {"unet": "UNet", "te1": "text encoder", "te2": "text encoder 2", "vae": "VAE"}
# What can be done with a sort of file: the tool, its field, and what the button says.
ACTS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    sorts.NETWORK: (
        ("resize", "file", "Resize"), ("merge", "networks", "Merge with others"),
        ("bake", "networks", "Bake into a checkpoint"), ("convert", "file", "Convert"),
    ),
    sorts.CHECKPOINT: (
        ("convert", "file", "Convert or prune"), ("bake", "file", "Bake something into it"),
        ("extract", "tuned-file", "Extract a network from it"),
    ),
    sorts.VAE: (("convert", "file", "Convert"), ("bake", "vae", "Bake into a checkpoint")),
    sorts.EMBEDDING: (("convert", "file", "Convert"),),
    sorts.HYPERNETWORK: (("convert", "file", "Convert"),),
    sorts.FOLDER: (("convert", "file", "Make one file of it"),),
}  # fmt: skip


def size(count: int) -> str:
    """1.4 MB, 2.13 GB."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count} B"


def page(report: Report, shown: str, against: str = "", *, hashing: bool = False) -> str:
    """The page of a report. `shown`: its path as one types it; `against`: the checkpoint's name."""
    parts = [
        _head(report, shown),
        pieces.messages(_serious(report), "error"),
        _acts(report, shown),
        _facts(report, against, hashing),
        _lists(report),
        _metadata(report.page),
        _raw(report.metadata),
    ]
    return f'<article class="crucible-toolbox-page">{"".join(parts)}</article>'


def _head(report: Report, shown: str) -> str:
    family = report.family and str(report.family)
    badges = [report.format, size(report.size)]
    if family and family not in report.what:
        badges.insert(0, family)
    marks = "".join(f"<b>{plain(each)}</b>" for each in badges if each)
    return (
        f"<header><h3>{pieces.words(report.what)}</h3>{marks}"
        f'<p class="crucible-toolbox-path">{plain(shown)}</p></header>'
    )


def _serious(report: Report) -> list[str]:
    """Problems that are said at once; many of one kind are in a list instead."""
    return report.problems if len(report.problems) <= 3 else []


def _acts(report: Report, shown: str) -> str:
    acts = ACTS.get(report.sort, ())
    if not acts:
        return ""
    where = html.escape(shown, quote=True)
    buttons = "".join(
        f'<button type="button" class="crucible-press" data-tool="{tool}" data-field="{name}"'
        f' data-path="{where}">{label}</button>'
        for tool, name, label in acts
    )
    return f'<div class="crucible-toolbox-acts">{buttons}</div>'


def _facts(report: Report, against: str, hashing: bool) -> str:
    rows: list[tuple[str, str]] = [("", plain(each)) for each in report.details]
    rows[:1] = [("Details", rows[0][1])] if rows else []
    if report.kinds or report.matched:
        rows += _of_network(report)
    if report.fitting is not None and against:
        rows.append(("Loaded checkpoint", _fits(report, against)))
    rows += [("", plain(note)) for note in report.notes]
    if report.tensors:
        rows.append(("Tensors", plain(f"{report.tensors} ({_counts(report.dtypes)})")))
    hashes = [
        (name, f'<code translate="no">{html.escape(value)}</code>')
        for name, value in report.hashes.items()
    ]
    if hashing:
        hashes = [("sha256", "…")]
    return f'<div class="crucible-toolbox-facts">{_rows(rows)}{_rows(hashes)}</div>'


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    """Labels, and pieces of HTML beside them; "" where there is nothing to say."""
    inside = "".join(
        f"<dt>{pieces.words(label)}</dt><dd>{value}</dd>" for label, value in rows if value
    )
    return f"<dl>{inside}</dl>" if inside else ""


def _of_network(report: Report) -> list[tuple[str, str]]:
    dora = f", DoRA × {report.dora}" if report.dora else ""
    parts = {_COMPONENTS.get(name, name): count for name, count in report.components.items()}
    where = ", ".join(f"{pieces.words(name, f'× {count}')}" for name, count in parts.items())
    load = f"{plain(str(report.matched))} {pieces.words('load')} · {where}"
    return [
        ("Algorithm", plain(_counts(report.kinds) + dora)),
        ("Rank", plain(_one_or_counts(report.ranks))),
        ("Alpha", plain(_one_or_counts(report.alphas)) or pieces.words("none: scale 1")),
        ("Layers", load),
        ("Names", plain(", ".join(report.names))),
        ("Embeddings in it", plain(", ".join(report.embeddings)) if report.embeddings else ""),
    ]  # fmt: skip


def _fits(report: Report, against: str) -> str:
    assert report.fitting is not None
    whole = report.fitting + len(report.strange)
    kind = "good" if report.fitting and not report.strange else "bad"
    said = pieces.words(str(report.fitting), "of", str(whole), "layers fit")
    return f'<span class="crucible-toolbox-{kind}">{said} {plain(against)}</span>'


def _counts(counts: Mapping[str, int] | Mapping[int, int] | Mapping[float, int]) -> str:
    return ", ".join(f"{name} × {count}" for name, count in counts.items())


def _one_or_counts(counts: Mapping[int, int] | Mapping[float, int]) -> str:
    return f"{next(iter(counts)):g}" if len(counts) == 1 else _counts(counts)


def _lists(report: Report) -> str:
    problems = report.problems if not _serious(report) else []
    return (
        _opening("problems", problems)
        + _opening("names that are not known", report.unmatched)
        + _opening("layers that do not fit the loaded checkpoint", report.strange)
    )


def _opening(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    rows = "".join(f"<li>{plain(each)}</li>" for each in lines[:_LISTED])
    more = len(lines) - _LISTED
    rest = f"<li>+ {more}</li>" if more > 0 else ""
    return (
        f'<details class="crucible-list"><summary>{pieces.words(str(len(lines)), title)}</summary>'
        f"<ul>{rows}{rest}</ul></details>"
    )


# --- metadata ---------------------------------------------------------------------------------


def _metadata(told: Page) -> str:
    sections = "".join(
        _section(title, _rows([(label, plain(text)) for label, text in rows]))
        for title, rows in told.sections.items()
    )
    if told.buckets:
        most = max(count for _, count in told.buckets)
        bars = "".join(_bar(name, count / most, str(count)) for name, count in told.buckets[:24])
        sections += _section("Buckets", f'<ul class="crucible-toolbox-bars">{bars}</ul>')
    if told.folders:
        rows = "".join(
            f"<li>{plain(name)} <span>{count} × {repeats}</span></li>"
            for name, repeats, count in told.folders
        )
        sections += _section("Folders", f"<ul>{rows}</ul>")
    grid = f'<div class="crucible-toolbox-sections">{sections}</div>' if sections else ""
    return pieces.messages(told.problems) + grid + _cloud(told.tags)


def _section(title: str, inside: str) -> str:
    return f"<section><h4>{pieces.words(title)}</h4>{inside}</section>"


def _cloud(tags: Sequence[tuple[str, int]]) -> str:
    """The tags of the training pictures, the more frequent the larger."""
    if not tags:
        return ""
    most = max(count for _, count in tags)
    words = "".join(
        f'<span translate="no" style="font-size:{0.75 + 0.85 * (count / most) ** 0.5:.2f}em"'
        f' title="{count}">{html.escape(tag)}<small>{count}</small></span>'
        for tag, count in tags[:_TAGS]
    )
    more = len(tags) - _TAGS
    rest = f"<small>+ {more}</small>" if more > 0 else ""
    cloud = f'<p class="crucible-toolbox-cloud">{words}{rest}</p>'
    return _section("Tags of the training pictures", cloud)


def _bar(name: str, share: float, said: str) -> str:
    bar = f'<i style="width:{min(1.0, share):.1%}"></i>'
    return f"<li>{plain(name)}<span>{bar}</span><em>{said}</em></li>"


def _raw(metadata: Mapping[str, str]) -> str:
    if not metadata:
        return ""
    rows = "".join(
        f"<tr><th>{plain(key)}</th><td>{plain(text[:2000])}</td></tr>"
        for key, text in sorted(metadata.items())
    )
    head = pieces.words("All metadata", str(len(metadata)))
    return (
        f'<details class="crucible-list"><summary>{head}</summary>'
        f'<div class="crucible-tagger-scroll"><table class="crucible-tagger-changes">'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


# --- a folder ---------------------------------------------------------------------------------


def survey_page(found: Survey) -> str:
    """The files of a folder; first those of the same content."""
    if not found.files and not found.problems:
        return pieces.messages(["There are no model files in it."])

    def short(path: object) -> str:
        return plain(str(path).removeprefix(f"{found.folder}/"))

    def told(path: object) -> str:
        where = html.escape(str(path), quote=True)
        return (
            f'<button type="button" class="crucible-press" data-tool="about" data-field="file"'
            f' data-path="{where}">{short(path)}</button>'
        )

    groups = "".join(
        f"<li>{' = '.join(told(path) for path in group)}"
        f" <small>{size(group[0].stat().st_size)}</small></li>"
        for group in found.duplicates
    )
    alike = (
        f"<section><h4>{pieces.words(f'{len(found.duplicates)} ×', 'the same content')}</h4>"
        f'<ul class="crucible-toolbox-alike">{groups}</ul></section>'
        if found.duplicates
        else f'<p role="status">{pieces.words("No two files have the same content.")}</p>'
    )
    rows = "".join(
        f"<tr><td>{told(path)}</td><td>{pieces.words(what)}</td></tr>"
        for path, what in found.files.items()
    )
    bad = "".join(
        f"<tr><td>{short(path)}</td><td class='crucible-toolbox-bad'>{plain(why)}</td></tr>"
        for path, why in found.problems.items()
    )
    return (
        f'<article class="crucible-toolbox-page">{alike}<div class="crucible-tagger-scroll">'
        f'<table class="crucible-tagger-changes"><tbody>{bad}{rows}</tbody></table></div></article>'
    )
