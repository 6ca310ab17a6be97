"""The guide's tables are those of the options."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.options import table
from extensions_lib.tagging.pool import Models
from extensions_lib.tagging.ray_engine import Engine
from extensions_lib.tagging.run import Run
from extensions_lib.tagging.selection import Selection
from extensions_lib.tagging.writer import Output

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "tagging.md"


@pytest.mark.parametrize("kind", [Selection, Models, Output, Run, Engine])
def test_the_guide_has_every_option(kind: type) -> None:
    assert table(kind) in GUIDE.read_text(encoding="utf-8")
