"""The CLIP interrogator: a caption, and words from lists that CLIP finds in the picture.

    interrogator = load_interrogator("clip-vit-l-14", models)
    interrogator.caption([picture])  ->  ["a cat on a table, an oil painting by …, soft lighting"]

Text and picture are compared by the cosine of their CLIP features. The modes:

    fast      the caption, then the words of all lists that are nearest to the picture
    classic   the caption, then the nearest medium, artist and movement, and a few flavors
    best      words are added one by one, each time the one that brings the whole text nearest to
              the picture; the nearest of this text, "fast" and "classic"
    negative  words are added one by one that lead the text away from the picture
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.options import option
from extensions_lib.tagging import hub, pretrained
from extensions_lib.tagging.captioners import (
    Captioner,
    CaptionOptions,
    load_captioner,
    steady,
)
from extensions_lib.tagging.devices import DEVICES_HELP, DTYPES, give_back, stoppable
from extensions_lib.tagging.model_folders import KnownModel, find, local_folders
from extensions_lib.tagging.text_features import Counted, TextFeatures
from extensions_lib.tagging.word_lists import NEGATIVE, WordList, read_lists

if TYPE_CHECKING:
    import torch
    from PIL import Image

FOLDER = "interrogator"  # under models/: one folder for each CLIP, and words/ for lists
MODES = ("fast", "best", "classic", "negative")

KNOWN = (
    KnownModel("clip-vit-l-14", "openai/clip-vit-large-patch14", 1.71),  # SD1's text encoder
    KnownModel("clip-vit-h-14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 3.94),  # SD2's
)

Stop = Callable[[], bool]


@dataclass(frozen=True)
class InterrogateOptions:
    """How the interrogator describes a picture."""

    mode: str = option("fast", "fast, best (slow), classic, or negative", choices=MODES)
    captioner: str = option("blip-base", "what writes the sentence at the start; empty: none")
    count: int = option(16, "most words that are added", low=1, high=100)
    candidates: int = option(
        256, "words that best and negative try in each step; more take longer", low=8, high=8192
    )
    words: str = option("", "folder with lists of words; empty: models/interrogator/words")
    batch: int = option(64, "texts at once; fewer take less memory", low=1, high=1024)
    device: str = option("auto", DEVICES_HELP)
    dtype: str = option(
        "auto", "type of number: float16 on CUDA and float32 elsewhere, or one", choices=DTYPES
    )


def entries(models: Path) -> list[KnownModel]:
    """The CLIP models there are to choose from: known ones, then local folders by their names."""
    return [*KNOWN, *local_folders(models / FOLDER, KNOWN)]


class Interrogator:
    """A loaded CLIP with its lists of words; has what a Captioner has.

    `revision` tells results apart: it is of the models' weights, the lists and the mode.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        options: InterrogateOptions,
        lists: dict[str, WordList],
        *,
        captioner: Captioner | None = None,
        cache: Path | None = None,
    ) -> None:
        """Loads the CLIP of a folder. Raises FileProblem and OptionProblem."""
        kind = pretrained.read_json(folder / pretrained.CONFIG).get("model_type")
        if kind != "clip":
            raise FileProblem(f"{folder}: its config names the kind of model {kind!r}, not 'clip'.")
        self.name, self.options = name, options
        self._turn = threading.RLock()
        weights = pretrained.revision_of(folder)
        self.revision = _revision(weights, lists, options, captioner)
        self._captioner = captioner
        self._lists = lists
        self._model, self._place = pretrained.load_model(
            folder, "CLIPModel", options.device, options.dtype
        )
        self._tokenizer = pretrained.load_tokenizer(folder)
        self._pixels = pretrained.load_image_processor(folder)
        self._limit = int(self._model.config.text_config.max_position_embeddings)
        kept = None if cache is None else cache / "interrogator"
        self._cache = TextFeatures(self.text_features, weights, kept, options.batch)
        self._features: dict[str, torch.Tensor] = {}

    @property
    def device(self) -> str:
        return str(self._place.device)

    @property
    def why_not_gpu(self) -> str | None:
        return self._place.why_not_gpu

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [texts, width] in float32 on the CPU; a text too long for CLIP is cut."""
        import torch

        rows = []
        for at in range(0, len(texts), self.options.batch):
            part = list(texts[at : at + self.options.batch])
            words = self._tokenizer(
                part, padding=True, truncation=True, max_length=self._limit, return_tensors="pt"
            ).to(self._place.device)
            with torch.inference_mode():
                found = self._loaded().get_text_features(
                    input_ids=words["input_ids"], attention_mask=words["attention_mask"]
                )
            rows.append(found.float().cpu())
        return torch.nn.functional.normalize(torch.cat(rows), dim=-1)

    def picture_features(self, image: Image.Image) -> torch.Tensor:
        """Unit vector [width] of one picture, in float32 on the CPU."""
        import torch

        values = self._pixels(images=[steady(image)], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            found = self._loaded().get_image_features(
                pixel_values=values.to(self._place.device, self._place.dtype)
            )
        return torch.nn.functional.normalize(found[0].float().cpu(), dim=-1)

    def _loaded(self) -> Any:
        if self._model is None:
            raise CrucibleError(f"{self.name}: is unloaded; load it again.")
        return self._model

    def prepare(self, *, stop: Stop | None = None, on_progress: Counted | None = None) -> None:
        """Computes the features of the lists that are not kept yet; `on_progress` counts words."""
        with self._turn, stoppable(self._loaded(), stop):
            self._prepare(stop, on_progress)

    def _prepare(self, stop: Stop | None, on_progress: Counted | None) -> None:
        wanted = [each for each in self._lists.values() if each.words]
        total = sum(len(each.words) for each in wanted)
        done = 0
        for each in wanted:
            if each.name not in self._features:
                counted = _after(done, total, on_progress)
                self._features[each.name] = self._cache.of(
                    each.name, each.words, stop=stop, on_progress=counted
                ).float()
            done += len(each.words)
            if on_progress is not None:
                on_progress(done, total)

    def ranked(self, image: Image.Image, count: int = 10) -> dict[str, list[tuple[str, float]]]:
        """For each list its nearest words with their cosine, nearest first."""
        with self._turn:
            self.prepare()
            return self._ranked(self.picture_features(image), count)

    def _ranked(
        self, picture: torch.Tensor, count: int, *, away: bool = False
    ) -> dict[str, list[tuple[str, float]]]:
        found = {}
        for name, features in self._features.items():
            near = features @ picture
            best = near.topk(min(count, len(near)), largest=not away)
            words = self._lists[name].words
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            found[name] = [(words[index], value) for index, value in pairs]
        return found

    def caption(self, images: Sequence[Image.Image], *, stop: Stop | None = None) -> list[str]:
        """One text for each picture, in the mode of the options. Raises Stopped.

        Threads take turns.
        """
        with self._turn:
            return self._all(images, stop)

    def _all(self, images: Sequence[Image.Image], stop: Stop | None) -> list[str]:
        self.prepare(stop=stop)
        said = [""] * len(images)
        if self._captioner is not None and self.options.mode != "negative":
            said = self._captioner.caption(images, stop=stop)
        return [self._text(image, start, stop) for image, start in zip(images, said, strict=True)]

    def _text(self, image: Image.Image, start: str, stop: Stop | None) -> str:
        picture, mode = self.picture_features(image), self.options.mode
        if mode == "fast":
            return self._fast(picture, start)
        if mode == "classic":
            return self._classic(picture, start)
        if mode == "negative":
            tried = _merged(self._ranked(picture, self.options.candidates, away=True), away=True)
            listed = self._lists.get(NEGATIVE, WordList(NEGATIVE, ()))
            words = [*listed.words, *tried[: self.options.candidates]]
            return self._grown("", words, picture, away=True)
        tried = _merged(self._ranked(picture, self.options.candidates))
        grown = self._grown(start, tried[: self.options.candidates], picture)
        texts = [grown, self._fast(picture, start), self._classic(picture, start)]
        return texts[int((self.text_features(texts) @ picture).argmax())]

    def _fast(self, picture: torch.Tensor, start: str) -> str:
        words = _merged(self._ranked(picture, self.options.count))[: self.options.count]
        return ", ".join([start, *words] if start else words)

    def _classic(self, picture: torch.Tensor, start: str) -> str:
        top = {name: self._lists[name].top for name in self._features if name != NEGATIVE}
        near = self._ranked(picture, max(top.values(), default=1))
        words = {name: [word for word, _ in near[name][:count]] for name, count in top.items()}
        medium, artist = words.pop("mediums", []), words.pop("artists", [])
        flavors = words.pop("flavors", [])
        others = [word for several in words.values() for word in several]
        parts = [start, " ".join([*medium, *artist]), *others, *flavors]
        return ", ".join(part for part in parts if part)

    def _grown(
        self,
        text: str,
        words: Sequence[str],
        picture: torch.Tensor,
        *,
        away: bool = False,
    ) -> str:
        """Adds the word that brings the text nearest to the picture, or farthest, as long as one
        does, up to the options' count and to what CLIP reads of a text."""
        sign = -1.0 if away else 1.0
        reached = sign * float((self.text_features([text]) @ picture)[0]) if text else -2.0
        has = f" {' '.join(text.replace(',', ' ').split())} "
        left = [word for word in words if f" {word} " not in has]
        for _ in range(self.options.count):
            longer = [f"{text}, {word}" if text else word for word in left]
            if not longer or self._length(text) >= self._limit:
                break
            near = sign * (self.text_features(longer) @ picture)
            best = int(near.argmax())
            if float(near[best]) <= reached:
                break
            reached, text = float(near[best]), longer[best]
            del left[best]
        return text

    def _length(self, text: str) -> int:
        """Tokens of a text, as far as CLIP reads."""
        return len(self._tokenizer(text, truncation=True, max_length=self._limit)["input_ids"])

    def close(self) -> None:
        """Frees its memory, and its captioner's; caption() refuses afterwards."""
        with self._turn:
            self._model = None
            self._features.clear()
            if self._captioner is not None:
                self._captioner.close()
            give_back(self._place.device)


def load_interrogator(
    name: str,
    models: Path,
    options: InterrogateOptions | None = None,
    captioning: CaptionOptions | None = None,
    *,
    cache: Path | None = None,
    download: bool = False,
    endpoint: str | None = None,
    on_progress: hub.OnProgress | None = None,
) -> Interrogator:
    """The interrogator with this CLIP: a known one, or a folder under models/interrogator/.

    `captioning` is for the captioner that writes the start; `cache` keeps the features of words.
    Looks for models, and raises, as load_captioner.
    """
    options = options or InterrogateOptions()
    root = models / FOLDER
    folder = find(name, root, KNOWN, download=download, endpoint=endpoint, on_progress=on_progress)
    if options.words and not Path(options.words).is_dir():
        raise FileProblem(f"words: there is no folder {options.words}.")
    lists = read_lists(Path(options.words) if options.words else root / "words")
    writer = None
    if options.captioner and options.mode != "negative":
        writer = load_captioner(
            options.captioner,
            models,
            captioning,
            download=download,
            endpoint=endpoint,
            on_progress=on_progress,
        )
    try:
        return Interrogator(name, folder, options, lists, captioner=writer, cache=cache)
    except BaseException:
        if writer is not None:
            writer.close()
        raise


def _merged(ranked: dict[str, list[tuple[str, float]]], *, away: bool = False) -> list[str]:
    """The words of all lists but the negative one, nearest first (farthest with `away`)."""
    pairs = [pair for name, near in ranked.items() if name != NEGATIVE for pair in near]
    pairs.sort(key=lambda pair: pair[1], reverse=not away)
    return list(dict.fromkeys(word for word, _ in pairs))


def _after(done: int, total: int, told: Counted | None) -> Counted | None:
    return None if told is None else lambda now, _: told(done + now, total)


def _revision(
    weights: str,
    lists: dict[str, WordList],
    options: InterrogateOptions,
    captioner: Captioner | None,
) -> str:
    written = captioner.revision if captioner is not None else ""
    words = sorted((each.name, each.top, each.words) for each in lists.values())
    settings = (options.mode, options.count, options.candidates)
    told = repr((weights, written, words, settings))
    return hashlib.sha256(told.encode()).hexdigest()[:16]
