"""What a WebUI runs to install the extension: only what is missing, and nothing else changes."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import install
from extensions_lib.tagging import runtime

ROOT = Path(install.__file__).parent
# What is part of any WebUI, or is the WebUI.
BROUGHT = {"torch", "gradio", "fastapi", "numpy", "modules", "backend"}
BROUGHT |= {"starlette", "transformers", "regex", "filelock"}  # with fastapi; with transformers
# What one does without, and is told so.
OPTIONAL = {"cv2", "ray", "pyarrow", "diffusers"}
# What never runs inside a WebUI.
ELSEWHERE = ("demo", "hosts/standalone", "ui/standalone", "cli.py")


class Pip:
    """Stands in for pip: remembers what it was called with, and what the constraints said."""

    def __init__(self, code: int = 0, said: str = "") -> None:
        self.code, self.said = code, said
        self.arguments: list[str] = []
        self.constraints: list[str] = []

    def __call__(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.arguments = list(arguments)
        file = Path(arguments[arguments.index("--constraint") + 1])
        self.constraints = file.read_text(encoding="utf-8").splitlines()
        return subprocess.CompletedProcess(self.arguments, self.code, "", self.said)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)


def test_the_table_has_what_the_extension_imports() -> None:
    found = set()
    for path in (ROOT / "extensions_lib").rglob("*.py"):
        if not path.relative_to(ROOT / "extensions_lib").as_posix().startswith(ELSEWHERE):
            found |= {name.partition(".")[0] for name in _imports(path)}
    ours = {"extensions_lib", "tests"}
    foreign = found - sys.stdlib_module_names - BROUGHT - OPTIONAL - ours - {"tomli", "tomllib"}
    assert foreign <= install.NEEDED.keys() | install.RUNTIME.keys()
    assert ("tomli" in install.NEEDED) == (sys.version_info < (3, 11))


def test_only_what_cannot_be_imported_is_missing() -> None:
    table = {"json": "json", "no_such_module_here": "there-is-none>=2"}
    assert install.missing(table) == ["there-is-none>=2"]
    assert install.missing({}) == []
    assert install.missing(install.NEEDED) == []


def test_every_package_keeps_its_version() -> None:
    pip = Pip()
    assert install.install(["there-is-none>=2"], pip) == "Crucible: installed there-is-none>=2"
    assert pip.arguments[-1] == "there-is-none>=2"
    held = dict(line.split("==") for line in pip.constraints)
    for name in ("torch", "numpy", "pytest"):
        assert held[name] == importlib.metadata.version(name)
    assert "--upgrade" not in pip.arguments and "-U" not in pip.arguments


class _Package:
    """An installed package as importlib.metadata gives it."""

    def __init__(self, name: str | None, version: str) -> None:
        self.metadata, self.version = {"Name": name}, version


def test_odd_packages_do_not_spoil_the_constraints(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [
        _Package("Twice", "2.0"),
        _Package("twice", "1.0"),  # a copy further down the path
        _Package(None, "1.0"),  # half removed
        _Package("odd", "1.0-made-at-home"),
        _Package("local", "2.1.2+cu121"),
        _Package("old", "2.0.0-RC1"),
        _Package("next", "1!2.0.post3.dev4"),
    ]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(there))
    assert list(install.installed()) == [
        "Twice==2.0",
        "odd===1.0-made-at-home",
        "local==2.1.2+cu121",
        "old==2.0.0-RC1",
        "next==1!2.0.post3.dev4",
    ]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: noise\nERROR: no such version\nERROR: see help\n", "(no such version)"),
        ("", "(pip ended with 1)"),
    ],
)
def test_a_failure_is_one_sentence(said: str, reason: str) -> None:
    told = install.install(["there-is-none"], Pip(1, said))
    assert told.startswith("Crucible: there-is-none could not be installed ")
    assert reason in told and "\n" not in told


def test_a_pip_that_cannot_be_started_is_one_sentence() -> None:
    def none(_: Sequence[str]) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError("no such program")

    assert "no such program" in install.install(["there-is-none"], none)


def test_the_mirror_that_the_webui_is_told_of_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setenv("INDEX_URL", "https://mirror.example/simple")
    install.install(["there-is-none"], pip)
    assert pip.arguments[pip.arguments.index("--index-url") + 1] == "https://mirror.example/simple"


def _without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A Python in which these cannot be imported."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        install.importlib.util, "find_spec", lambda name: None if name in names else find(name)
    )


GPU = runtime.Wanted("onnxruntime-gpu", (1, 20), (1, 27))
FED = runtime.Wanted("onnxruntime-gpu", (1, 17), (1, 19), "https://feed.example/simple")


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize(
    ("fitting", "asked"),
    [
        (runtime.CPU, ["onnxruntime>=1.17"]),
        # A stand-in installs nothing, so that the GPU's is still missing after it.
        (GPU, ["onnxruntime-gpu>=1.20,<1.27", "onnxruntime>=1.17"]),
        (FED, ["onnxruntime-gpu>=1.17,<1.19", "onnxruntime>=1.17"]),
    ],
)
def test_the_runtime_of_taggers_is_added_apart(
    fitting: runtime.Wanted, asked: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without(monkeypatch, "onnxruntime", "yaml")
    monkeypatch.setattr(runtime, "wanted", lambda: fitting)
    monkeypatch.setenv("INDEX_URL", "https://mirror.example/simple")
    calls: list[list[str]] = []

    class Asked(Pip):
        def __call__(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
            calls.append(list(arguments))
            return super().__call__(arguments)

    said = list(install.add_missing(Asked(code)))
    assert [each[-1] for each in calls] == ["PyYAML", *asked] and len(said) == len(calls)
    assert all(line.startswith("Crucible: installed ") == (code == 0) for line in said)
    indices = [each[each.index("--index-url") + 1] for each in calls]
    mirror = "https://mirror.example/simple"
    assert indices == [mirror, fitting.source or mirror, *[mirror] * (len(asked) - 1)]


def test_a_runtime_that_is_there_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu, too, imports as onnxruntime."""
    monkeypatch.setattr(install, "missing", lambda needed: [])
    assert list(install.add_missing(Pip())) == []


def test_it_runs_elsewhere_and_says_nothing_when_nothing_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "install.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_a_start_goes_on_after_a_failure(tmp_path: Path) -> None:
    """In a Python that finds no package, with a pip that refuses at once."""
    command = [sys.executable, "-I", "-S", str(ROOT / "install.py")]
    refusing = {**os.environ, "PIP_PYTHON": str(tmp_path / "none"), "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=refusing, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    packages, runtime = done.stdout.splitlines()
    assert packages.startswith("Crucible: Pillow, safetensors, PyYAML, ")
    assert " could not be installed (" in packages
    assert runtime.startswith("Crucible: onnxruntime>=1.17 could not be installed (")
    assert done.stderr == ""
