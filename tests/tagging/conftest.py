"""Folders of tiny captioners, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tagging.tiny_captioners import KINDS, tiny_captioner


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models") / "captioners"
    return {kind: tiny_captioner(root / kind, kind) for kind in KINDS}
