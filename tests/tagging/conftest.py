"""Folders of tiny models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.tagging.taggers import Tagger, load_tagger
from tests.tagging.sets import write_tagger
from tests.tagging.tiny_captioners import KINDS, tiny_captioner


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models") / "captioners"
    return {kind: tiny_captioner(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def taggers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taggers")
    write_tagger(folder / "colours")
    write_tagger(folder / "one-at-a-time", batch=1)
    write_tagger(folder / "others", seed=1)
    return folder


@pytest.fixture(scope="session")
def tagger(taggers: Path) -> Tagger:
    return load_tagger("colours", taggers, device="cpu", threads=1)
