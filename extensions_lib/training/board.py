"""Logs for TensorBoard, from the entries of a run's record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extensions_lib.errors import CrucibleError


class Board:
    """Writes losses, rates and what is measured. Raises CrucibleError without the package."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise CrucibleError(
                f"tensorboard: its package cannot be imported ({error}); install it into this "
                "Python with: pip install tensorboard"
            ) from None
        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """Writes an entry of the record, if it has numbers."""
        step = entry["step"]
        for name in ("loss", "validation", "norm"):
            if name in entry:
                self._writer.add_scalar(name, entry[name], step)
        for name, rate in entry.get("rates", {}).items():
            self._writer.add_scalar(f"lr/{name}", rate, step)

    def close(self) -> None:
        """Nothing more is written."""
        self._writer.close()
