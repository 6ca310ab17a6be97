"""Captioners: BLIP, BLIP-2, GIT and their like, through transformers. One picture, one sentence.

    captioner = load_captioner("blip-base", models)
    captioner.caption([picture])  ->  ["a cat on a table"]

A picture's caption does not depend on the pictures beside it: no row is padded, and where captions
are sampled, each picture draws its own chances.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import option
from extensions_lib.tagging import hub, pretrained
from extensions_lib.tagging.caption_ways import Begun, kind_of
from extensions_lib.tagging.chat import Chat
from extensions_lib.tagging.devices import DEVICES_HELP, DTYPES, give_back, stoppable
from extensions_lib.tagging.model_folders import KnownModel, find, local_folders

if TYPE_CHECKING:
    import torch
    from PIL import Image

log = logging.getLogger(__name__)

FOLDER = "captioners"  # under models/: one folder for each

KNOWN = (
    KnownModel("blip-base", "Salesforce/blip-image-captioning-base", 0.99),
    KnownModel("blip-large", "Salesforce/blip-image-captioning-large", 1.88),
    KnownModel("blip2-opt-2.7b", "Salesforce/blip2-opt-2.7b", 15.0),
    KnownModel("blip2-flan-t5-xl", "Salesforce/blip2-flan-t5-xl", 15.8),
    KnownModel("git-base", "microsoft/git-base", 0.71),
    KnownModel("git-base-coco", "microsoft/git-base-coco", 0.71),
    KnownModel("git-base-textcaps", "microsoft/git-base-textcaps", 0.71),
    KnownModel("git-large", "microsoft/git-large", 1.58),
    KnownModel("git-large-coco", "microsoft/git-large-coco", 1.58),
    KnownModel("git-large-textcaps", "microsoft/git-large-textcaps", 1.58),
    KnownModel("vit-gpt2", "nlpconnect/vit-gpt2-image-captioning", 0.98),
)


@dataclass(frozen=True)
class CaptionOptions:
    """How a captioner writes."""

    prompt: str = option(
        "", "what the caption goes on from; for BLIP-2 and chat models also a question"
    )
    keep_prompt: bool = option(False, "leave the prompt at the start of the caption")
    max_length: int = option(48, "longest caption", unit="tokens", low=1, high=1024)
    min_length: int = option(5, "shortest caption", unit="tokens", low=0, high=512)
    beams: int = option(
        3, "sentences searched side by side; more are slower, and likelier", low=1, high=16
    )
    repetition_penalty: float = option(
        1.0, "above 1: words that were said are said again less", low=1, high=5, step=0.05
    )
    top_p: float | None = option(
        None,
        "draw each word among the likeliest that have this share together, without beams;"
        " none: always the likeliest sentence",
        low=0.01,
        high=1,
        step=0.01,
    )
    seed: int = option(0, "of the draws; with the picture it decides the caption", low=0)
    batch: int = option(8, "pictures at once; fewer take less memory", low=1, high=256)
    device: str = option("auto", DEVICES_HELP)
    dtype: str = option(
        "auto", "type of number: float16 on CUDA and float32 elsewhere, or one", choices=DTYPES
    )


def entries(models: Path) -> list[KnownModel]:
    """The captioners there are to choose from: known ones, then local folders by their names.

    `models` is the host's folder models/. A folder counts when its config.json names a kind of
    model; whether transformers can read that kind is told when it is loaded.
    """
    return [*KNOWN, *local_folders(models / FOLDER, KNOWN)]


class Captioner:
    """A loaded captioner. `revision` tells what decides its captions: weights and options.

    `device` is where it runs; `why_not_gpu` why that is not the GPU although there is one.
    """

    def __init__(self, name: str, folder: Path, options: CaptionOptions) -> None:
        """Loads the model of a folder. Raises FileProblem and OptionProblem."""
        self.name, self.options = name, options
        self._turn = threading.Lock()
        model_type = str(pretrained.read_json(folder / pretrained.CONFIG).get("model_type"))
        kind = kind_of(model_type)
        if kind is None:
            raise _stranger(folder, model_type)
        self.revision = _revision(folder, options)
        self._model, self._place = pretrained.load_model(
            folder, kind.class_name, options.device, options.dtype
        )
        self._way = kind.way
        self._chat = None if kind.way else Chat(folder, options.prompt)
        self._tokenizer = self._chat.tokenizer if self._chat else pretrained.load_tokenizer(folder)
        self._pixels = None if self._chat else pretrained.load_image_processor(folder)

    @property
    def device(self) -> str:
        return str(self._place.device)

    @property
    def why_not_gpu(self) -> str | None:
        return self._place.why_not_gpu

    def caption(
        self, images: Sequence[Image.Image], *, stop: Callable[[], bool] | None = None
    ) -> list[str]:
        """One caption for each picture, in one line each.

        `stop` is asked many times for each word. Raises Stopped when it says so, CrucibleError
        when even one picture does not fit into the device's memory. Threads take turns.
        """
        with self._turn:
            return self._all(images, stop)

    def _all(self, images: Sequence[Image.Image], stop: Callable[[], bool] | None) -> list[str]:
        if self._model is None:
            raise CrucibleError(f"{self.name}: is unloaded; load it again.")
        said: list[str] = []
        at, size = 0, 1 if self._chat else self.options.batch
        while at < len(images):
            part = [steady(image) for image in images[at : at + size]]
            try:
                said += self._some(part, stop)
            except _memory_errors() as error:
                give_back(self._place.device)
                if size == 1:
                    raise CrucibleError(
                        f"{self.name}: the memory of {self.device} is too small for one picture;"
                        " unload other models, take fewer beams, or the option device=cpu."
                    ) from error
                size = max(1, len(part) // 2)
                log.warning("%s: out of memory, going on with %d at once", self.name, size)
                continue
            at += len(part)
        return said

    def _some(self, images: list[Image.Image], stop: Callable[[], bool] | None) -> list[str]:
        import torch

        with torch.inference_mode(), stoppable(self._model, stop):
            begun = self._begin(images)
            ids = begun.generate(**begun.inputs, **self._arguments(images))
        return [self._told(row, begun.prompt) for row in ids]

    def _told(self, ids: torch.Tensor, prompt: int) -> str:
        """The caption of a row of tokens, of which the first `prompt` are given."""
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        # Read with the prompt, for the answer may go on within its last word.
        lead = self._tokenizer.decode(ids[:prompt], skip_special_tokens=True)
        if self.options.keep_prompt and self.options.prompt:
            text = self.options.prompt + (text[len(lead) :] if prompt else f" {text}")
        else:
            text = text[len(lead) :]
        return " ".join(text.split())

    def _begin(self, images: list[Image.Image]) -> Begun:
        if self._chat is not None:
            return self._chat.begin(self._model, images[0], self._place)
        assert self._pixels is not None and self._way is not None
        values = self._pixels(images=images, return_tensors="pt")["pixel_values"]
        words = self._tokenizer(self.options.prompt, add_special_tokens=False)["input_ids"]
        # An empty prompt comes back as floats from some tokenizers.
        words = [int(word) for word in words]
        return self._way(self._model, values.to(self._place.device, self._place.dtype), words)

    def _arguments(self, images: list[Image.Image]) -> dict[str, Any]:
        """What generate() is told besides the inputs."""
        from transformers import LogitsProcessorList, TopPLogitsWarper

        options = self.options
        steps: list[Any] = []
        if options.top_p is not None:
            seeds = [_seed(image, options.seed) for image in images]
            steps = [TopPLogitsWarper(options.top_p), _Draw(seeds)]
        return {
            "max_new_tokens": options.max_length,
            "min_new_tokens": min(options.min_length, options.max_length),
            "num_beams": 1 if options.top_p is not None else options.beams,
            "repetition_penalty": options.repetition_penalty,
            "do_sample": False,  # _Draw has the chances
            "logits_processor": LogitsProcessorList(steps),
        }

    def close(self) -> None:
        """Frees its memory; caption() refuses afterwards."""
        with self._turn:
            self._model = None
            give_back(self._place.device)


def _revision(folder: Path, options: CaptionOptions) -> str:
    told = {**dataclasses.asdict(options), "batch": 0, "device": ""}
    digest = hashlib.sha256(repr((pretrained.revision_of(folder), told)).encode())
    return digest.hexdigest()[:16]


def load_captioner(
    name: str,
    models: Path,
    options: CaptionOptions | None = None,
    *,
    download: bool = False,
    endpoint: str | None = None,
    on_progress: hub.OnProgress | None = None,
) -> Captioner:
    """The captioner of this name: a known one, or a folder under models/captioners/.

    Looks there first, then in the hub's cache, then, with `download`, gets it from the hub or the
    mirror `endpoint`. Raises FileProblem, which says where to put which files, and DownloadProblem.
    """
    folder = find(
        name,
        models / FOLDER,
        KNOWN,
        download=download,
        endpoint=endpoint,
        on_progress=on_progress,
    )
    return Captioner(name, folder, options or CaptionOptions())


def _stranger(folder: Path, model_type: str) -> FileProblem:
    import transformers

    return FileProblem(
        f"{folder}: its config names the kind of model {model_type!r}, which is no captioner that"
        f" transformers {transformers.__version__} reads; take a BLIP, BLIP-2, GIT or other"
        " image-to-text model."
    )


_LEAST, _LONGEST = 8, 8  # pixels of a side; long side / short side


def steady(image: Image.Image) -> Image.Image:
    """RGB that every image processor reads as a picture of sane size.

    They take a side of 1 or 3 pixels for colours, and scale the short side up to hundreds, which
    makes gigabytes of a picture one pixel high. So tiny sides are enlarged and of a very long
    picture the middle is taken.
    """
    image = image.convert("RGB")
    short, long = min(image.size), max(image.size)
    if long > _LONGEST * max(short, _LEAST):
        width, height = (min(side, _LONGEST * max(short, _LEAST)) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    if short < _LEAST:
        image = image.resize((max(image.width, _LEAST), max(image.height, _LEAST)))
    return image


def _memory_errors() -> tuple[type[BaseException], ...]:
    import torch

    return (torch.cuda.OutOfMemoryError,)


def _seed(image: Image.Image, seed: int) -> int:
    digest = hashlib.sha256(f"{seed} {image.size} ".encode() + image.tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class _Draw:
    """Draws each row's next word by that row's own generator.

    The largest of log p + Gumbel noise is a draw from p (Gumbel 1954; Maddison et al. 2014), so
    taking the likeliest afterwards is sampling, without torch's one generator for everything.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        import torch

        self._chances = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        width = scores.shape[-1]
        even = torch.stack([torch.rand(width, generator=each) for each in self._chances])
        noise = -torch.log(-torch.log(even.clamp(1e-20, 1 - 1e-7)))
        return scores.float() + noise.to(scores.device)
