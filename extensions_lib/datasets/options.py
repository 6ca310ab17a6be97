"""The options of a training set: which pictures, at which sizes, with which prompts.

Names are those of kohya's sd-scripts where it has the option. Two defaults differ from its own:
buckets are used and latents are cached unless switched off (`SD_SCRIPTS_DEFAULTS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extensions_lib.datasets.buckets import Size
from extensions_lib.options import OptionProblem, option

# What sd-scripts takes for options that are not named, where that differs from here.
SD_SCRIPTS_DEFAULTS: Mapping[str, Any] = {
    "enable_bucket": False,
    "cache_latents": False,
    "caption_extension": ".caption",
    "resize_interpolation": "area",
}


@dataclass(frozen=True)
class BucketOptions:
    """The options of the sizes at which pictures are trained."""

    resolution: str = option(
        "512", "size, or width,height: its area is that of all buckets", group="Buckets"
    )
    enable_bucket: bool = option(
        True, "sizes of several shapes; else all are cropped to one", group="Buckets"
    )
    min_bucket_reso: int = option(
        256, "shortest side of a bucket", group="Buckets", unit="pixels", low=8
    )
    max_bucket_reso: int = option(
        1024, "longest side of a bucket", group="Buckets", unit="pixels", low=8
    )
    bucket_reso_steps: int = option(
        64, "what the sides are multiples of; 8 divides it", group="Buckets", unit="pixels", low=8
    )
    bucket_no_upscale: bool = option(
        False, "small pictures keep their size, in buckets of their own", group="Buckets"
    )
    resize_interpolation: str = option(
        "lanczos",
        "how pictures are resized",
        group="Buckets",
        choices=("lanczos", "bicubic", "cubic", "bilinear", "linear", "area", "nearest"),
    )


@dataclass(frozen=True)
class CaptionOptions:
    """The options of how a caption becomes the prompt."""

    caption_extension: str = option(
        ".txt", "of caption files; .txt and .caption are found too", group="Captions"
    )
    caption_prefix: str = option("", "put before each caption, with a space", group="Captions")
    caption_suffix: str = option("", "put after each caption, with a space", group="Captions")
    shuffle_caption: bool = option(False, "tags in another order each time", group="Captions")
    keep_tokens: int = option(
        0, "first tags that are neither moved nor left out", group="Captions", low=0
    )
    keep_tokens_separator: str = option(
        "", "text that ends those tags instead, such as |||; a second begins the last ones",
        group="Captions",
    )  # fmt: skip
    caption_separator: str = option(",", "what stands between tags", group="Captions")
    secondary_separator: str = option(
        "", "what stands between tags that stay together, such as ;;;", group="Captions"
    )
    enable_wildcard: bool = option(
        False, "{a|b} is one of them, and of several lines one, each time", group="Captions"
    )
    caption_dropout_rate: float = option(
        0.0, "share of prompts that are empty", group="Captions", low=0, high=1
    )
    caption_dropout_every_n_epochs: int = option(
        0, "in each n-th epoch all prompts are empty; 0: in none", group="Captions", low=0
    )
    caption_tag_dropout_rate: float = option(
        0.0, "share of tags left out", group="Captions", low=0, high=1
    )
    token_warmup_min: int = option(1, "tags at the start of the warm-up", group="Captions", low=0)
    token_warmup_step: float = option(
        0.0, "steps over which tags are added, one after another; below 1 a share of all steps",
        group="Captions", low=0,
    )  # fmt: skip


@dataclass(frozen=True)
class AugmentOptions:
    """The options of how a picture is changed each time."""

    flip_aug: bool = option(
        False, "left and right exchanged half of the times", group="Augmentation"
    )
    color_aug: bool = option(False, "slightly other colours at times", group="Augmentation")
    random_crop: bool = option(False, "cropped anywhere, not at the centre", group="Augmentation")
    face_crop_aug_range: tuple[float, ...] = option(
        (), "sides of the crop by the face's, least and most, such as 2.0,4.0; the face's place is"
        " in the file's name: name_x_y_width_height", group="Augmentation", low=0.1,
    )  # fmt: skip


@dataclass(frozen=True)
class CacheOptions:
    """The options of what is encoded once, before the first step."""

    cache_latents: bool = option(True, "encode pictures once, into memory", group="Caches")
    cache_latents_to_disk: bool = option(False, "and keep that on disk", group="Caches")
    vae_batch_size: int = option(1, "pictures encoded at a time", group="Caches", low=1)
    cache_text_encoder_outputs: bool = option(
        False, "encode prompts once; the text encoders are not trained then", group="Caches"
    )
    cache_text_encoder_outputs_to_disk: bool = option(
        False, "and keep that on disk", group="Caches"
    )
    cache_dir: str | None = option(
        None, "folder of caches on disk; none: .crucible beside the pictures", group="Caches"
    )


@dataclass(frozen=True)
class DataOptions(BucketOptions, CaptionOptions, AugmentOptions, CacheOptions):
    """All options of a training set."""

    train_data_dir: str | None = option(
        None, "folder of pictures, or of folders such as `10_sls 1girl`", group="Pictures"
    )
    reg_data_dir: str | None = option(
        None, "regularisation pictures, in folders such as `1_1girl`", group="Pictures"
    )
    dataset_config: str | None = option(
        None, "data sets as a TOML file of sd-scripts, instead", group="Pictures"
    )
    num_repeats: int = option(
        1, "times each picture comes in an epoch, where its folder does not say", low=1,
        group="Pictures",
    )  # fmt: skip
    train_batch_size: int = option(1, "pictures learnt from at a time", group="Pictures", low=1)
    leave_out_broken: bool = option(
        False, "train without pictures that cannot be read, instead of not at all",
        group="Pictures",
    )  # fmt: skip
    masked_loss: bool = option(
        False, "learn where the mask is white; masks in conditioning_data_dir", group="Masks"
    )
    conditioning_data_dir: str | None = option(
        None, "folder of pictures of the same names: masks, or what LLLite is given", group="Masks"
    )
    alpha_mask: bool = option(False, "learn where pictures are opaque", group="Masks")
    validation_split: float = option(
        0.0, "share of pictures held out, to measure on", group="Validation", low=0, high=0.9
    )
    validation_seed: int | None = option(
        None, "which are held out; none: as the run's seed says", group="Validation", low=0
    )
    validation_data_dir: str | None = option(
        None, "folder of pictures to measure on, instead", group="Validation"
    )

    @property
    def caches_latents(self) -> bool:
        """Whether pictures are encoded once."""
        return self.cache_latents or self.cache_latents_to_disk

    @property
    def caches_text(self) -> bool:
        """Whether prompts are encoded once."""
        return self.cache_text_encoder_outputs or self.cache_text_encoder_outputs_to_disk


def resolution_of(options: BucketOptions) -> Size:
    """Width and height that `resolution` names. Raises OptionProblem."""
    parts = [part.strip() for part in str(options.resolution).split(",")]
    if len(parts) in (1, 2) and all(part.isdecimal() and int(part) >= 8 for part in parts):
        return int(parts[0]), int(parts[-1])
    raise OptionProblem(
        f"resolution: takes a size or width,height in pixels, such as 512 or 768,512,"
        f" not {options.resolution!r}."
    )


def contradictions(options: DataOptions) -> list[str]:
    """What cannot be done with these options, a sentence each; empty where all can."""
    said = _sizes_that_do_not_fit(options)
    if options.caches_text and (causes := varying(options)):
        said.append(
            f"cache_text_encoder_outputs: prompts differ each time with {_and(causes)}, so they"
            " cannot be encoded once; switch one off."
        )
    crops = [name for name in ("color_aug", "random_crop") if getattr(options, name)]
    crops += ["face_crop_aug_range"] * bool(options.face_crop_aug_range)
    if options.caches_latents and crops:
        said.append(
            f"cache_latents: pictures differ each time with {_and(crops)}, so they cannot be"
            " encoded once; switch one off."
        )
    if options.face_crop_aug_range and options.enable_bucket:
        said.append("face_crop_aug_range: crops to one size; switch enable_bucket off.")
    if len(options.face_crop_aug_range) not in (0, 2):
        said.append("face_crop_aug_range: takes two numbers, such as 2.0,4.0.")
    if options.masked_loss and not (options.conditioning_data_dir or options.alpha_mask):
        said.append(
            "masked_loss: there are no masks; name conditioning_data_dir, or use alpha_mask."
        )
    if options.caption_dropout_rate == 1 or options.caption_dropout_every_n_epochs == 1:
        said.append("caption dropout: all prompts would be empty; lower it.")
    if options.validation_split and options.validation_data_dir:
        said.append("validation_split and validation_data_dir: name one of the two.")
    return said


def _sizes_that_do_not_fit(options: DataOptions) -> list[str]:
    said = []
    width, height = resolution_of(options)
    if not options.enable_bucket:
        if width % 8 or height % 8:
            said.append(f"resolution: {width},{height} must be multiples of 8 without buckets.")
        return said
    step = options.bucket_reso_steps
    if step % 8:
        said.append(f"bucket_reso_steps: {step} is no multiple of 8.")
    if not options.bucket_no_upscale:
        least, most = bucket_ends(options)
        if least > min(width, height):
            said.append(
                f"min_bucket_reso: {least} is more than the resolution, {min(width, height)};"
                " lower it."
            )
        if most < max(width, height):
            said.append(
                f"max_bucket_reso: {most} is less than the resolution, {max(width, height)};"
                " raise it."
            )
    elif step * step > width * height:
        said.append(f"bucket_reso_steps: {step} is more than the resolution; lower it.")
    return said


def bucket_ends(options: BucketOptions) -> tuple[int, int]:
    """The shortest and the longest side of a bucket, as multiples of the step: down and up."""
    step = options.bucket_reso_steps
    least = max(step, options.min_bucket_reso // step * step)
    return least, -(-options.max_bucket_reso // step) * step


def varying(options: CaptionOptions) -> list[str]:
    """The options that make a prompt another one each time; dropout of the whole is not one."""
    names = ("shuffle_caption", "caption_tag_dropout_rate", "enable_wildcard", "token_warmup_step")
    return [name for name in names if getattr(options, name)]


def without_effect(options: DataOptions) -> list[str]:
    """What of these options changes nothing, a sentence each."""
    said = []
    if options.keep_tokens and not set(varying(options)) - {"enable_wildcard"}:
        said.append("keep_tokens: changes nothing, since tags are neither moved nor left out.")
    if options.keep_tokens and options.keep_tokens_separator:
        said.append("keep_tokens: changes nothing where a caption has keep_tokens_separator.")
    if options.enable_bucket and options.bucket_no_upscale:
        said.append(
            "min_bucket_reso and max_bucket_reso: change nothing with bucket_no_upscale, where"
            " sizes follow from the pictures."
        )
    return said


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
