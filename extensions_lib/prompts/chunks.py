"""Tokens in chunks of 75, as a CLIP text encoder reads them.

A chunk is 77 tokens: start, 75 of the prompt or padding, end. When a chunk overflows shortly after
a comma, what follows the comma moves to the next chunk with it. The rules are those of
AUTOMATIC1111 WebUI 1.10.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from extensions_lib.prompts.attention import BREAK as BREAK_PIECE

LENGTH = 75


@dataclass(frozen=True)
class Break:
    """The word BREAK: the chunk ends here."""


@dataclass(frozen=True)
class Placed:
    """An embedding that takes the place of `tokens` tokens with `vectors` (1 to 75) vectors."""

    what: object
    vectors: int
    tokens: int


@dataclass
class Chunk:
    """77 tokens and the 77 factors of their encodings.

    `fixes`: for each embedding, the offset of its first vector among the 75 and `Placed.what`.
    `count`: how many tokens it adds to the prompt's length (75 unless it is the last).
    """

    tokens: list[int]
    multipliers: list[float]
    fixes: list[tuple[int, object]] = field(default_factory=list)
    count: int = 0


Piece = tuple[Sequence[int], float] | Break
Finder = Callable[[Sequence[int], int], Placed | None]


def token_pieces(
    parsed: Sequence[tuple[str, float]],
    tokenize: Callable[[list[str]], Sequence[Sequence[int]]],
) -> list[Piece]:
    """Attention's pieces as tokens; `tokenize` adds no start or end token."""
    tokens = tokenize([text for text, _ in parsed])
    return [
        Break() if piece == BREAK_PIECE else (ids, piece[1])
        for piece, ids in zip(parsed, tokens, strict=True)
    ]


class _Filler:
    """The chunk being filled and the full ones before it."""

    def __init__(self, start: int, end: int, pad: int) -> None:
        self.start, self.end, self.pad = start, end, pad
        self.chunks: list[Chunk] = []
        self.begin([], [])

    def begin(self, tokens: list[int], multipliers: list[float]) -> None:
        self.tokens, self.multipliers = tokens, multipliers
        self.fixes: list[tuple[int, object]] = []
        self.comma = -1

    def finish(self, count: int = LENGTH) -> None:
        """Closes the chunk and begins an empty one."""
        room = LENGTH - len(self.tokens)
        tokens = [self.start, *self.tokens, *[self.end] * (room + 1)]
        if self.pad != self.end:
            first = tokens.index(self.end) + 1
            tokens[first:] = [self.pad] * (len(tokens) - first)
        multipliers = [1.0, *self.multipliers, *[1.0] * (room + 1)]
        self.chunks.append(Chunk(tokens, multipliers, self.fixes, count))
        self.begin([], [])

    def make_room(self, is_comma: bool, backtrack: int) -> None:
        """Before the next token: a full chunk ends, after its last comma when that is near."""
        if is_comma:
            self.comma = len(self.tokens)
        elif len(self.tokens) == LENGTH and self.comma != -1 and LENGTH - self.comma <= backtrack:
            self._end_at(self.comma + 1)
        if len(self.tokens) == LENGTH:
            self.finish()

    def _end_at(self, cut: int) -> None:
        """Ends the chunk at `cut` and takes the rest along, embeddings with their tokens."""
        tokens, multipliers = self.tokens[cut:], self.multipliers[cut:]
        moved = [(offset - cut, what) for offset, what in self.fixes if offset >= cut]
        self.fixes = [(offset, what) for offset, what in self.fixes if offset < cut]
        del self.tokens[cut:], self.multipliers[cut:]
        self.finish()
        self.tokens, self.multipliers, self.fixes = tokens, multipliers, moved

    def add(self, token: int, weight: float) -> None:
        self.tokens.append(token)
        self.multipliers.append(weight)

    def place(self, placed: Placed, weight: float) -> None:
        if len(self.tokens) + placed.vectors > LENGTH:
            self.finish()
        self.fixes.append((len(self.tokens), placed.what))
        self.tokens += [0] * placed.vectors
        self.multipliers += [weight] * placed.vectors


def chunk_tokens(
    pieces: Sequence[Piece],
    *,
    start: int = 49406,
    end: int = 49407,
    pad: int = 49407,
    comma: int | None = 267,
    backtrack: int = 20,
    find_embedding: Finder | None = None,
) -> list[Chunk]:
    """The chunks of a prompt, at least one.

    `pad` fills a chunk behind its first end token: the end token again for CLIP (SD1), 0 for
    OpenCLIP (SD2, SDXL's second encoder). `backtrack` is how many tokens behind a comma may move
    to the next chunk, 0 for none. `find_embedding(tokens, position)` names the embedding that
    begins at a position of a piece.
    Raises ValueError when an embedding has no token or no vector, or more vectors than a chunk.
    """
    filler = _Filler(start, end, pad)
    for piece in pieces:
        if isinstance(piece, Break):
            filler.finish()
            continue
        tokens, weight = piece
        position = 0
        while position < len(tokens):
            filler.make_room(tokens[position] == comma, backtrack)
            placed = find_embedding(tokens, position) if find_embedding else None
            if placed is None:
                filler.add(tokens[position], weight)
                position += 1
                continue
            if placed.tokens < 1 or not 1 <= placed.vectors <= LENGTH:
                raise ValueError(
                    f"embedding {placed.what!r} has {placed.vectors} vectors for "
                    f"{placed.tokens} tokens; expected 1 to {LENGTH} vectors, at least 1 token"
                )
            filler.place(placed, weight)
            position += placed.tokens
    if filler.tokens or not filler.chunks:
        filler.finish(count=len(filler.tokens))
    return filler.chunks


def token_count(chunks: Sequence[Chunk]) -> int:
    """The prompt's length in tokens, as a counter shows it; chunks before the last count 75."""
    return sum(chunk.count for chunk in chunks)


def token_limit(count: int) -> int:
    """How long a prompt of `count` tokens may grow before it needs another chunk."""
    return -(-max(count, 1) // LENGTH) * LENGTH
