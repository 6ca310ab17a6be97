"""Tags of each picture of a WebUI's batch: found, encoded, and matched with the UNet's samples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from extensions_lib.hosts import webui
from extensions_lib.hosts.webui_pictures import (
    Hashes,
    Samples,
    encode_apart,
    stack_of,
    tags_of_each,
)
from tests.hosts.conftest import tiny_lora
from tests.hosts.test_a1111 import Order, bits, options, sd_model, session, tags

__all__ = ["session"]  # a fixture of the module beside

KINDS = ("lora", "lyco")
PROMPTS = ["a <lora:one:1>", "b", "a <lyco:two:0.5> <hypernet:x:1>", "a<lora:one:te=0.2:unet=1>"]


def batch(number: int = 0, size: int = 2, **other: Any) -> Any:
    plain = ["a ", "b", "a  ", "a"][number * size : (number + 1) * size]
    return SimpleNamespace(
        all_prompts=PROMPTS, prompts=plain, batch_size=size, iteration=number, **other
    )


def test_the_tags_of_each_prompt_of_the_batch() -> None:
    assert tags_of_each(batch(), [["one", "1"]], KINDS) == [[["one", "1"]], []]
    found = tags_of_each(batch(1), [["two", "0.5"]], KINDS)
    assert found == [[["two", "0.5"]], [["one", "te=0.2", "unet=1"]]]


def test_prompts_or_tags_that_a_script_has_changed_are_the_webuis_business() -> None:
    assert tags_of_each(batch(), [["other", "1"]], KINDS) is None
    changed = batch()
    changed.prompts = ["another", "b"]
    assert tags_of_each(changed, [["one", "1"]], KINDS) is None
    assert tags_of_each(SimpleNamespace(prompts=["a"]), [], KINDS) is None


def test_the_hires_pass_has_prompts_of_its_own() -> None:
    p = batch(all_hr_prompts=["a", "b <lora:two:1>", "", ""], hr_prompts=["a", "b "])
    assert tags_of_each(p, [], KINDS) == [[], [["two", "1"]]]


class Schedules(list[Any]):
    """The WebUI's SdConditioning."""

    def __init__(self, prompts: list[str], copy_from: Any = None) -> None:
        super().__init__(prompts)
        self.negative = getattr(copy_from, "negative", False)


class Multi:
    """The WebUI's MulticondLearnedConditioning."""

    def __init__(self, shape: tuple[int, ...], batch: list[Any]) -> None:
        self.shape, self.batch = shape, batch


class Encoding:
    """What of a StableDiffusionProcessing encodes prompts."""

    def __init__(self) -> None:
        self.state = "clean"
        self.calls = 0

    def cached_params(self, *what: Any) -> tuple[Any, ...]:
        return what

    def get_conds_with_caching(
        self, function: Any, prompts: Any, steps: int, caches: Any, data: Any, hires: Any = None
    ) -> Any:
        self.calls += 1
        return function(self, prompts)


def plain(p: Encoding, prompts: Schedules) -> list[Any]:
    return [(prompt, p.state, prompts.negative) for prompt in prompts]


def multi(p: Encoding, prompts: Schedules) -> Multi:
    return Multi((len(prompts),), plain(p, prompts))


def test_each_prompt_is_encoded_by_itself() -> None:
    p: Any = Encoding()
    cache, states = [None, None], ["one", "two", "one"]
    encode_apart(p, states, lambda number: setattr(p, "state", states[number]))
    given = Schedules(["x", "x", "y"])
    given.negative = True
    made = p.get_conds_with_caching(plain, given, 5, [cache], {})
    assert made == [("x", "one", True), ("x", "two", True), ("y", "one", True)]
    made = p.get_conds_with_caching(multi, given, 5, [[None, None]], {})
    assert made.shape == (3,) and [each[1] for each in made.batch] == states
    before = p.calls
    assert p.get_conds_with_caching(plain, given, 5, [cache], {}) is cache[1]
    assert p.calls == before  # remembered
    p.get_conds_with_caching(plain, given, 6, [cache], {})
    assert p.calls == before + 3
    encode_apart(p, ["one"] * 3, lambda number: None)
    assert "get_conds_with_caching" not in vars(p)


class Asked(nn.Module):
    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("stack", "calls"),
    [
        (None, [[0, 1, 2, 0, 1, 2]]),  # all at once, and Forge
        (None, [[0, 1, 2], [0, 1, 2]]),
        ([0, 0, 1, 2, 0, 1, 2], [[0, 0, 1, 2, 0, 1, 2]]),  # a picture with AND
        ([0, 0, 1, 2, 0, 1, 2], [[0, 0, 1], [2, 0, 1], [2]]),  # cut by the batch size
        ([0, 0, 1, 2, 0, 1, 2], [[0, 0, 1, 2]]),  # no negative in this step
        ([0, 0, 1, 2, 0, 1, 2], [[0, 0, 1, 2, 0, 1, 2]] * 2),  # an extension asks twice
    ],
)
def test_the_picture_of_each_sample(stack: list[int] | None, calls: list[list[int]]) -> None:
    unet, told = Asked(), []
    samples = Samples(unet, 3, lambda pictures: told.append(list(pictures)))
    for _ in range(2):  # steps
        samples.expect(stack)
        for call in calls:
            unet(torch.zeros(len(call), 4))
    assert told == calls * 2
    samples.remove()
    unet(torch.zeros(1))
    assert len(told) == 2 * len(calls) and not unet._forward_pre_hooks


def params(samples: int, parts: list[int]) -> Any:
    cond = SimpleNamespace(batch=[[None] * count for count in parts])
    sampler = SimpleNamespace(sampler_extra_args={"cond": cond})
    return SimpleNamespace(x=torch.zeros(samples), denoiser=SimpleNamespace(sampler=sampler))


def test_how_a_step_is_stacked() -> None:
    assert stack_of(params(4, [1, 1]), 2) == [0, 1, 0, 1]
    assert stack_of(params(5, [2, 1]), 2) == [0, 0, 1, 0, 1]
    assert stack_of(params(6, [1, 1]), 2) == [0, 1, 0, 1, 0, 1]  # a model that edits pictures
    assert stack_of(params(2, [1, 1]), 2) is None  # Forge
    assert stack_of(params(6, [2, 1]), 2) is None  # of no known kind
    assert stack_of(params(4, [1]), 2) is None


def test_hashes_of_each_picture() -> None:
    hashes = Hashes()
    hashes.of = {0: {"one": "aa"}, 1: {}, 2: {"two": "bb"}, 3: {"one": "aa"}}
    p: Any = SimpleNamespace(all_prompts=list("abcd"), iteration=1, batch_size=2)
    rest = {"use_main_prompt": False, "position_in_batch": 0}
    assert hashes(p=p, index=1, all_prompts=list("abcd"), **rest) is None
    assert hashes(p=p, index=0, all_prompts=list("cd"), **rest) == "two: bb"
    assert hashes(p=p, index=3, all_prompts=list("abcd"), **rest) == "one: aa"
    rest["use_main_prompt"] = True
    assert hashes(p=p, index=0, all_prompts=list("cd"), **rest) == "one: aa"


def test_activation_of_a_batch_whose_tags_differ(session: webui.Session) -> None:
    tiny_lora(session.folders[0] / "two.safetensors", 2)
    model = sd_model("SD1")
    before, order = bits(model), Order(model)
    vars(order).update(
        all_prompts=["a <lora:one:1>", "a ", "a <lora:two:0.5> <lora:gone:1>"],
        prompts=["a ", "a ", "a  "], batch_size=3, iteration=0,
        get_conds_with_caching=None, cached_params=None,
    )  # fmt: skip
    webui.activate(session, order, tags("one:1"), options())
    assert [text for text in order.comments if "gone" in text] and len(order.comments) == 1
    unet = model.model.diffusion_model
    around = [module for module in unet.modules() if "forward" in vars(module)]
    assert len(unet._forward_pre_hooks) == 1
    hashes = order.extra_generation_params["Lora hashes"]
    assert [list(hashes.of[number]) for number in range(3)] == [["one"], [], ["two"]]
    session.park()
    assert not unet._forward_pre_hooks
    assert not any("forward" in vars(module) for module in around)
    after = bits(model)
    assert all(after[name][0] == before[name][0] for name in before)
    assert all(torch.equal(after[name][1], before[name][1]) for name in before)
    again: Any = Order(model)
    webui.activate(session, again, tags("one:1"), options())
    assert again.extra_generation_params["Lora hashes"].startswith("one: ")
    assert not unet._forward_pre_hooks
