"""Embeddings in a WebUI: its own handling goes on, with what it misses put into its databases.

AUTOMATIC1111 reads its folder again when the folder itself has changed, so it misses files in
subfolders and files that were replaced, and its reader refuses some that are in order. Forge reads
the folder when a checkpoint is loaded and never again. Before a batch is encoded, every embedding
that its prompts name is looked up in our index, and put into the WebUI's database where that has
none of the name, or another. Those that came inside networks leave it after the batch.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from extensions_lib.errors import NetworkProblem
from extensions_lib.prompts.attention import parse_attention
from extensions_lib.prompts.chunks import chunk_tokens, token_pieces
from extensions_lib.prompts.compose import split_and
from extensions_lib.prompts.schedule import schedule
from extensions_lib.prompts.tags import split_tags

if TYPE_CHECKING:
    from extensions_lib.files.embeddings import Embedding
    from extensions_lib.hosts.embeddings import Embeddings
    from extensions_lib.library import Entry, Library
    from extensions_lib.models.families import Structure
    from extensions_lib.models.loaded import LoadedModel

_ENGINES = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")
_TEXTS = ("prompts", "negative_prompts", "hr_prompts", "hr_negative_prompts")


@dataclass
class Prepared:
    """What became of the embeddings of a batch.

    `changed`: the WebUI's remembered encodings are out of date. `hashes` for "TI hashes", by name.
    """

    changed: bool = False
    messages: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)


class WebUIEmbeddings:
    """Keeps a WebUI's databases in step with the embedding folders and the networks in use."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._for: tuple[Structure, Embeddings] | None = None
        self._database: _Database | None = None  # whose tokenizer is asked, in `prepare` alone
        self._lent: list[tuple[_Database, str]] = []
        self._content: Hashable = ()
        self._known: list[Entry] = []  # as they were at the last look

    def prepare(
        self,
        p: Any,
        structure: Structure,
        bundled: Mapping[str, Embedding] | None = None,
    ) -> Prepared:
        """Before a batch is encoded: `p` is the WebUI's order, with the texts of the batch.

        `bundled`: the embeddings inside the networks in use. Never raises for a file that cannot
        be used: that is a message.
        """
        self.take_back()
        databases = databases_of(p.sd_model)
        if not databases:
            return Prepared()
        self._database = databases[0]
        try:
            return self._put(p, databases, self._embeddings(structure), bundled or {})
        finally:
            # The next batch may be of another checkpoint, and this one is not to be kept alive.
            self._database = None

    def _put(
        self,
        p: Any,
        databases: Sequence[_Database],
        embeddings: Embeddings,
        bundled: Mapping[str, Embedding],
    ) -> Prepared:
        embeddings.begin(bundled)
        if self._library.entries is not self._known:
            self._known = self._library.entries
            for database in databases:
                database.drop_gone()
        placed: dict[str, Embedding] = {}
        for text in _texts(p):
            for each in _named(text, embeddings):
                placed.setdefault(each.name, each)
        mine = {id(each) for each in bundled.values()}
        for database in databases:
            for name, each in placed.items():
                lent = id(each) in mine
                if database.put(name, each, self._whole_hash(each)) and lent:
                    self._lent.append((database, name))
        content = tuple(sorted((name, each.key) for name, each in placed.items()))
        changed, self._content = content != self._content, content
        messages = [*embeddings.messages, *map(_belongs_below, embeddings.partners())]
        hashes = {name: short for name, short in embeddings.used.items() if short}
        return Prepared(changed, messages, hashes)

    def take_back(self) -> None:
        """Removes what came inside networks from the WebUI's databases."""
        lent, self._lent = self._lent, []
        for database, name in lent:
            database.remove(name)

    def _embeddings(self, structure: Structure) -> Embeddings:
        from extensions_lib.hosts.embeddings import Embeddings

        def tokenise(texts: list[str], _: str) -> list[list[int]]:
            assert self._database is not None
            return [list(ids) for ids in self._database.tokenise(texts)]

        if self._for is None or self._for[0] != structure:
            self._for = structure, Embeddings(structure, self._library, tokenise)
        return self._for[1]

    def _whole_hash(self, embedding: Embedding) -> str:
        entry = next((e for e in self._library.entries if e.path == embedding.path), None)
        return "" if entry is None else entry.hash


def _belongs_below(name: str) -> str:
    return f"Embedding '{name}' belongs in the negative prompt, beside its other half."


def _texts(p: Any) -> list[str]:
    """Every text that the batch will encode, without tags, once each."""
    steps = max(1, int(getattr(p, "steps", 1) or 1))
    found: dict[str, None] = {}
    for name in _TEXTS:
        for prompt in getattr(p, name, None) or ():
            plain, _ = split_tags(prompt)
            for part, _ in split_and(plain):
                found.update((span.text, None) for span in schedule(part, steps))
    return list(found)


def _named(text: str, embeddings: Embeddings) -> list[Embedding]:
    tokens = partial(embeddings.tokens, kind="clip")
    pieces = token_pieces(parse_attention(text), tokens)
    chunks = chunk_tokens(pieces, find_embedding=embeddings.finder())
    found: list[Any] = [what for chunk in chunks for _, what in chunk.fixes]
    return found


# --- the databases ----------------------------------------------------------------------------


def databases_of(sd_model: Any) -> list[_Database]:
    """A WebUI's databases of embeddings: Forge has one for each text encoder."""
    engines: list[Any] = [getattr(sd_model, name, None) for name in _ENGINES]
    found = [
        _Database(engine.embeddings, engine.tokenize, ())
        for engine in engines
        if hasattr(engine, "embeddings")
    ]
    stage: Any = getattr(sd_model, "cond_stage_model", None)
    if found or not hasattr(stage, "tokenize"):
        return found
    from modules import sd_hijack

    return [_Database(sd_hijack.model_hijack.embedding_db, stage.tokenize, (sd_model,))]


class _Database:
    """One EmbeddingDatabase; `model` is what AUTOMATIC1111's functions take besides, if any."""

    def __init__(self, db: Any, tokenise: Any, model: Sequence[Any]) -> None:
        self._db, self.tokenise, self._model = db, tokenise, tuple(model)

    def put(self, name: str, embedding: Embedding, sha256: str) -> bool:
        """Registers an embedding unless the very same is there; whether there was a need."""
        there = self._db.word_embeddings.get(name)
        if there is not None and _same(there.vec, embedding):
            return False
        theirs = _theirs(name, embedding, sha256)
        self._db.register_embedding_by_name(theirs, *self._model, name)
        return True

    def drop_gone(self) -> None:
        """Removes what was read from files that are no more."""
        for name, each in list(self._db.word_embeddings.items()):
            file = getattr(each, "filename", None)
            if file and not os.path.exists(file):
                self.remove(name)

    def remove(self, name: str) -> None:
        self._db.register_embedding_by_name(None, *self._model, name)

    @contextmanager
    def lent(self, name: str, embedding: Embedding) -> Iterator[None]:
        """While it lasts, the name means this embedding, whose vectors gradients reach."""
        before = self._db.word_embeddings.get(name)
        theirs = _theirs(name, embedding, "")
        self._db.register_embedding_by_name(theirs, *self._model, name)
        try:
            yield
        finally:
            self._db.register_embedding_by_name(before, *self._model, name)


def _same(theirs: Any, embedding: Embedding) -> bool:
    import torch

    parts = theirs if isinstance(theirs, dict) else {"": theirs}
    return parts.keys() == embedding.parts.keys() and all(
        torch.equal(parts[part].detach().float().cpu(), tensor)
        for part, tensor in embedding.parts.items()
    )


def _theirs(name: str, embedding: Embedding, sha256: str) -> Any:
    """The embedding as an object of the WebUI's own class."""
    try:
        from backend.text_processing.textual_inversion import Embedding as Theirs

        device = None  # Forge moves the vectors when it uses them
    except ImportError:
        from modules import devices
        from modules.textual_inversion.textual_inversion import Embedding as Theirs

        device = devices.device
    parts = {part: tensor.to(device) for part, tensor in embedding.parts.items()}
    made = Theirs(parts.get("", parts), name, embedding.step)
    made.vectors, made.shape = embedding.vectors, sum(embedding.widths.values())
    made.sd_checkpoint, made.sd_checkpoint_name = embedding.checkpoint_hash, embedding.checkpoint
    made.filename = None if embedding.path is None else str(embedding.path)
    if sha256 and hasattr(made, "set_hash"):
        made.set_hash(sha256)
    return made


class _Session(Protocol):
    @property
    def embeddings(self) -> WebUIEmbeddings: ...

    def model(self, sd_model: Any) -> LoadedModel: ...


def prepare(session: _Session, p: Any, bundled: Mapping[str, Embedding]) -> Prepared:
    """`WebUIEmbeddings.prepare` for a session's model; nothing where it is none of ours."""
    if not databases_of(p.sd_model):
        return Prepared()
    try:
        structure = session.model(p.sd_model).structure
    except NetworkProblem:
        return Prepared()
    prepared = session.embeddings.prepare(p, structure, bundled)
    _note_hashes(p, prepared)
    return prepared


def _note_hashes(p: Any, prepared: Prepared) -> None:
    """Writes "TI hashes" into the picture's parameters where the WebUI does not (Forge)."""
    from extensions_lib.prompts.infotext import write_hashes

    if prepared.hashes and any(hasattr(p.sd_model, name) for name in _ENGINES):
        p.extra_generation_params["TI hashes"] = write_hashes(prepared.hashes)


def of_webui(cache: Path) -> WebUIEmbeddings:
    """For the WebUI that we run in; `cache`: where the index keeps what it learnt of files."""
    from modules import shared

    from extensions_lib.library import EMBEDDINGS, Library

    folder = getattr(shared.cmd_opts, "embeddings_dir", None)
    folders = [Path(folder).absolute()] if folder else []
    return WebUIEmbeddings(Library(folders, cache, EMBEDDINGS))
