"""An order of a WebUI, its StableDiffusionProcessing: what it asks for, and what is noted in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from extensions_lib.hosts.webui_pictures import Hashes, Items, tags_of_each

if TYPE_CHECKING:
    from extensions_lib.hosts.networks import Sampling

log = logging.getLogger("crucible")
NAMES = ("lora", "lyco")
"""The kinds of tag that networks have."""
_FOLLOWS = "crucible_follows_a_refiner"
_CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")


def tell(p: Any, message: str) -> None:
    """On the console and at the order's pictures, once."""
    log.warning(message)
    if message not in getattr(p, "comments", {}):
        p.comment(message)


def tags_in(p: Any, params_list: Sequence[Any], options: Any) -> list[list[Items]]:
    """The tags of each picture of the batch; one entry where they are the same for all."""
    first = [list(params.items) for params in params_list]
    each = tags_of_each(p, first, NAMES) or [first]
    added = getattr(options, "sd_lora", "None")
    weight = getattr(options, "extra_networks_default_multiplier", 1.0)
    more = with_default(p, list(params_list), NAMES[0], added, weight)[len(first) :]
    for tags in each:
        tags += [list(m.items) for m in more if all(t[0] != m.items[0] for t in tags)]
    return each if any(sorted(tags) != sorted(each[0]) for tags in each) else each[:1]


def sampling_of(p: Any, pictures: int, *, hires: bool) -> Sampling | None:
    """What the WebUI is about to sample, as far as it has been said."""
    from extensions_lib.hosts.networks import Sampling

    steps = getattr(p, "steps", None)
    width, height = getattr(p, "width", 0), getattr(p, "height", 0)
    if hires:
        steps = getattr(p, "hr_second_pass_steps", 0) or steps
        width = getattr(p, "hr_upscale_to_x", 0) or width
        height = getattr(p, "hr_upscale_to_y", 0) or height
    if not steps or not width or not height:
        return None
    count = max(pictures, getattr(p, "batch_size", 1))
    return Sampling(int(steps), 2 * count, max(1, width * height // 64))


def with_default(p: Any, params_list: list[Any], kind: str, added: Any, weight: Any) -> list[Any]:
    """The tags, and the one of this kind that the settings add to every prompt."""
    if added in (None, "", "None") or any(params.items[0] == added for params in params_list):
        return params_list
    from modules import extra_networks

    p.all_prompts = [f"{prompt}<{kind}:{added}:{weight}>" for prompt in p.all_prompts]
    return [*params_list, extra_networks.ExtraNetworkParams(items=[added, weight])]


def before_encoding(p: Any, act: Callable[[], object]) -> None:
    """Has `act` called each time before the order's prompts are encoded; a refiner's are anew."""
    if getattr(p, _FOLLOWS, False):
        return
    encode: Callable[[], Any] = p.setup_conds

    def follow() -> Any:
        act()
        return encode()

    p.setup_conds = follow
    setattr(p, _FOLLOWS, True)


def at_the_end(p: Any, name: str, act: Callable[[], object]) -> None:
    """Has `act` called when an order is closed, once for each name.

    One that fails or is stopped is closed too, but its `deactivate` is never called.
    """
    mark = f"crucible_clears_{name}"
    if getattr(p, mark, False):
        return
    close: Callable[[], Any] = p.close

    def clean_up() -> Any:
        act()
        return close()

    p.close = clean_up
    setattr(p, mark, True)


def forget_conditions(p: Any) -> None:
    """The WebUI remembers encoded prompts by their words, which miss a network file's change."""
    for name in _CACHES:
        cache = getattr(p, name, None)
        if cache is not None:
            cache[0] = None


def note_hashes(p: Any, pictures: Sequence[Mapping[str, str]]) -> None:
    """Puts the hashes of each picture's networks into its infotext."""
    from extensions_lib.prompts.infotext import write_hashes

    # The second pass of a hires fix adds its own to those of the first.
    again = getattr(p, "is_hr_pass", False) and hasattr(p, "crucible_hashes")
    kept: Hashes = p.crucible_hashes if hasattr(p, "crucible_hashes") else Hashes()
    p.crucible_hashes = kept
    size = max(len(pictures), getattr(p, "batch_size", 1))
    first = getattr(p, "iteration", 0) * getattr(p, "batch_size", 1)
    for place in range(size):
        own = pictures[place] if len(pictures) > 1 else pictures[0]
        kept.of[first + place] = {**(kept.of.get(first + place, {}) if again else {}), **own}
    batch = [kept.of[first + place] for place in range(size)]
    p.lora_hashes = {name: short for each in batch for name, short in each.items()}
    if any(each != batch[0] for each in batch):
        p.extra_generation_params["Lora hashes"] = kept
    elif batch[0]:
        p.extra_generation_params["Lora hashes"] = write_hashes(batch[0])
    else:
        p.extra_generation_params.pop("Lora hashes", None)
