#!/usr/bin/env python3
"""Runs the tests of this folder under each WebUI's gradio, in an environment of its own.

    python3 tests/gradio_versions/run.py

The environments, `.venv-gradio-<version>`, are made on first use and hold no torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command at the root, without foreign import paths; keeps what it says."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def version(requirements: Path) -> str:
    """The gradio that a requirements file is about, from its name."""
    return requirements.stem.partition("-")[2]


def environment(requirements: Path) -> Path:
    """The Python with exactly these packages; made anew where they or the Python changed.

    Raises: RuntimeError with pip's own words.
    """
    folder = ROOT / f".venv-gradio-{version(requirements)}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, wanted = folder / "ready.txt", f"{sys.version}\n{requirements.read_text('utf-8')}"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    for step in (
        (sys.executable, "-m", "venv", folder),
        # Most of what comes is never imported: not compiling it saves a third of the time.
        (python, "-m", "pip", "install", "--quiet", "--no-compile", "-r", requirements),
    ):
        done = run(*step)
        if done.returncode:
            raise RuntimeError(done.stdout)
    stamp.write_text(wanted, "utf-8")
    return python


def examine(requirements: Path) -> tuple[int, str]:
    """Sets up one environment and runs the tests in it: the exit status, and what was said."""
    started = time.monotonic()
    try:
        python = environment(requirements)
    except RuntimeError as problem:
        return 1, f"{requirements.name} could not be installed:\n{problem}"
    ready = time.monotonic()
    quietly = ("-q", "--disable-warnings", "-p", "no:cacheprovider")
    done = run(python, "-m", "pytest", *quietly, HERE)
    times = f"installed in {ready - started:.0f} s, tested in {time.monotonic() - ready:.0f} s"
    return done.returncode, f"gradio {version(requirements)}: {times}\n{done.stdout}"


def main() -> int:
    """Every version at the same time; the exit status is 1 if one of them fails."""
    files = sorted(HERE.glob("requirements-*.txt"))
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(examine, files))
    for _, said in results:
        print(said, flush=True)
    return int(any(status for status, _ in results))


if __name__ == "__main__":
    raise SystemExit(main())
