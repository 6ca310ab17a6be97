"""Paths as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensions_lib.api.typed import typed_path
from extensions_lib.errors import CrucibleError


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("photos", "/base/photos"),
        (' "/pictures of mine/a" ', "/pictures of mine/a"),
        ("'photos'", "/base/photos"),
        ("写真/😀", "/base/写真/😀"),
        ("~/photos", "/home/me/photos"),
    ],
)
def test_what_is_meant(typed: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    assert typed_path(typed, Path("/base"), "Name it.") == Path(meant)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (None, "Name it."),
        ("  ", "Name it."),
        ('""', "Name it."),
        ("a\0b", "Name it."),
        ("a" * 300, "longer than a name on a disk may be"),
        ("/there/" + "写" * 100, "longer than a name on a disk may be"),
        ("~nobody-has-this-name/x", "nobody here has that name"),
    ],
)
def test_what_cannot_be_a_path(typed: str | None, said: str) -> None:
    with pytest.raises(CrucibleError, match=said):
        typed_path(typed, Path("/base"), "Name it.")
