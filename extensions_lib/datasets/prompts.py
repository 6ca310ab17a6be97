"""From a caption to the prompt that a step learns: what is kept, moved, left out and replaced.

The order of operations is that of kohya's sd-scripts: prefix and suffix, dropout of the whole,
wildcards, parts by the separator or the number of kept tags, warm-up, shuffle, dropout of tags,
secondary separator. Different from there: each line has the prefix and the suffix, not the first
and the last; empty tags are dropped; the separator of kept tags never stays in the prompt.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace

from extensions_lib.datasets.options import CaptionOptions, varying

_WILDCARD = re.compile(r"\{([^}]+)\}")
_OPEN, _CLOSE = "\0", "\1"  # stand for {{ and }} meanwhile; no caption has these


def prompt_of(
    caption: str | None,
    options: CaptionOptions,
    class_tokens: str | None = None,
    *,
    seed: int,
    epoch: int,
    item: int,
    step: int = 0,
    steps: int = 1,
) -> str:
    """The prompt of an item in an epoch (from 0), the same for the same numbers.

    `caption` is the text of the file, of one line or several; None: there is none, and
    `class_tokens` stand for it. `step` of `steps` is how far the run is, for the warm-up.
    """
    drawn = random.Random(f"{seed}:{epoch}:{item}")
    lines = lines_of(caption if caption is not None else class_tokens or "", options)
    every = options.caption_dropout_every_n_epochs
    dropped = drawn.random() < options.caption_dropout_rate
    if dropped or (every and (epoch + 1) % every == 0):
        return ""
    text = lines[0]
    if options.enable_wildcard:
        text = _replaced(drawn.choice(lines), drawn)
    separator = options.keep_tokens_separator
    if set(varying(options)) - {"enable_wildcard"} or (separator and separator in text):
        text = _rearranged(text, options, drawn, step, steps)
    if options.secondary_separator:
        text = text.replace(options.secondary_separator, options.caption_separator)
    return text


def lines_of(text: str, options: CaptionOptions) -> list[str]:
    """The captions of a file, with prefix and suffix; one, maybe empty, at the least.

    The first alone unless there are wildcards.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    lines = lines if options.enable_wildcard else lines[:1]
    around = options.caption_prefix, options.caption_suffix
    return [" ".join(filter(None, (around[0], line, around[1]))) for line in lines]


def variants(
    caption: str | None, options: CaptionOptions, class_tokens: str | None = None
) -> list[str]:
    """All prompts that the caption may become, where `varying(options)` is empty."""
    calm = prompt_of(caption, without_dropout(options), class_tokens, seed=0, epoch=0, item=0)
    drops = options.caption_dropout_rate or options.caption_dropout_every_n_epochs
    return [calm, ""] if drops and calm else [calm]


def without_dropout(options: CaptionOptions) -> CaptionOptions:
    """The same options with no prompt empty by chance."""
    return replace(options, caption_dropout_rate=0.0, caption_dropout_every_n_epochs=0)


def _replaced(text: str, drawn: random.Random) -> str:
    """With one of the words in each {a|b}; {{ and }} are brackets."""
    text = text.replace("{{", _OPEN).replace("}}", _CLOSE)
    text = _WILDCARD.sub(lambda match: drawn.choice(match[1].split("|")), text)
    return text.replace(_OPEN, "{").replace(_CLOSE, "}")


def _rearranged(
    text: str, options: CaptionOptions, drawn: random.Random, step: int, steps: int
) -> str:
    """With the tags between the fixed ones warmed up, shuffled and thinned out."""
    first, between, last = _parts(text, options)
    between = between[: _warm(len(between), options, step, steps)]
    if options.shuffle_caption:
        drawn.shuffle(between)
    rate = options.caption_tag_dropout_rate
    if rate:
        between = [tag for tag in between if drawn.random() >= rate]
    return ", ".join([*first, *between, *last])


def _parts(text: str, options: CaptionOptions) -> tuple[list[str], list[str], list[str]]:
    """The tags that are kept in front, those between, and those kept at the end."""
    separator = options.keep_tokens_separator

    def tags(part: str) -> list[str]:
        parts = part.split(options.caption_separator) if options.caption_separator else [part]
        return [tag for each in parts if (tag := each.strip())]

    if separator and separator in text:
        first, _, rest = text.partition(separator)
        between, _, last = rest.partition(separator)
        return tags(first), tags(between), tags(last)
    found = tags(text)
    return found[: options.keep_tokens], found[options.keep_tokens :], []


def _warm(count: int, options: CaptionOptions, step: int, steps: int) -> int:
    """How many of `count` tags a prompt has at this step."""
    over = options.token_warmup_step
    whole = math.floor(over * steps) if over < 1 else over
    if not whole or step >= whole:
        return count
    least = options.token_warmup_min
    return max(0, math.floor(step * (count - least) / whole) + least)
