"""The shipped demo checkpoint and its networks: whole, small, and doing what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extensions_lib.demo import bench, pack
from extensions_lib.files.checkpoints import checkpoint_structure
from extensions_lib.files.networks import read_network
from extensions_lib.hosts.standalone import StandaloneHost

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo" / "demo.safetensors"
NETWORKS = sorted((ROOT / "models" / "Lora").glob("*.safetensors"))


def test_it_is_small_and_of_the_structure_that_its_yaml_says() -> None:
    assert DEMO.stat().st_size <= 25_000_000
    assert checkpoint_structure(DEMO) == pack.STRUCTURE


@pytest.mark.slow
def test_it_draws_what_the_prompt_says() -> None:
    """Somewhat below what `bench demo` measures on 256 prompts, and far above chance."""
    asked = bench.scenes(12, seed=7)
    host = StandaloneHost(DEMO, ROOT)
    pictures = bench.generated(host, asked, steps=12)
    found = bench.shares([bench.hits(*pair) for pair in zip(asked, pictures, strict=True)])
    assert min(found["background"], found["colour"], found["position"]) >= 0.8, found
    assert min(found["shape"], found["size"]) >= 0.6, found


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_its_networks_fit_and_change_the_picture(path: Path) -> None:
    network = read_network(path)
    assert network.adapters and not network.unmatched and not network.problems
    user = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    host = StandaloneHost(DEMO, ROOT)
    scene = bench.scenes(1, seed=3)
    plain, changed, again = (
        bench.generated(host, scene, frame, steps=4)[0].tobytes()
        for frame in ("{}", f"{{}}<lora:{path.stem}:0.8>", "{}")
    )
    assert user["activation text"] and plain != changed and plain == again


def test_there_are_demo_networks_of_both_kinds() -> None:
    convolutions = {
        path.stem: any(".resnets." in layer for layer in read_network(path).adapters)
        for path in NETWORKS
    }
    assert set(convolutions.values()) == {True, False}, convolutions
