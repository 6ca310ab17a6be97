"""AUTOMATIC1111's --medvram and --lowvram while a turn of training has the model.

With these flags parts of the model lie in host memory. Hooks before their forward move the part
that is called to the GPU and the part before it back, by exchanging the tensors inside its
parameters. A backward pass would then find the weights of a part that has gone in host memory. So
in a turn the hooks are off, and parts stay on the GPU as long as gradients may need them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HOST = torch.device("cpu")
_HOOKS_OF = "modules.lowvram"

_Hooks = list[tuple[nn.Module, int, Any]]


class Parts:
    """Brings parts of the model to `device` in a turn; None: all of it is there anyway."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._kept: dict[nn.Module, list[Tensor]] = {}

    def keep(self, part: nn.Module) -> None:
        """Brings a part, which stays until the turn ends."""
        self._kept.setdefault(part, []).extend(self._brought(part))

    @contextmanager
    def lend(self, part: nn.Module) -> Iterator[None]:
        """Brings a part for something that no gradients go through."""
        brought = self._brought(part)
        try:
            yield
        finally:
            _move(brought, _HOST)

    def give_back(self) -> None:
        """Takes what was kept to host memory again."""
        kept, self._kept = self._kept, {}
        for brought in kept.values():
            _move(brought, _HOST)

    def leave(self, part: nn.Module) -> bool:
        """Whether a part was kept; then it stays there, whole, also when the turn has ended."""
        if part not in self._kept:
            return False
        self.keep(part)  # what something in training stood in for was not in it before
        del self._kept[part]
        return True

    def _brought(self, part: nn.Module) -> list[Tensor]:
        if self._device is None:
            return []
        # what asks for gradients is in training, and no weight of the model's
        away = [t for t in _tensors(part) if t.device.type == "cpu" and not t.requires_grad]
        try:
            _move(away, self._device)
        except BaseException:
            _move(away, _HOST)
            raise
        return away


@contextmanager
def parts_in_turn(sd_model: Any) -> Iterator[Parts]:
    """The model's parts until the block ends; then the WebUI has its own way with them again.

    With --medvram the UNet, if it was used, is left where the next turn needs it.
    """
    from modules import devices, lowvram, shared

    if not lowvram.is_enabled(sd_model):
        yield Parts()
        return
    unet, device = sd_model.model, torch.device(devices.device)
    if lowvram.module_in_gpu is not unet:
        lowvram.send_everything_to_cpu()
    parts, hooks = Parts(device), _taken_off(sd_model)
    try:
        yield parts
        if not shared.cmd_opts.lowvram and parts.leave(unet):
            lowvram.module_in_gpu = unet
    finally:
        parts.give_back()
        for module, key, hook in hooks:
            others = dict(module._forward_pre_hooks)
            module._forward_pre_hooks.clear()
            module._forward_pre_hooks.update({key: hook, **others})


def _taken_off(sd_model: nn.Module) -> _Hooks:
    """The WebUI's hooks that move parts, which are no longer there."""
    return [
        (module, key, module._forward_pre_hooks.pop(key))
        for module in sd_model.modules()
        for key, hook in list(module._forward_pre_hooks.items())
        if getattr(hook, "__module__", None) == _HOOKS_OF
    ]


def _tensors(part: nn.Module) -> list[Tensor]:
    return [*part.parameters(), *part.buffers()]


def _move(tensors: Sequence[Tensor], device: torch.device) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.to(device)
