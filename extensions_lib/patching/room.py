"""Where clean originals lie while merged weights stand in for them.

Beside its merged weight an original is needed again only to go back into its module, or to be
merged anew. It stays on the device while that has room, and else waits in pinned host memory, from
where it is copied at the full speed of the bus. The merged weight's own memory takes it back: going
back needs no room at all, and the bits are those that were set aside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from extensions_lib.patching.attach import Attached

GB = 1 << 30
RESERVE = 4 * GB  # left for what sampling and decoding need, or a quarter of a small device


def spare(device: torch.device) -> int | None:
    """Bytes of the device that originals may have now, more or less than 0; None: not limited.

    On a CPU there is no other memory to go to.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    known = torch.cuda.memory_stats(device)
    unused = known.get("reserved_bytes.all.current", 0) - known.get(
        "allocated_bytes.all.current", 0
    )
    return int(free + unused - min(RESERVE, total // 4))


def pinned(tensor: Tensor) -> Tensor:
    """A copy in host memory that the device can read by itself; in plain memory without such."""
    held = torch.empty_like(tensor, device="cpu", pin_memory=torch.cuda.is_available())
    return held.copy_(tensor)


class Room:
    """Decides for each original that a merged weight has come to stand in for.

    limit: bytes of originals that stay on the device; None: as long as it has room. It is asked
    anew for each weight, so that an option can change between two sets.
    """

    def __init__(
        self,
        limit: Callable[[], int | None] = lambda: None,
        spare: Callable[[torch.device], int | None] = spare,
        aside: Callable[[Tensor], Tensor] = pinned,
    ) -> None:
        self._limit, self._spare, self._aside = limit, spare, aside
        self._here = 0
        self._known: dict[torch.device, int] = {}  # at least so much is there now

    def begin(self) -> None:
        """A change of the set begins: what was known of the device's memory may be out of date."""
        self._known.clear()

    def settle(self, attached: Attached) -> None:
        """Leaves a new one's original where it is, or takes it to host memory."""
        if attached.absent or attached.original.is_inference():
            return  # not the model's own; or torch could not tell any more whether it changes
        size, there = attached.original.nbytes, self._there(attached.original)
        if there is None:
            return
        limit = self._limit()
        if there >= 0 if limit is None else self._here + size <= limit:
            self._here += size
            attached.counted = size
        else:
            attached.set_aside(self._aside)
            self._known.clear()

    def _there(self, original: Tensor) -> int | None:
        """What the device can spare, at least: it takes longer to ask than to merge a layer.

        Since it was last asked, no more than a merged weight for each original has taken of it.
        """
        device = original.device
        there = self._known.get(device, 0) - original.nbytes
        if there < 0 or device not in self._known:
            asked = self._spare(device)
            if asked is None:
                return None
            there = asked
        self._known[device] = there
        return there

    def leave(self, attached: Attached) -> None:
        """One that is no longer in force."""
        self._here -= attached.counted
        attached.counted = 0


def from_gigabytes(number: float | None) -> int | None:
    """Bytes; None, for a number below 0 too, is the automatic choice."""
    return None if number is None or number < 0 else int(number * GB)
