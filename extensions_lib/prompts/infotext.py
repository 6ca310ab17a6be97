"""Infotext: how a picture was made, as the text kept with it.

The form is that of AUTOMATIC1111 WebUI 1.10.1::

    prompt
    Negative prompt: negative
    Steps: 20, Sampler: Euler a, Size: 512x512, Lora hashes: "a: 0123456789ab", Version: v1.10.1

A value with a comma, a colon or a line break is written as a JSON string. So are, beyond what the
WebUI does, values that would not come back the same otherwise: an empty one, one in spaces, one
that begins with a quotation mark. The WebUI reads these too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

_NEGATIVE = "Negative prompt:"
_FEWEST = 3  # a last line with fewer settings belongs to the prompt
_KEY = re.compile(r"\w[\w \-/]+")
_KEY_REVERSED = re.compile(r"[\w \-/]*")
_QUOTED = re.compile(r'\s*("(?:\\.|[^\\"])+")(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_NAME_IN_TAG = re.compile(r"(<(?:lora|lyco):)([^:>]+)(?=[:>])")
_HASH_IN_NAME = re.compile(r"(.*)\s*\([0-9a-fA-F]+\)")
_NOT_IN_NAMES = str.maketrans("", "", ":,")


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and text == text.strip() and not text.startswith('"')
    if plain and not any(mark in text for mark in ",:\n"):
        return text
    return json.dumps(text, ensure_ascii=False)


def write_infotext(prompt: str, negative: str, settings: Mapping[str, object]) -> str:
    """The infotext of a picture; settings keep their order, and a None is left out.

    A setting whose value is its own name is written as the name alone. Reading gives everything
    back when there are at least three other settings, names are words of two letters or more, and
    the prompts' lines have no spaces around them and do not begin with "Negative prompt:".
    """
    parts = [
        key if key == value else f"{key}: {_quoted(value)}"
        for key, value in settings.items()
        if value is not None
    ]
    middle = f"\n{_NEGATIVE} {negative}" if negative else ""
    return f"{prompt}{middle}\n{', '.join(parts)}".strip()


def _fields(line: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The `key: value` pairs of a settings line in order, and the text between them."""
    pairs: list[tuple[str, str]] = []
    between: list[str] = []
    start = position = 0
    while (colon := line.find(":", position)) >= 0:
        run = _KEY_REVERSED.match(line[position:colon][::-1])
        key = _KEY.search(line, colon - (run.end() if run else 0), colon)
        if key is None:
            position = colon + 1
            continue
        between.append(line[start : key.start()])
        quoted = _QUOTED.match(line, colon + 1)
        comma = line.find(",", colon + 1)
        if quoted is not None:
            value, start = quoted.group(1), quoted.end()
        else:
            end = len(line) if comma < 0 else comma
            value, start = line[colon + 1 : end].lstrip(), min(end + 1, len(line))
        pairs.append((key.group(), value))
        position = start
    return pairs, [*between, line[start:]]


def _unquoted(value: str) -> str:
    if len(value) < 2 or not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def read_infotext(text: str) -> dict[str, str]:
    """What an infotext says: "Prompt", "Negative prompt" and every setting by its name.

    A value such as 512x768 comes as two, "Size-1" and "Size-2". A name that stands alone between
    commas comes with itself as the value. Text without a line of settings is all prompt.
    """
    *lines, last = text.strip().split("\n")
    pairs, between = _fields(last)
    if len(pairs) < _FEWEST:
        lines.append(last)
        pairs, between = [], []
    found: dict[str, str] = {}
    for piece in between:
        for name in (part.strip() for part in piece.split(",")):
            if _KEY.fullmatch(name):
                found[name] = name
    for key, raw in pairs:
        if not raw:
            continue
        value = _unquoted(raw)
        size = _SIZE.fullmatch(value)
        if size is not None:
            found[f"{key}-1"], found[f"{key}-2"] = size.groups()
        else:
            found[key] = value
    found["Prompt"], found["Negative prompt"] = _prompts(lines)
    return found


def _prompts(lines: list[str]) -> tuple[str, str]:
    """Prompt and negative prompt: the latter begins at the first line that says so."""
    parts: tuple[list[str], list[str]] = ([], [])
    negative = False
    for line in (line.strip() for line in lines):
        if line.startswith(_NEGATIVE):
            negative = True
            line = line[len(_NEGATIVE) :].strip()
        if line or parts[negative]:
            parts[negative].append(line)
    return "\n".join(parts[0]), "\n".join(parts[1])


def write_hashes(hashes: Mapping[str, str]) -> str:
    """The value of "Lora hashes": `name: hash, …`, without `:` and `,` in the names."""
    clean = {name.translate(_NOT_IN_NAMES): short for name, short in hashes.items()}
    return ", ".join(f"{name}: {short}" for name, short in clean.items())


def read_hashes(text: str) -> dict[str, str]:
    """The hashes by name; parts that are no `name: hash` are passed over."""
    found = {}
    for part in text.split(","):
        name, colon, short = part.partition(":")
        if colon:
            found[name.strip()] = short.strip()
    return found


def rename_by_hash(
    prompt: str, hashes: Mapping[str, str], name_of: Callable[[str], str | None]
) -> str:
    """The prompt with its LoRA tags naming this machine's files, found by their hash.

    `name_of(hash)` gives the name here, or None to leave the tag as it is.
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(2)
        short = hashes.get(name.translate(_NOT_IN_NAMES).strip())
        here = name_of(short) if short else None
        return match.group() if here is None else match.group(1) + here

    return _NAME_IN_TAG.sub(replace, prompt)


def legacy_tags(fields: Mapping[str, str]) -> str:
    """Tags for the networks that older infotexts name as settings, for the end of the prompt.

    These are "Hypernet" with "Hypernet strength", and the "AddNet Module/Model/Weight A n" of the
    sd-webui-additional-networks extension.
    """
    tags = []
    if fields.get("Hypernet"):
        tags.append(f"<hypernet:{fields['Hypernet']}:{fields.get('Hypernet strength', '1.0')}>")
    for key, model in fields.items():
        number = key.removeprefix("AddNet Model ")
        if number != key and fields.get(f"AddNet Module {number}") == "LoRA":
            match = _HASH_IN_NAME.match(model)
            name = match.group(1) if match else model
            weight = fields.get(f"AddNet Weight A {number}", "1.0")
            tags.append(f"<lora:{name.strip()}:{weight}>")
    return "".join(tags)
