"""Extraction: at full rank the very difference, else the nearest of its rank, and flat memory."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from extensions_lib.adapters import LoKr, Norm, merged
from extensions_lib.errors import CrucibleError, Stopped
from extensions_lib.files.networks import read_network
from extensions_lib.files.weights import Weights
from extensions_lib.models.names import canonical_layers
from extensions_lib.toolbox.extract import Extracting, extract
from extensions_lib.toolbox.spectrum import of_matrix
from extensions_lib.toolbox.work import Output, Watch
from tests.tiny import TINY, tiny_checkpoint
from tests.toolbox.networks import noise

FP32 = Output(precision="fp32", number=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    return tuned_pair(folder, "SD1")


def tuned_pair(folder: Path, family: str) -> tuple[Path, Path]:
    base = tiny_checkpoint(folder / "base.safetensors", family)
    return base, tiny_checkpoint(folder / "tuned.safetensors", family, seed=1)


@pytest.mark.parametrize("family", ["SD1", "SD2", "SDXL"])
def test_full_rank_returns_the_difference(tmp_path: Path, family: str) -> None:
    base, tuned = tuned_pair(tmp_path, family)
    done = extract(base, tuned, Extracting(rank=4096, layers="all"), FP32)
    found = read_network(done.path, structure=TINY[family])
    assert not found.problems and not found.unmatched and not done.left_out
    layers = canonical_layers(TINY[family])
    wanted = {n for n, i in layers.items() if i.kind != "embedding" and not n.startswith("vae.")}
    assert set(found.adapters) == wanted
    with Weights(base) as before, Weights(tuned) as after:
        for layer, adapter in list(found.adapters.items())[::3]:
            goal = after.weight(layer).float()
            made = merged(before.weight(layer).float(), [(adapter, 1.0)])
            torch.testing.assert_close(made, goal, atol=2e-5, rtol=1e-4)
            if layers[layer].bias:
                bias, goal_bias = before.bias(layer), after.bias(layer)
                assert bias is not None and goal_bias is not None
                change = adapter.bias_delta(bias)
                torch.testing.assert_close(bias.float() + change, goal_bias.float())
    assert done.kept == pytest.approx(1.0, abs=1e-5)


def test_a_rank_keeps_what_it_states(pair: tuple[Path, Path]) -> None:
    done = extract(*pair, Extracting(rank=6), FP32)
    found = read_network(done.path)
    with Weights(pair[0]) as before, Weights(pair[1]) as after:
        for figures in done.layers[::20]:
            change = (after.weight(figures.layer).double() - before.weight(figures.layer)).flatten(
                1
            )
            factors = found.adapters[figures.layer].low_rank(figures.shape)
            assert factors is not None and len(factors.down) == 6
            made = factors.scale * factors.up @ factors.down
            kept = 1 - float((made - change).square().sum() / change.square().sum())
            assert figures.kept == pytest.approx(kept, abs=1e-5)
            best = torch.linalg.svdvals(change).square()
            assert kept == pytest.approx(float(best[:6].sum() / best.sum()), abs=1e-3)


def test_by_energy(pair: tuple[Path, Path]) -> None:
    how = Extracting(rank=64, rule="sv_fro", target=0.9, layers="attention", text_encoder=False)
    done = extract(*pair, how, FP32)
    assert all(each.kept >= 0.81 - 1e-6 for each in done.layers)
    assert len({each.rank for each in done.layers}) > 3
    assert all(
        each.layer.startswith("unet.") and ".attentions." in each.layer for each in done.layers
    )


def test_a_lokr_is_the_nearest_product(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    done = extract(*pair, Extracting(kind="lokr", rank=4096, factor=4), FP32)
    found = read_network(done.path)
    assert set(found.kinds) == {"lokr"}
    with Weights(pair[0]) as before, Weights(pair[1]) as after:
        for figures in done.layers[::30]:
            change = after.weight(figures.layer).double() - before.weight(figures.layer)
            adapter = found.adapters[figures.layer]
            made = adapter.delta(torch.zeros(figures.shape))
            kept = 1 - float((made - change).square().sum() / change.square().sum())
            assert figures.kept == pytest.approx(kept, abs=1e-5)


def test_a_change_that_is_a_kronecker_product_comes_back(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base.safetensors")
    tensors = {name: tensor.float() for name, tensor in load_file(base).items()}
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    w1, w2 = noise(1, 8, 8), noise(2, 8, 8)
    save_file(tensors, tmp_path / "a.safetensors")
    tensors[key] = tensors[key] + torch.kron(w1, w2)
    save_file(tensors, tmp_path / "b.safetensors")
    done = extract(tmp_path / "a.safetensors", tmp_path / "b.safetensors", Extracting(kind="lokr", rank=64), FP32)  # fmt: skip  # noqa: E501
    [adapter] = read_network(done.path).adapters.values()
    assert isinstance(adapter, LoKr)
    torch.testing.assert_close(adapter.delta(torch.zeros(64, 64)), torch.kron(w1, w2), atol=1e-4, rtol=1e-4)  # fmt: skip  # noqa: E501
    assert done.layers[0].kept > 1 - 1e-6
    assert done.same > 100


def test_the_randomised_one_is_nearly_the_best() -> None:
    """Falling singular values as real differences have them; 1 % more error at most."""
    left, right = torch.linalg.qr(noise(1, 640, 640))[0], torch.linalg.qr(noise(2, 900, 640))[0]
    values = 1 / torch.arange(1, 641).float() ** 0.7
    change = (left * values) @ right.T
    found = of_matrix(change, 32)
    assert len(found.values) == 32
    error = (change - (found.left * found.values) @ found.right).norm()
    assert float(error / values[32:].norm()) < 1.01
    torch.testing.assert_close(found.values, values[:32], rtol=2e-2, atol=0)
    state = torch.get_rng_state()
    assert torch.equal(of_matrix(change, 32).values, found.values)
    assert torch.equal(torch.get_rng_state(), state)


def test_checkpoints_alike_have_no_difference(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(CrucibleError, match="does not differ"):
        extract(pair[0], pair[0], order=Output(out=str(tmp_path / "x")))
    other = tiny_checkpoint(tmp_path / "xl.safetensors", "SDXL")
    with pytest.raises(CrucibleError, match="one family"):
        extract(pair[0], other, order=Output(out=str(tmp_path / "x")))
    assert list(tmp_path.iterdir()) == [other]


def test_an_inpainting_model_less_its_base(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    tensors = load_file(pair[1])
    key = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[key] = torch.cat([tensors[key], torch.ones(32, 5, 3, 3).half()], 1)
    save_file(tensors, tmp_path / "inpainting.safetensors")
    how = Extracting(rank=4, layers="all")
    done = extract(pair[0], tmp_path / "inpainting.safetensors", how, FP32)
    assert [line for line in done.left_out if "conv_in" in line and "two sizes" in line]


def test_norms_are_kept_as_they_are(pair: tuple[Path, Path]) -> None:
    done = extract(*pair, Extracting(rank=2, layers="all"), FP32)
    adapter = read_network(done.path).adapters["unet.conv_norm_out"]
    assert isinstance(adapter, Norm) and adapter.diff_b is not None


def test_stop_leaves_nothing(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    stop = threading.Event()
    with pytest.raises(Stopped):
        extract(
            *pair,
            order=Output(out=str(tmp_path / "x")),
            watch=Watch(lambda done, total: stop.set() if done == 3 else None, stop),
        )
    assert not list(tmp_path.iterdir())
