"""The Training tab in a browser: a set looked at, a run watched and steered, runs compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from extensions_lib.errors import CrucibleError
from extensions_lib.training.options import TrainingOptions
from extensions_lib.training.toml_text import toml_text
from extensions_lib.ui import training_options, training_set
from extensions_lib.ui.tagger_links import Links
from extensions_lib.ui.training_room import TrainingRoom
from tests.ui.conftest import PATIENCE, ROOT, Server, start_server
from tests.ui.shown import labels

ID = "#crucible-training"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of two shapes; one has no caption, one a caption that is up to no good."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(96, 96), (128, 64), (96, 96), (128, 64)]):
        Image.new("RGB", size, (60 * number, 90, 200)).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("a thing, red", encoding="utf-8")
    (folder / "1.txt").write_text("<img src=x onerror=\"window.evil='yes'\">", encoding="utf-8")
    (folder / "2.txt").write_text("a thing, blue", encoding="utf-8")
    return folder


def order(pictures: Path, name: str, **other: Any) -> dict[str, Any]:
    return {
        "train_data_dir": str(pictures),
        "output_name": name,
        "network_dim": 2,
        "max_train_steps": 12,
        "resolution": "64",
        "min_bucket_reso": 32,
        "bucket_reso_steps": 32,
        "sample_prompts": ["a thing, large --s 1 --w 64 --h 64"],
        "sample_every_n_steps": 6,
        "save_every_n_steps": 6,
        "validate_every_n_steps": 6,
        "max_validation_steps": 1,
        **other,
    }


@pytest.fixture(scope="module")
def training(data: Path) -> Iterator[Server]:
    """A page of its own: a run is seen by every window of a server."""
    running = start_server(data)
    yield running
    running.process.terminate()
    running.process.wait(timeout=30)


@pytest.fixture
def page(browser: Any, training: Server) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE * 1000)
    made = context.new_page()
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.goto(training.address)
    to_tab(made)
    yield made
    context.close()
    assert errors == []


def to_tab(page: Any) -> None:
    page.get_by_role("tab", name="Training", exact=True).click()
    page.locator(f"{ID}-go").wait_for()
    # what the browser has kept is in the fields by then
    page.wait_for_function("() => document.querySelector('.crucible-training-acts button')")
    page.wait_for_timeout(1500)


def load(page: Any, options: dict[str, Any]) -> None:
    """Puts options into the fields, as TOML."""
    if not page.locator(f"{ID}-toml textarea").is_visible():
        page.locator(f"{ID}-as-toml .label-wrap").click()
    page.locator(f"{ID}-toml textarea").fill(toml_text(options))
    page.locator(f"{ID}-load").click()
    page.wait_for_function(
        "(name) => document.querySelector('#crucible-training-output-name :is(input, textarea)')"
        ".value === name",
        arg=options["output_name"],
    )
    label = f"Train {options['max_train_steps']:,} steps"
    page.locator(f"{ID}-go", has_text=label).wait_for()


def ended(page: Any, state: str) -> None:
    page.locator(f".crucible-training-now[data-state={state}]").wait_for()


@pytest.mark.browser
@pytest.mark.slow
def test_a_set_is_looked_at_before_the_start(page: Any, pictures: Path) -> None:
    load(page, order(pictures, "looked"))
    page.locator(f"{ID}-check").click()
    told = page.locator(f"{ID}-found .crucible-training-sum", has_text="about")
    told.wait_for()
    said = " ".join(told.inner_text().split())
    assert "4 pictures · 3 captions (.txt) · 1 missing" in said and "2 sizes" in said
    assert "12 steps = 3.0 epochs" in said
    old = page.locator(f"{ID}-found .crucible-training-old")
    assert not old.is_visible()
    page.locator(f"{ID}-options > .label-wrap").click()
    page.locator(f"{ID} .crucible-option-search").fill("max train steps")
    steps = page.locator(f"{ID}-max-train-steps input").first
    steps.fill("16")
    steps.blur()
    old.wait_for()
    steps.fill("12")
    page.locator(f"{ID}-check").click()
    page.wait_for_function("() => !document.querySelector('#crucible-training-found').dataset.old")
    told.wait_for()
    page.locator(f"{ID}-pictures .label-wrap").click()
    shown = page.locator(f"{ID}-crops figure")
    assert shown.count() == 4
    page.wait_for_function(
        "() => [...document.querySelectorAll('#crucible-training-crops img')]"
        ".every((each) => each.complete && each.naturalWidth > 0)"
    )
    page.locator(f"{ID}-seen .label-wrap").click()
    seen = page.locator(f"{ID}-prompts").inner_text()
    assert "a thing, red" in seen and "onerror" in seen
    assert page.evaluate("window.evil") is None


@pytest.mark.browser
@pytest.mark.slow
def test_a_run_is_watched_over_a_reload_and_used(page: Any, pictures: Path, data: Path) -> None:
    load(page, order(pictures, "watched", max_train_steps=100_000))
    page.locator(f"{ID}-go").click()
    page.locator(".crucible-training-now .crucible-words", has_text="it/s").wait_for()
    assert page.locator(f"{ID}-go").is_disabled()
    page.reload()
    to_tab(page)
    page.locator(".crucible-chart path.mean").wait_for()
    use = page.get_by_role("button", name="Use this one").first
    use.wait_for()
    use.click()
    page.locator(".crucible-training-samples code", has_text="watched-step").wait_for()
    page.get_by_role("button", name="Pause", exact=True).click()
    ended(page, "paused")
    page.get_by_role("button", name="Save now", exact=True).click()
    page.locator(".crucible-training-now").get_by_text("Saved: watched-step").wait_for()
    page.get_by_role("button", name="Go on", exact=True).click()
    ended(page, "training")
    page.locator(".crucible-training-samples td button").first.click()
    page.locator("dialog.crucible-training-large img").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Stop and save").click()
    ended(page, "stopped")
    assert (data / "models" / "Lora" / "watched.safetensors").is_file()
    assert page.locator(f"{ID}-go").is_enabled()
    chart = page.locator(".crucible-chart svg")
    chart.scroll_into_view_if_needed()
    chart.hover(position={"x": 200, "y": 100})
    assert "Smoothed" in page.locator(".crucible-chart-tip").inner_text()


@pytest.mark.browser
@pytest.mark.slow
def test_a_refusal_stands_at_the_button_and_keeps_what_was_typed(page: Any, pictures: Path) -> None:
    load(page, order(pictures, "refused", train_data_dir=str(pictures / "nowhere")))
    page.locator(f"{ID}-go").click()
    page.locator(f"{ID}-error .crucible-error", has_text="nowhere").wait_for()
    name = page.locator(f"{ID}-output-name").locator("input, textarea")
    assert name.input_value() == "refused" and page.locator(f"{ID}-go").is_enabled()
    page.locator(f"{ID}-toml textarea").fill("network_dimm = 4")
    page.locator(f"{ID}-load").click()
    page.locator(f"{ID}-loaded .crucible-error", has_text="did you mean network_dim?").wait_for()
    assert name.input_value() == "refused"


@pytest.mark.browser
def test_a_newcomer_finds_the_demos_preset_and_a_set_for_it(page: Any, data: Path) -> None:
    preset = page.locator(f"{ID}-preset input")
    assert preset.input_value() == "New shape"
    rate = page.locator(f"{ID}-learning-rate input")
    rate.press("ArrowUp")  # a nudge, not a whole one more
    assert float(rate.input_value()) == pytest.approx(0.0021)
    rate.press("ArrowDown")
    page.locator(f"{ID}-go", has_text="Train 600 steps").wait_for()
    page.locator(f"{ID}-demo").click()
    folder = page.locator(f"{ID}-train-data-dir :is(input, textarea)")
    page.wait_for_function(
        f"() => document.querySelector('{ID}-train-data-dir :is(input, textarea)').value"
    )
    assert list((data / "outputs" / "demo-set" / "train").rglob("*.txt"))
    assert folder.input_value() == str(data / "outputs" / "demo-set" / "train")
    assert preset.input_value() == "New shape"  # a folder is nothing that a preset says
    page.locator(f"{ID}-check").click()
    page.locator(f"{ID}-found .crucible-training-sum").wait_for()
    assert page.locator(f"{ID}-found .crucible-error").count() == 0
    # something else is trained: its preset, and its options alone
    page.locator(f"{ID}-options > .label-wrap").click()
    page.locator(f"{ID}-group-network").wait_for()
    page.locator(f"{ID}-train label", has_text="embedding").click()
    page.wait_for_function(
        f"() => document.querySelector('{ID}-preset input').value === 'Embedding'"
    )
    page.locator(f"{ID}-group-network").wait_for(state="hidden")
    assert page.locator(f"{ID}-group-embedding").is_visible()
    assert page.locator(f"{ID}-kind").is_hidden()


@pytest.mark.browser
@pytest.mark.slow
def test_fields_are_found_marked_reset_and_kept(page: Any) -> None:
    page.locator(f"{ID}-options .label-wrap").first.click()
    page.locator(f"{ID} .crucible-option-search").fill("min snr")
    field = page.locator(f"{ID}-min-snr-gamma")
    field.wait_for()
    assert not page.locator(f"{ID}-noise-offset").is_visible()
    field.locator("input, textarea").fill("5")
    page.locator(f"{ID}-min-snr-gamma.crucible-moved").wait_for()
    page.wait_for_timeout(1200)
    page.reload()
    to_tab(page)
    page.locator(f"{ID}-min-snr-gamma.crucible-moved").wait_for(state="attached")
    page.locator(f"{ID}-options .label-wrap").first.click()
    page.locator(f"{ID} .crucible-option-search").fill("min snr")
    page.locator(f"{ID}-min-snr-gamma .crucible-reset").click()
    page.locator(f"{ID}-min-snr-gamma.crucible-moved").wait_for(state="detached")
    assert field.locator("input, textarea").input_value() == ""


@pytest.mark.browser
@pytest.mark.slow
def test_runs_of_the_past_are_compared_resumed_and_deleted(page: Any, pictures: Path) -> None:
    load(page, order(pictures, "early", max_train_steps=100_000))
    page.locator(f"{ID}-go").click()
    page.locator(".crucible-training-now .crucible-words", has_text="it/s").wait_for()
    page.get_by_role("button", name="Stop and save").click()
    ended(page, "stopped")
    page.locator(f"{ID}-past .label-wrap").click()
    row = page.locator(f"{ID}-runs tbody tr", has_text="early").first
    row.wait_for()
    row.locator("input[type=checkbox]").check()
    page.locator(".crucible-chart path.other").wait_for()
    row.get_by_role("button", name="Resume").click()
    ended(page, "training")
    page.get_by_role("button", name="Stop and save").click()
    ended(page, "stopped")
    row.get_by_role("button", name="Delete").click()
    row.get_by_role("button", name="Really delete?").click()
    row.wait_for(state="detached")


# --- without a browser ------------------------------------------------------------------------


def room(tmp_path: Path, strangers: bool) -> TrainingRoom:
    def path(text: str | None) -> Path:
        found = (tmp_path / (text or "")).resolve()
        if strangers and tmp_path not in found.parents:
            raise CrucibleError("only folders below")
        return found

    def place() -> Any:
        raise AssertionError("nothing is to be loaded")

    return TrainingRoom(place, lambda: "", lambda: None, tmp_path, path, Links(tmp_path), strangers)


def test_strangers_name_no_paths_or_code_of_their_own(tmp_path: Path) -> None:
    open_to_all = room(tmp_path, strangers=True)
    assert open_to_all.allowed(TrainingOptions(train_data_dir="set")).train_data_dir == str(
        tmp_path / "set"
    )
    (tmp_path / "data.toml").write_text(
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "/"\n', encoding="utf-8"
    )
    for wrong in (
        {"train_data_dir": "/etc"},
        {"train_data_dir": "set", "network_weights": "../x.safetensors"},
        {"train_data_dir": "set", "optimizer_type": "os.system"},
        {"dataset_config": "data.toml"},
    ):
        with pytest.raises(CrucibleError):
            open_to_all.allowed(TrainingOptions(**wrong))  # type: ignore[arg-type]
    at_home = room(tmp_path, strangers=False)
    assert at_home.allowed(TrainingOptions(optimizer_type="my.Own")).optimizer_type == "my.Own"


def test_a_preset_leaves_what_is_ones_own() -> None:
    names = training_options.preset_names("SD1")
    assert names[0] == "Character" and names[-1] == "Custom" and len(set(names)) == len(names) > 4
    own = TrainingOptions(train_data_dir="/set", output_name="mine", network_dim=3, seed=9)
    chosen = training_options.with_preset(own, "Character", "SD1")
    assert (chosen.train_data_dir, chosen.output_name) == ("/set", "mine")
    assert chosen.network_dim == 16 and chosen.seed == 0
    assert training_options.with_preset(own, "Custom", "SD1") == own
    assert training_options.preset_of(chosen, "SD1") == "Character"
    assert training_options.preset_of(replace(chosen, seed=1), "SD1") == "Custom"


def test_another_base_or_kind_changes_a_preset_and_nothing_of_ones_own() -> None:
    mine = TrainingOptions(train_data_dir="/set", output_name="mine")
    style = training_options.with_preset(mine, "Style", "SD1")
    larger = training_options.moved(style, "SDXL")
    assert larger == training_options.with_preset(mine, "Style", "SDXL") != style
    changed = replace(style, network_dim=5)
    assert training_options.moved(changed, "SDXL") == changed
    # the demo has no "Style", and a checkpoint that nobody knows no preset at all
    assert training_options.preset_of(training_options.moved(style, "Demo"), "Demo") == "New shape"
    assert training_options.moved(style, "") == style
    embedding = training_options.begun(replace(style, train="embedding"), "SD1")
    assert training_options.preset_of(embedding, "SD1") == "Embedding"
    assert (embedding.train_data_dir, embedding.output_name) == ("/set", "mine")
    kept = replace(changed, train="embedding")
    assert training_options.begun(kept, "SD1") == kept


def test_toml_of_ours_and_of_sd_scripts() -> None:
    ours = TrainingOptions(network_dim=3, sample_prompts=("a, b", "c"))
    assert training_options.from_toml(training_options.as_toml(ours)) == (ours, [])
    theirs, notes = training_options.from_toml(
        'pretrained_model_name_or_path = "base.safetensors"\nnetwork_module = "networks.lora"\n'
        'network_dim = 8\noutput_name = "x"\n'
    )
    assert theirs.network_dim == 8 and any("base.safetensors" in each for each in notes)
    for wrong in ("", "network_dim =", "network_dimm = 3"):
        with pytest.raises(CrucibleError):
            training_options.from_toml(wrong)


def test_lines_keep_their_commas() -> None:
    import gradio as gr

    with gr.Blocks():
        form = training_options.new_form("SD1")
        training_options.first_row(form)
        training_options.rest(form)
    told = TrainingOptions(
        sample_prompts=("a cat, red", "a dog"), optimizer_args=("betas=(0.9,1)",)
    )
    assert form.read(training_options.shown(form, told)) == told


IDLE = """
    const plain = window.setTimeout;
    window.setTimeout = (act, wait, ...more) => (wait >= 4000 ? 0 : plain(act, wait, ...more));
"""  # the look that comes by itself, while nothing goes on, never does


@pytest.fixture
def looked(browser: Any, server: Server) -> Iterator[Any]:
    """A page of which the Training tab is not open yet, and which looks only when it is told to."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE * 1000)
    context.add_init_script(IDLE)
    made = context.new_page()
    made.goto(server.address)
    made.locator(".crucible-card").first.wait_for(state="attached")
    yield made
    context.close()


@pytest.mark.browser
def test_the_tab_looks_at_once_when_it_is_opened(looked: Any) -> None:
    acts = looked.locator(".crucible-training-acts button")
    acts.first.wait_for(state="attached")  # before any answer
    with looked.expect_response(lambda answer: "/status?" in answer.url):
        looked.get_by_role("tab", name="Training", exact=True).click()
    assert [each.inner_text() for each in acts.all()] == ["Pause", "Stop and save", "Save now"]


@pytest.mark.browser
def test_options_are_found_by_the_names_of_files_and_shells(looked: Any) -> None:
    looked.get_by_role("tab", name="Training", exact=True).click()
    looked.locator(f"{ID}-options > .label-wrap").click()
    search = looked.locator(f"{ID} .crucible-option-search")
    for typed in ("min_snr_gamma", "--min-snr-gamma", "MIN SNR"):
        search.fill(typed)
        looked.locator(f"{ID}-min-snr-gamma").wait_for()
        assert not looked.locator(f"{ID}-huber-c").is_visible()
    nothing = looked.locator(f"{ID} .crucible-option-none")
    assert not nothing.is_visible()
    search.fill("network_dim")  # which stands above
    nothing.wait_for()


@pytest.mark.browser
def test_what_check_refused_goes_when_it_is_mended(looked: Any, pictures: Path) -> None:
    looked.get_by_role("tab", name="Training", exact=True).click()
    folder = looked.locator(f"{ID}-train-data-dir :is(input, textarea)")
    looked.wait_for_timeout(1500)  # until what the browser has kept is in the fields
    folder.fill(str(pictures / "nowhere"))
    folder.press("Tab")
    looked.locator(f"{ID}-check").click()
    said = looked.locator(f"{ID}-found .crucible-error", has_text="there is no such folder")
    said.wait_for()
    folder.fill(str(pictures))
    said.wait_for(state="hidden")


def test_regularisation_pictures_are_counted_apart(tmp_path: Path) -> None:
    from extensions_lib.training.data_report import report
    from extensions_lib.training.preflight import Preflight
    from tests.training.drawn import data_of, drawn_set

    drawn_set(tmp_path / "train", 3)
    drawn_set(tmp_path / "reg", 4, "1_thing")
    folders = {"train_data_dir": str(tmp_path / "train"), "reg_data_dir": str(tmp_path / "reg")}
    data = data_of(tmp_path, **folders)
    said = training_set.summary(Preflight((), (), data=report(data), pictures=data))
    plain = " ".join(re.sub(r"<[^>]+>", " ", said).split())
    assert plain.startswith("3 pictures + 4 of regularisation · 5 captions")


def test_names_in_what_is_shown_are_escaped() -> None:
    from extensions_lib.training.preflight import Preflight

    said = training_set.summary(Preflight(("<b>",), ("<i>",)))
    assert "<b>" not in said and "&lt;b&gt;" in said and "&lt;i&gt;" in said


def test_every_word_of_the_tab_is_translated(tmp_path: Path) -> None:
    import gradio as gr

    from extensions_lib.ui.training_tab import build_training_tab

    texts = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    room = TrainingRoom(
        lambda: pytest.fail("nothing is to be loaded"), lambda: "", lambda: None, tmp_path,
        lambda text: Path(text or ""), Links(tmp_path),
    )  # fmt: skip
    with gr.Blocks() as page:
        build_training_tab(room, page)
    shown = labels(page)
    named = {text for text in shown if re.search("[A-Za-z]{2}", text)}
    assert len(named) > 250
    left = {text for text in named if not {text, re.sub(r"\d+", "{n}", text)} & set(texts)}
    assert left <= {"HTML", "max_train_steps", "ControlNet-LLLite", "Tensorboard"}
