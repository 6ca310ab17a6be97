"""The bits of HTML: nothing from outside gets in unescaped, numbers read well."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from extensions_lib.datasets.prepare import Preparation
from extensions_lib.hosts.base import Progress
from extensions_lib.options import options_of
from extensions_lib.tagging.pool import Models
from extensions_lib.tagging.run import Run
from extensions_lib.tagging.selection import Selection
from extensions_lib.tagging.writer import Output
from extensions_lib.toolbox.bake import Baking
from extensions_lib.toolbox.convert import Converting
from extensions_lib.toolbox.extract import Extracting
from extensions_lib.toolbox.merge import Merging
from extensions_lib.toolbox.resize import Resizing
from extensions_lib.training.options import TrainingOptions
from extensions_lib.ui import pieces
from extensions_lib.ui.cards import Card, card_html, cards_html, folders_html, preferred_weight
from extensions_lib.ui.option_fields import shown_help
from extensions_lib.ui.pictures import OutputFolder, numbered

EVIL = '<script>alert("1")</script>'
ROOT = Path(__file__).resolve().parents[2]
TOOL_OPTIONS = (Converting, Resizing, Merging, Extracting, Baking)
# options that a tab shows
FORMS = (Selection, Models, Run, Output, Preparation, TrainingOptions, *TOOL_OPTIONS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (750, "12:30"), (3725, "1:02:05"), (-1, "0:00")],
)
def test_clock(seconds: float, text: str) -> None:
    assert pieces.clock(seconds) == text


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html)).strip()


def test_progress_counts_over_all_pictures() -> None:
    bar = pieces.progress_bar(Progress(step=10, steps=20, image=1, images=4, eta_seconds=12))
    assert plain(bar) == "Step 10/20 · picture 2/4 · 0:12 left"
    assert "width: 37.5%" in bar
    alone = pieces.progress_bar(Progress(step=3, steps=20, image=0, images=1))
    assert plain(alone) == "Step 3/20"


def test_texts_from_files_and_prompts_are_escaped() -> None:
    card = Card(
        EVIL,
        alias=EVIL,
        kind=EVIL,
        words=EVIL,
        description=EVIL,
        why=EVIL,
        preview=EVIL,
        path=EVIL,
        folder=EVIL,
    )
    for html in (
        cards_html([card], [], EVIL),
        pieces.messages([EVIL], "error"),
        pieces.bar(None, EVIL),
    ):
        assert "<script" not in html
    assert '("1")' not in card_html(card)


def test_fitting_networks_come_first_and_none_is_hidden() -> None:
    cards = [Card("a", problem="broken"), Card("b", why="made for SDXL"), Card("c"), Card("D")]
    html = cards_html(cards, [])
    assert re.findall(r'data-name="(\w)"', html) == ["c", "D", "b", "a"]
    assert html.count("crucible-broken") == html.count("crucible-other") == 1


def chips(html: str) -> list[str]:
    return [
        plain(chip) for chip in re.findall(r'<button[^>]*class="crucible-chip".*?</button>', html)
    ]


def test_folders_count_what_lies_in_and_below_them() -> None:
    cards = [Card("a"), Card("b", folder="x/y"), Card("c", folder="x/y"), Card("d", folder="B")]
    assert chips(folders_html(cards)) == ["All 4", "B 1", "x 2", "x/y 2"]
    assert folders_html([Card("a"), Card("b")]) == ""


def test_an_empty_shelf_says_where_files_go() -> None:
    assert "models/Lora" in cards_html([], [Path("models/Lora")])


@pytest.mark.parametrize(
    ("user", "weight"),
    [
        ({}, 1),
        ({"preferred weight": 0.7}, 0.7),
        ({"preferred weight": 0}, 1),
        ({"preferred weight": "x"}, 1),
    ],
)
def test_preferred_weight(user: dict[str, object], weight: float) -> None:
    assert preferred_weight(user) == weight
    assert Card("n", weight=weight).tag == f"<lora:n:{weight:g}>"


def test_output_names_never_collide(tmp_path: Path) -> None:
    from PIL import Image

    folder = OutputFolder(tmp_path)
    picture = Image.new("RGB", (8, 8))
    paths = [folder.save(picture, "p", seed) for seed in (1, 1, 2)]
    assert [path.name for path in paths] == ["00001-1.png", "00002-1.png", "00003-2.png"]
    assert numbered(Path("a.png"), 1) == [Path("a.png")]
    assert numbered(Path("x/a.png"), 2) == [Path("x/a-1.png"), Path("x/a-2.png")]


HOLE = re.compile(r"\{(?!n\})[a-z]+\}")


def package_source() -> str:
    """All of the package's Python, with texts over several lines joined."""
    paths = (ROOT / "extensions_lib").rglob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in paths)
    return re.sub(r"""["']\s*\n\s*f?["']""", "", source)


def test_translated_sentences_are_said_somewhere() -> None:
    """Each clause of a sentence with holes stands in the sources; no hole is made up."""
    texts = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    source = package_source()
    said = [text for text in texts if HOLE.search(text)]
    assert len(said) > 30
    for text in said:
        assert set(HOLE.findall(texts[text])) <= set(HOLE.findall(text)), text
        if text.startswith(("a ", "one of ")):
            continue  # what an option takes, put together word by word
        clauses = re.split(rf"{HOLE.pattern}|[.:;()]", text)
        clauses = [each.strip(" ,").removeprefix("is ") for each in clauses]
        assert [each for each in clauses if each not in source] == [], text


def test_translation_covers_the_labels_of_the_page() -> None:
    """Every label of the tab's source has its line in zh_CN.json, and no line is idle."""
    texts = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "extensions_lib" / "ui").glob("*.py")
    )
    found = re.findall(
        r'(?:label=|gr\.Tab\(|gr\.Button\(|_slider\(|gr\.Accordion\()\s*"([^"]+)"', source
    )
    assert len(found) > 15
    html = r'(?:_section\(|\()\s*"([A-Z][a-z ]+)",\s*_|aria-label="([\w ]+)"|<option[^>]*>(\w+)<'
    found += [text for groups in re.findall(html, source) for text in groups if text]
    found = [text for text in found if re.search("[A-Za-z]", text) and "{" not in text]
    assert [label for label in found if label not in texts] == []
    for each in (option for kind in FORMS for option in options_of(kind)):
        unit, told = f"{each.label} ({each.unit})", shown_help(each)
        lines = f"{told}; one a line"
        source += "\n".join(map(str, (each.group, each.label, unit, lines, told, *each.choices)))
    source += "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "javascript").rglob("*.js")
    )
    for file in ("toolbox/metadata.py", "training/presets.toml"):
        source += (ROOT / "extensions_lib" / file).read_text(encoding="utf-8")
    source = re.sub(r"""["']\s*\n\s*f?["']""", "", unescape(source))
    source = source.replace('\\"', '"')
    # A WebUI shows what is told of a setting in brackets.
    source += "".join(f"({told})" for told in re.findall(r'\.info\(\s*"([^"]+)"', source))
    words = set(re.findall("[A-Za-z]+", source))
    # A sentence about somebody's file: "{file}: there is no such folder; check the path."
    said = {text for text in texts if HOLE.search(text)}
    everywhere = package_source()
    # A text with numbers is put together: "Tag {n} pictures".
    counted = [text for text in texts if "{n}" in text]
    told = {text for text in texts if text in source or text in everywhere}
    assert [text for text in texts if text not in told and text not in {*counted, *said}] == []
    for text in counted:
        assert set(re.findall("[A-Za-z]+", text.replace("{n}", ""))) <= words, text
