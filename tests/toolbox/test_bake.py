"""Baking: the formula for every tensor, nothing lost on a full disk or a kill, flat memory."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from extensions_lib.adapters import merged
from extensions_lib.errors import CrucibleError, FileProblem, Stopped
from extensions_lib.files import streams
from extensions_lib.files.checkpoints import read_checkpoint
from extensions_lib.files.networks import read_network
from extensions_lib.files.weights import Weights
from extensions_lib.models.names import unet_blocks
from extensions_lib.toolbox.bake import Baking, bake
from extensions_lib.toolbox.extract import Extracting, extract
from extensions_lib.toolbox.weighted import Weighted
from extensions_lib.toolbox.work import Output, Watch
from tests.tiny import TINY, tiny_checkpoint
from tests.toolbox.networks import noise

ROOT = Path(__file__).resolve().parents[2]
FP32 = Output(precision="fp32", number=True)
VAE = "first_stage_model."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three checkpoints, and the networks that make the second and third of the first."""
    folder = tmp_path_factory.mktemp("made")
    paths = {n: tiny_checkpoint(folder / f"{n}.safetensors", seed=i) for i, n in enumerate("abc")}
    for name in "bc":
        how = Extracting(rank=4, layers="all")
        order = Output(out=str(folder / f"to_{name}"), precision="fp16")
        paths[f"to_{name}"] = extract(paths["a"], paths[name], how, order).path
    return paths


def out(folder: Path, **more: str) -> Output:
    return Output(out=str(folder / "out.safetensors"), **more)


@pytest.mark.parametrize("family", ["SD1", "SD2", "SDXL"])
def test_networks_are_in_it_at_their_weights(tmp_path: Path, family: str) -> None:
    base = tiny_checkpoint(tmp_path / "a.safetensors", family)
    how = Extracting(rank=4, layers="all")
    networks = [
        extract(
            base, tiny_checkpoint(tmp_path / f"{i}.safetensors", family, seed=i), how, FP32
        ).path
        for i in (1, 2)
    ]
    wanted = [Weighted(networks[0], 0.6, -0.5), Weighted(networks[1], 0.0, 1.3)]
    done = bake(base, wanted, order=out(tmp_path, precision="fp32"))
    assert not done.left_out
    read = [read_network(path, structure=TINY[family]).adapters for path in networks]
    with Weights(base) as before, Weights(done.path) as after:
        for layer, first in list(read[0].items())[::4]:
            text = layer.startswith("te")
            weights = (0.6, 0.0) if text else (-0.5, 1.3)
            stack = list(zip((first, read[1][layer]), weights, strict=True))
            clean = before.weight(layer).double()
            torch.testing.assert_close(
                after.weight(layer).double(), merged(clean, stack), atol=1e-6, rtol=1e-6
            )
            bias = before.bias(layer)
            if bias is not None:
                goal = bias.double() + sum(
                    weight * adapter.bias_delta(bias).double() for adapter, weight in stack
                )
                torch.testing.assert_close(after.bias(layer).double(), goal, atol=1e-6, rtol=1e-6)
    read_checkpoint(done.path)


def test_it_is_rounded_once_and_the_rest_is_the_same(tmp_path: Path, made: dict[str, Path]) -> None:
    done = bake(made["a"], [Weighted(made["to_b"], 0, 0.5)], order=out(tmp_path))
    before, after = load_file(made["a"]), load_file(done.path)
    assert set(before) - set(after) == {
        "alphas_cumprod", "cond_stage_model.transformer.text_model.embeddings.position_ids"
    }  # fmt: skip
    same = [name for name in after if torch.equal(before[name], after[name])]
    assert done.changed == len(after) - len(same)
    assert all(name in same for name in after if name.startswith((VAE, "cond_stage_model.")))
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    adapter = read_network(made["to_b"]).adapters[layer]
    assert torch.equal(after[key], merged(before[key].float(), [(adapter, 0.5)]).half())


def by_formula(
    a: dict[str, Tensor], b: dict[str, Tensor], c: dict[str, Tensor] | None, alpha: dict[str, float]
) -> dict[str, Tensor]:
    return {
        key: a[key].double()
        + alpha[key] * (b[key].double() - (a if c is None else c)[key].double())
        for key in alpha
    }


def test_weighted_sum_and_add_difference(tmp_path: Path, made: dict[str, Path]) -> None:
    a, b, c = (load_file(made[name]) for name in "abc")
    for how, third, alpha in (
        (Baking(other=str(made["b"])), None, 0.5),
        (Baking(other=str(made["b"]), alpha=0.3), None, 0.3),
        (Baking(other=str(made["b"]), minus=str(made["c"])), c, 1.0),
        (Baking(other=str(made["b"]), minus=str(made["c"]), alpha=-0.7), c, -0.7),
    ):
        done = bake(made["a"], how=how, order=Output(str(tmp_path / "o"), True, "fp32"))
        found = load_file(done.path)
        keys = [key for key in found if not key.startswith(VAE)]
        for key, goal in by_formula(a, b, third, dict.fromkeys(keys, alpha)).items():
            torch.testing.assert_close(found[key].double(), goal, atol=1e-6, rtol=1e-5)
        assert all(torch.equal(found[k], a[k].float()) for k in found if k.startswith(VAE))


def test_block_weights(tmp_path: Path, made: dict[str, Path]) -> None:
    numbers = [round(0.03 * place, 2) for place in range(26)]
    how = Baking(other=str(made["b"]), blocks=",".join(map(str, numbers)))
    found = load_file(bake(made["a"], how=how, order=out(tmp_path, precision="fp32")).path)
    a, b = load_file(made["a"]), load_file(made["b"])
    order = ["BASE", *(f"IN{n:02d}" for n in range(12)), "M00", *(f"OUT{n:02d}" for n in range(12))]
    weight = dict(zip(order, numbers, strict=True))
    prefix = "model.diffusion_model."
    alpha = {}
    for key in found:
        if key.startswith(VAE):
            continue
        side, number = key.removeprefix(prefix).split(".")[:2]
        block = {"input_blocks": "IN", "output_blocks": "OUT"}.get(side)
        name = f"{block}{int(number):02d}" if block else "M00" if side == "middle_block" else ""
        alpha[key] = weight["BASE"] if not key.startswith(prefix) else weight.get(name, 1.0)
    assert set(unet_blocks(TINY["SD1"]).values()) < set(order)
    for key, goal in by_formula(a, b, None, alpha).items():
        torch.testing.assert_close(found[key].double(), goal, atol=1e-6, rtol=1e-5)


def test_a_network_goes_on_the_mixed_weights(tmp_path: Path, made: dict[str, Path]) -> None:
    how = Baking(other=str(made["b"]), alpha=0.25)
    done = bake(made["a"], [Weighted(made["to_c"])], how, out(tmp_path, precision="fp32"))
    layer = "unet.down_blocks.1.resnets.0.conv1"
    adapter = read_network(made["to_c"]).adapters[layer]
    with Weights(made["a"]) as a, Weights(made["b"]) as b, Weights(done.path) as after:
        mixed = a.weight(layer).double().lerp(b.weight(layer).double(), 0.25)
        goal = merged(mixed, [(adapter, 1.0)])
        torch.testing.assert_close(after.weight(layer).double(), goal, atol=1e-6, rtol=1e-5)


def test_a_vae_is_put_in(tmp_path: Path, made: dict[str, Path]) -> None:
    b = load_file(made["b"])
    bare = {k.removeprefix(VAE): v.float() for k, v in b.items() if k.startswith(VAE)}
    save_file(bare, tmp_path / "vae.safetensors")
    for vae in (tmp_path / "vae.safetensors", made["b"]):
        done = bake(made["a"], how=Baking(vae=str(vae)), order=Output(str(tmp_path / "o"), True))
        found = load_file(done.path)
        assert all(torch.equal(found[k], b[k]) for k in found if k.startswith(VAE))
    del bare["decoder.conv_out.weight"]
    save_file(bare, tmp_path / "part.safetensors")
    with pytest.raises(FileProblem, match=r"decoder\.conv_out"):
        bake(made["a"], how=Baking(vae=str(tmp_path / "part.safetensors")), order=out(tmp_path))


def test_an_inpainting_model_takes_another(tmp_path: Path, made: dict[str, Path]) -> None:
    a = load_file(made["a"])
    key = "model.diffusion_model.input_blocks.0.0.weight"
    a[key] = torch.cat([a[key], noise(1, 32, 5, 3, 3).half()], 1)
    save_file(a, tmp_path / "inpainting.safetensors")
    how = Baking(other=str(made["b"]), alpha=1.0)
    found = load_file(bake(tmp_path / "inpainting.safetensors", how=how, order=out(tmp_path)).path)
    assert torch.equal(found[key][:, :4], load_file(made["b"])[key])
    assert torch.equal(found[key][:, 4:], a[key][:, 4:])


def test_what_is_no_use_is_left_out_or_kept(tmp_path: Path, made: dict[str, Path]) -> None:
    tensors = load_file(made["a"]) | {"model_ema.decay": torch.ones(1), "v_pred": torch.zeros(0), "mine": torch.ones(3)}  # fmt: skip  # noqa: E501
    save_file(tensors, tmp_path / "m.safetensors", {"modelspec.title": "T", "modelspec.hash_sha256": "x"})  # fmt: skip  # noqa: E501
    (tmp_path / "m.yaml").write_text("model: {params: {parameterization: v}}")
    networks = [Weighted(made["to_b"])]
    done = bake(tmp_path / "m.safetensors", networks, order=out(tmp_path))
    assert (set(load_file(done.path)) ^ set(tensors)) == {
        "model_ema.decay", "alphas_cumprod",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    }  # fmt: skip
    assert done.path.with_suffix(".yaml").read_text().startswith("model")
    with safe_open(done.path, "pt") as file:
        told = file.metadata()
    assert told["modelspec.title"] == "T" and "modelspec.hash_sha256" not in told
    assert json.loads(told["crucible_baked"])["networks"] == ["to_b:1:1"]
    kept = bake(tmp_path / "m.safetensors", networks, Baking(prune=False), Output(str(done.path), True))  # fmt: skip  # noqa: E501
    assert set(load_file(kept.path)) == set(tensors)
    assert any("EMA" in note for note in kept.notes)


def test_orders_that_cannot_be(tmp_path: Path, made: dict[str, Path]) -> None:
    xl = tiny_checkpoint(tmp_path / "xl.safetensors", "SDXL")
    files = sorted(tmp_path.iterdir())
    for networks, how, order, said in (
        ((), Baking(), out(tmp_path), "nothing to put"),
        ((), Baking(alpha=0.5), out(tmp_path), "second checkpoint"),
        ((), Baking(other=str(xl)), out(tmp_path), "another plan"),
        ((), Baking(other=str(made["b"]), blocks="1,2"), out(tmp_path), "block weights"),
        ((), Baking(other=str(tmp_path / "gone")), out(tmp_path), "no such file"),
        ((), Baking(other=str(made["b"])), Output(str(tmp_path / "x.ckpt")), "safetensors"),
        ((), Baking(other=str(made["b"])), Output(str(made["a"])), "is an input"),
    ):
        with pytest.raises(CrucibleError, match=said):
            bake(made["a"], networks, how, order)
    assert sorted(tmp_path.iterdir()) == files


def test_numbers_too_large_for_fp16_are_said(tmp_path: Path, made: dict[str, Path]) -> None:
    tensors = {name: tensor.float() for name, tensor in load_file(made["a"]).items()}
    tensors["model.diffusion_model.out.2.weight"][0, 0] = 1e6
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(CrucibleError, match=r"out\.2\.weight.*bf16"):
        bake(tmp_path / "m.safetensors", [Weighted(made["to_b"])], order=out(tmp_path, precision="fp16"))  # fmt: skip  # noqa: E501
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]


# --- what may happen on the way ---------------------------------------------------------------


def test_a_full_disk_is_said_before_and_leaves_nothing_after(
    tmp_path: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made["a"].read_bytes()
    how, order = Baking(other=str(made["b"])), out(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(FileProblem, match="the disk has"):
            bake(made["a"], how=how, order=order)
    calls = []

    def full(tensor: Tensor) -> memoryview:
        calls.append(tensor)
        if len(calls) > 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(tensor)

    real = streams.tensor_bytes
    with monkeypatch.context() as patched:
        patched.setattr(streams, "tensor_bytes", full)
        with pytest.raises(FileProblem, match="disk is full"):
            bake(made["a"], how=how, order=order)
    assert len(calls) == 301
    assert not list(tmp_path.iterdir())
    assert made["a"].read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of files are POSIX")
def test_a_write_that_the_system_cuts_off(tmp_path: Path, made: dict[str, Path]) -> None:
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from extensions_lib.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    target = tmp_path / "out.safetensors"
    words = ["bake", str(made["a"]), "--other", str(made["b"]), "--out", str(target)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "out.safetensors" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


WORKER = """
import sys, time
from pathlib import Path
from extensions_lib.toolbox.bake import Baking, bake
from extensions_lib.toolbox.work import Output, Watch
def told(done, total):
    if done == total // 2:
        print("half", flush=True)
        time.sleep(60)
bake(Path(sys.argv[1]), how=Baking(other=sys.argv[2]), order=Output(sys.argv[3]), watch=Watch(told))
"""


def test_killed_half_way(tmp_path: Path, made: dict[str, Path]) -> None:
    before, target = made["a"].read_bytes(), tmp_path / "out.safetensors"
    words = [sys.executable, "-c", WORKER, str(made["a"]), str(made["b"]), str(target)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"half\n"
        worker.send_signal(signal.SIGKILL)
    assert worker.returncode == -signal.SIGKILL
    assert not target.exists()
    assert made["a"].read_bytes() == before
    bake(made["a"], how=Baking(other=str(made["b"])), order=Output(str(target)))
    read_checkpoint(target)


def test_stop_leaves_nothing(tmp_path: Path, made: dict[str, Path]) -> None:
    stop = threading.Event()
    with pytest.raises(Stopped):
        bake(
            made["a"],
            how=Baking(other=str(made["b"])),
            order=out(tmp_path),
            watch=Watch(lambda done, _: stop.set() if done == 30 else None, stop),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat(tmp_path: Path, made: dict[str, Path]) -> None:
    """A checkpoint of 400 MB, of which no more than a few tensors are ever held."""
    tensors = load_file(made["a"])
    big = {f"big.{place}": torch.zeros(25_000_000, dtype=torch.float16) for place in range(8)}
    save_file(tensors | big, tmp_path / "m.safetensors")
    del big
    code = (
        "import resource, sys\n"
        "import torch, extensions_lib.adapters, extensions_lib.files.networks\n"
        "from extensions_lib.cli import main\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)\n"
    )
    words = ["bake", str(tmp_path / "m.safetensors"), str(made["to_b"])]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 150_000  # KiB
    assert (tmp_path / "m-baked.safetensors").stat().st_size > 400_000_000
