"""The command line: arguments, exit codes, what is printed where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from extensions_lib import cli
from extensions_lib.errors import FileProblem, Stopped

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a tiny checkpoint."""
    from safetensors.torch import load_file, save_file

    from tests.tiny import tiny_checkpoint

    folder = tmp_path_factory.mktemp("data")
    path = tiny_checkpoint(folder / "models" / "Stable-diffusion" / "tiny.safetensors")
    save_file(load_file(path), path, {"crucible.size": "64"})
    return folder


def generate(data: Path, *options: str) -> int:
    return cli.main(["generate", "--data", str(data), "--steps", "2", *options])


def test_generate_writes_a_picture_with_its_parameters(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from extensions_lib.hosts.standalone.png import read_png_infotext

    out = tmp_path / "new" / "cat.png"
    assert generate(data, "--prompt", "a cat", "--seed", "5", "--out", str(out)) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert "step 2/2" in said.err
    text = read_png_infotext(out)
    assert text.startswith("a cat\nSteps: 2,") and "Seed: 5," in text and "Size: 64x64" in text


def test_generate_numbers_several_pictures_and_says_what_is_missing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--batch-count", "2", "--size", "64x72", "--out", str(tmp_path / "o.png")]
    assert generate(data, "--prompt", "x <lora:nowhere:1>", *options) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o-1.png", "o-2.png"]
    assert "nowhere" in capsys.readouterr().err


def test_one_problem_is_one_line_and_exit_1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(data, "--prompt", "x", "--checkpoint", "gone.safetensors") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "gone.safetensors" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", "--prompt", "x", "--size", "big"],
        ["generate", "--prompt", "x", "--steps", "0"],
        ["generate", "--prompt", "x", "--stepz", "3"],
        ["--port", "99999"],
        ["nonsense"],
        ["bench", "nonsense"],
        ["inspect"],
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2


def test_inspect_says_what_a_file_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    path = data / "models" / "Stable-diffusion" / "tiny.safetensors"
    assert cli.main(["inspect", str(path)]) == 0
    assert "SD1" in capsys.readouterr().out
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "SD1"
    assert cli.main(["inspect", str(path.with_name("gone.safetensors"))]) == 1


def test_stop_and_ctrl_c_are_not_errors_of_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code in ((Stopped("x"), 130), (KeyboardInterrupt(), 130), (FileProblem("x"), 1)):

        def fail(options: object, error: BaseException = error) -> int:
            raise error

        monkeypatch.setattr(cli, "web", fail)
        assert cli.main([]) == code
        assert capsys.readouterr().err.count("\n") == 1


def test_bench_and_build_demo_get_their_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def note(arguments: list[str]) -> int:
        seen.append(arguments)
        return 0

    monkeypatch.setitem(cli.BENCHES, "apply", note)
    monkeypatch.setattr(cli, "build_demo", note)
    assert cli.main(["bench", "apply", "--repeat", "3", "--threads", "1"]) == 0
    assert cli.main(["build-demo", "--steps", "10"]) == 0
    assert seen == [["--repeat", "3", "--threads", "1"], ["--steps", "10"]]


def test_help_and_the_page_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from extensions_lib import cli\n"
        "cli.make_parser().format_help()\n"
        "from extensions_lib.ui.standalone import Options, build_app\n"
        "build_app(Options())\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'onnxruntime'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
