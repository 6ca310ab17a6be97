"""run.py: what set-up does, in which order, and how it goes on after an interruption."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """run.py as a module, with a folder of its own for everything that it writes."""
    monkeypatch.setenv("CRUCIBLE_VENV", str(tmp_path / "venv"))
    spec = importlib.util.spec_from_file_location("crucible_run", ROOT / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeSystem:
    """Stands for venv and pip: writes down what was asked, and fails where told to."""

    def __init__(self, run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = run
        self.asked: list[str] = []
        self.fails_at = ""
        monkeypatch.setattr(run, "attempt", self)
        monkeypatch.setattr(run, "attempt_briefly", self)

    def __call__(self, command: list[str], **_: object) -> int:
        line = " ".join(command)
        if "import sys, pip" in line:
            return 0
        self.asked.append(line)
        if self.fails_at and self.fails_at in line:
            return 1
        if "-m venv" in line:
            python = self.run.venv_python()
            python.parent.mkdir(parents=True)
            python.write_text("")
            (self.run.VENV / "pyvenv.cfg").write_text("")
        return 0


@pytest.fixture
def system(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    return FakeSystem(run, monkeypatch)


def test_first_use_installs_torch_first_and_pins_it_for_the_rest(
    run: ModuleType, system: FakeSystem
) -> None:
    run.set_up(False)
    venv, torch, others = system.asked
    assert "-m venv" in venv
    assert "torch==" in torch and "setuptools==" in torch and "--constraint" in torch
    assert "diffusers" not in torch
    assert others.endswith(f"-r {run.MAIN}")
    assert run.is_ready(False) and not run.is_ready(True)


def test_later_starts_install_nothing(run: ModuleType, system: FakeSystem) -> None:
    run.set_up(True)
    before = len(system.asked)
    assert run.is_ready(True)
    assert len(system.asked) == before


def test_changed_requirements_are_installed_again(
    run: ModuleType, system: FakeSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.set_up(False)
    other = tmp_path / "requirements.txt"
    other.write_text("torch==9\n")
    monkeypatch.setattr(run, "MAIN", other)
    assert not run.is_ready(False)


def test_line_ends_do_not_count_as_a_change(run: ModuleType, tmp_path: Path) -> None:
    unix, windows = tmp_path / "a", tmp_path / "b"
    unix.write_bytes(b"a==1\nb==2\n")
    windows.write_bytes(b"a==1\r\nb==2\r\n")
    assert run.fingerprint(unix) == run.fingerprint(windows)


def test_test_libraries_come_on_test_only_and_keep_the_others(
    run: ModuleType, system: FakeSystem
) -> None:
    run.set_up(False)
    system.asked.clear()
    run.set_up(True)
    assert len(system.asked) == 1
    assert system.asked[0].endswith(f"-r {run.DEV} -c {run.MAIN}")
    run.set_up(False)
    assert run.is_ready(True)


def test_a_failed_step_says_what_to_do_and_is_done_next_time(
    run: ModuleType, system: FakeSystem
) -> None:
    system.fails_at = f"-r {run.MAIN}"
    with pytest.raises(run.SetupError, match="run the same command again"):
        run.set_up(False)
    assert not run.is_ready(False)
    system.fails_at = ""
    system.asked.clear()
    run.set_up(False)
    assert not any("-m venv" in line for line in system.asked)
    assert run.is_ready(False)


def test_half_an_environment_is_made_afresh(
    run: ModuleType, system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.VENV.mkdir()
    (run.VENV / "pyvenv.cfg").write_text("")
    run.set_up(False)
    assert "-m venv" in system.asked[0]


def test_a_folder_of_something_else_is_left_alone(run: ModuleType, system: FakeSystem) -> None:
    run.VENV.mkdir()
    (run.VENV / "thesis.txt").write_text("mine")
    with pytest.raises(run.SetupError, match="move it away"):
        run.set_up(False)
    assert (run.VENV / "thesis.txt").read_text() == "mine"


def test_a_spoilt_stamp_means_not_ready(run: ModuleType, system: FakeSystem) -> None:
    run.set_up(False)
    run.STAMP.write_text("{")
    assert not run.is_ready(False)
    run.STAMP.write_text("[]")
    assert not run.is_ready(False)


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 13, 0), (4, 0, 0)])
def test_other_pythons_are_refused_in_one_line(
    run: ModuleType,
    version: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run.sys, "version_info", version)
    assert run.main([]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "3.10, 3.11 or 3.12" in said and str(version[1]) in said


def test_every_requirement_is_pinned() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                assert "==" in line.split(";")[0], f"{name}: {line}"


def test_hand_over_passes_arguments_output_and_exit_status(tmp_path: Path) -> None:
    environment = {**os.environ, "CRUCIBLE_VENV": sys.prefix}
    command = [sys.executable, str(ROOT / "run.py")]
    asked = subprocess.run(
        [*command, "--version"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (asked.returncode, asked.stdout) == (0, "Crucible 0.1.0\n")
    wrong = subprocess.run(
        [*command, "nonsense"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert json.loads((Path(sys.prefix) / "crucible-ready.json").read_text())["main"]
