"""Chunks of 75 tokens: padding, overflow, commas, BREAK, embeddings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions_lib.prompts.attention import parse_attention
from extensions_lib.prompts.chunks import (
    Break,
    Chunk,
    Piece,
    Placed,
    chunk_tokens,
    token_count,
    token_limit,
    token_pieces,
)

START, END, COMMA = 49406, 49407, 267


def inside(chunk: Chunk) -> list[int]:
    """The tokens before the padding (no test below uses the end token as a word)."""
    return chunk.tokens[1 : chunk.tokens.index(END)]


def words(count: int, first: int = 1000) -> list[int]:
    return list(range(first, first + count))


def test_an_empty_prompt_is_one_chunk() -> None:
    for pieces in ([], [([], 1.0)]):
        (chunk,) = chunk_tokens(pieces)
        assert chunk.tokens == [START] + [END] * 76
        assert chunk.multipliers == [1.0] * 77
        assert token_count([chunk]) == 0


def test_openclip_pads_with_zero_behind_one_end_token() -> None:
    (chunk,) = chunk_tokens([([5, 6], 1.5)], pad=0)
    assert chunk.tokens == [START, 5, 6, END] + [0] * 73
    assert chunk.multipliers == [1.0, 1.5, 1.5] + [1.0] * 74
    full, _ = chunk_tokens([(words(76), 1.0)], pad=0)
    assert full.tokens == [START, *words(75), END]


def test_weights_stay_with_their_tokens_over_chunks() -> None:
    first, second = chunk_tokens([(words(70), 1.1), (words(10, 2000), 0.5)])
    assert first.multipliers == [1.0] + [1.1] * 70 + [0.5] * 5 + [1.0]
    assert second.multipliers == [1.0] + [0.5] * 5 + [1.0] * 71
    assert inside(second) == words(5, 2005)


@pytest.mark.parametrize(("at", "moves"), [(54, False), (55, True), (74, True), (10, False)])
def test_text_behind_a_near_comma_moves(at: int, moves: bool) -> None:
    line = words(80)
    line[at] = COMMA
    first, second = chunk_tokens([(line, 1.0)])
    cut = at + 1 if moves else 75
    assert inside(first) == line[:cut]
    assert inside(second) == line[cut:]
    assert token_count([first, second]) == 75 + 80 - cut


@pytest.mark.parametrize(("backtrack", "cut"), [(0, 75), (5, 75), (6, 70), (75, 70)])
def test_how_near_a_comma_must_be(backtrack: int, cut: int) -> None:
    line = words(80)
    line[69] = COMMA
    first, _ = chunk_tokens([(line, 1.0)], backtrack=backtrack)
    assert inside(first) == line[:cut]


def test_a_comma_that_itself_overflows_moves_nothing() -> None:
    line = words(75)
    line[70] = COMMA
    first, second = chunk_tokens([([*line, COMMA, 7], 1.0)])
    assert inside(first) == line
    assert inside(second) == [COMMA, 7]


def test_without_a_comma_token_nothing_moves() -> None:
    line = [*words(60), COMMA, *words(19)]
    assert inside(chunk_tokens([(line, 1.0)], comma=None)[0]) == line[:75]


def test_break_ends_the_chunk() -> None:
    first, second = chunk_tokens([([5], 1.0), Break(), ([6], 1.0)])
    assert (inside(first), inside(second)) == ([5], [6])
    assert token_count([first, second]) == 76


def test_break_at_the_end_adds_no_chunk_and_counts_a_whole_one() -> None:
    chunks = chunk_tokens([([5], 1.0), Break()])
    assert (len(chunks), token_count(chunks)) == (1, 75)


def test_break_forgets_the_comma() -> None:
    first, second, third = chunk_tokens([([5, COMMA], 1.0), Break(), (words(80), 1.0)])
    assert [len(inside(chunk)) for chunk in (first, second, third)] == [2, 75, 5]


def test_a_full_chunk_is_not_followed_by_an_empty_one() -> None:
    chunks = chunk_tokens([(words(75), 1.0)])
    assert (len(chunks), token_count(chunks)) == (1, 75)


@pytest.mark.parametrize(("count", "limit"), [(0, 75), (1, 75), (75, 75), (76, 150), (151, 225)])
def test_token_limit(count: int, limit: int) -> None:
    assert token_limit(count) == limit


def test_pieces_from_attention() -> None:
    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text if letter != " "] for text in texts]

    pieces = token_pieces(parse_attention("a (b:1.5) BREAK c (BREAK)"), tokenize)
    assert pieces == [
        ([97], 1.0),
        ([98], 1.5),
        ([], 1.0),
        Break(),
        ([99], 1.0),
        ([], 1.1),
        ([66, 82, 69, 65, 75], -1.1),
        ([], 1.1),
    ]


def finder(*entries: tuple[int, int, int]):  # type: ignore[no-untyped-def]
    known = {token: Placed(f"e{token}", vectors, tokens) for token, vectors, tokens in entries}
    return lambda tokens, position: known.get(tokens[position])


def test_an_embedding_takes_the_place_of_its_tokens() -> None:
    (chunk,) = chunk_tokens([([5, 7, 8, 6], 1.2)], find_embedding=finder((7, 3, 2)))
    assert inside(chunk) == [5, 0, 0, 0, 6]
    assert chunk.multipliers[:7] == [1.0, 1.2, 1.2, 1.2, 1.2, 1.2, 1.0]
    assert chunk.fixes == [(1, "e7")]


def test_an_embedding_that_does_not_fit_moves_whole() -> None:
    first, second = chunk_tokens([([*words(73), 7, 6], 1.0)], find_embedding=finder((7, 3, 1)))
    assert (inside(first), first.fixes) == (words(73), [])
    assert (inside(second), second.fixes) == ([0, 0, 0, 6], [(0, "e7")])


def test_an_embedding_behind_a_comma_moves_with_its_tokens() -> None:
    line = [*words(60), COMMA, 5, 7, *words(20)]
    first, second = chunk_tokens([(line, 1.0)], find_embedding=finder((7, 2, 1)))
    assert (len(inside(first)), first.fixes) == (61, [])
    assert inside(second)[:3] == [5, 0, 0]
    assert second.fixes == [(1, "e7")]


@pytest.mark.parametrize(("vectors", "tokens"), [(76, 1), (0, 1), (1, 0)])
def test_an_impossible_embedding_is_refused(vectors: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="embedding 'e7'"):
        chunk_tokens([([7], 1.0)], find_embedding=finder((7, vectors, tokens)))


TOKENS = st.lists(st.sampled_from([COMMA, *range(1, 9)]), max_size=120)
PIECES = st.lists(st.tuples(TOKENS, st.sampled_from([1.0, 1.1, 0.5])) | st.just(Break()))


@settings(max_examples=80, deadline=None)
@given(PIECES, st.sampled_from([0, 5, 20, 74]), st.sampled_from([0, END]))
def test_nothing_is_lost_and_every_chunk_is_full_size(
    pieces: list[Piece], backtrack: int, pad: int
) -> None:
    chunks = chunk_tokens(pieces, backtrack=backtrack, pad=pad)
    expected = [
        (token, piece[1]) for piece in pieces if not isinstance(piece, Break) for token in piece[0]
    ]
    found = []
    for chunk in chunks:
        assert len(chunk.tokens) == len(chunk.multipliers) == 77
        assert chunk.tokens[0] == START
        size = len(inside(chunk))
        assert set(chunk.tokens[size + 2 :]) <= {pad}
        assert set(chunk.multipliers[size + 1 :]) == {1.0}
        found += zip(inside(chunk), chunk.multipliers[1:], strict=False)
    assert found == expected
    assert all(chunk.count == 75 for chunk in chunks[:-1])
    assert token_count(chunks) <= token_limit(token_count(chunks)) == 75 * len(chunks)
