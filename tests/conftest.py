"""What all tests share: which tests need what, and one torch thread (steady times, same pixels)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest

ROOT = Path(__file__).resolve().parents[1]


def find_chromium() -> str | None:
    """The browser for the tests: CRUCIBLE_CHROMIUM, or a Chromium or Chrome on the PATH."""
    named = os.environ.get("CRUCIBLE_CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if (found := shutil.which(name))), None)


def missing_for(marker: str) -> str | None:
    """Why tests with this marker cannot run here, or None if they can."""
    if marker == "browser":
        if find_chromium() is None:
            return "no Chromium found: put one on the PATH or name it in CRUCIBLE_CHROMIUM"
        try:
            import playwright  # noqa: F401
        except ImportError:
            return "playwright is not installed: run the tests by 'python run.py test'"
    if marker == "webui" and not os.environ.get("WEBUI_DIR"):
        return "set WEBUI_DIR to a WebUI checkout to run it"
    if marker == "slow" and not os.environ.get("CRUCIBLE_SLOW"):
        return "slow: set CRUCIBLE_SLOW=1 to run it"
    if marker == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips, with the reason, what this machine cannot run.

    CRUCIBLE_NEED_BROWSER=1 (set in CI) leaves browser tests in, so that they fail without one.
    """
    reasons: dict[str, str | None] = {}
    for item in items:
        for marker in ("browser", "webui", "gpu", "slow"):
            if item.get_closest_marker(marker) is None:
                continue
            if marker == "browser" and os.environ.get("CRUCIBLE_NEED_BROWSER"):
                continue
            if marker == "slow" and item.get_closest_marker("webui"):
                continue  # whoever names a WebUI has asked for them
            if marker not in reasons:
                reasons[marker] = missing_for(marker)
            if reason := reasons[marker]:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser's path; fails the test if there is none."""
    found = find_chromium()
    assert found, "browser tests need Chromium: install it or name it in CRUCIBLE_CHROMIUM"
    return found
