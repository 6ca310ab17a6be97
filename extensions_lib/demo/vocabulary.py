"""Derives CLIP's tokenizer files (vocab.json, merges.txt) from its published BPE table.

The table `bpe_simple_vocab_16e6.txt.gz` (OpenAI, MIT licence) is part of the open_clip package; the
two files are another spelling of the same content, the one that transformers' CLIPTokenizer reads.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

from extensions_lib.errors import FileProblem

TABLE_NAME = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SIZE = 49408
START, END = "<|startoftext|>", "<|endoftext|>"
# 256 bytes, the same 256 at the end of a word, and two special tokens are not merges.
MERGES = VOCABULARY_SIZE - 2 * 256 - 2


def byte_characters() -> list[str]:
    """The printable character that stands for each byte, in the order of CLIP's vocabulary.

    Bytes that print in Latin-1 stand for themselves and come first; the others follow in order, as
    the characters from U+0100 (Radford et al. 2019, byte-level BPE).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(0x100 + index) for index in range(others)]


def open_clip_table() -> Path | None:
    """The BPE table inside an installed open_clip package (which is not imported), or None."""
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / TABLE_NAME
        if path.is_file():
            return path
    return None


def write_clip_vocabulary(bpe_gz: Path, folder: Path) -> None:
    """Writes vocab.json, merges.txt and the tokenizer's configuration into `folder`.

    `bpe_gz` is the gzipped table: a heading line, then one merge a line.
    Raises FileProblem when the table cannot be read or is too short.
    """
    try:
        with gzip.open(bpe_gz, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FileProblem(f"{bpe_gz}: the BPE table cannot be read ({error}).") from error
    merges = lines[1 : 1 + MERGES]
    if len(merges) < MERGES or any(len(merge.split()) != 2 for merge in merges):
        raise FileProblem(f"{bpe_gz}: expected {MERGES} merges of two parts after a heading line.")

    characters = byte_characters()
    words = [*characters, *(character + "</w>" for character in characters)]
    words += ["".join(merge.split()) for merge in merges]
    words += [START, END]
    vocabulary = {word: index for index, word in enumerate(words)}

    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    _write(folder / "special_tokens_map.json", _json(_special_tokens()))
    _write(folder / "tokenizer_config.json", _json(_tokenizer_config()))


def _special_tokens() -> dict[str, str]:
    return {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}


def _tokenizer_config() -> dict[str, object]:
    return {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        **_special_tokens(),
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
