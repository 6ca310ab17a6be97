"""The editor of a network's notes in a WebUI's popup, without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from safetensors.torch import load_file, save_file

from extensions_lib.errors import FileProblem
from extensions_lib.library import Library
from extensions_lib.ui import webui_editor as editor
from extensions_lib.ui.webui_networks import _prompt
from tests.hosts.conftest import tiny_lora
from tests.tiny import tiny_checkpoint

TRAINING = {
    "ss_output_name": "other",
    "ss_clip_skip": "None",
    "ss_training_started_at": "1700000000.5",
    "ss_tag_frequency": '{"10_a": {"star": 40, "red (dark)": 12}, "20_b": {"star": 2}}',
    "ss_bucket_info": '{"buckets": {"0": {"resolution": [128, 96], "count": 40}, "1": null}}',
    "ss_dataset_dirs": '{"a": {"img_count": 40}, "b": {"img_count": 2}, "c": []}',
}


@pytest.fixture
def session(tmp_path: Path) -> Any:
    tiny_lora(tmp_path / "plain.safetensors", 1)
    tensors = load_file(tmp_path / "plain.safetensors")
    save_file(tensors, tmp_path / "trained.safetensors", metadata=TRAINING)
    library = Library([tmp_path])
    library.refresh()
    return SimpleNamespace(library=library, folders=[tmp_path])


def _entry(session: Any, name: str = "trained") -> Any:
    return session.library.find(name)


# --- what there is to show ----------------------------------------------------------------------


def test_only_what_changed_is_written_and_other_keys_stay(session: Any, tmp_path: Path) -> None:
    file = tmp_path / "trained.json"
    file.write_text(json.dumps({"sd version": "SD2", "mine": [1], "notes": "old", "a": None}))
    session.library.refresh()
    form = editor.noted(_entry(session))
    assert form == {"description": "", "activation text": "", "negative text": "",
                    "notes": "old", "preferred weight": 0.0}  # fmt: skip
    editor.save(_entry(session), {**form, "notes": "new", "preferred weight": -0.4})
    written = {"sd version": "SD2", "mine": [1], "notes": "new", "a": None}
    assert json.loads(file.read_text()) == {**written, "preferred weight": -0.4}
    assert editor.noted(_entry(session))["notes"] == "new"


def test_nothing_changed_writes_nothing(session: Any, tmp_path: Path) -> None:
    (tmp_path / "trained.txt").write_text("said beside it")
    session.library.refresh()
    form = editor.noted(_entry(session))
    assert form["description"] == "said beside it"
    editor.save(_entry(session), {**form, "preferred weight": None})  # as an emptied field is
    assert not (tmp_path / "trained.json").exists()


def test_a_broken_file_of_notes_is_not_overwritten(session: Any, tmp_path: Path) -> None:
    file = tmp_path / "trained.json"
    file.write_text("[1]")
    session.library.refresh()
    with pytest.raises(FileProblem, match=r"trained\.json: should hold a JSON object"):
        editor.save(_entry(session), {"notes": "new"})
    assert file.read_text() == "[1]"


def test_what_the_training_left_in_the_file(session: Any) -> None:
    facts = dict(editor.training_facts(_entry(session)))
    assert facts.pop("Trained at:").startswith("2023-11-1")
    assert facts == {"Kind:": "LoRA", "Base model:": "SD1", "Called in training:": "other",
                     "Resolutions:": "128×96", "Pictures:": "42"}  # fmt: skip
    assert editor.tags_of(_entry(session)) == [("star", 42), ("red (dark)", 12)]
    assert editor.tags_of(_entry(session, "plain")) == []


@pytest.mark.parametrize("odd", ["[1]", '{"buckets": 1}', '{"a": {"img_count": "x"}}', "text"])
def test_odd_metadata_is_passed_over(session: Any, odd: str) -> None:
    entry = _entry(session)
    keys = ("ss_bucket_info", "ss_dataset_dirs", "ss_training_started_at")
    entry.metadata = dict.fromkeys(keys, odd)
    assert dict(editor.training_facts(entry)) == {"Kind:": "LoRA", "Base model:": "SD1"}


def test_the_base_that_the_person_noted_counts_where_the_file_does_not_tell(session: Any) -> None:
    entry = _entry(session, "plain")
    entry.family, entry.user = None, {"sd version": "SD2"}
    assert ("Base model:", "SD2") in editor.training_facts(entry)
    entry.user = {}
    assert ("Base model:", "not known") in editor.training_facts(entry)


# --- what a card inserts ------------------------------------------------------------------------


def test_a_card_inserts_what_is_noted_and_runs_nothing_from_it() -> None:
    given = {"preferred weight": 0.6, "activation text": 'two\n"lines"'}
    assert _prompt("a", given) == r'"<lora:a:" + 0.6 + ">" + " two\n\"lines\""'
    default = '"<lora:a:" + opts.extra_networks_default_multiplier + ">"'
    for weight in (0, None, "alert(1)", [1]):
        assert _prompt("a", {"preferred weight": weight}) == default


# --- tags into texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tag", "then"),
    [
        ("", "star", "star"),
        ("a,  b ,", "star", "a, b, star"),
        ("a, star, b", "star", "a, b"),
        ("stars", "star", "stars, star"),
        ("a", "red (dark)", "a, red \\(dark\\)"),
        ("a, red \\(dark\\)", "red (dark)", "a"),
    ],
)
def test_a_click_on_a_tag_adds_it_or_takes_it_out(text: str, tag: str, then: str) -> None:
    assert editor.toggled(text, tag) == then


def test_a_random_prompt_has_frequent_tags_more_often() -> None:
    tags = [("star", 40), ("red (dark)", 10)]
    assert editor.random_prompt(tags, lambda: 0.99) == "star"
    assert editor.random_prompt(tags, lambda: 0.2) == "star, red \\(dark\\)"
    assert editor.random_prompt([]) == ""


# --- the popup ----------------------------------------------------------------------------------


class _WebUIsEditor:
    """The pieces of the WebUI's editor that ours builds upon."""

    def __init__(self, ui: Any, tabname: str, page: Any) -> None:
        self.ui, self.tabname, self.page = ui, tabname, page

    def create_default_editor_elems(self) -> None:
        self.edit_name, self.html_filedata, self.html_preview = gr.HTML(), gr.HTML(), gr.HTML()
        self.edit_description = gr.Textbox()

    def create_default_buttons(self) -> None:
        self.button_save, self.html_status = gr.Button(), gr.HTML()

    def get_metadata_table(self, name: str) -> list[tuple[str, Any]]:
        return [("Filename: ", f"<i>{name}"), ("Hash: ", None)]

    def get_card_html(self, name: str) -> str:
        return f"card of {name}"

    def save_preview(self, index: int, gallery: list[Any], name: str) -> str:
        return f"{len(gallery)} pictures for {name}"

    def create_ui(self) -> None:
        with gr.Group() as self.box:
            self.edit_name_input, self.button_edit = gr.Textbox(), gr.Button()
            self.create_editor()  # type: ignore[attr-defined]


@pytest.fixture
def popup(session: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    webui: Any = ModuleType("modules.ui_extra_networks_user_metadata")
    webui.UserMetadataEditor = _WebUIsEditor
    package: Any = ModuleType("modules")
    package.ui_extra_networks_user_metadata = webui
    chosen = SimpleNamespace(filename=str(tiny_checkpoint(tmp_path / "models" / "c.safetensors")))
    package.sd_models = SimpleNamespace(checkpoint_aliases={"c": chosen})
    package.shared = SimpleNamespace(opts=SimpleNamespace(sd_model_checkpoint="c"))
    monkeypatch.setitem(sys.modules, "modules", package)
    monkeypatch.setitem(sys.modules, "modules.ui_extra_networks_user_metadata", webui)
    made = editor.make_editor(session, SimpleNamespace(name="lora"), None, "txt2img")
    with gr.Blocks():
        made.create_ui()
    return made


def _shown(popup: Any, name: str) -> dict[str, Any]:
    """What the popup shows for a card, by what it stands for."""
    heads = ["name", "facts", "preview", "status", "tags", "row", "random"]
    return dict(zip([*heads, *popup.fields], popup.opened(name), strict=True))


def test_the_popup_shows_and_saves(popup: Any, tmp_path: Path) -> None:
    shown = _shown(popup, "trained")
    assert shown["tags"]["value"] == [("star", "42"), ("red (dark)", "12")]
    assert shown["tags"]["visible"] and shown["row"]["visible"]
    assert "star" in shown["random"] and "star" in popup.drawn("trained")
    assert "&lt;i&gt;trained" in shown["facts"] and "<td>SD1</td>" in shown["facts"]
    assert "Hash" not in shown["facts"]
    assert (shown["status"], shown["preview"]) == ("", "card of trained")
    values = [{"notes": "new", "preferred weight": 0.5}.get(key, "") for key in popup.fields]
    assert popup.saved("trained", *values) == ""
    assert json.loads((tmp_path / "trained.json").read_text()) == {
        "notes": "new", "preferred weight": 0.5}  # fmt: skip
    assert _shown(popup, "trained")["notes"] == "new"


def test_the_popup_tells_what_of_the_file_is_no_use(
    popup: Any, session: Any, tmp_path: Path
) -> None:
    facts = _shown(popup, "plain")["facts"]
    assert "fit the checkpoint" in facts and "<details" not in facts
    assert facts.count("<th>Base") == facts.count("<th>Kind:") == 1
    tensors = load_file(tmp_path / "plain.safetensors")
    more = {"lora_unet_<b>nowhere.lora_up.weight": next(iter(tensors.values())).clone()}
    save_file({**tensors, **more}, tmp_path / "plain.safetensors")
    facts = _shown(popup, "plain")["facts"]
    assert "<span>1</span> <span>not understood</span>" in facts
    assert "<li>lora_unet_&lt;b&gt;nowhere</li>" in facts
    sys.modules["modules"].shared.opts.sd_model_checkpoint = None  # type: ignore[attr-defined]
    assert "checkpoint" not in _shown(popup, "plain")["facts"]


def test_a_network_without_tags_shows_no_field_for_them(popup: Any) -> None:
    shown = _shown(popup, "plain")
    assert not shown["tags"]["visible"] and not shown["row"]["visible"]
    assert popup.drawn("plain") == ""


def test_what_is_wrong_is_said_in_the_popup(popup: Any, session: Any, tmp_path: Path) -> None:
    (tmp_path / "trained.json").write_text("[1]")
    session.library.refresh()
    shown = _shown(popup, "trained")
    assert "should hold a JSON object" in shown["status"] and shown["preferred weight"] == 0
    assert "should hold a JSON object" in popup.saved("trained", *[""] * len(popup.fields))


def test_a_card_of_a_file_that_is_gone(popup: Any) -> None:
    for said in (_shown(popup, "gone")["status"], popup.saved("gone", *[""] * len(popup.fields))):
        assert "gone: is not among the networks any more; press Refresh." in said
    assert popup.drawn("gone") == ""


def test_an_empty_gallery_of_gradio_4_is_an_empty_one(popup: Any) -> None:
    assert popup.save_preview(0, None, "plain") == "0 pictures for plain"
    assert popup.save_preview(0, ["one"], "plain") == "1 pictures for plain"


def test_a_clicked_tag_is_taken_from_the_event(popup: Any) -> None:
    assert popup.clicked("a", SimpleNamespace(value=["star", "42"])) == "a, star"
    assert popup.clicked(None, SimpleNamespace(value=["star", "42"])) == "star"
