"""Network tags: `<lora:name:0.8>` and its kin, taken out of a prompt.

    <lora:name>  <lora:name:te>  <lora:name:te:unet>  <lora:name:te:unet:dyn>
    <lora:name:te=0.5:unet=1:dyn=8>          the same by name
    <lora:name:1@0,0@0.5>                    weights over the steps (prompts.curves)
    <lora:name:1:start=5:stop=15>            only in these steps; step=5-15 is the same
    <lora:name:1:hr=0.5>  hrte=  hrunet=     other weights in the hires pass
    <lora:name:1:lbw=MIDD>  in= mid= out=    weights by block (prompts.blocks)
    <lora:name:1:lbwe=IN05-OUT05:attn:0>     and by element in them (prompts.elements)
    <lyco:…>                                 another spelling of <lora:…>
    <hypernet:name>  <hypernet:name:weight>
    <lllite:name>  <lllite:name:weight>      curves, start=, stop=, step= and hr= too

`te` weighs the text encoder (1 when not written), `unet` the UNet (as `te` when not written),
`dyn` keeps the first ranks of a DyLoRA. The text encoder, which runs once before sampling, has the
weight of the first step. What is a tag, and what its parts mean, is as in AUTOMATIC1111 WebUI
1.10.1; unlike there, a tag with a mistake does not take the others with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from extensions_lib.prompts.blocks import BlockMistake, Blocks, read_blocks, read_sides
from extensions_lib.prompts.curves import Curve, CurveMistake, constant, read_curve, read_place
from extensions_lib.prompts.elements import read_elements

_OPENING = re.compile(r"<(\w+):")
_ALIASES = {"lyco": "lora"}
_HIRES = ("hr", "hrte", "hrunet")
_POSITIONS = {"lora": ("te", "unet", "dyn"), "hypernet": ("weight",), "lllite": ("weight",)}
_LONGEST = 800  # characters of a message
_OVER_STEPS = {"lora": _HIRES, "lllite": ("hr",)}  # kinds with weights over the steps


@dataclass(frozen=True)
class NetworkTag:
    """A tag as written. `args` follow the name, `named` are those written `key=value`."""

    kind: str
    name: str
    args: tuple[str, ...]
    named: Mapping[str, str]
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Plan:
    """What a tag says beyond one weight for the text encoder and one for the UNet.

    `te` and `unet` over the steps; `hr_te` and `hr_unet` in the hires pass, None: as in the first;
    `blocks` None: all alike.
    """

    te: Curve
    unet: Curve
    hr_te: Curve | None = None
    hr_unet: Curve | None = None
    blocks: Blocks | None = None

    def weights(self, step: int, steps: int, *, hires: bool = False) -> tuple[float, float]:
        """The weights of text encoder and UNet in step `step` (from 0) of `steps`.

        The text encoder has run before the first step: it keeps the weight of that.
        """
        te, unet = self.te, self.unet
        if hires:
            te, unet = self.hr_te or te, self.hr_unet or unet
        return te.at(0, steps), unet.at(step, steps)

    @property
    def changing(self) -> bool:
        """Whether the UNet's weight differs between steps."""
        curves = (self.unet, self.hr_unet)
        return any(curve is not None and not curve.constant for curve in curves)


@dataclass(frozen=True)
class NetworkRequest:
    """A network to apply, with its weights on the text encoder and the UNet.

    `plan` is there only where the tag says more than these; they are then those of the first step.
    """

    kind: str
    name: str
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None
    tag: str = ""
    plan: Plan | None = None


@dataclass(frozen=True)
class TagProblem:
    """What is wrong with the tag that begins at `start` of the prompt, as a sentence."""

    tag: str
    start: int
    message: str


def split_tags(prompt: str) -> tuple[str, list[NetworkTag]]:
    """The prompt without its tags, and the tags of every kind in order."""
    kept: list[str] = []
    tags: list[NetworkTag] = []
    copied = position = 0
    while match := _OPENING.search(prompt, position):
        close = prompt.find(">", match.end())
        if close < 0:
            break
        if close == match.end():
            position = close
            continue
        kept.append(prompt[copied : match.start()])
        position = copied = close + 1
        tags.append(_tag(prompt, match.group(1), match.start(), match.end(), position))
    kept.append(prompt[copied:])
    return "".join(kept), tags


def _tag(prompt: str, kind: str, start: int, inside: int, end: int) -> NetworkTag:
    name, *items = prompt[inside : end - 1].split(":")
    args: list[str] = []
    named: dict[str, str] = {}
    for item in _whole_items(items):
        key, equals, value = item.partition("=")
        if equals and "=" not in value:
            named[key] = value
        else:
            args.append(item)
    return NetworkTag(
        kind, name, tuple(args), MappingProxyType(named), prompt[start:end], start, end
    )


def _whole_items(items: list[str]) -> list[str]:
    """The items of a tag; those of `lbwe=blocks:elements:weight,…` put together again."""
    whole: list[str] = []
    for item in items:
        last = whole[-1] if whole else ""
        open_ended = last.startswith("lbwe=") and last.rpartition(",")[2].count(":") < 2
        if open_ended and "=" not in item:
            whole[-1] = f"{last}:{item}"
        else:
            whole.append(item)
    return whole


class _TagMistake(Exception):
    """The tag cannot be used; the text says why."""


def _weight(tag: NetworkTag, key: str, text: str) -> Curve:
    try:
        return read_curve(text)
    except CurveMistake as mistake:
        what = "" if str(mistake).startswith(repr(text)) else f"{text!r}: "
        named = key if key == "weight" else f"{key} weight"
        raise _TagMistake(
            f"{named} {what}{mistake}; write for example <{tag.kind}:{tag.name}:0.8>. The tag "
            "was left out."
        ) from None


def _rank(text: str) -> int | None:
    """A number of ranks; None for anything but a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        return None
    return value if value > 0 else None


def _arguments(
    tag: NetworkTag, keys: tuple[str, ...], more: tuple[str, ...] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """What is written for each key, the value that counts last; and what has no meaning here.

    `more` are keys that are written by name alone.
    """
    found: dict[str, list[str]] = {}
    for key, text in zip(keys, tag.args, strict=False):
        found.setdefault(key, []).append(text)
    foreign = list(tag.args[len(keys) :])
    for key, text in tag.named.items():
        if key in keys or key in more:
            found.setdefault(key, []).append(text)
        else:
            foreign.append(f"{key}={text}")
    return found, foreign


def _request(tag: NetworkTag) -> tuple[NetworkRequest, list[str]]:
    """The request of one tag and the mistakes that do not keep it from being used.

    Raises _TagMistake for a name or weight that cannot be used.
    """
    kind = _ALIASES.get(tag.kind, tag.kind)
    if not tag.name.strip():
        raise _TagMistake("the name is missing. The tag was left out.")
    if kind not in _POSITIONS:
        return NetworkRequest(kind, tag.name, tag=tag.text), []
    keys = _POSITIONS[kind]
    found, foreign = _arguments(tag, keys, _OVER_STEPS.get(kind, ()))
    plain = [key for key in keys if key != "dyn"]
    weights = {
        key: [_weight(tag, key, text) for text in found[key]][-1]
        for key in (*plain, *_HIRES)
        if key in found
    }
    te = weights.get(keys[0], constant(1.0))
    mistakes: list[str] = []
    dyn: int | None = None
    for text in found.get("dyn", []):
        dyn = _rank(text)
        if dyn is None:
            mistakes.append(f"dyn {text!r} is not a whole number above 0. It was ignored.")
    unet = weights.get("unet", te)
    plan = None
    if kind in _OVER_STEPS:
        plan = _plan(tag, te, unet, weights, foreign, mistakes, by_block=kind == "lora")
    mistakes += [f"{text!r} has no meaning here. It was ignored." for text in foreign]
    first = (te.at(0, 1), unet.at(0, 1)) if plan is None else plan.weights(0, 1)
    return NetworkRequest(kind, tag.name, *first, dyn, tag.text, plan), mistakes


def _plan(
    tag: NetworkTag,
    te: Curve,
    unet: Curve,
    weights: Mapping[str, Curve],
    foreign: list[str],
    mistakes: list[str],
    *,
    by_block: bool,
) -> Plan | None:
    """What the tag says beyond two numbers, taken out of `foreign`; None where it says no more."""

    def taken(key: str) -> str | None:
        text = tag.named.get(key)
        if text is not None:
            foreign.remove(f"{key}={text}")
        return text

    start, stop, span = taken("start"), taken("stop"), taken("step")
    try:
        if span is not None:
            start, dash, stop = span.partition("-")
            if not dash:
                raise CurveMistake(f"step {span!r} is not of the form 5-15")
        first, last = (None if not text else read_place(text) for text in (start, stop))
        if first is not None and last is not None and _never(first, last):
            raise CurveMistake(f"start {start} is not before stop {stop}")
        if (first, last) != (None, None):
            te, unet = te.within(first, last), unet.within(first, last)
    except CurveMistake as mistake:
        mistakes.append(f"{mistake}. It was ignored.")
    blocks = None
    try:
        blocks = _blocks(tag, taken) if by_block else None
    except (BlockMistake, CurveMistake) as mistake:
        mistakes.append(f"{mistake}. The network has one weight in all blocks.")
    elements = taken("lbwe") if by_block else None
    if elements is not None:
        try:
            blocks = replace(blocks or Blocks(), elements=read_elements(elements))
        except BlockMistake as mistake:
            mistakes.append(f"lbwe: {mistake}. It was ignored.")
    both = weights.get("hr")
    hr_te, hr_unet = weights.get("hrte", both), weights.get("hrunet", both)
    simple = te.constant and unet.constant and blocks is None
    if simple and hr_te is None and hr_unet is None:
        return None
    return Plan(te, unet, hr_te, hr_unet, blocks)


def _never(start: float, stop: float) -> bool:
    """Whether no step is from `start` on and before `stop`; a share and a step do not tell."""
    return start >= stop and ((start < 1) == (stop < 1) or stop == 0)


def _blocks(tag: NetworkTag, taken: Callable[[str], str | None]) -> Blocks | None:
    preset = taken("lbw")
    if preset is not None:
        x = taken("x")
        return read_blocks(preset, x=None if x is None else read_place(x), seed=tag.text)
    sides = {side: text for side in ("in", "mid", "out") if (text := taken(side)) is not None}
    return read_sides(sides) if sides else None


def network_requests(prompt: str) -> tuple[str, list[NetworkRequest], list[TagProblem]]:
    """The prompt without tags, the networks it asks for in order, and what is wrong with its tags.

    Kinds: "lora" (also written "lyco"), "hypernet" and "lllite" with their weights; any other
    kind keeps its name and default weights, for the caller to know or to refuse. A tag with a bad
    name or weight is left out; any other bad argument is ignored. Each has a TagProblem.
    """
    text, tags = split_tags(prompt)
    requests: list[NetworkRequest] = []
    problems: list[TagProblem] = []
    for tag in tags:
        try:
            request, mistakes = _request(tag)
            requests.append(request)
        except _TagMistake as mistake:
            mistakes = [str(mistake)]
        said = [_brief(f"{tag.text}: {why}") for why in mistakes]
        problems += [TagProblem(tag.text, tag.start, message) for message in said]
    return text, requests, problems


def _brief(message: str) -> str:
    """A message that is not as long as a tag may be."""
    return message if len(message) <= _LONGEST else f"{message[:200]} … {message[200 - _LONGEST :]}"


def with_weight(prompt: str, weight: float, name: str | None = None) -> str:
    """The prompt with this weight, for text encoder and UNet, in its network tags.

    In those of the network `name`, or in all; what else a tag says stays.
    """
    for tag in reversed(split_tags(prompt)[1]):
        kind = _ALIASES.get(tag.kind, tag.kind)
        if kind not in _POSITIONS or name not in (None, tag.name):
            continue
        weights = [key for key in _POSITIONS[kind] if key != "dyn"]
        rest = [f"{key}={value}" for key, value in tag.named.items() if key not in weights]
        if len(tag.args) > len(weights):
            rest.insert(0, f"dyn={tag.args[len(weights)]}")
        new = ":".join([tag.kind, tag.name, f"{weight:g}", *rest])
        prompt = f"{prompt[: tag.start]}<{new}>{prompt[tag.end :]}"
    return prompt
