"""Which provider runs an ONNX, with which options, and why it is not the GPU where there is one."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import OptionProblem
from extensions_lib.tagging import runtime

log = logging.getLogger(__name__)

DEVICES = ("auto", "gpu", "cpu")
INSTALLER = Path(__file__).resolve().parents[2] / "install.py"  # leaves all other packages alone
_NAMES = {
    "CUDAExecutionProvider": "CUDA",
    "ROCMExecutionProvider": "ROCm",
    "MIGraphXExecutionProvider": "MIGraphX",
    "DmlExecutionProvider": "DirectML",
    "CPUExecutionProvider": "CPU",
}
_CPU = "CPUExecutionProvider"
_MEMORY_WORDS = ("out of memory", "failed to allocate", "bfcarena", "cuda_error_out_of_memory")
_CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive search takes minutes at first
    "arena_extend_strategy": "kSameAsRequested",  # leaves room for the WebUI's own model
}
# What onnxruntime puts before what it has to say: its name and number, the file, its own source.
_HEAD = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed: ?)?", re.S)
_PLACE = re.compile(r"^\S+\.(cc|h):\d+ .*?\) ")


class RuntimeMissing(CrucibleError):
    """No onnxruntime in this Python."""


@dataclass(frozen=True)
class Opened:
    """A session, the provider that really runs it, and why that is not the GPU, if one is there."""

    session: Any
    provider: str
    why_not_gpu: str | None


def load_runtime() -> Any:
    """The module onnxruntime. Raises RuntimeMissing with the command that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing(
            f"Taggers need onnxruntime, which cannot be loaded here ({error}). Run: {_add()}"
        ) from error
    # A folder left behind by removing one of two onnxruntime packages imports as an empty module.
    if not hasattr(onnxruntime, "InferenceSession"):
        raise RuntimeMissing(f"onnxruntime here is incomplete. Run: {_reinstall()}")
    return onnxruntime


def pip_command(*arguments: str) -> str:
    """A command that people can paste: pip of this very Python."""
    return _pasted("-m", "pip", *arguments)


def _pasted(*arguments: str) -> str:
    """A command of this very Python."""
    words = (sys.executable, *arguments)
    return " ".join(f'"{each}"' if set(each) & set(" <>&|[]") else each for each in words)


def _add() -> str:
    """The command that adds what is missing.

    Our own, where it can: pip alone also brings up to date what onnxruntime needs, such as
    protobuf, which a WebUI holds at an old version.
    """
    if importlib.util.find_spec("onnxruntime") is None and INSTALLER.is_file():
        return _pasted(str(INSTALLER))
    return _install(runtime.wanted())


def _install(wanted: runtime.Wanted, *options: str) -> str:
    return pip_command("install", *options, *wanted.options, wanted.requirement)


def _reinstall() -> str:
    """The command that puts the one right onnxruntime here: two at once spoil each other.

    What it needs came with the one before it, and stays at its version.
    """
    wanted = runtime.wanted()
    removed = pip_command("uninstall", "-y", "onnxruntime", "onnxruntime-gpu")
    return f"{removed} && {_install(wanted) if wanted.source else _install(wanted, '--no-deps')}"


def open_session(path: Path, *, device: str = "auto", threads: int | None = None) -> Opened:
    """The ONNX ready to run. `threads` (None: all cores) are for the CPU.

    Raises OptionProblem for a device that there is none of, RuntimeMissing, and FileProblem for a
    file that onnxruntime does not take.
    """
    if device not in DEVICES:
        raise OptionProblem(f"device: takes one of {', '.join(DEVICES)}, not {device!r}.")
    onnxruntime = load_runtime()
    wanted = [] if device == "cpu" else _gpu_providers(onnxruntime)
    session = _session(onnxruntime, path, [*wanted, _CPU], threads)
    used = session.get_providers()[0]
    why = None if device == "cpu" or used != _CPU else _why_not(onnxruntime, bool(wanted))
    if device == "gpu" and used == _CPU:
        raise OptionProblem(f"device: {why or 'there is no GPU here'}. Or take auto or cpu.")
    if why is not None:
        log.warning("Tagging runs on the CPU: %s", why)
    return Opened(session, _NAMES.get(used, used), why)


def _gpu_providers(onnxruntime: Any) -> list[Any]:
    there = onnxruntime.get_available_providers()
    for name in list(_NAMES)[:-1]:
        if name == "CUDAExecutionProvider" and name in there:
            _load_cuda(onnxruntime)
            return [(name, _CUDA_OPTIONS)]
        if name in there:
            return [name]
    return []


def _load_cuda(onnxruntime: Any) -> None:
    """Loads the CUDA and cuDNN that came with torch, where onnxruntime then finds them."""
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


def _session(onnxruntime: Any, path: Path, providers: Sequence[Any], threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what people need to know is told by ourselves
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
        # Waiting threads would take the cores that decode pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if "DmlExecutionProvider" in providers:
        options.enable_mem_pattern = False
    if not path.is_file():
        raise FileProblem(f"{path}: there is no such file; put the model there.")
    if not os.access(path, os.R_OK):
        raise FileProblem(f"{path}: cannot be read; check its permissions.")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors have no common class
        raise FileProblem(f"{path}: {_told(path, error)}") from error


def _told(path: Path, error: Exception) -> str:
    with open(path, "rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            return "is a Git LFS pointer, not the model; run 'git lfs pull' there."
    text = _PLACE.sub("", _HEAD.sub("", str(error).strip())) or type(error).__name__
    said = text.splitlines()[0][:300]
    if "nsupported model IR version" in text or "opset" in text.lower():
        newer = pip_command("install", "--upgrade", "onnxruntime")
        return f"is newer than the onnxruntime here ({said}). Run: {newer}"
    if "external data" in text.lower() or ".data" in text:
        return f"needs its .data file beside it ({said}); get that too."
    return f"cannot be loaded ({said}); the file may be cut off, get it again."


def _why_not(onnxruntime: Any, offered: bool) -> str | None:
    """Why NVIDIA's GPU is not used, with the command that mends it; None where there is none."""
    if not runtime.nvidia_cards():
        return None
    fitting, version = runtime.for_gpu(), onnxruntime.__version__
    if fitting is None:
        return (
            "there is an NVIDIA GPU, and no onnxruntime-gpu fits the torch here; install a torch"
            " of 2.4 or later with CUDA 12 or 13 first"
        )
    if not offered:
        return (
            "there is an NVIDIA GPU, and onnxruntime here is built for the CPU."
            f" Run: {_reinstall()}"
        )
    if not fitting.fits(version):
        return f"onnxruntime-gpu {version} is for another CUDA than torch's. Run: {_reinstall()}"
    return (
        f"onnxruntime-gpu {version} could not load torch's CUDA; update NVIDIA's driver, or install"
        " torch with CUDA again"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a runtime says that the device's memory is too small."""
    if isinstance(error, CrucibleError):
        return False
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in _MEMORY_WORDS)
