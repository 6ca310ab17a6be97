"""Two processes that train together learn as one that has the batches of both."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_checkpoint
from tests.training.drawn import drawn_set

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
train_data_dir = "{set}"
output_name = "two"
network_dim = 2
train_batch_size = 1
gradient_accumulation_steps = {accumulation}
max_train_steps = 4
resolution = "64"
min_bucket_reso = 32
bucket_reso_steps = 32
save_precision = "float"
no_metadata = true
sample_at_first = false
sample_every_n_steps = 1000
max_validation_steps = 1
sample_prompts = ["a thing --s 1 --w 64 --h 64"]
"""


def began(root: Path, pictures: Path, accumulation: int, **env: str) -> subprocess.Popen[str]:
    tiny_checkpoint(root / "models" / "Stable-diffusion" / "SD1.safetensors", "SD1")
    config = root / "config.toml"
    config.write_text(CONFIG.format(set=pictures, accumulation=accumulation))
    command = [
        sys.executable,
        "-m",
        "extensions_lib.cli",
        "train",
        str(config),
        "--data",
        str(root),
    ]
    return subprocess.Popen(
        [*command, "--threads", "1"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def written(root: Path) -> bytes:
    file = (root / "models" / "Lora" / "two.safetensors").read_bytes()
    return re.sub(rb'"modelspec.date":"[^"]*"', b"", file)


@pytest.mark.slow
def test_two_processes_learn_as_one(tmp_path: Path) -> None:
    pictures = drawn_set(tmp_path / "set")
    alone = began(tmp_path / "alone", pictures, 2)
    assert alone.wait(200) == 0, alone.stdout and alone.stdout.read()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        began(tmp_path / "both", pictures, 1, RANK=str(n), LOCAL_RANK=str(n), **shared)
        for n in range(2)
    ]
    for process in both:
        out, _ = process.communicate(timeout=200)
        assert process.returncode == 0, out
    import torch
    from safetensors.torch import load_file

    one, two = (
        load_file(tmp_path / name / "models" / "Lora" / "two.safetensors")
        for name in ("alone", "both")
    )
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)
    assert any(float(each.abs().max()) > 0 for name, each in one.items() if "up" in name)
