"""Latents and encoded prompts that are computed once: in memory, or on disk for other runs too.

An entry is found by all that it follows from: the picture's content, its place in its bucket, the
filter, whether a mirrored one is held, and the VAE's weights; or the prompt and the text encoders.
So an entry that is out of date is never found. On disk each is a safetensors file with a checksum,
written whole or not at all; one that is broken is made again.

Of latents the mean and the deviation are held, not one sample: each step draws its own, as it
would without the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from extensions_lib.atomic import atomic_write
from extensions_lib.datasets.items import Picture
from extensions_lib.errors import FileProblem
from extensions_lib.files.safe import read_file, serialised, tensor_bytes
from extensions_lib.models.loaded import LoadedModel

FOLDER = ".crucible"
_FORMAT = "1"
Tensors = Mapping[str, Tensor]


class Cache(Protocol):
    """Tensors by key. `label` is what a file is named after."""

    def get(self, key: str, label: str) -> Tensors | None:
        """What is kept under the key, None where there is nothing, or nothing sound."""

    def put(self, key: str, label: str, tensors: Tensors) -> None:
        """Keeps it. Raises FileProblem where it cannot be written."""


class InMemory:
    """A cache that lasts as long as the run."""

    def __init__(self) -> None:
        self._held: dict[str, Tensors] = {}

    def get(self, key: str, label: str) -> Tensors | None:
        """As `Cache.get`."""
        return self._held.get(key)

    def put(self, key: str, label: str, tensors: Tensors) -> None:
        """As `Cache.put`."""
        self._held[key] = {name: tensor.contiguous() for name, tensor in tensors.items()}


class OnDisk:
    """A cache of a file for each entry: `NAME-KEY.safetensors`, in the folder of its label.

    A label is the path of what the entry is of. `root`: one folder for all; None: `.crucible`
    beside that path. `notes` gathers what was found broken. The files may be deleted at any time.
    """

    def __init__(self, root: Path | None, kind: str) -> None:
        self._root, self._kind = root, kind
        self.notes: list[str] = []

    def path(self, key: str, label: str) -> Path:
        """The file of an entry."""
        return self._folder(label) / f"{_short(Path(label).name)}-{key}.safetensors"

    def _folder(self, label: str) -> Path:
        folder = Path(label).resolve().parent
        if self._root is None:
            return folder / FOLDER / self._kind
        # folders of one name, and pictures of one name in them, do not meet
        return self._root / self._kind / f"{folder.name}-{_hash(str(folder))[:8]}"

    def get(self, key: str, label: str) -> Tensors | None:
        """As `Cache.get`."""
        path = self.path(key, label)
        if not path.is_file():
            return None
        try:
            tensors, about = read_file(path)
            sound = about.get("checksum") == _checksum(tensors)
        except FileProblem as problem:
            self.notes.append(f"{problem} It is made again.")
            return None
        if not sound or about.get("key") != key or about.get("format") != _FORMAT:
            self.notes.append(f"{path}: is damaged; it is made again.")
            return None
        return tensors

    def put(self, key: str, label: str, tensors: Tensors) -> None:
        """As `Cache.put`; the file is whole or not there, also if the program is killed."""
        kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
        about = {"format": _FORMAT, "key": key, "checksum": _checksum(kept)}
        path = self.path(key, label)
        try:
            # not durable: what a power failure takes is noticed and made again
            with atomic_write(path, durable=False) as temporary, open(temporary, "wb") as file:
                for chunk in serialised(kept, about, str(path)):
                    file.write(chunk)
        except FileProblem as problem:
            raise FileProblem(
                f"{problem}. Name another folder as cache_dir, or keep no caches on disk."
            ) from problem

    def clear_changed(self, pictures: Sequence[Picture]) -> int:
        """Removes the entries of these pictures from when their files were others; how many."""
        by_folder: dict[Path, dict[str, str]] = {}
        for picture in pictures:
            label = str(picture.path)
            names = by_folder.setdefault(self._folder(label), {})
            names[_short(picture.path.name)] = picture.content
        count = 0
        for folder, names in by_folder.items():
            for path in folder.glob("*-*-*.safetensors"):
                name, content, _ = path.stem.rsplit("-", 2)
                if name in names and not names[name].startswith(content):
                    path.unlink(missing_ok=True)
                    count += 1
        return count


def _checksum(tensors: Tensors) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _short(name: str) -> str:
    """The name, as far as file systems take it."""
    return name if len(name) <= 100 else f"{name[:80]}~{_hash(name)[:8]}"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# --- keys -------------------------------------------------------------------------------------


def latent_key(picture: Picture, vae: str) -> str:
    """Under which a picture's latents are kept: its content's hash and that of all the rest."""
    options, placed = picture.options, picture.where
    mask = picture.guide_content if options.masked_loss else ""
    rest = [
        *(placed.resized, placed.box, options.resize_interpolation, options.flip_aug),
        *(mask, options.alpha_mask, vae),
    ]
    return f"{picture.content[:16]}-{_hash(json.dumps(rest))}"


def text_key(prompt: str, clip_skip: int, chunks: int, encoders: str) -> str:
    """Under which a prompt's states are kept."""
    return _hash(json.dumps([prompt, clip_skip, chunks, encoders]))


def vae_identity(model: LoadedModel) -> str:
    """What the latents of a model follow from: the VAE's weights, as they are, and its scale."""
    return _weights([model.vae], [model.vae_scale])


def text_identity(model: LoadedModel, also: str = "") -> str:
    """What the states of a model follow from: the text encoders' weights, as they are now.

    `also`: what a host knows besides, such as its settings and the embeddings that are loaded.
    """
    return _weights(model.text_encoders, [model.structure.family.name, also])


def _weights(modules: Sequence[nn.Module], also: Sequence[object]) -> str:
    digest = hashlib.blake2b(repr(list(also)).encode(), digest_size=16)
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
