"""The editor of a network's notes, in the popup that the cards of a WebUI open.

It shows what the file says about itself and its training, and writes `stem.json`: only what the
person changed, so that other programs' keys stay. What cannot be saved is said in the popup, which
stays open.
"""

from __future__ import annotations

import html
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.toolbox.metadata import MOST, frequent_tags
from extensions_lib.ui import pieces
from extensions_lib.ui.compat import at_once, on_browser
from extensions_lib.ui.file_report import FileReport, file_report, lists_html, rows
from extensions_lib.ui.webui_networks import readable_metadata

if TYPE_CHECKING:
    from extensions_lib.hosts.webui import Session
    from extensions_lib.library import Entry

TEXTS = ("description", "activation text", "negative text", "notes")
WEIGHT = "preferred weight"
TAGS_SHOWN = 24
RESOLUTIONS_SHOWN = 4
_FACTS = {
    "ss_output_name": "Called in training",
    "ss_sd_model_name": "Trained on",
    "ss_clip_skip": "Clip skip",
    "ss_network_module": "Network module",
}
_ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "()[]{}"})  # they weigh words in a prompt


# --- what there is to show ----------------------------------------------------------------------


def noted(entry: Entry) -> dict[str, Any]:
    """What the person noted, by the key in stem.json. Raises FileProblem for a broken stem.json."""
    user = entry.user
    texts = {key: str(user.get(key) or "") for key in TEXTS}
    weight = user.get(WEIGHT)
    number = float(weight) if isinstance(weight, int | float) else 0.0
    return {**texts, "description": entry.description, WEIGHT: number}


def save(entry: Entry, form: Mapping[str, Any]) -> None:
    """Writes what differs from what is noted. Raises FileProblem; then nothing is written."""
    before = noted(entry)
    filled = {**form, WEIGHT: float(form[WEIGHT] or 0.0)}  # a field left empty is None
    changes = {key: value for key, value in filled.items() if value != before[key]}
    if changes:
        entry.write_user(changes)


def training_facts(entry: Entry) -> list[tuple[str, str]]:
    """What the metadata say of the network and its training, as labels and plain text."""
    metadata = readable_metadata(entry)
    family = entry.family.value if entry.family else str(entry.user.get("sd version") or "")
    found = {"Kind": entry.kind, "Base model": family or "not known"}
    found |= {label: str(metadata.get(key) or "") for key, label in _FACTS.items()}
    found |= {
        "Trained at": _day(metadata.get("ss_training_started_at")),
        "Resolutions": _resolutions(metadata.get("ss_bucket_info")),
        "Pictures": _pictures(metadata.get("ss_dataset_dirs")),
    }
    return [(f"{label}:", text) for label, text in found.items() if text not in ("", "None")]


def _day(seconds: Any) -> str:
    """The day of a time in seconds since 1970; "" for what is none."""
    try:
        return datetime.fromtimestamp(float(seconds)).strftime("%Y-%m-%d %H:%M")
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def _resolutions(info: Any) -> str:
    """The commonest sizes of training pictures, as width×height."""
    buckets = info.get("buckets") if isinstance(info, dict) else None
    sizes: Counter[str] = Counter()
    for bucket in buckets.values() if isinstance(buckets, dict) else ():
        size = bucket.get("resolution") if isinstance(bucket, dict) else None
        if isinstance(size, list) and len(size) == 2:
            sizes[f"{size[0]}×{size[1]}"] += _count(bucket.get("count"))
    shown = ", ".join(size for size, _ in sizes.most_common(RESOLUTIONS_SHOWN))
    return f"{shown}, …" if len(sizes) > RESOLUTIONS_SHOWN else shown


def _pictures(folders: Any) -> str:
    counts = folders.values() if isinstance(folders, dict) else ()
    number = sum(_count(each.get("img_count")) for each in counts if isinstance(each, dict))
    return str(number) if number else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value < MOST else 0


def tags_of(entry: Entry) -> list[tuple[str, int]]:
    """Every training tag with its number, the commonest first. Raises FileProblem."""
    return frequent_tags(entry.metadata.get("ss_tag_frequency", ""), MOST)


# --- tags into texts ----------------------------------------------------------------------------


def toggled(text: str, tag: str) -> str:
    """The text with the tag appended, or taken out where it is one of its parts."""
    written = tag.translate(_ESCAPED)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if written in parts:
        return ", ".join(part for part in parts if part != written)
    return ", ".join([*parts, written])


def random_prompt(
    tags: Sequence[tuple[str, int]], chance: Callable[[], float] = random.random
) -> str:
    """A prompt as the training pictures had them: each tag as likely as it is frequent."""
    most = max((count for _, count in tags), default=0)
    return ", ".join(tag.translate(_ESCAPED) for tag, count in tags if count > chance() * most)


# --- the popup ----------------------------------------------------------------------------------


def make_editor(session: Session, page: Any, ui: Any, tabname: str) -> Any:
    """The editor that the WebUI builds for the page of cards, in each tab that shows them."""
    from modules import ui_extra_networks_user_metadata as webui

    class NetworkEditor(webui.UserMetadataEditor):
        """The WebUI's editor, with the fields of a network."""

        def create_editor(self) -> None:
            self.create_default_editor_elems()
            self.edit_tags = gr.HighlightedText(label="Training tags: a click adds one below")
            texts = {
                "activation text": ("Activation text", "A click on the card adds it"),
                "negative text": ("Negative prompt", "A click on the card adds it there"),
            }
            made = {
                key: gr.Textbox(label=label, info=info, max_lines=1)
                for key, (label, info) in texts.items()
            }
            made[WEIGHT] = gr.Number(label="Preferred weight", info="0: as in Settings", step=0.05)
            with gr.Row() as self.random_row:
                self.random_prompt = gr.Textbox(
                    label="A prompt from its training tags", lines=3, max_lines=3, scale=8
                )
                another = gr.Button("Another", scale=1, min_width=120)
            made["notes"] = self.edit_notes = gr.TextArea(label="Notes", lines=4)
            self.fields = {"description": self.edit_description, **made}
            self.create_default_buttons()
            self._connect(another)

        def _connect(self, another: Any) -> None:
            name, activation = self.edit_name_input, self.fields["activation text"]
            self.edit_tags.select(self.clicked, [activation], [activation], **at_once())
            another.click(self.drawn, [name], [self.random_prompt], **at_once())
            heads = [self.edit_name, self.html_filedata, self.html_preview, self.html_status]
            tags = [self.edit_tags, self.random_row, self.random_prompt]
            self.button_edit.click(
                self.opened, [name], [*heads, *tags, *self.fields.values()]
            ).then(lambda: gr.update(visible=True), [], [self.box])
            done = f"extraNetworksRefreshSingleCard({json.dumps(page.name)}, "
            done += f"{json.dumps(tabname)}, name)"
            self.button_save.click(
                self.saved, [name, *self.fields.values()], [self.html_status]
            ).then(
                None,
                [name, self.html_status],
                [],
                **on_browser(f"(name, said) => {{ if (!said) {{ closePopup(); {done}; }} }}"),
            )

        def opened(self, name: str) -> list[Any]:
            """The values of the fields for a card, in the order of `_connect`."""
            problems: list[str] = []
            values: dict[str, Any] = dict.fromkeys(self.fields, "") | {WEIGHT: 0.0}
            tags: list[tuple[str, int]] = []
            facts = picture = ""
            entry = _tried(lambda: _entry(session, name), None, problems)
            if entry is not None:
                values = _tried(lambda: noted(entry), values, problems)
                tags = _tried(lambda: tags_of(entry), tags, problems)
                about = _tried(lambda: training_facts(entry), [], problems)
                report = _tried(lambda: reported(entry, _checkpoint()), None, problems)
                problems += report.problems if report else []
                facts = _table([*self.get_metadata_table(name), *about], report)
                picture = self.get_card_html(name)
            shown = gr.update(visible=bool(tags))
            return [
                html.escape(name),
                facts,
                picture,
                pieces.messages(problems, "error"),
                gr.update(
                    value=[(tag, str(count)) for tag, count in tags[:TAGS_SHOWN]],
                    visible=bool(tags),
                ),
                shown,
                random_prompt(tags),
                *(values[key] for key in self.fields),
            ]

        def saved(self, name: str, *values: Any) -> str:
            """Saves the fields; the answer is what went wrong, as HTML, or ""."""
            form = dict(zip(self.fields, values, strict=True))
            try:
                save(_entry(session, name), form)
            except CrucibleError as problem:
                return pieces.messages([str(problem)], "error")
            return ""

        def save_preview(self, index: Any, gallery: Any, name: str) -> Any:
            # An empty gallery is None in gradio 4, which the WebUI's own code does not expect.
            return super().save_preview(index, gallery or [], name)

        def drawn(self, name: str) -> str:
            return random_prompt(_tried(lambda: tags_of(_entry(session, name)), [], []))

        @staticmethod
        def clicked(activation: str, event: gr.SelectData) -> str:
            return toggled(activation or "", event.value[0])

    return NetworkEditor(ui, tabname, page)


def _entry(session: Session, name: str) -> Entry:
    """Raises FileProblem for a network whose card is older than the last refresh."""
    entry = session.library.find(name)
    if entry is None:
        raise FileProblem(f"{name}: is not among the networks any more; press Refresh.")
    return entry


def _tried(read: Callable[[], Any], otherwise: Any, problems: list[str]) -> Any:
    """What `read` gives; on a FileProblem the other value, and the problem among the problems."""
    try:
        return read()
    except FileProblem as problem:
        if str(problem) not in problems:
            problems.append(str(problem))
        return otherwise


def reported(entry: Entry, checkpoint: Path | None) -> FileReport:
    """What the file holds, and whether the checkpoint takes it. Raises FileProblem."""
    from extensions_lib.files.safe import read_any_header

    return file_report(read_any_header(entry.path), checkpoint)


def _checkpoint() -> Path | None:
    """The checkpoint chosen in the WebUI, loaded or not."""
    from modules import sd_models, shared

    chosen = sd_models.checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    return Path(chosen.filename) if chosen is not None else None


def _table(lines: Sequence[tuple[str, Any]], report: FileReport | None = None) -> str:
    """The WebUI's table of facts about a file, and below it what of the file is no use."""
    esc = html.escape
    cells = [(esc(label), esc(str(value))) for label, value in lines if value is not None]
    if report is not None:
        told = [label for label, _ in lines]
        own = [(f"{label}:", value) for label, value in rows(report) if value]
        # kind and base stand there already, the base as the person may have noted it
        cells += [each for each in own if each[0] not in (*told, "Base:")]
    inside = "".join(f"<tr><th>{label}</th><td>{value}</td></tr>" for label, value in cells)
    table = f'<table class="file-metadata">{inside}</table>'
    return table + (lists_html(report) if report is not None else "")
