"""Which onnxruntime belongs into this Python, told without importing torch or onnxruntime.

Also read by install.py, in a WebUI whose other packages may be broken: standard library alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
import sys
from pathlib import Path
from typing import NamedTuple

_CUDA = re.compile(r"^cuda\b[^=]*=\s*['\"](\d+)\.", re.MULTILINE)
_VERSION = re.compile(r"^__version__\s*=\s*['\"](\d+)\.(\d+)", re.MULTILINE)
_FEED = "https://aiinfra.pkgs.visualstudio.com/PublicPackages/_packaging/onnxruntime-cuda-12/pypi/simple/"


class Wanted(NamedTuple):
    """A package, the versions from `low` to below `high`, the index that has it if not PyPI."""

    name: str
    low: tuple[int, int]
    high: tuple[int, int] | None = None
    source: str | None = None

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        below = "" if self.high is None else f",<{self.high[0]}.{self.high[1]}"
        return f"{self.name}>={self.low[0]}.{self.low[1]}{below}"

    @property
    def options(self) -> tuple[str, ...]:
        """What pip must be told besides; another index has nothing of what the package needs."""
        return () if self.source is None else ("--index-url", self.source, "--no-deps")

    def fits(self, version: str) -> bool:
        """Whether this version, as 1.23.2, is in the range."""
        major, minor = (int(part) for part in version.split(".")[:2])
        return self.low <= (major, minor) and (self.high is None or (major, minor) < self.high)


CPU = Wanted("onnxruntime", (1, 17))


def torch_build() -> tuple[int, tuple[int, int]] | None:
    """The major version of CUDA that the installed torch is built for, and torch's version.

    None for no torch, a torch for the CPU, and one for AMD's cards.
    """
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return None
    try:
        said = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    cuda, version = _CUDA.search(said), _VERSION.search(said)
    if cuda is None or version is None:
        return None
    return int(cuda[1]), (int(version[1]), int(version[2]))


def nvidia_cards() -> int:
    """How many GPUs NVIDIA's driver sees; 0 without a driver."""
    if sys.platform == "darwin":
        return 0
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def for_gpu() -> Wanted | None:
    """The onnxruntime-gpu for torch's CUDA and cuDNN; None where there is none for this machine.

    torch before 2.4 brings cuDNN 8, later ones 9. onnxruntime-gpu is built for cuDNN 8 up to 1.18,
    then for 9; on PyPI for CUDA 11 up to 1.18, for CUDA 12 up to 1.26, then for CUDA 13. The one
    for CUDA 12 with cuDNN 8 lies in an index of its own.
    """
    build = torch_build()
    if build is None or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    cuda, torch = build
    name, old = "onnxruntime-gpu", torch < (2, 4)
    if cuda == 11:
        return Wanted(name, (1, 17), (1, 19)) if old else None
    if cuda == 12:
        return Wanted(name, (1, 17), (1, 19), _FEED) if old else Wanted(name, (1, 20), (1, 27))
    return Wanted(name, (1, 27)) if cuda > 12 else None


def wanted() -> Wanted:
    """What to install here: the GPU's where torch and a driver can use one, else the CPU's."""
    found = for_gpu()
    return found if found is not None and nvidia_cards() else CPU
