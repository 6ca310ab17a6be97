"""Weights by element: `lbwe=`."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extensions_lib.models.families import SD15, SD21, SDXL_BASE, Structure
from extensions_lib.models.names import places
from extensions_lib.prompts.blocks import LISTS, BlockMistake, Blocks
from extensions_lib.prompts.elements import PRESETS, read_elements
from extensions_lib.prompts.tags import network_requests, split_tags, with_weight

ATTN = ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q")  # fmt: skip
FF = ("unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
      "input_blocks.4.1.transformer_blocks.0.ff.net.2")  # fmt: skip
CONV = ("unet.down_blocks.1.resnets.0.conv1", "input_blocks.4.0.in_layers.2")


def blocks_of(tag: str) -> Blocks:
    _, (request,), problems = network_requests(tag)
    assert problems == [] and request.plan is not None and request.plan.blocks is not None
    return request.plan.blocks


@pytest.mark.parametrize(
    ("written", "block", "names", "weight"),
    [
        ("IN04-OUT04:attn:0.8", "IN05", ATTN, 0.8),
        ("OUT04-IN04:attn:0.8", "IN05", ATTN, 0.8),  # either way round
        ("IN05-OUT04:attn:0.8", "IN04", ATTN, 1),
        ("IN05-OUT04:attn:0.8", "IN05", FF, 1),
        ("::0", "IN05", FF, 0),
        ("::0", "", FF, 0),  # also what lies in no block
        ("IN00-IN11::0.5", "", FF, 1),
        ("IN::0.5", "IN07", FF, 0.5),
        ("mid in01::0.5", "M00", FF, 0.5),
        (":attn1 ff.net:0.5", "IN01", FF, 0.5),
        (":attn2:0.5", "IN01", ATTN, 1),
        (":in_layers:0.5", "IN01", CONV, 0.5),  # the original name
        (":conv1:0.5", "IN01", CONV, 0.5),  # and that of diffusers
        (":resnets_3:0.5", "IN01", CONV, 1),
        ("NOT IN OUT::0", "M00", FF, 0),
        ("NOT IN OUT::0", "IN02", FF, 1),
        ("IN02:NOT attn:0", "IN02", ATTN, 1),
        ("IN02:NOT attn:0", "IN02", FF, 0),
        ("encoder::-1e-1", "BASE", ("te1.text_model.encoder.layers.0.mlp.fc1",), -0.1),
        ("IN04:attn:0.2,:attn1:0.6", "IN04", ATTN, 0.6),  # the last one counts
        ("IN04:attn:0.2, IN04:ff:0.6", "IN04", ATTN, 0.2),
        ("attndeepoff", "M00", ATTN, 0),
        ("PROJDEEPOFF", "M00", ("x.proj_in",), 0),
    ],
)
def test_what_an_element_covers(
    written: str, block: str, names: tuple[str, ...], weight: float
) -> None:
    assert Blocks((), read_elements(written)).of(block, names) == weight
    assert blocks_of(f"<lora:a:1:lbwe={written}>").of(block, names) == weight


def test_an_element_takes_the_place_of_the_blocks_weight() -> None:
    blocks = blocks_of("<lora:a:1:lbw=OUTALL:lbwe=IN04:attn:0.5:stop=5>")
    assert blocks.of("IN04", ATTN) == 0.5
    assert blocks.of("IN04", FF) == 0 and blocks.of("OUT03", FF) == 1
    alone = blocks_of("<lora:a:1:lbw=OUTALL>")
    assert blocks.key != alone.key and sorted([blocks.key, alone.key])
    assert blocks_of("<lora:a:1:in=0:lbwe=XYZ>").of("IN04", FF) == 1


def test_a_tag_holds_the_whole_of_it() -> None:
    text = "<lora:a:lbwe=IN01:attn:0,M00::0.5:0.3:0.2>"
    _, (request,), problems = network_requests(text)
    assert problems == [] and (request.te, request.unet) == (0.3, 0.2)
    (tag,) = split_tags(text)[1]
    assert tag.named["lbwe"] == "IN01:attn:0,M00::0.5" and tag.args == ("0.3", "0.2")
    assert with_weight(text, 0.7) == "<lora:a:0.7:lbwe=IN01:attn:0,M00::0.5>"


MISTAKES = [
    ("foo", "there is no preset 'foo'; there are ATTNDEEPON, ATTNDEEPOFF"),
    ("IN01:attn", "'IN01:attn' is not of the form blocks:elements:weight"),
    ("IN01:attn:x", "the weight 'x' of 'IN01:attn:x' is not a number"),
    ("IN01::nan", "is not a finite number"),
    ("IN12:attn:0", "there is no block 'IN12' (IN12:attn:0); there are BASE, IN00 to IN11"),
    ("IN01-OUT12:attn:0", "there is no block 'OUT12'"),
    ("M00::1,IN01:atn1:0", "no layer has 'atn1' in its name (IN01:atn1:0)"),
    ("", "there is no preset ''"),
]


@pytest.mark.parametrize(("written", "said"), MISTAKES)
def test_a_mistake_is_said_with_the_tag_and_the_rest_applies(written: str, said: str) -> None:
    tag = f"<lora:a:0.4:lbw=OUTALL:lbwe={written}:hr=0.2>"
    _, (request,), (problem,) = network_requests(f"a cat {tag}")
    assert problem.start == 6 and problem.tag == tag
    assert problem.message.startswith(f"{tag}: lbwe: ") and said in problem.message
    assert problem.message.endswith(". It was ignored.")
    assert request.plan is not None and request.plan.blocks is not None
    assert request.plan.blocks.of("IN04") == 0 and request.plan.blocks.elements == ()


@pytest.mark.parametrize("structure", [SD15, SD21, SDXL_BASE], ids=["SD1", "SD2", "SDXL"])
def test_every_part_of_a_layers_name_is_an_element(structure: Structure) -> None:
    draw = random.Random(3)
    for layer, place in places(structure, "ldm").items():
        component, _, path = layer.partition(".")
        names = (path, place.within) if component != "vae" else ()
        for name in filter(None, names):  # a bare parameter has no path of its own
            start = draw.randrange(len(name) - 1)
            part = name[start : start + 2 + draw.randrange(12)]
            for each in (name, name.replace(".", "_"), part):
                assert read_elements(f":{each}:0")[0].covers("", (name,)), (name, each)


@given(st.text(max_size=30))
def test_anything_is_read_or_refused(text: str) -> None:
    try:
        elements = read_elements(text)
    except BlockMistake as mistake:
        assert str(mistake)
    else:
        assert all(each.weight == each.weight for each in elements)


def test_presets_are_readable() -> None:
    for name, written in PRESETS.items():
        assert read_elements(name.lower()) == read_elements(written)
    assert all(block in LISTS[26] for block in read_elements("ATTNDEEPON")[0].blocks or ())
