"""The other half of a pair of embeddings: told by the server, offered below the negative prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from extensions_lib.files.safe import write_safetensors
from extensions_lib.library import EMBEDDINGS, Library
from extensions_lib.ui.completions import partners
from tests.ui.conftest import Visit

NEGATIVE = "#crucible-negative textarea"
HINT = "#crucible-negative .crucible-partner"


def pairs(folder: Path) -> list[Path]:
    """Two whole pairs, one for two families, one half alone, one broken half."""
    folder.mkdir(parents=True, exist_ok=True)
    widths = {"dream": 768, "dream-neg": 768, "apt 2": 768, "apt 2-uc": 768, "alone": 768,
              "mixed": 768, "mixed-neg": 1024, "odd": 768}  # fmt: skip
    for name, width in widths.items():
        tensors = {"emb_params": torch.zeros(1, width)}
        write_safetensors(folder / f"{name}.safetensors", tensors)
    (folder / "odd-neg.safetensors").write_text("no embedding")
    return [folder / f"{name}.safetensors" for name in (*widths, "odd-neg")]


def test_the_server_tells_the_halves_that_can_be_used_together(tmp_path: Path) -> None:
    pairs(tmp_path)
    library = Library([tmp_path], shelf=EMBEDDINGS)
    library.refresh()
    assert partners(library) == {"dream": ["dream-neg"], "apt 2": ["apt 2-uc"]}


@pytest.fixture
def offered(visit: Visit, data: Path) -> Iterator[Visit]:
    made = pairs(data / "embeddings")
    visit.page.reload()
    visit.page.locator(".crucible-card").first.wait_for(state="attached")
    yield visit
    for path in made:
        path.unlink()


def hints(visit: Visit, expected: list[str]) -> None:
    """Waits until just these are offered."""
    visit.page.wait_for_function(
        """([hint, expected]) => expected.join("|") ===
            [...document.querySelectorAll(`${hint} b`)].map((e) => e.textContent).join("|")""",
        arg=[HINT, expected],
    )


@pytest.mark.browser
def test_a_click_adds_the_other_half(offered: Visit) -> None:
    visit = offered
    visit.page.locator(NEGATIVE).fill("blurry")
    visit.prompt("a Dream, <lora:apt 2:1> of (alone:1.2), mixed odd")
    hints(visit, ["dream-neg"])
    visit.shot("partner")
    visit.page.locator(f"{HINT} .crucible-partner-add").click()
    assert visit.page.locator(NEGATIVE).input_value() == "blurry, dream-neg"
    hints(visit, [])
    visit.page.keyboard.press("Control+z")
    hints(visit, ["dream-neg"])
    visit.prompt("a daydream, dreams, dream_2, dream-neg")  # none of which is the first half
    hints(visit, [])
    assert visit.complaints == []


@pytest.mark.browser
def test_a_hint_sent_away_stays_away(offered: Visit) -> None:
    visit = offered
    visit.prompt("dream by (apt 2:0.9)")
    hints(visit, ["apt 2-uc", "dream-neg"])
    visit.page.get_by_role("button", name="Not now").last.click()
    hints(visit, ["apt 2-uc"])
    visit.prompt("a cat")
    hints(visit, [])
    visit.prompt("dream by apt 2")
    hints(visit, ["apt 2-uc"])
    visit.page.locator(f"{HINT} .crucible-partner-add").click()  # into an empty box
    assert visit.page.locator(NEGATIVE).input_value() == "apt 2-uc"
    assert visit.complaints == []
