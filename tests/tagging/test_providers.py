"""Which runtime runs a model, and what people are told when it is not their GPU."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from extensions_lib.errors import FileProblem
from extensions_lib.options import OptionProblem
from extensions_lib.tagging import providers, runtime
from extensions_lib.tagging.providers import RuntimeMissing, open_session, pip_command
from tests.tagging.tiny_taggers import write_model


def torch_of(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """An installed torch whose version file says this."""
    (folder / "version.py").write_text(version, encoding="utf-8")
    spec = ModuleSpec("torch", None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


@pytest.mark.parametrize(
    ("version", "cuda", "wanted"),
    [
        ("2.1.2+cu121", "'12.1'", ">=1.17,<1.19"),  # both WebUIs bring such a torch, with cuDNN 8
        ("2.3.1+cu121", "'12.1'", ">=1.17,<1.19"),
        ("2.4.0+cu124", "'12.4'", ">=1.20,<1.27"),
        ("2.1.2+cu118", "'11.8'", ">=1.17,<1.19"),
        ("2.13.0", "'13.0'", ">=1.27"),
        ("2.4.0+cu118", "'11.8'", None),
        ("2.13.0+cpu", "None", None),
    ],
)
def test_the_gpu_package_fits_torchs_cuda_and_cudnn(
    version: str,
    cuda: str,
    wanted: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = f"__version__ = '{version}'\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = None\n"
    torch_of(tmp_path, monkeypatch, said)
    monkeypatch.setattr(runtime.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(runtime, "nvidia_cards", lambda: 1)
    found = runtime.wanted()
    if wanted is None:
        assert found == runtime.CPU
    else:
        assert found.requirement == f"onnxruntime-gpu{wanted}"
        # only CUDA 12 with cuDNN 8 is not on PyPI
        assert (found.source is not None) == (cuda == "'12.1'")
    monkeypatch.setattr(runtime, "nvidia_cards", lambda: 0)
    assert runtime.wanted() == runtime.CPU
    monkeypatch.setattr(runtime, "nvidia_cards", lambda: 1)
    monkeypatch.setattr(runtime.platform, "machine", lambda: "aarch64")
    assert runtime.wanted() == runtime.CPU


def test_ranges() -> None:
    wanted = runtime.Wanted("x", (1, 20), (1, 27))
    fitting = [
        v for v in ("1.9.0", "1.19.2", "1.20.0", "1.26.1", "1.27.0", "2.0") if wanted.fits(v)
    ]
    assert fitting == ["1.20.0", "1.26.1"]
    assert runtime.Wanted("x", (1, 27)).fits("2.0.1")


def test_a_machine_without_torch_or_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert runtime.torch_build() is None and runtime.wanted() == runtime.CPU

    def no_driver(name: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(runtime.ctypes, "CDLL", no_driver)
    assert runtime.nvidia_cards() == 0


def test_the_installed_torch_is_read_as_torch_reads_itself() -> None:
    import torch

    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    cuda = torch.version.cuda
    assert runtime.torch_build() == ((int(cuda.split(".")[0]), (major, minor)) if cuda else None)


def test_the_cpu_needs_no_excuse_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "nvidia_cards", lambda: 0)
    path = write_model(tmp_path / "m.onnx").path
    opened = open_session(path, threads=1)
    assert (opened.provider, opened.why_not_gpu) == ("CPU", None)
    with pytest.raises(OptionProblem, match="there is no GPU here"):
        open_session(path, device="gpu")


def test_an_unused_gpu_is_explained_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "nvidia_cards", lambda: 1)
    monkeypatch.setattr(runtime, "torch_build", lambda: (12, (2, 4)))
    monkeypatch.setattr(runtime.platform, "machine", lambda: "x86_64")
    path = write_model(tmp_path / "m.onnx").path
    why = open_session(path).why_not_gpu
    assert why is not None and "onnxruntime here is built for the CPU" in why
    command = why.partition("Run: ")[2]
    first, second = (shlex.split(each) for each in command.split(" && "))
    assert first == [sys.executable, "-m", "pip", "uninstall", "-y",
                     "onnxruntime", "onnxruntime-gpu"]  # fmt: skip
    assert second == [sys.executable, "-m", "pip", "install", "--no-deps",
                      "onnxruntime-gpu>=1.20,<1.27"]  # fmt: skip
    assert open_session(path, device="cpu").why_not_gpu is None
    with pytest.raises(OptionProblem, match="Or take auto or cpu"):
        open_session(path, device="gpu")


@pytest.mark.parametrize(
    ("version", "build", "said"),
    [
        ("1.26.0", (12, (2, 1)), "is for another CUDA than torch's. Run: "),
        ("1.18.1", (12, (2, 1)), "could not load torch's CUDA; update NVIDIA's driver"),
        ("1.26.0", None, "no onnxruntime-gpu fits the torch here"),
    ],
)
def test_a_gpu_build_that_finds_no_cuda_is_explained(
    version: str,
    build: tuple[int, tuple[int, int]] | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "nvidia_cards", lambda: 1)
    monkeypatch.setattr(runtime, "torch_build", lambda: build)
    monkeypatch.setattr(runtime.platform, "machine", lambda: "x86_64")
    why = providers._why_not(types.SimpleNamespace(__version__=version), offered=True)
    assert why is not None and said in why
    if "Run: " in said:
        assert "--index-url https://" in why and '"onnxruntime-gpu>=1.17,<1.19"' in why


def test_the_best_provider_there_is_chosen() -> None:
    def chosen(*there: str) -> list[object]:
        module = types.SimpleNamespace(get_available_providers=lambda: list(there))
        return providers._gpu_providers(module)

    [cuda] = chosen("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    assert isinstance(cuda, tuple) and cuda[0] == "CUDAExecutionProvider"
    assert cuda[1]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert chosen("DmlExecutionProvider", "CPUExecutionProvider") == ["DmlExecutionProvider"]
    assert chosen("AzureExecutionProvider", "CPUExecutionProvider") == []


def told_without(module: types.ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said where this, or nothing, is all that there is of onnxruntime."""
    monkeypatch.setitem(sys.modules, "onnxruntime", module)  # type: ignore[arg-type]
    with pytest.raises(RuntimeMissing) as caught:
        providers.load_runtime()
    said = str(caught.value)
    assert "onnxruntime" in said and "\n" not in said
    return said


def test_a_missing_runtime_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a WebUI's packages none may change: install.py holds them, pip alone does not."""
    said = told_without(None, monkeypatch)
    python, script = shlex.split(said.partition(" Run: ")[2])
    assert python == sys.executable
    assert Path(script).name == "install.py" and Path(script).is_file()
    monkeypatch.setattr(providers, "INSTALLER", Path("gone.py"))
    assert "-m pip install" in told_without(None, monkeypatch)


def test_an_incomplete_runtime_is_put_here_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said = told_without(types.ModuleType("onnxruntime"), monkeypatch)
    assert "-m pip uninstall" in said and "-m pip install" in said


def test_commands_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/my web ui/python")
    command = pip_command("install", "a>=1,<2", "b")
    assert shlex.split(command) == ["/opt/my web ui/python", "-m", "pip", "install", "a>=1,<2", "b"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"gone\.onnx: there is no such file"):
        open_session(tmp_path / "gone.onnx")
    with pytest.raises(FileProblem, match="there is no such file"):
        open_session(tmp_path)


def test_a_model_of_the_future_says_to_upgrade(tmp_path: Path) -> None:
    import onnx

    path = write_model(tmp_path / "m.onnx").path
    model = onnx.load(path)
    model.ir_version = 99
    onnx.save(model, path)
    with pytest.raises(FileProblem, match="is newer than the onnxruntime here") as caught:
        open_session(path)
    assert "pip install --upgrade onnxruntime" in str(caught.value)
