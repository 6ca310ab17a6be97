"""The Tagger tab in a real browser, with the demo tagger and drawn pictures."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.demo import world
from tests.tagging.tiny_hub import Hub
from tests.ui.conftest import ROOT, Server, Visit, arrive, open_page

pytestmark = pytest.mark.browser


def drawn(folder: Path, count: int, side: int = 96) -> list[world.Scene]:
    """Draws so many pictures, 00.png and on; what is on them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)
    scenes = [world.random_scene(rng) for _ in range(count)]
    for number, scene in enumerate(scenes):
        world.draw(scene, side).save(folder / f"{number:02d}.png")
    return scenes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures without captions."""
    drawn(tmp_path / "photos", 6)
    return tmp_path / "photos"


@pytest.fixture
def captioned(photos: Path) -> Path:
    """Six pictures with captions."""
    for number, text in enumerate(
        ("1boy, hat", "1boy, smile", "1girl, hat", "1girl", "cat, hat", "a dog, on grass")
    ):
        (photos / f"{number:02d}.txt").write_text(text)
    return photos


@pytest.fixture(scope="module")
def window(browser: Any, server: Server) -> Iterator[Visit]:
    """One window for all tests, at the Tagger tab."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    made = open_page(context)
    made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
    arrive(made, server)
    yield made
    context.close()


@pytest.fixture
def tagger(window: Visit) -> Iterator[Visit]:
    """The window; what a test changes of the options is put back by their own buttons."""
    window.tab("Tagger")
    yield window
    assert not window.complaints
    window.page.set_viewport_size({"width": 1280, "height": 860})
    press_one = """() => {
        const button = document.querySelector("#crucible-tagger .crucible-reset");
        button?.click();
        return button?.parentElement.id ?? "";
    }"""
    pressed = []
    while name := window.page.evaluate(press_one):
        pressed.append(name)
        assert len(pressed) < 100, pressed
        window.page.wait_for_timeout(100)


def name_folder(visit: Visit, folder: Path) -> None:
    """Types the folder's path; the main button then says how many pictures there are."""
    visit.tab("Folder")
    box = visit.page.locator("#crucible-tagger-folder :is(input, textarea)")
    box.fill(str(folder))
    box.press("Tab")


def said(visit: Visit, place: str, text: str | re.Pattern[str]) -> Any:
    """Waits until a place of the tab says something."""
    found = visit.page.locator(f"#crucible-{place}").filter(has_text=text)
    found.wait_for()
    return found


def texts(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("*.txt"))]


def wait(visit: Visit, true: Callable[[], bool]) -> None:
    """Waits until something is so on disk."""
    for _ in range(600):
        if true():
            return
        visit.page.wait_for_timeout(50)
    raise AssertionError("it did not become so")


# --- folder -----------------------------------------------------------------------------------


def tag(visit: Visit) -> None:
    """Presses the main button and waits until it is done."""
    before = run_shown(visit)
    visit.page.locator("#crucible-tagger-go").click()
    wait(visit, lambda: run_shown(visit) not in (before, ""))


def run_shown(visit: Visit) -> str:
    """Which run's result the page shows, "" for none."""
    shown = "document.querySelector('#crucible-tagger-result [data-run]')?.dataset.run ?? ''"
    return str(visit.page.evaluate(shown))


def test_a_folder_is_tagged_and_follows_the_threshold(tagger: Visit, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    name_folder(tagger, photos)
    said(tagger, "tagger-go", "Tag 7 pictures")
    tag(tagger)
    scene = world.random_scene(random.Random(3))  # the first of `drawn`
    assert f"{scene.background} background" in (photos / "00.txt").read_text()
    assert len(texts(photos)) == 6
    result = tagger.page.locator("#crucible-tagger-result")
    assert "6 captions written" in result.inner_text()
    result.locator("summary").click()
    assert "broken.png" in result.locator("details").inner_text()

    before = texts(photos)
    tagger.page.locator("#crucible-tagger-look").click()
    tagger.page.locator("#crucible-tagger-bars .crucible-bars li").first.wait_for()
    rows = tagger.page.locator("#crucible-tagger-bars li").count()
    assert rows >= len(before[0].split(", "))
    tagger.shot("tagger-folder")
    number = tagger.page.locator("#crucible-tagger-select-general input[type=number]")
    first = run_shown(tagger)
    number.fill("1")
    number.press("Tab")
    wait(tagger, lambda: run_shown(tagger) not in (first, ""))
    assert texts(photos) != before
    assert "pictures/s" not in result.inner_text()  # nothing was asked again
    tagger.page.locator("#crucible-tagger-bars li.crucible-below").first.wait_for()

    line = tagger.page.locator("#crucible-tagger-bars [data-threshold]").first
    line.scroll_into_view_if_needed()
    at, few = line.bounding_box(), texts(photos)
    tagger.page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    tagger.page.mouse.down()
    tagger.page.mouse.move(at["x"] - 100, at["y"], steps=4)
    tagger.page.mouse.up()
    wait(tagger, lambda: texts(photos) != few)
    assert float(number.input_value()) < 1


@pytest.mark.slow
def test_a_captioner_describes_what_a_tagger_tags(tagger: Visit, photos: Path, data: Path) -> None:
    from tests.tagging.tiny_captioners import WORDS, tiny_captioner

    tiny_captioner(data / "models" / "captioners" / "tiny-git", "git")
    name_folder(tagger, photos)
    names = tagger.page.locator("#crucible-tagger-names input")
    names.fill("tiny-git")
    names.press("Enter")
    tag(tagger)
    tagger.shot("tagger-captioner")
    captions = texts(photos)
    assert len(captions) == 6 and all(" background" in caption for caption in captions)
    described = [
        [w for w in caption.replace(",", "").split() if w in WORDS] for caption in captions
    ]
    assert all(described)
    tagger.page.reload()
    tagger.tab("Tagger")


def test_a_name_that_no_disk_holds_is_refused_and_the_tab_works_on(
    tagger: Visit, photos: Path
) -> None:
    name_folder(tagger, photos / ("long" * 100))
    said(tagger, "tagger-notes", "longer than a name on a disk may be")
    tagger.page.locator("#crucible-tagger-go").click()
    said(tagger, "tagger-notes", "longer than a name on a disk may be")
    name_folder(tagger, photos)
    said(tagger, "tagger-go", "Tag 6 pictures")
    tag(tagger)
    assert len(texts(photos)) == 6


def test_what_people_wrote_is_asked_about(tagger: Visit, captioned: Path) -> None:
    before = texts(captioned)
    name_folder(tagger, captioned)
    said(tagger, "tagger-notes", "6 of 6 pictures have captions already")
    tagger.page.locator("#crucible-tagger-go").click()
    said(tagger, "tagger-notes", "choose, by the option existing")
    assert texts(captioned) == before
    tagger.page.locator("#crucible-tagger-output-existing").get_by_text("append").click()
    tag(tagger)
    for new, old in zip(texts(captioned), before, strict=True):
        assert new.startswith(f"{old}, ")


def test_a_stopped_run_goes_on(tagger: Visit, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    drawn(folder, 1, 2000)  # takes a while to decode
    large = (folder / "00.png").read_bytes()
    for number in range(1, 60):
        (folder / f"{number:02d}.png").write_bytes(large + bytes([number]))  # another file
    name_folder(tagger, folder)
    said(tagger, "tagger-go", "Tag 60 pictures")
    tagger.page.locator("#crucible-tagger-go").click()
    said(tagger, "tagger-progress", re.compile(r"[1-9]\d*/60"))
    tagger.page.locator("#crucible-tagger-stop").click()
    result = said(tagger, "tagger-result", "Stopped after").inner_text()
    done = int(re.search(r"(\d+)/60", result)[1])  # type: ignore[index]
    assert 0 < done < 60
    wait(tagger, lambda: len(texts(folder)) >= done)
    tag(tagger)
    assert len(texts(folder)) == 60


def test_a_folder_is_chosen_by_looking(tagger: Visit, photos: Path) -> None:
    (photos.parent / "<b>other").mkdir()
    name_folder(tagger, photos / "missing")
    tagger.page.locator("#crucible-tagger-browse").click()
    listed = said(tagger, "browse-list", "6 pictures")
    listed.locator("[title='The folder around it']").click()
    listed = said(tagger, "browse-list", "0 pictures")
    assert "<b>other" in listed.inner_text()
    listed.get_by_text("photos", exact=True).click()
    listed = said(tagger, "browse-list", "6 pictures")
    listed.get_by_text("Take this folder").click()
    said(tagger, "tagger-go", "Tag 6 pictures")
    assert not tagger.page.locator("#crucible-browse-list button").count()


def test_a_wrong_folder_is_said_where_one_looks(tagger: Visit, tmp_path: Path) -> None:
    name_folder(tagger, tmp_path / "none")
    said(tagger, "tagger-notes", "there is no such folder")
    (tmp_path / "empty").mkdir()
    name_folder(tagger, tmp_path / "empty")
    said(tagger, "tagger-notes", "there are no pictures in it")


def test_fields_survive_a_reload_and_can_be_reset(
    tagger: Visit, photos: Path, server: Server
) -> None:
    name_folder(tagger, photos)
    trigger = tagger.page.locator("#crucible-tagger-select-trigger :is(input, textarea)")
    trigger.fill("smith")
    trigger.press("Tab")
    tagger.page.locator("#crucible-tagger-select-trigger .crucible-reset").wait_for()
    tagger.page.wait_for_timeout(900)
    arrive(tagger, server)
    tagger.tab("Tagger")
    tagger.tab("Folder")
    said(tagger, "tagger-go", "Tag 6 pictures")
    assert trigger.input_value() == "smith"
    tagger.page.locator("#crucible-tagger-select-trigger .crucible-reset").click()
    wait(tagger, lambda: trigger.input_value() == "")
    search = tagger.page.locator("#crucible-tagger-tab-folder .crucible-option-search")
    search.fill("kaomoji")
    tagger.page.locator("#crucible-tagger-select-kaomoji").wait_for()
    assert not tagger.page.locator("#crucible-tagger-select-max-tags").is_visible()


# --- one picture ------------------------------------------------------------------------------


def test_one_picture_to_the_prompt(tagger: Visit, photos: Path) -> None:
    tagger.tab("One picture")
    drop = tagger.page.locator("#crucible-one-picture input[type=file]")
    drop.set_input_files(photos / "00.png")
    tagger.page.locator("#crucible-one-bars .crucible-bars li").first.wait_for()
    caption = tagger.page.locator("#crucible-one-caption textarea").input_value()
    scene = world.random_scene(random.Random(3))
    assert f"{scene.background} background" in caption
    tagger.shot("tagger-one")
    tagger.page.locator("#crucible-one-select-additional textarea").fill("best quality")
    tagger.page.wait_for_function(
        "document.querySelector('#crucible-one-caption textarea').value.endsWith('best quality')"
    )
    tagger.page.locator("#crucible-one-send").click()
    wait(tagger, lambda: tagger.prompt_text() == f"{caption}, best quality")


def test_what_is_no_picture_is_said_beside_it(tagger: Visit, photos: Path) -> None:
    tagger.tab("One picture")
    page = tagger.page
    broken = photos / "broken.png"
    broken.write_bytes((photos / "00.png").read_bytes()[:200])
    clear = page.locator("#crucible-one-picture [aria-label='Remove Image']")
    if clear.count():
        clear.click()
    page.locator("#crucible-one-picture input[type=file]").set_input_files(broken)
    said(tagger, "one-notes", "cannot be opened as a picture")
    assert not page.locator(".toast-body").count()
    clear.click()
    page.locator("#crucible-one-picture input[type=file]").set_input_files(photos / "00.png")
    page.locator("#crucible-one-bars .crucible-bars li").first.wait_for()


def test_a_model_is_downloaded_when_asked_for(tagger: Visit, photos: Path) -> None:
    page, demo = tagger.page, ROOT / "models" / "demo-tagger"
    repo = "SmilingWolf/wd-vit-tagger-v3"
    files = ("model.onnx", "selected_tags.csv")
    hub = Hub({f"{repo}/{name}": (demo / name).read_bytes() for name in files})
    tagger.tab("One picture")
    names = page.locator("#crucible-one-names input")
    names.click()
    page.locator("[role=option]", has_text="wd-vit-tagger-v3").click()
    names.press("Escape")
    drop = page.locator("#crucible-one-picture input[type=file]")
    if not drop.count():
        page.locator("#crucible-one-picture [aria-label=Clear]").click()
    drop.set_input_files(photos / "00.png")
    said(tagger, "one-notes", "allow its download")
    assert not hub.asked
    page.locator("#crucible-one-models-download input").check()
    page.locator("#crucible-one-models-group-models button").first.click()
    page.locator("#crucible-one-models-mirror :is(input, textarea)").fill(hub.endpoint)
    page.locator("#crucible-one").click()
    said(tagger, "one-bars", "asked on CPU")
    assert len(hub.gets()) >= 2
    hub.close()
    names.click()
    page.locator("[role=option]", has_text="wd-vit-tagger-v3").click()
    names.press("Escape")


# --- edit -------------------------------------------------------------------------------------


def edit(visit: Visit, folder: Path) -> Any:
    """Opens a folder in the editor; its gallery, and no longer that of the folder before."""
    visit.tab("Edit")
    box = visit.page.locator("#crucible-tagger-folder :is(input, textarea)")
    box.fill("")
    box.press("Tab")
    said(visit, "edit-bar", "Name a folder of pictures above")
    box.fill(str(folder))
    box.press("Tab")
    shots = visit.page.locator("#crucible-edit-gallery .crucible-shot")
    said(visit, "edit-bar", f"{len(list(folder.glob('*.png')))} pictures")
    shots.first.wait_for()
    return shots


def test_the_editor(tagger: Visit, captioned: Path) -> None:
    page, shots = tagger.page, edit(tagger, captioned)
    assert shots.count() == 6
    shots.nth(0).click()
    shots.nth(2).click(modifiers=["Shift"])
    said(tagger, "edit-tags", "Tags of the 3 picked")
    page.locator(".crucible-edit-add input").fill("photo, hat")
    page.locator(".crucible-edit-add input").press("Enter")
    said(tagger, "edit-notes", "3 captions changed")
    assert texts(captioned)[:4] == [
        "1boy, hat, photo", "1boy, smile, photo, hat", "1girl, hat, photo", "1girl",
    ]  # fmt: skip
    tagger.shot("tagger-edit")
    page.locator("#crucible-edit [name=find]").fill("bo")
    page.locator("#crucible-edit-tags li").nth(1).wait_for(state="detached")
    page.locator("#crucible-edit-tags li[data-tag='1boy'] .crucible-rename").click()
    page.wait_for_timeout(1000)  # who types slowly keeps the field
    page.locator(".crucible-renaming").fill("man")
    page.locator(".crucible-renaming").press("Enter")
    wait(tagger, lambda: texts(captioned)[1] == "man, smile, photo, hat")
    page.locator("#crucible-edit [name=find]").fill("")

    page.locator(".crucible-edit-filter input").fill("hat AND NOT 1girl")
    said(tagger, "edit-bar", "3 pass the filter")
    shots.nth(2).wait_for()
    page.locator("#crucible-edit-bar").get_by_text("None").click()
    said(tagger, "edit-tags", "Tags of 3 pictures")
    page.locator("#crucible-edit-tags li[data-tag='hat'] [data-crucible-do=remove]").click()
    said(tagger, "edit-notes", "3 captions changed")
    assert texts(captioned)[4] == "cat"

    page.keyboard.press("Escape")
    page.locator("h3").first.click()
    for word, text in (("Undo", "cat, hat"), ("Redo", "cat"), ("Undo", "cat, hat")):
        page.locator("#crucible-edit-bar").get_by_text(word).click()
        wait(tagger, lambda text=text: texts(captioned)[4] == text)  # type: ignore[misc]
    page.locator("#crucible-edit-past button").first.click()
    page.locator("#crucible-edit-history").get_by_text("Before all changes").click()
    wait(tagger, lambda: texts(captioned)[1] == "1boy, smile")


def test_a_caption_is_edited_in_place_by_keys(tagger: Visit, captioned: Path) -> None:
    page, shots = tagger.page, edit(tagger, captioned)
    shots.nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    box = shots.nth(1).locator("textarea")
    box.fill("1boy, wide smile")
    box.press("Enter")
    wait(tagger, lambda: texts(captioned)[1] == "1boy, wide smile")
    page.wait_for_function("document.activeElement?.dataset.name === '01.png'")
    page.keyboard.press("Space")
    said(tagger, "edit-bar", "1 picked")
    page.keyboard.press("Control+z")
    page.keyboard.press("Enter")  # the gallery is made anew by the undo while one types
    shots.nth(1).locator("textarea").fill("nothing of this stays")
    said(tagger, "edit-notes", "Undo: Edit 01.png")
    assert shots.nth(1).locator("textarea").input_value() == "nothing of this stays"
    page.keyboard.press("Escape")
    assert shots.nth(1).locator("textarea").count() == 0
    assert texts(captioned)[1] == "1boy, smile"


def test_search_and_replace_shows_first(tagger: Visit, captioned: Path) -> None:
    before = texts(captioned)
    page = tagger.page
    edit(tagger, captioned)
    page.get_by_text("Search and replace").click()
    form = page.locator("#crucible-edit form:has([name=search])")
    form.locator("[name=search]").fill(r"1(\w+)")
    form.locator("[name=by]").fill(r"\1 alone")
    form.locator("[name=how]").select_option("regex")
    form.get_by_text("Preview").click()
    said(tagger, "edit-result", "Would change 4 captions")
    assert "boy alone, hat" in page.locator("#crucible-edit-result").inner_text()
    assert texts(captioned) == before
    form.locator("[name=search]").fill("(")
    form.get_by_text("Replace", exact=True).click()
    said(tagger, "edit-notes", "is no regular expression")
    assert form.locator("[name=search]").input_value() == "("
    form.locator("[name=search]").fill(r"1(\w+)")
    form.get_by_text("Replace", exact=True).click()
    wait(tagger, lambda: texts(captioned)[3] == "girl alone")


def test_what_another_program_wrote_is_not_lost(tagger: Visit, captioned: Path) -> None:
    page = tagger.page
    edit(tagger, captioned)
    page.locator(".crucible-edit-add input").fill("photo")
    page.locator(".crucible-edit-add button").click()
    said(tagger, "edit-notes", "6 captions changed")
    (captioned / "03.txt").write_text("written elsewhere")
    page.locator("#crucible-edit-bar").get_by_text("Undo").click()
    said(tagger, "edit-notes", "changed by another program")
    assert texts(captioned)[0] == "1boy, hat, photo"
    page.get_by_text("Leave those, do the rest").click()
    wait(tagger, lambda: texts(captioned)[0] == "1boy, hat")
    assert texts(captioned)[3] == "written elsewhere"


def test_thousands_of_pictures_come_in_pages(tagger: Visit, photos: Path) -> None:
    for number in range(5000):
        (photos / f"x{number:04d}.png").hardlink_to(photos / "00.png")
    page, shots = tagger.page, edit(tagger, photos)
    assert shots.count() == 60
    page.locator("#crucible-edit-bar [title='Next page']").click()
    page.locator(".crucible-shot[data-name='x0060.png']").wait_for()
    page.locator(".crucible-edit-filter input").fill("name:x49*")
    said(tagger, "edit-bar", "100 pass the filter")
    page.locator(".crucible-shot[data-name='x4900.png'] img").evaluate("(img) => img.decode()")


# --- rules ------------------------------------------------------------------------------------


def test_rules(tagger: Visit, captioned: Path) -> None:
    page = tagger.page
    name_folder(tagger, captioned)
    tagger.tab("Rules")
    page.get_by_text("+ New rule").click()
    rule = page.locator(".crucible-rule")
    rule.locator("[name=tags]").fill("1boy, hat")
    rule.locator("[name=add]").fill("Smith")
    told = rule.locator(".crucible-rule-told")
    told.filter(has_text="would change 1 caption").wait_for()
    rule.locator("[name=match]").select_option("any")
    told.filter(has_text="would change 4 captions").wait_for()
    rule.locator("[name=scope]").select_option("filter")
    rule.locator("[name=where]").fill("NOT (")
    told.filter(has_text="not kept: Filter").wait_for()
    rule.locator("[name=where]").fill("NOT cat")
    told.filter(has_text="would change 3 captions").wait_for()
    rule.get_by_text("Preview").click()
    said(tagger, "rules-result", "Smith, smile")
    tagger.shot("tagger-rules")
    kept = json.loads((captioned / "crucible-rules.json").read_text())
    assert kept["rules"][0]["where"] == ["NOT cat"]
    page.get_by_text("Apply 1 rule to 3 captions").click()
    said(tagger, "rules-notes", "3 captions changed")
    assert texts(captioned)[:5] == ["Smith", "Smith, smile", "1girl, Smith", "1girl", "cat, hat"]
    page.locator("#crucible-rules-head [data-crucible-do=undo]").click()
    wait(tagger, lambda: texts(captioned)[0] == "1boy, hat")
    tagger.tab("Edit")
    page.locator("#crucible-edit .crucible-shot").nth(3).click()
    said(tagger, "edit-bar", "1 picked")
    tagger.tab("Rules")
    page.get_by_text("Take those picked in Edit").click()
    wait(tagger, lambda: rule.locator("[name=where]").input_value() == "03.png")


# --- prepare ----------------------------------------------------------------------------------


def test_why_nothing_was_prepared_is_in_sight(tagger: Visit, photos: Path) -> None:
    name_folder(tagger, photos)
    tagger.tab("Prepare")
    said(tagger, "prepare-go", "Prepare 6 pictures")
    tagger.page.locator("#crucible-prepare-go").click()  # all are smaller than the side
    done = said(tagger, "prepare-result", "0 files written into")
    assert "00.png" in done.locator("details li").first.inner_text()
    assert done.locator("details li").first.is_visible()
    tagger.page.locator("#crucible-prepare-side input").fill("")
    tagger.page.locator("#crucible-prepare-side input").press("Tab")
    tagger.page.locator("#crucible-prepare-go").click()
    said(tagger, "prepare-notes", "side: takes a whole number from 64 to 8192, and is empty.")
    assert not done.is_visible()  # what was done before is not what was asked for now
    tagger.page.locator("#crucible-prepare-side input").fill("1024")
    tagger.page.locator("#crucible-prepare-side input").press("Tab")
    said(tagger, "prepare-go", "Prepare 6 pictures")


def test_pictures_are_prepared(tagger: Visit, captioned: Path) -> None:
    from PIL import Image

    page = tagger.page
    shutil.copy(captioned / "00.png", captioned / "again.png")
    (captioned / "broken.jpg").write_bytes(b"no picture")
    name_folder(tagger, captioned)
    tagger.tab("Prepare")
    said(tagger, "prepare-go", "Prepare 8 pictures")
    page.locator("#crucible-prepare-smallest input").fill("64")
    page.locator("#crucible-prepare-look").click()
    said(tagger, "prepare-found", "that look alike")
    assert "broken.jpg" in page.locator("#crucible-prepare-found").inner_text()
    page.get_by_text("Leave all but the largest out").click()
    said(tagger, "prepare-go", "Prepare 7 pictures")

    page.locator("#crucible-prepare-size").get_by_text("square").click()
    page.locator("#crucible-prepare-side input").fill("64")
    page.locator("#crucible-prepare-shelf [data-name='01.png']").get_by_text("crop").click()
    area = page.locator(".crucible-crop")
    area.locator("img").evaluate("(img) => img.decode()")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.02, box["y"] + box["height"] * 0.02)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.9, steps=3)
    page.mouse.up()
    said(tagger, "prepare-shelf", "1 cropped by hand")
    tagger.shot("tagger-prepare")
    page.locator("#crucible-prepare-go").click()
    said(tagger, "prepare-result", "6 files written into")
    output = captioned.with_name("photos-prepared")
    made = sorted(output.glob("*.png"))
    assert len(made) == 6 and {Image.open(path).size for path in made} == {(64, 64)}
    whole = Image.open(captioned / "01.png").resize((64, 64), Image.Resampling.LANCZOS)
    assert Image.open(output / "01.png").tobytes() != whole.tobytes()
    assert texts(output) == texts(captioned)
    page.get_by_text("Go on with the prepared pictures").click()
    said(tagger, "prepare-go", "Prepare 6 pictures")


# --- looks ------------------------------------------------------------------------------------


def test_nothing_sticks_out_of_a_narrow_window(tagger: Visit, captioned: Path) -> None:
    edit(tagger, captioned)
    tagger.page.set_viewport_size({"width": 1024, "height": 800})
    for name in ("One picture", "Folder", "Edit", "Rules", "Prepare"):
        tagger.tab(name)
        width = tagger.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 1024, name


def test_the_tab_speaks_chinese(browser: Any, server: Server, captioned: Path) -> None:
    (captioned / "06.png").write_bytes(b"no picture")
    context = browser.new_context(locale="zh-CN", viewport={"width": 1280, "height": 860})
    visit = open_page(context)
    arrive(visit, server)
    visit.tab("打标")
    visit.tab("文件夹")
    box = visit.page.locator("#crucible-tagger-folder :is(input, textarea)")
    box.fill(str(captioned))
    box.press("Tab")
    said(visit, "tagger-go", "为 7 张图片打标")
    visit.tab("预处理")
    visit.page.get_by_role("button", name="查找损坏、过小和重复的图片").click()
    visit.page.get_by_text("不是可读取的图片格式").wait_for()
    visit.tab("编辑")
    said(visit, "edit-bar", "7 张图片")
    assert visit.page.locator("[data-tag='hat'] button").first.inner_text() == "hat"
    visit.page.locator("#crucible-edit-gallery img[alt='无法显示']").first.wait_for()
    visit.page.locator(".crucible-edit-add input").fill("photo, grin")
    visit.page.locator(".crucible-edit-add input").press("Enter")
    said(visit, "edit-notes", "已修改 7 条描述")
    visit.page.locator("#crucible-edit-bar").get_by_text("撤销").click()
    said(visit, "edit-notes", "添加 photo, grin")
    visit.page.locator("#crucible-edit-past button").first.click()
    said(visit, "edit-history", "添加 photo, grin")
    context.close()
