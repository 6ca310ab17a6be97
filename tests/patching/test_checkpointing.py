"""Gradient checkpointing: the same gradients from less memory, and no trace afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.models import Family
from extensions_lib.models.loaded import LoadedModel, NoiseSchedule
from extensions_lib.patching.checkpointing import Checkpointing, blocks
from extensions_lib.patching.in_training import Dropouts, InTraining
from extensions_lib.training.networks import NetworkOptions, fresh_network
from tests.tiny import TINY
from tests.training.small import trainable


class Kept:
    """Bytes that autograd keeps for the backward pass while it lasts."""

    def __enter__(self) -> Kept:
        self.bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
        self._hooks.__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor

    def __exit__(self, *raised: object) -> None:
        self._hooks.__exit__(*raised)


@pytest.mark.parametrize("family", ["SD1", "SDXL"])
def test_gradients_are_the_same(tmp_path: Path, family: str) -> None:
    model = trainable(tmp_path, family)
    loaded = model.loaded
    adapters = fresh_network(
        loaded, NetworkOptions(network_dim=2, conv_dim=2), torch.Generator().manual_seed(0)
    )
    for adapter in adapters.values():
        for tensor in adapter.parameters().values():
            tensor.add_(0.1).requires_grad_(True)
    attached = InTraining(loaded, adapters, dropouts=Dropouts(values=0.3, module=0.2))
    checkpointing = Checkpointing(loaded)
    attached.put_in()

    def gradients() -> tuple[list[Tensor | None], int]:
        torch.manual_seed(5)
        parameters = attached.parameters().values()
        with Kept() as kept:
            conditioning = model.encode_text(["a thing"])
            noisy = torch.ones(1, 4, 8, 8)
            answer = model.predict(noisy, torch.tensor([7]), conditioning)
        found = torch.autograd.grad(answer.square().sum(), list(parameters), allow_unused=True)
        return list(found), kept.bytes

    plain, whole = gradients()
    checkpointing.put_in()
    again, less = gradients()
    checkpointing.take_out()
    attached.take_out()
    assert sum(each is not None for each in plain) > len(plain) / 2
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert less < whole / 3
    for root in (loaded.unet, *loaded.text_encoders):
        assert not any("forward" in vars(module) for module in root.modules())


def test_without_gradients_nothing_is_done_twice(tmp_path: Path) -> None:
    model = trainable(tmp_path)
    calls = []
    block = next(iter(blocks(model.loaded).values()))
    block.register_forward_hook(lambda *_: calls.append(1))
    checkpointing = Checkpointing(model.loaded)
    checkpointing.put_in()
    with torch.no_grad():
        model.predict(torch.ones(1, 4, 8, 8), torch.tensor([7]), model.encode_text(["x"]))
    checkpointing.take_out()
    assert len(calls) == 1


@pytest.mark.parametrize("family", ["SD1", "SD2", "SDXL"])
@pytest.mark.parametrize("tree", ["ldm", "forge"])
def test_blocks_of_the_other_trees(family: str, tree: str) -> None:
    """By path alone: a stand-in says which module was asked for."""
    structure = TINY[family]
    schedule = NoiseSchedule.scaled_linear()
    texts = tuple(_Asked() for _ in structure.texts)
    loaded = LoadedModel(
        "x", None, "", structure, _Asked(), texts, _Asked(), tree, schedule,  # type: ignore[arg-type]
        torch.device("cpu"), torch.float32,
    )  # fmt: skip
    found = {name: str(path) for name, path in blocks(loaded).items()}
    assert found["unet.mid_block.resnets.1"] == "middle_block.2"
    assert (
        found["unet.mid_block.attentions.0.transformer_blocks.0"]
        == "middle_block.1.transformer_blocks.0"
    )
    assert found["unet.up_blocks.0.resnets.0"] == "output_blocks.0.0"
    last = {"ldm": "transformer.resblocks.1", "forge": "text_model.encoder.layers.1"}[tree]
    if structure.family is Family.SD2:
        assert found["te1.text_model.encoder.layers.1"] == last
    if structure.family is Family.SDXL:
        assert found["te2.text_model.encoder.layers.1"] == last
    unet = [path for name, path in found.items() if name.startswith("unet.")]
    assert len(set(unet)) == len(unet) > 20


class _Asked(torch.nn.Module):
    def get_submodule(self, target: str) -> str:  # type: ignore[override]
        return target
