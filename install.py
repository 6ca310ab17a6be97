"""What a WebUI runs when it installs or starts the extension: adds the packages that are missing.

A package that is there keeps its version: everything installed is given to pip as a constraint.
Whatever fails here is said in one sentence, and the WebUI goes on starting.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# Import name: what pip installs for it. torch and gradio are the WebUI itself, and not ours to add.
NEEDED = {
    "PIL": "Pillow",
    "safetensors": "safetensors",
    "yaml": "PyYAML",
    "huggingface_hub": "huggingface-hub",
    **({} if sys.version_info >= (3, 11) else {"tomli": "tomli"}),
}
RUNTIME = {"onnxruntime": "onnxruntime"}  # or the one for the GPU: either imports by this name

_VERSION = re.compile(  # PEP 440
    r"v?(\d+!)?\d+(\.\d+)*([-_.]?(a|b|c|rc|alpha|beta|pre|preview)[-_.]?\d*)?"
    r"(-\d+|[-_.]?(post|rev|r)[-_.]?\d*)?([-_.]?dev[-_.]?\d*)?(\+[a-z0-9]+([-_.][a-z0-9]+)*)?",
    re.IGNORECASE,
)

RunPip = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def missing(needed: Mapping[str, str]) -> list[str]:
    """The requirements whose module cannot be imported here; nothing is imported to find out."""
    return [wanted for name, wanted in needed.items() if importlib.util.find_spec(name) is None]


def installed() -> Iterator[str]:
    """Every installed package with its version, as lines of a constraints file."""
    seen = set()
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"]
        # Of two copies the one found first is in use; a half-removed one has no name.
        if not name or name.lower() in seen:
            continue
        seen.add(name.lower())
        # pip refuses a file that has something else than a version after "==".
        equals = "==" if _VERSION.fullmatch(package.version) else "==="
        yield f"{name}{equals}{package.version}"


def run_pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs pip of this very Python."""
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def add_missing(pip: RunPip = run_pip) -> Iterator[str]:
    """Adds what is missing, the runtime of taggers apart from the rest; what to print of each."""
    if lacking := missing(NEEDED):
        yield install(lacking, pip)
    if missing(RUNTIME):
        yield from add_runtime(pip)


def add_runtime(pip: RunPip = run_pip) -> Iterator[str]:
    """Adds the onnxruntime that fits torch's CUDA, else, or if that fails, the one for the CPU."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # an isolated Python leaves it out
    from extensions_lib.tagging import runtime

    wanted = runtime.wanted()
    yield install([wanted.requirement], pip, wanted.options)
    if wanted != runtime.CPU and missing(RUNTIME):
        yield install([runtime.CPU.requirement], pip)


def install(requirements: Sequence[str], pip: RunPip = run_pip, options: Sequence[str] = ()) -> str:
    """Adds these packages and changes no other; gives the sentence to print."""
    names = ", ".join(requirements)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(installed()) + "\n", encoding="utf-8")
        arguments = ["install", "--disable-pip-version-check", "--prefer-binary"]
        index = os.environ.get("INDEX_URL")  # as the WebUI's own installing does
        if index and "--index-url" not in options:
            arguments += ["--index-url", index]
        try:
            done = pip([*arguments, *options, "--constraint", str(constraints), *requirements])
        except OSError as error:
            return _failed(names, str(error))
    if done.returncode == 0:
        return f"Crucible: installed {names}"
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = said[0].removeprefix("ERROR: ") if said else f"pip ended with {done.returncode}"
    return _failed(names, reason)


def _failed(names: str, reason: str) -> str:
    return (
        f"Crucible: {names} could not be installed ({reason}); what needs it will not work until"
        " it is installed into the WebUI's Python"
    )


if __name__ == "__main__":
    for sentence in add_missing():
        print(sentence)
