"""Taggers: from prepared pictures to a score for every tag, whatever the model's contract."""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extensions_lib.errors import FileProblem
from extensions_lib.tagging import hub, pixels, providers
from extensions_lib.tagging.labels import Label, read_labels
from extensions_lib.tagging.manifest import Contract, Entry, contract_of, find_entry

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_NEAR = 1e-3  # how far rounding may put a probability outside of 0..1
_SAMPLES = 16  # places of a file that tell its revision
_SAMPLE_BYTES = 64 << 10


class Tagger(ABC):
    """A loaded tagger. Safe to use from several threads; `score` runs one batch at a time.

    `labels` are in the order of the scores. `size` is the side of a prepared picture in pixels,
    `batch` the number of pictures that the file takes at once (None: any; `score` takes any number
    in either case). `provider` is what runs it: CPU, CUDA, …; `why_not_gpu` says with a command why
    an NVIDIA GPU that is there does not. `thresholds` are the model's own, by category. Scores are
    kept under (`name`, `revision`, `preprocess`).
    """

    name: str
    title: str
    revision: str
    labels: tuple[Label, ...]
    thresholds: Mapping[str, float]
    size: int
    batch: int | None
    provider: str
    why_not_gpu: str | None
    contract: Contract

    def prepare(self, image: Image) -> Array:
        """The RGB picture as uint8 [size, size, 3]."""
        return pixels.prepare(image, self.contract, self.size)

    @property
    def preprocess(self) -> str:
        """Tells one way of preparing pictures from another."""
        told = f"{pixels.VERSION} {self.size} {sorted(asdict(self.contract).items())}"
        return hashlib.sha256(told.encode()).hexdigest()[:8]

    @property
    def draft_side(self) -> int | None:
        """The `least` for `open_picture` at which a draft changes scores little; None: no draft."""
        return None if self.contract.fit == "squash" else 2 * self.size

    @abstractmethod
    def score(self, batch: Array) -> Array:
        """Scores float32 [N, labels], 0..1, of prepared pictures uint8 [N, size, size, 3].

        A picture's scores do not depend on the others of the batch. Raises FileProblem for a model
        whose outputs are not what its contract says.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees the model; it cannot be used any more."""


@dataclass
class _Shape:
    """What the file says of its input: layout, side, batch size (None: any) and dtype."""

    layout: str
    size: int
    batch: int | None
    kind: Any


class OnnxTagger(Tagger):
    """A tagger from an ONNX file."""

    def __init__(
        self, entry: Entry, files: hub.Files, *, device: str = "auto", threads: int | None = None
    ) -> None:
        """Raises FileProblem for files that cannot be read or do not belong together."""
        self.name, self.title = entry.name, entry.title
        self.thresholds = entry.thresholds
        self.file, self._lists = files.model, files.tags
        self.labels = read_labels(files.tags, entry.categories)
        self.revision = revision_of(files.model, files.tags)
        opened = providers.open_session(files.model, device=device, threads=threads)
        self._session: Any = opened.session
        self.provider, self.why_not_gpu = opened.provider, opened.why_not_gpu
        self._shape = _input_shape(opened.session, entry.contract, files.model)
        self.size, self.batch = self._shape.size, self._shape.batch
        self.contract = _settled(entry.contract, self._shape.layout)
        self._input = opened.session.get_inputs()[0].name
        self._output = self._find_output()
        self._lock = threading.Lock()
        if self.contract.logits is None:
            self.contract = replace(self.contract, logits=self._gives_logits())

    def score(self, batch: Array) -> Array:
        if batch.dtype != np.uint8 or batch.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"score: takes uint8 [N, {self.size}, {self.size}, 3]")
        if not len(batch):
            return np.zeros((0, len(self.labels)), np.float32)
        step = self.batch or len(batch)
        parts = []
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            # The file takes no fewer; what is added is thrown away.
            added = np.repeat(part[-1:], step - len(part), 0)
            parts.append(self._run(np.concatenate([part, added]))[: len(part)])
        raw = np.concatenate(parts)
        self._check(raw)
        return sigmoid(raw) if self.contract.logits else np.clip(raw, 0, 1)

    def close(self) -> None:
        with self._lock:
            self._session = None

    def _run(self, batch: Array) -> Array:
        made = pixels.to_input(batch, self.contract, self._shape.layout, self._shape.kind)
        with self._lock:
            if self._session is None:
                raise FileProblem(f"{self.name}: was unloaded; load it again.")
            try:
                [raw] = self._session.run([self._output], {self._input: made})
            except Exception as error:  # onnxruntime has kinds of its own
                if providers.is_out_of_memory(error):
                    raise
                raise self._refused(made, error) from error
        raw = np.asarray(raw, np.float32).reshape(len(batch), -1)
        if raw.shape[1] != len(self.labels):
            raise self._misfit(raw.shape[1])
        return raw

    def _refused(self, made: Array, error: Exception) -> FileProblem:
        said = str(error).strip().splitlines()[0]
        return FileProblem(
            f"{self.file}: cannot be run on pictures of {list(made.shape)} ({said[-200:]}); if the"
            ' file leaves its size or layout open, name "size" and "layout" in'
            f" {self.file.parent / 'crucible-tagger.json'}."
        )

    def _find_output(self) -> str:
        """The output's name. Raises FileProblem where no output can have a score for each tag."""
        outputs = self._session.get_outputs()
        wanted = self.contract.output
        names = [output.name for output in outputs]
        if isinstance(wanted, str):
            chosen = [output for output in outputs if output.name == wanted]
        elif wanted is not None:
            chosen = outputs[wanted : wanted + 1]
        else:
            chosen = [each for each in outputs if _width(each) in (len(self.labels), None)]
            chosen = chosen or outputs[:1]
        if not chosen:
            raise FileProblem(f"{self.file}: has no output {wanted!r}, only {', '.join(names)}.")
        width = _width(chosen[0])
        if width not in (len(self.labels), None):
            raise self._misfit(width)
        name: str = chosen[0].name
        return name

    def _misfit(self, width: int | None) -> FileProblem:
        return FileProblem(
            f"{self._lists}: lists {len(self.labels)} tags, and {self.file.name} gives {width}"
            " scores; put the list there that belongs to the model."
        )

    def _gives_logits(self) -> bool:
        """Whether scores of a white and of a many-coloured picture leave 0..1."""
        noise = np.random.default_rng(0).integers(0, 256, (self.size, self.size, 3), np.uint8)
        probe = np.stack([np.full_like(noise, 255), noise])
        step = self.batch or 2
        raw = np.concatenate([self._run(np.repeat(one[None], step, 0))[:1] for one in probe])
        return bool(raw.min() < -_NEAR or raw.max() > 1 + _NEAR)

    def _check(self, raw: Array) -> None:
        """Raises FileProblem for scores that are not what the contract says."""
        low, high = float(raw.min()), float(raw.max())
        if not np.isfinite(low + high):
            raise FileProblem(
                f"{self.file}: gives scores that are no numbers on {self.provider}; take another"
                " device, or get the file again."
            )
        inside = low >= -_NEAR and high <= 1 + _NEAR
        if not self.contract.logits and not inside:
            raise FileProblem(
                f"{self.file}: gives {low:.3g} to {high:.3g}, which are no probabilities; set"
                f' "logits": true in {self.file.parent / "crucible-tagger.json"}.'
            )
        # Of many true logits most are far below zero.
        if self.contract.logits and inside and raw.shape[1] >= 16:
            raise FileProblem(
                f"{self.file}: gives {low:.3g} to {high:.3g}, which are no logits; set"
                f' "logits": false in {self.file.parent / "crucible-tagger.json"}.'
            )


def load_tagger(
    name: str,
    models: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    download: bool = False,
    endpoint: str | None = None,
    on_progress: Callable[[hub.Progress], None] | None = None,
) -> Tagger:
    """The tagger of this name, alias or folder, ready to use.

    Its files are looked for under `models`, then in the hub's cache, then downloaded, if `download`
    is set, from `endpoint` (None: the hub, or HF_ENDPOINT). `device` is auto, gpu or cpu. Raises
    FileProblem (hub.NotHere where the files are not on this machine) and other CrucibleErrors.
    """
    entry = find_entry(name, models)
    files = hub.locate(entry, models, download=download, endpoint=endpoint, on_progress=on_progress)
    if entry.kind == "torch":
        from extensions_lib.tagging.deepdanbooru import TorchTagger

        return TorchTagger(entry, files, device=device)
    return OnnxTagger(entry, files, device=device, threads=threads)


def sigmoid(values: Array) -> Array:
    """1 / (1 + e^−x) in float32, without overflow."""
    falling = np.exp(-np.abs(values))
    made: Array = np.where(values >= 0, 1 / (1 + falling), falling / (1 + falling))
    return made.astype(np.float32)


def revision_of(*paths: Path) -> str:
    """16 hex digits of what is in the files: of their sizes and of places all over them.

    The same for the same files wherever they lie; takes no time for gigabytes.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with open(path, "rb") as stream:
            for i in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _settled(contract: Contract, layout: str) -> Contract:
    """The contract where it left the layout to the file: WD's, or WD's as timm exports it."""
    if contract.layout is not None:
        return contract
    if layout == "NHWC":
        return replace(contract, layout=layout)
    return replace(contract_of("timm"), logits=contract.logits, output=contract.output)


def _input_shape(session: Any, contract: Contract, file: Path) -> _Shape:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs)
        raise FileProblem(f"{file}: takes {len(inputs)} inputs ({names}); a tagger takes one.")
    shape, kind = inputs[0].shape, _TYPES.get(inputs[0].type)
    if len(shape) != 4 or kind is None:
        raise FileProblem(f"{file}: takes {inputs[0].type} {shape}, which is no picture.")
    layout = contract.layout or ("NCHW" if shape[1] == 3 else "NHWC")
    channels, sides = (shape[1], shape[2:]) if layout == "NCHW" else (shape[3], shape[1:3])
    fixed = {side for side in sides if isinstance(side, int)}
    if (isinstance(channels, int) and channels != 3) or len(fixed) > 1:
        raise FileProblem(
            f"{file}: takes {shape}, which is no square of three channels as {layout}; name the"
            f' right "layout" in {file.parent / "crucible-tagger.json"}.'
        )
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
    return _Shape(layout, fixed.pop() if fixed else contract.size, batch, kind)


def _width(output: Any) -> int | None:
    """How many scores an output has for a picture, if the file says so."""
    if not output.shape or len(output.shape) < 2:
        return None
    width = 1
    for side in output.shape[1:]:
        if not isinstance(side, int):
            return None
        width *= side
    return width
