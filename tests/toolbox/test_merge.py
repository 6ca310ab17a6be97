"""Merging networks: what the result does is the sum of what they do, to the digit or as stated."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from extensions_lib.adapters import DoRA, Norm, adapter_from, merged
from extensions_lib.errors import CrucibleError, FileProblem, Stopped
from extensions_lib.files.networks import read_network
from extensions_lib.models.names import places
from extensions_lib.toolbox.merge import Merging, merge
from extensions_lib.toolbox.weighted import Weighted
from extensions_lib.toolbox.work import Output, Watch
from tests.tiny import TINY, tiny_checkpoint, tiny_tensors
from tests.toolbox.networks import (
    CONV,
    NORM,
    PROJ,
    SHAPES,
    TEXT,
    K,
    Q,
    exact,
    loha,
    lokr,
    lora,
    noise,
    relative,
    written,
)

MIDDLE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FP32 = Output(precision="fp32", number=True)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    layers = {Q: lora(Q, 4, 2.0, 1), CONV: lora(CONV, 3, None, 2), TEXT: lora(TEXT, 2, 1.0, 3)}
    return written(tmp_path / "first.safetensors", layers, ss_clip_skip="2", ss_epoch="3")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    layers = {Q: lora(Q, 7, 3.0, 11), PROJ: lora(PROJ, 2, 2.0, 12), TEXT: lora(TEXT, 5, 5.0, 13)}
    return written(tmp_path / "second.safetensors", layers, ss_clip_skip="2", ss_epoch="9")


def summed(layer: str, *terms: tuple[Path, float]) -> torch.Tensor:
    total = torch.zeros(SHAPES[layer], dtype=torch.float64)
    for path, weight in terms:
        adapter = read_network(path).adapters.get(layer)
        if adapter is not None:
            total += weight * exact(adapter, SHAPES[layer])
    return total


def test_loras_of_any_rank_are_exact(first: Path, second: Path) -> None:
    wanted = [Weighted(first, 0.7, -0.4), Weighted(second, 1.5, 0.9)]
    done = merge(wanted, order=FP32)
    found = read_network(done.path)
    assert {layer: each.rank for layer, each in found.adapters.items()} == {
        Q: 11, CONV: 3, TEXT: 7, PROJ: 2
    }  # fmt: skip
    assert done.exact == 4
    for layer, adapter in found.adapters.items():
        weights = (0.7, 1.5) if layer == TEXT else (-0.4, 0.9)
        goal = summed(layer, *zip((first, second), weights, strict=True))
        assert relative(exact(adapter, SHAPES[layer]), goal) < 1e-6, layer
    assert found.metadata["ss_clip_skip"] == "2"
    assert "ss_epoch" not in found.metadata
    assert not found.problems and not found.unmatched


def test_a_target_rank_keeps_what_it_states(first: Path, second: Path) -> None:
    done = merge([Weighted(first), Weighted(second)], Merging(rank=5), FP32)
    found = read_network(done.path)
    assert found.ranks == {5: 2, 3: 1, 2: 1}
    for figures in done.layers:
        goal = summed(figures.layer, (first, 1.0), (second, 1.0))
        error = relative(exact(found.adapters[figures.layer], SHAPES[figures.layer]), goal)
        assert figures.kept == pytest.approx(1 - error**2, abs=1e-5), figures.layer
        values = torch.linalg.svdvals(goal.flatten(1))
        best = float(values[: figures.rank].square().sum() / values.square().sum())
        assert figures.kept == pytest.approx(best, abs=1e-5)


def test_other_kinds_become_one_lora(tmp_path: Path) -> None:
    one = written(tmp_path / "a.safetensors", {Q: loha(Q, 4, 1), K: lora(K, 4, 4.0, 5)})
    two = written(tmp_path / "b.safetensors", {Q: lokr(Q, 9), K: loha(K, 3, 20)})
    done = merge([Weighted(one, 1, 0.5), Weighted(two)], Merging(rank=64), FP32)
    found = read_network(done.path)
    assert set(found.kinds) == {"lora"}
    for figures in done.layers:
        goal = summed(figures.layer, (one, 0.5), (two, 1.0))
        error = relative(exact(found.adapters[figures.layer], SHAPES[figures.layer]), goal)
        assert figures.kept == pytest.approx(1 - error**2, abs=1e-5), figures.layer
    # LoHa of rank 3 and LoRA of rank 4 have 13 ranks at most: nothing is lost
    [text] = [each for each in done.layers if each.layer == K]
    assert text.kept > 1 - 1e-6


def test_norms_and_biases_add_up(tmp_path: Path) -> None:
    bias = adapter_from({**lora(Q, 2, 2.0, 1).tensors(), "diff_b": noise(4, 320)})
    one = written(tmp_path / "a.safetensors", {NORM: Norm(noise(1, 320), noise(2, 320)), Q: bias})
    two = written(tmp_path / "b.safetensors", {NORM: Norm(noise(3, 320)), Q: lora(Q, 2, 2.0, 7)})
    found = read_network(merge([Weighted(one, 1, 0.5), Weighted(two, 1, 2)], order=FP32).path)
    norm = found.adapters[NORM]
    assert isinstance(norm, Norm)
    torch.testing.assert_close(norm.diff, 0.5 * noise(1, 320) + 2 * noise(3, 320))
    torch.testing.assert_close(norm.diff_b, 0.5 * noise(2, 320))
    torch.testing.assert_close(found.adapters[Q].bias_delta(None), 0.5 * noise(4, 320))


def test_dora_needs_its_checkpoint_and_is_exact_with_it(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny.safetensors")
    weight = tiny_tensors()[places(TINY["SD1"], "ldm")[MIDDLE].key].half().float()
    out, inputs = weight.shape
    parts = {"lora_up.weight": noise(1, out, 4), "lora_down.weight": noise(2, 4, inputs) * 0.1}
    dora = DoRA.fresh(adapter_from(parts), weight)
    dora = DoRA(dora.inner, dora.magnitude * 1.5)
    path = written(tmp_path / "dora.safetensors", {MIDDLE: dora})
    with pytest.raises(CrucibleError, match=r"--base"):
        merge([Weighted(path)], order=FP32)
    done = merge([Weighted(path, 1, 0.5)], Merging(rank=64, base=str(checkpoint)), FP32)
    found = read_network(done.path).adapters[MIDDLE]
    goal = merged(weight.double(), [(dora, 0.5)]) - weight.double()
    assert relative(exact(found, tuple(weight.shape)), goal) < 1e-5


def test_weights_by_block_are_those_of_a_tag(first: Path, second: Path) -> None:
    numbers = ["0.3", "0.5", *["0"] * 15]
    order = Weighted.read(f"{first}:1:2:lbw={','.join(numbers)}")
    found = read_network(merge([order, Weighted.read(f"{second}:0:1")], order=FP32).path)
    assert relative(exact(found.adapters[Q], SHAPES[Q]), summed(Q, (first, 1.0), (second, 1.0))) < 1e-6  # fmt: skip  # noqa: E501
    goal = 0.3 * exact(read_network(first).adapters[TEXT], SHAPES[TEXT])
    assert relative(exact(found.adapters[TEXT], SHAPES[TEXT]), goal) < 1e-6
    assert CONV not in found.adapters  # its block has weight 0


@pytest.mark.parametrize(
    ("written_as", "said"),
    [
        (":x", "weight"),
        (":1:lbw=1,2", "block weights"),
        (":1@0,0@1", "steps"),
        (":1:hr=2", "steps"),
    ],
)
def test_weights_that_cannot_be(first: Path, written_as: str, said: str) -> None:
    with pytest.raises(CrucibleError, match=said):
        Weighted.read(f"{first}{written_as}")


def test_networks_of_two_families_are_refused(tmp_path: Path, first: Path) -> None:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    parts = {"lora_up.weight": noise(1, 640, 2), "lora_down.weight": noise(2, 2, 2048)}
    other = tmp_path / "xl.safetensors"
    written(other, {layer: adapter_from(parts)})
    with pytest.raises(CrucibleError, match="SDXL"):
        merge([Weighted(first), Weighted(other)], order=FP32)


def test_nothing_is_written_over(first: Path, second: Path, tmp_path: Path) -> None:
    before = first.read_bytes()
    wanted = [Weighted(first), Weighted(second)]
    with pytest.raises(FileProblem, match="is an input"):
        merge(wanted, order=Output(out=str(first)))
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    with pytest.raises(FileProblem, match="--number"):
        merge(wanted, order=Output(out=str(taken)))
    assert (
        merge(wanted, order=Output(out=str(taken), number=True)).path.name == "taken-2.safetensors"
    )
    assert taken.read_text() == "mine"
    assert first.read_bytes() == before


def test_stop_leaves_nothing(first: Path, second: Path, tmp_path: Path) -> None:
    stop, told = threading.Event(), []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            stop.set()

    files = sorted(tmp_path.iterdir())
    with pytest.raises(Stopped):
        merge([Weighted(first), Weighted(second)], watch=Watch(progress, stop))
    assert told == [(0, 4), (1, 4), (2, 4)]
    assert sorted(tmp_path.iterdir()) == files
