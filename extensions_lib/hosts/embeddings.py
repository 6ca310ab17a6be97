"""The embeddings that a prompt names: found by the tokens of their names, longest first.

A name is matched as AUTOMATIC1111's WebUI does: tokenised by itself, it must occur as an unbroken
row of token numbers in a piece of the prompt between emphasis marks. Its vectors then stand where
those tokens stood, and count as so many tokens in the chunks of 75.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extensions_lib.errors import FileProblem
from extensions_lib.files.embeddings import Embedding, Key, embedding_of, misfit, read_embedding
from extensions_lib.prompts.chunks import LENGTH, Finder, Placed

if TYPE_CHECKING:
    from extensions_lib.files.networks import Network
    from extensions_lib.library import Entry, Library
    from extensions_lib.models.families import Structure

PARTNERS = ("-neg", "-uc")
"""What DreamArtist and APT put after the name of the half that belongs in the negative prompt."""
_KEPT = 64  # embeddings in memory
_SHORT = 12  # digits of a hash in infotext

Tokenise = Callable[[list[str], str], list[list[int]]]  # texts, "clip" or "openclip"


@dataclass(frozen=True)
class _Candidate:
    """A name that a prompt may hold: from a file, or from inside a network in use."""

    name: str
    tokens: tuple[int, ...]
    entry: Entry | None = None
    bundled: Embedding | None = None


def bundled_of(networks: Iterable[Network]) -> tuple[dict[str, Embedding], list[str]]:
    """The embeddings inside networks by name, the first of each; what is wrong with others."""
    found: dict[str, Embedding] = {}
    messages = []
    for network in networks:
        for name, tensors in network.embeddings.items():
            try:
                found.setdefault(name, embedding_of(name, tensors, network.key))
            except FileProblem as problem:
                messages.append(f"{network.name}: {problem}")
    return found, messages


class Embeddings:
    """The embeddings in the folders and in the networks in use, for text encoders of one structure.

    `used` has what was placed since the last `begin`: the name, and the hash for infotext ("" for
    one from inside a network). `messages` are sentences about what is named but cannot be used.
    """

    def __init__(self, structure: Structure, library: Library, tokenise: Tokenise) -> None:
        self._widths = [text.width for text in structure.texts]
        self._library = library
        self._tokenise = tokenise
        self._bundled: dict[str, Embedding] = {}
        self._tokens: dict[tuple[str, str], tuple[int, ...]] = {}
        self._tables: dict[str, dict[int, list[_Candidate]]] = {}
        self._known: list[Entry] = []
        self._read: OrderedDict[Key, Embedding] = OrderedDict()
        self.used: dict[str, str] = {}
        self.messages: list[str] = []

    def begin(self, bundled: Mapping[str, Embedding] | None = None) -> None:
        """Before a prompt is encoded: notices new files, takes what the networks in use bring."""
        self._library.refresh()
        self.used, self.messages = {}, []
        bundled = dict(bundled or {})
        same = {name: each.key for name, each in bundled.items()} == {
            name: each.key for name, each in self._bundled.items()
        }
        if self._library.entries is not self._known or not same:
            self._known, self._bundled, self._tables = self._library.entries, bundled, {}

    def finder(self, kind: str = "clip") -> Finder:
        """What `prompts.chunks.chunk_tokens` asks at each token, for a tokenizer of this kind.

        `Placed.what` is the Embedding.
        """
        table = self._table(kind)

        def find(tokens: Sequence[int], position: int) -> Placed | None:
            here = [
                each
                for each in table.get(tokens[position], ())
                if tuple(tokens[position : position + len(each.tokens)]) == each.tokens
            ]
            return self._first_that_fits(here) if here else None

        return find

    def tokens(self, texts: list[str], kind: str = "clip") -> list[list[int]]:
        """Token numbers without start and end, by the host's own tokenizer."""
        return self._tokenise(texts, kind)

    def partners(self) -> list[str]:
        """Names for the negative prompt that belong to those used, and are not used themselves."""
        found = []
        for name in self.used:
            for ending in PARTNERS:
                entry = self._library.find(name + ending)
                if entry is not None and entry.name not in self.used and self._fits(entry):
                    found.append(entry.name)
        return found

    # --- matching -----------------------------------------------------------------------------

    def _table(self, kind: str) -> dict[int, list[_Candidate]]:
        """Candidates by their first token, the longest first."""
        if kind not in self._tables:
            table: dict[int, list[_Candidate]] = {}
            for each in self._candidates(kind):
                table.setdefault(each.tokens[0], []).append(each)
            for same in table.values():
                same.sort(key=lambda each: -len(each.tokens))
            self._tables[kind] = table
        return self._tables[kind]

    def _candidates(self, kind: str) -> Iterable[_Candidate]:
        # a picture goes by the name that it states, as in the WebUI
        named: list[tuple[str, Entry | None, Embedding | None]] = [
            (entry.alias or entry.name, entry, None) for entry in self._known
        ]
        # after the files: as in the WebUI, what the person has put into the folder comes first
        named += [(name, None, each) for name, each in self._bundled.items()]
        new = [name for name, _, _ in named if (name, kind) not in self._tokens]
        if new:
            for name, tokens in zip(new, self._tokenise(new, kind), strict=True):
                self._tokens[name, kind] = tuple(tokens)
        for name, entry, bundled in named:
            if self._tokens[name, kind]:
                yield _Candidate(name, self._tokens[name, kind], entry, bundled)

    def _first_that_fits(self, here: Sequence[_Candidate]) -> Placed | None:
        """The longest that can be used. What keeps a longer name from being used is said."""
        wrong: dict[tuple[int, ...], str] = {}
        for each in here:
            problem = self._problem(each)
            if problem is None:
                embedding = each.bundled or self._load(each)
                if embedding is not None:
                    if each.entry and any(e.bundled for e in here if e.tokens == each.tokens):
                        self._say([f"Embedding '{each.name}': the file is used, not the network's"])
                    self._say(text for tokens, text in wrong.items() if tokens != each.tokens)
                    self.used.setdefault(each.name, self._hash(each))
                    return Placed(embedding, embedding.vectors, len(each.tokens))
            else:
                wrong.setdefault(each.tokens, f"Embedding '{each.name}': {problem}. It is not used")
        self._say(wrong.values())
        return None

    def _say(self, texts: Iterable[str]) -> None:
        for text in texts:
            if f"{text}." not in self.messages:
                self.messages.append(f"{text}.")

    def _problem(self, each: _Candidate) -> str | None:
        widths: Mapping[str, int]
        if each.bundled is not None:
            widths, vectors = each.bundled.widths, each.bundled.vectors
        else:
            assert each.entry is not None
            if each.entry.problem:
                return each.entry.problem.rstrip(".")
            widths, vectors = each.entry.widths, each.entry.vectors
        if vectors > LENGTH:
            return f"has {vectors} vectors; a chunk of a prompt has room for {LENGTH}"
        return misfit(widths, self._widths)

    def _fits(self, entry: Entry) -> bool:
        return self._problem(_Candidate(entry.name, (), entry)) is None

    def _load(self, each: _Candidate) -> Embedding | None:
        """The embedding of a file, from memory as long as the file is the same."""
        from extensions_lib.files.networks import network_key

        assert each.entry is not None
        try:
            key = network_key(each.entry.path)
            if key not in self._read:
                self._read[key] = read_embedding(each.entry.path, each.name)
        except FileProblem as problem:
            self._say([f"Embedding '{each.name}': {str(problem).rstrip('.')}. It is not used"])
            return None
        self._read.move_to_end(key)
        while len(self._read) > _KEPT:
            self._read.popitem(last=False)
        embedding = self._read[key]
        # the file may have been replaced since the index looked
        return None if misfit(embedding.widths, self._widths) else embedding

    def _hash(self, each: _Candidate) -> str:
        try:
            return "" if each.entry is None else each.entry.hash[:_SHORT]
        except FileProblem:  # removed meanwhile; its vectors are in memory
            return ""
