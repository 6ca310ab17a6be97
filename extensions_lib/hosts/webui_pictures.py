"""Pictures of one batch whose prompts have tags of their own, in a WebUI.

A WebUI hands its handlers the tags of a batch's first prompt, and encodes all prompts of the batch
at once. Here each prompt's own tags are found, each is encoded with its own weights in the text
encoders, and before each call of the UNet it is said of which picture each sample is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from extensions_lib.prompts.infotext import write_hashes
from extensions_lib.prompts.tags import split_tags

if TYPE_CHECKING:
    from torch import nn

Items = list[str]
"""A tag as the WebUI has it: name and arguments."""
_ENCODE = "get_conds_with_caching"


def tags_of_each(p: Any, first: Sequence[Items], kinds: Sequence[str]) -> list[list[Items]] | None:
    """The tags of each picture of the batch at hand; None where they are not known.

    `p` is the WebUI's StableDiffusionProcessing, `first` what it says the first prompt asks for. A
    script may have changed prompts or tags in a way that leaves no trace in `p`: then that holds
    for all, as in the WebUI itself.
    """
    size, number = getattr(p, "batch_size", 1), getattr(p, "iteration", 0)
    for plain, whole in (("prompts", "all_prompts"), ("hr_prompts", "all_hr_prompts")):
        texts = list(getattr(p, whole, None) or [])[number * size : (number + 1) * size]
        split = [split_tags(text) for text in texts]
        if [text for text, _ in split] != list(getattr(p, plain, None) or []):
            continue
        each = [
            [tag.text[1:-1].split(":")[1:] for tag in tags if tag.kind in kinds]
            for _, tags in split
        ]
        if each and sorted(each[0]) == sorted(list(items) for items in first):
            return each
    return None


def encode_apart(p: Any, texts: Sequence[Hashable], encode_for: Callable[[int], None]) -> None:
    """Has each prompt of the batch encoded by itself, after `encode_for(its number)`.

    `texts` tells for each picture what the text encoders are then. Where they are the same for all,
    the WebUI's own way is left, or given back.
    """
    if isinstance(vars(p).get(_ENCODE), _Apart):
        del vars(p)[_ENCODE]
    if len(set(texts)) > 1:
        setattr(p, _ENCODE, _Apart(p, tuple(texts), encode_for))


class _Apart:
    """In place of the WebUI's `get_conds_with_caching`, with what that takes and gives."""

    def __init__(
        self, p: Any, texts: tuple[Hashable, ...], encode_for: Callable[[int], None]
    ) -> None:
        self._own, self._texts, self._encode_for = getattr(p, _ENCODE), texts, encode_for
        self._cached_params = p.cached_params

    def __call__(
        self,
        function: Callable[..., Any],
        required_prompts: Any,
        steps: int,
        caches: Sequence[list[Any]],
        extra_network_data: Any,
        hires_steps: int | None = None,
    ) -> Any:
        rest = (steps, extra_network_data, hires_steps)
        if len(required_prompts) != len(self._texts):
            return self._own(function, required_prompts, steps, caches, *rest[1:])
        key = (self._cached_params(required_prompts, *rest), self._texts, function.__name__)
        for cache in caches:
            if cache[0] == key:
                return cache[1]
        made = []
        for number, prompt in enumerate(required_prompts):
            self._encode_for(number)
            one = type(required_prompts)([prompt], copy_from=required_prompts)
            made.append(self._own(function, one, steps, [[None, None]], *rest[1:]))
        caches[0][:2] = key, _joined(made)
        return caches[0][1]


def _joined(made: Sequence[Any]) -> Any:
    """Encodings of single prompts as those of a batch: lists, or the WebUI's object of prompts that
    are made of several by AND."""
    if isinstance(made[0], list):
        return [each for one in made for each in one]
    return type(made[0])(shape=(len(made),), batch=[each for one in made for each in one.batch])


class Samples:
    """Says before each call of `unet` of which picture each of its samples is, until `remove`.

    A WebUI asks about all samples at once or about some after others, always in the order in which
    it has stacked them. Unless `expect` says otherwise, that is all pictures, as often as needed.
    """

    def __init__(
        self, unet: nn.Module, pictures: int, tell: Callable[[Sequence[int]], None]
    ) -> None:
        self.pictures, self._tell = pictures, tell
        self._stack = list(range(pictures))
        self._asked = 0
        self._handle = unet.register_forward_pre_hook(self._before, with_kwargs=True)

    def expect(self, stack: Sequence[int] | None) -> None:
        """At the start of a step: the picture of each sample that it stacks, if that is known."""
        self._asked, self._stack = 0, list(stack or range(self.pictures))

    def remove(self) -> None:
        self._handle.remove()

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        count = len(args[0] if args else kwargs["x"])
        start, total = self._asked % len(self._stack), len(self._stack)
        if start + count > total and start:  # somebody asks more than the sampler does
            start = 0
        times = -(-(start + count) // total)
        self._tell((self._stack * times)[start : start + count])
        self._asked = start + count


def stack_of(params: Any, pictures: int) -> list[int] | None:
    """The picture of each sample of a step of AUTOMATIC1111's sampling; None in Forge.

    `params` are those of its `cfg_denoiser` callback. It stacks each picture's parts (those between
    AND), and behind them all pictures once for the negative prompt; models that edit pictures have
    these twice.
    """
    samples = len(params.x)
    if samples == pictures:
        return None
    extra = getattr(getattr(params.denoiser, "sampler", None), "sampler_extra_args", None) or {}
    parts = [len(each) for each in getattr(extra.get("cond"), "batch", [])]
    if len(parts) != pictures or samples < sum(parts) or (samples - sum(parts)) % pictures:
        return None
    stack = [picture for picture, count in enumerate(parts) for _ in range(count)]
    return stack + list(range(pictures)) * ((samples - len(stack)) // pictures)


class Hashes:
    """The "Lora hashes" of pictures that have different ones; the WebUI calls it for each."""

    def __init__(self) -> None:
        self.of: dict[int, dict[str, str]] = {}  # by the picture's number in the order

    def __call__(
        self, p: Any, index: int, all_prompts: Sequence[str], use_main_prompt: bool, **_: Any
    ) -> str | None:
        # It counts in the batch where it was given the batch's prompts.
        whole = len(all_prompts) == len(p.all_prompts)
        number = index if whole else p.iteration * p.batch_size + index
        return write_hashes(self.of.get(0 if use_main_prompt else number, {})) or None
