"""How many of CLIP's tokens a prompt takes, as the WebUI counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extensions_lib.prompts.chunks import Finder


def count_tokens(prompt: str, steps: int, finder: Finder | None = None) -> tuple[int, int]:
    """The most tokens that the prompt has at any step, and the room of its chunks (75, 150, …).

    Network tags take none, an embedding that `finder` knows its vectors; parts joined by AND count
    each for itself.
    Raises: FileProblem without the tokenizer's files.
    """
    from extensions_lib.hosts.standalone.text import load_tokenizer
    from extensions_lib.prompts.attention import parse_attention
    from extensions_lib.prompts.chunks import chunk_tokens, token_count, token_limit, token_pieces
    from extensions_lib.prompts.compose import split_and
    from extensions_lib.prompts.schedule import schedule
    from extensions_lib.prompts.tags import split_tags

    tokenizer = load_tokenizer()

    def ids(texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(texts, truncation=False, add_special_tokens=False)[
            "input_ids"
        ]
        return found

    plain, _ = split_tags(prompt)
    texts = {span.text for part, _ in split_and(plain) for span in schedule(part, max(1, steps))}
    most = max(
        (
            token_count(
                chunk_tokens(token_pieces(parse_attention(text), ids), find_embedding=finder)
            )
            for text in texts
        ),
        default=0,
    )
    return most, token_limit(most)


def caption_tokens(text: str) -> int:
    """How many tokens a caption takes, in which nothing has a meaning of its own.

    Raises: FileProblem without the tokenizer's files.
    """
    from extensions_lib.hosts.standalone.text import tokens

    return len(tokens([text])[0])
