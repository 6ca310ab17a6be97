"""The user's guide says what the options are."""

from __future__ import annotations

from pathlib import Path

from extensions_lib.api.training import PREFIX
from extensions_lib.options import table
from extensions_lib.training.options import TrainingOptions

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_guide_has_every_option_as_it_is() -> None:
    # `extensions_lib.options.table` writes it anew.
    assert table(TrainingOptions) in GUIDE and PREFIX in GUIDE
