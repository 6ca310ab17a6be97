"""Control pictures in a real WebUI: over REST, on a page, and on a small SDXL."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from extensions_lib.files.checkpoints import checkpoint_structure
from tests.lllite import lllite_file
from tests.ui.conftest import FLAGS
from tests.webui.checkpoints import TINY_XL, clip_folder, small_checkpoint, write_config
from tests.webui.conftest import HOST, PROMPT, ROOT, SIZE, WebUI, furthest, limit, start, stop
from tests.webui.ways import complaints, options

pytestmark = [pytest.mark.webui, pytest.mark.slow]

NAME = "control picture"


def drawn(seed: int = 0) -> Image.Image:
    """A picture of few large squares."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((SIZE[HOST], SIZE[HOST]), Image.Resampling.NEAREST)


def sent(image: Image.Image) -> dict[str, Any]:
    """The picture as a REST order carries it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    return {"alwayson_scripts": {NAME: {"args": [text]}}}


@pytest.fixture(scope="module")
def webui(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """One WebUI with a file for each checkpoint: in models/ControlNet, and beside the LoRA."""
    folder = tmp_path_factory.mktemp("control") / "data"
    shutil.copytree(data, folder, symlinks=True, ignore=shutil.ignore_patterns("cache", "*.log"))
    checkpoints = folder / "models" / "Stable-diffusion"
    structure = checkpoint_structure(checkpoints / "demo.safetensors")
    lllite_file(folder / "models" / "ControlNet" / "follow.safetensors", structure, strength=20)
    if HOST != "Forge":
        small_checkpoint(checkpoints / "xl.safetensors", structure=TINY_XL)
        clip_folder(ROOT / "models" / "demo" / "clip", folder / "clip")
        write_config(checkpoints / "xl.yaml", TINY_XL, folder / "clip")
        lllite_file(folder / "models" / "Lora" / "follow xl.safetensors", TINY_XL, strength=4)
    # For its own previews it would download a decoder for SDXL.
    running = start(folder, {"show_progress_type": "Approx cheap"})
    yield running
    stop(running)
    assert complaints(running) == []


def picture(webui: WebUI, tag: str = "", image: Image.Image | None = None, **other: Any) -> Any:
    given = sent(image) if image else {}
    return webui.pictures(PROMPT + tag, **given, **other)[0]


def follows(webui: WebUI, name: str) -> None:
    """Picture, weight and steps count; without them, and afterwards, all is as it was."""
    plain = picture(webui)
    full = picture(webui, f"<lllite:{name}:1>", drawn())
    assert webui.infotext().startswith(f"{PROMPT}<lllite:{name}:1>\n")
    assert furthest(full, plain) > 10
    assert furthest(picture(webui, f"<lllite:{name}:1>", drawn()), full) == 0
    others = [
        picture(webui, f"<lllite:{name}:1>", drawn(1)),
        picture(webui, f"<lllite:{name}:0.5>", drawn()),
        picture(webui, f"<lllite:{name}:1:start=0.5>", drawn()),
        picture(webui, f"<lllite:{name}:1:stop=0.5>", drawn()),
    ]
    for place, one in enumerate(others):
        # Pixels repeat exactly here, as the next lines show: any difference is one.
        assert all(furthest(one, other) > 0 for other in [plain, full, *others[:place]]), place
    for same in (f"<lllite:{name}:0>", f"<lllite:{name}:1:start=4>"):
        assert furthest(picture(webui, same, drawn()), plain) == 0
    assert furthest(picture(webui), plain) == 0


def test_a_picture_is_followed(webui: WebUI) -> None:
    options(webui, sd_model_checkpoint="demo.safetensors")
    follows(webui, "follow")


def test_batches_and_the_hires_pass(webui: WebUI) -> None:
    options(webui, sd_model_checkpoint="demo.safetensors")
    given = sent(drawn())
    two = webui.pictures(f"{PROMPT}<lllite:follow:1>", n_iter=2, batch_size=2, **given)[-4:]
    alone = picture(webui, "<lllite:follow:1>", drawn(), seed=4)
    assert furthest(two[3], alone) <= limit(2, half=8)
    hires: dict[str, Any] = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.5}
    if HOST == "Forge":
        hires |= {"hr_additional_modules": ["Use same choices"], "hr_cfg": 4}
    made = [
        picture(webui, tag, image, **hires)
        for tag, image in (
            ("", None), ("<lllite:follow:0>", drawn()),
            ("<lllite:follow:1>", drawn()), ("<lllite:follow:1:hr=0>", drawn()),
        )
    ]  # fmt: skip
    assert made[0].shape[0] == 2 * SIZE[HOST]
    assert furthest(made[0], made[1]) == 0
    assert furthest(made[2], made[0]) > 10 and furthest(made[2], made[3]) > 2


def test_what_is_said(webui: WebUI) -> None:
    options(webui, sd_model_checkpoint="demo.safetensors")
    plain = picture(webui)
    assert furthest(picture(webui, "<lllite:follow:1>"), plain) == 0
    assert "<lllite:follow:1>: there is no control picture" in webui.said()
    assert furthest(picture(webui, "", drawn()), plain) == 0
    assert "The control picture has no effect" in webui.said()
    picture(webui, "<lllite:nowhere>", drawn())
    assert "no ControlNet-LLLite named 'nowhere' was found" in webui.said()
    webui.pictures(PROMPT, alwayson_scripts={NAME: {"args": ["/etc/hostname"]}})
    assert (
        "The control picture cannot be used: it is neither a picture nor base64 text of one."
        in webui.said()
    )


@pytest.mark.skipif(HOST == "Forge", reason="Forge takes an SDXL of full size alone")
def test_on_a_small_sdxl(webui: WebUI) -> None:
    options(webui, sd_model_checkpoint="xl.safetensors")
    follows(webui, "follow xl")
    picture(webui, "<lllite:follow:1>", drawn())
    assert "<lllite:follow:1>: made for another model, so it was left out" in webui.said()


@pytest.mark.browser
def test_from_the_page(webui: WebUI, chromium_path: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    options(webui, sd_model_checkpoint="demo.safetensors")
    drawn().save(tmp_path / "edges.png")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        page.set_default_timeout(60_000)
        page.goto(webui.address)
        page.wait_for_function("() => window.opts?.extra_networks_add_text_separator !== undefined")
        box = page.locator("#tab_txt2img [id$=crucible_control]").first
        box.get_by_text("Control picture").click()
        box.locator("input[type=file]").set_input_files(tmp_path / "edges.png")
        box.locator("img").first.wait_for()
        if folder := os.environ.get("CRUCIBLE_SHOTS"):
            page.screenshot(path=f"{folder}/webui-control-{HOST}.png")
        for name, value in (("steps", 2), ("width", SIZE[HOST]), ("height", SIZE[HOST])):
            page.locator(f"#txt2img_{name} input[type=number]").fill(str(value))
        page.locator("#txt2img_prompt textarea").fill(f"{PROMPT}<lllite:nowhere:1>")
        page.locator("#txt2img_generate").click()
        said = page.locator("#html_log_txt2img .comments")
        said.get_by_text("no ControlNet-LLLite named 'nowhere'").first.wait_for()
        page.locator("#txt2img_prompt textarea").fill(f"{PROMPT}<lllite:follow:1>")
        page.locator("#txt2img_generate").click()
        page.wait_for_function(
            "() => document.querySelector('#html_info_txt2img')?.innerText.includes('follow')"
        )
        assert not any("lllite" in text for text in said.all_inner_texts())
        browser.close()


def test_the_script_is_listed(webui: WebUI) -> None:
    told = webui.call("/sdapi/v1/scripts")
    assert NAME in told["txt2img"] and NAME in told["img2img"], json.dumps(told)
