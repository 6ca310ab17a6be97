"""Every kind of thing that is trained: from options to a file that the host then uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from extensions_lib.hosts.base import GenerationRequest
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.place import StandalonePlace
from extensions_lib.training.kinds import KINDS
from extensions_lib.training.runs import Runs
from tests.tiny import tiny_checkpoint
from tests.training import runner
from tests.training.drawn import drawn_set

PROMPTS: dict[str, Callable[[str], str]] = {
    "network": lambda name: f"a thing <lora:{name}:1>",
    "embedding": lambda name: f"{name}, a thing",
    "hypernetwork": lambda name: f"a thing <hypernet:{name}:1>",
    "checkpoint": lambda name: "a thing",
}


def order(prompt: str) -> GenerationRequest:
    return GenerationRequest(prompt, steps=2, width=64, height=64, seed=3, sampler="Euler")


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_run_of_each_kind(kind: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "models" / "Stable-diffusion" / "SD1.safetensors", "SD1")
    host = StandaloneHost("SD1", tmp_path, threads=1)
    runs = Runs(StandalonePlace(host), tmp_path / "outputs")
    pictures = drawn_set(tmp_path / "set")
    options = replace(
        runner.options(pictures, 4),
        train=kind,
        output_name="thingy",
        learning_rate=0.05 if kind == "embedding" else 1e-3,
        sample_every_n_steps=2,
        weight_initialization="XavierNormal",
    )
    before = host.generate(order("a thing")).images[0].tobytes()
    run = runs.start(options)
    run.join(200)
    assert run.status().state == "done", run.status()
    assert host.generate(order("a thing")).images[0].tobytes() == before
    samples = [run.folder / "samples" / each["sample"] for each in run.record.entries("sample")]
    assert len(samples) == 2
    # what is sampled is what is trained: it differs from step to step
    assert samples[0].read_bytes() != samples[1].read_bytes()
    assert run.outputs.final.is_file() and run.outputs.final.suffix == KINDS[kind].suffix
    if kind == "checkpoint":
        host.use_checkpoint("thingy")
    after = host.generate(order(PROMPTS[kind]("thingy")))
    assert not after.messages
    assert after.images[0].tobytes() != before
    host.close()


def test_lllite_is_for_sdxl_and_says_so(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "models" / "Stable-diffusion" / "SD1.safetensors", "SD1")
    host = StandaloneHost("SD1", tmp_path, threads=1)
    runs = Runs(StandalonePlace(host), tmp_path / "outputs")
    run = runs.start(replace(runner.options(drawn_set(tmp_path / "set"), 2), train="lllite"))
    run.join(100)
    assert run.status().state == "failed" and "is for SDXL" in run.status().message
    host.close()


def test_lllite_learns_from_condition_pictures(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "models" / "Stable-diffusion" / "SDXL.safetensors", "SDXL")
    host = StandaloneHost("SDXL", tmp_path, threads=1)
    runs = Runs(StandalonePlace(host), tmp_path / "outputs")
    pictures = drawn_set(tmp_path / "set")
    guides = drawn_set(tmp_path / "guides", folder="guides")
    options = replace(
        runner.options(pictures, 2),
        train="lllite",
        conditioning_data_dir=str(guides / "guides"),
        cond_emb_dim=4,
        mlp_dim=4,
    )
    run = runs.start(options)
    run.join(200)
    assert run.status().state == "done", run.status()
    [sample] = run.record.entries("sample")  # of the first picture with its condition picture
    with Image.open(run.outputs.samples / str(sample["sample"])) as following:
        assert following.size == (64, 64)
    assert run.outputs.final.is_file()
    assert host.lllites.find(options.output_name) is not None
    # gone on with, it draws by the picture that it is shown
    shown = sorted((guides / "guides").glob("*.png"))[:2]
    further = replace(
        options,
        network_weights=str(run.outputs.final),
        output_name="further",
        learning_rate=0.1,
        sample_prompts=tuple(f"a thing --d 3 --s 2 --cn {each}" for each in shown),
    )
    more = runs.start(further)
    more.join(200)
    assert more.status().state == "done", more.status()
    one, other = (more.outputs.samples / str(e["sample"]) for e in more.record.entries("sample"))
    assert one.read_bytes() != other.read_bytes()
    bare = runs.start(replace(options, conditioning_data_dir=None, output_name="bare"))
    bare.join(200)
    assert bare.status().state == "failed" and "condition" in bare.status().message
    host.close()
