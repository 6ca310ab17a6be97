"""A batch whose prompts have tags of their own, in the standalone host: as if made one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from extensions_lib.errors import CrucibleError
from extensions_lib.hosts.networks import Networks, Sampling
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.models import canonical_layers, flat
from extensions_lib.prompts.infotext import read_hashes
from extensions_lib.prompts.tags import network_requests
from tests.hosts.conftest import order, tiny_lora
from tests.tiny import TINY

Hosts = Callable[[str], StandaloneHost]


@pytest.fixture(scope="module", autouse=True)
def networks(root: Path) -> None:
    folder = root / "models" / "Lora"
    for number, name in enumerate(("one", "two")):
        tiny_lora(folder / f"{name}.safetensors", number)
        tiny_lora(folder / f"{name}-xl.safetensors", number, "SDXL")
    tiny_loha(folder / "hada.safetensors")


def tiny_loha(path: Path) -> None:
    """A kind without a low-rank form, on some attention layers and a norm."""
    draw = torch.Generator().manual_seed(4)
    found = {}
    for name, layer in canonical_layers(TINY["SD1"]).items():
        if not name.startswith("unet"):
            continue
        if name.endswith(("attn1.to_q", "attn2.to_v")):
            out, inputs = layer.shape[:2]
            for part, size in (("w1_a", (out, 2)), ("w1_b", (2, inputs)),
                               ("w2_a", (out, 2)), ("w2_b", (2, inputs))):  # fmt: skip
                found[f"{flat(name)}.hada_{part}"] = torch.randn(size, generator=draw) * 0.4
        elif name.endswith("transformer_blocks.0.norm1"):
            found[f"{flat(name)}.w_norm"] = torch.randn(layer.shape, generator=draw) * 0.2
            found[f"{flat(name)}.b_norm"] = torch.randn(layer.shape, generator=draw) * 0.2
    save_file(found, path)


def furthest(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def check(host: StandaloneHost, prompts: list[str], **other: Any) -> list[Image.Image]:
    """The pictures of one batch, each as the same prompt and seed make it alone."""
    host.library.refresh()
    size = other.pop("batch_size", len(prompts))
    count = len(prompts) // size
    batch = host.generate(
        order("", prompts=tuple(prompts), batch_size=size, batch_count=count, **other)
    )
    assert batch.messages == [] and len(batch.images) == len(prompts)
    for prompt, seed, image, text in zip(
        prompts, batch.seeds, batch.images, batch.infotexts, strict=True
    ):
        alone = host.generate(order(prompt, seed=seed, **other))
        assert furthest(alone.images[0], image) <= 1, prompt
        assert alone.infotexts[0] == text
    return batch.images


@pytest.mark.parametrize("family", ["SD1", "SDXL"])
def test_each_picture_has_its_own_networks(hosts: Hosts, family: str) -> None:
    host, ending = hosts(family), "-xl" if family == "SDXL" else ""
    prompts = [
        f"a cat <lora:one{ending}:1>",
        "a cat",
        f"a cat <lora:two{ending}:0.5:1>",
        f"a dog <lora:one{ending}:0.3:-1> <lora:two{ending}:1>",
    ]
    images = check(host, prompts)
    plain = host.generate(order("a cat", batch_size=3)).images
    assert furthest(images[1], plain[1]) == 0 and furthest(images[0], plain[0]) > 5
    assert furthest(images[2], plain[2]) > 5


def test_weights_in_the_text_encoder_alone(host: StandaloneHost) -> None:
    images = check(host, ["a cat <lora:one:0:0>", "a cat <lora:one:1:0>", "a cat <lora:one:-2:0>"])
    plain = host.generate(order("a cat", batch_size=3)).images
    assert furthest(images[1], plain[1]) > 1 and furthest(images[0], plain[0]) <= 1


@pytest.mark.parametrize("sampler", ["Euler a", "DPM2 a", "UniPC"])
def test_weights_over_the_steps_blocks_and_parts(host: StandaloneHost, sampler: str) -> None:
    prompts = [
        "a cat <lora:one:0:0@0,1@1>",
        "a cat <lora:one:0:1:start=2> <lora:two:1:lbw=INALL>",
        "a cat AND a dog :0.5 <lora:two:1>",
        "a [cat:dog:0.5] <lora:two:0.4:1:dyn=1>",
    ]
    check(host, prompts, sampler=sampler)


def test_texts_of_unequal_length(host: StandaloneHost) -> None:
    long = "a cat " + "and a dog " * 40
    check(host, [f"{long}<lora:one:1>", "a cat <lora:two:1>", "a cat", f"{long}AND a dog"])
    check(host, ["a cat <lora:one:1>", long], cfg=1.0)
    check(host, ["a cat <lora:one:1>", "a cat"], negative=long)


def test_several_batches(host: StandaloneHost) -> None:
    prompts = ["a cat", "a cat <lora:one:1>", "a cat <lora:one:1>", "a cat <lora:one:1>"]
    check(host, [*prompts, "a dog", "a cat"], batch_size=2)


def test_kinds_without_a_low_rank_form(host: StandaloneHost) -> None:
    prompts = ["a cat <lora:hada:1>", "a cat <lora:one:1>", "a cat <lora:hada:-0.6> <lora:one:0.4>"]
    images = check(host, prompts)
    plain = host.generate(order("a cat", batch_size=3)).images
    assert furthest(images[0], plain[0]) > 5
    check(host, ["a cat <lora:hada:0:0@0,1@1>", "a cat", "a cat <lora:one:1>"])


def test_every_parameter_is_as_before_afterwards(host: StandaloneHost) -> None:
    unet = host.model().unet
    with host.exclusive():
        before = {name: (id(p), p.detach().clone()) for name, p in unet.named_parameters()}
    check(host, ["a cat <lora:one:1>", "a cat <lora:hada:1>"])
    with host.exclusive():
        for name, parameter in unet.named_parameters():
            number, values = before[name]
            assert id(parameter) == number and torch.equal(parameter, values), name
        assert not any("forward" in vars(module) for module in unet.modules())


def test_hashes_and_messages_are_each_pictures_own(host: StandaloneHost) -> None:
    prompts = ("a cat <lora:one:1>", "a cat", "a <lora:gone:1> <lora:two:1>", "<lora:gone:1>")
    made = host.generate(order("", prompts=prompts, batch_size=4))
    named = [set(read_hashes(text)) for text in map(hashes, made.infotexts)]
    assert named == [{"one"}, set(), {"two"}, set()]
    assert len(made.messages) == 1 and "gone" in made.messages[0]
    assert [text.splitlines()[0] for text in made.infotexts] == list(prompts)


def hashes(infotext: str) -> str:
    return infotext.partition('Lora hashes: "')[2].partition('"')[0]


def test_as_many_prompts_as_pictures(host: StandaloneHost) -> None:
    with pytest.raises(CrucibleError, match="2 prompts for 3 pictures"):
        host.generate(order("", prompts=("a", "b"), batch_size=3))


@pytest.fixture
def asked(host: StandaloneHost) -> Iterator[Networks]:
    """Networks of the test's own, on the clean model."""
    with host.exclusive() as model:
        yield Networks(model, host.library)


def test_a_schedule_that_costs_less_beside_the_layers_is_not_merged(asked: Networks) -> None:
    """Two samples of 8 x 8 latents have little to compute beside a layer."""
    requests = network_requests("<lora:one:0:0@0,1@1>")[1]
    unet = asked.model.unet
    before = {name: id(p) for name, p in unet.named_parameters()}

    def merged() -> int:
        return sum(id(p) != before[name] for name, p in unet.named_parameters())

    def beside() -> int:
        return sum("forward" in vars(module) for module in unet.modules())

    asked.apply(requests, sampling=Sampling(steps=20, rows=2, area=64))
    asked.at(7, 20)
    assert beside() > 0 and merged() == 0
    asked.apply(requests, sampling=Sampling(steps=20, rows=64, area=512 * 512))
    asked.at(7, 20)
    assert merged() > 0
    asked.apply(requests)  # nothing is known of the sampling
    asked.at(7, 20)
    assert merged() > 0 and beside() == 0
    asked.release()
    assert merged() == beside() == 0
