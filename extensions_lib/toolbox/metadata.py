"""What a network's metadata say of its training, as a page that can be read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from extensions_lib.errors import FileProblem

TAGS_SHOWN = 20
MOST = 2**53  # no count of pictures; a number of a thousand digits would not even print

# Heading -> what stands under it: key of the metadata, and what it is called. Kohya's `ss_` keys
# are what every trainer writes; modelspec.* is https://github.com/Stability-AI/ModelSpec.
_SECTIONS: Mapping[str, Mapping[str, str]] = {
    "About": {
        "modelspec.title": "Title", "modelspec.author": "Author",
        "modelspec.description": "Description", "modelspec.trigger_phrase": "Trigger words",
        "modelspec.license": "Licence", "modelspec.usage_hint": "Use",
        "modelspec.architecture": "Architecture", "ss_output_name": "Saved as",
        "ss_training_comment": "Comment",
    },
    "Network": {
        "ss_network_module": "Module", "ss_network_dim": "Rank", "ss_network_alpha": "Alpha",
        "ss_network_dropout": "Dropout", "ss_network_args": "Arguments",
        "ss_scale_weight_norms": "Norms held to",
    },
    "Base": {
        "ss_sd_model_name": "Checkpoint", "ss_sd_model_hash": "Its hash",
        "ss_new_sd_model_hash": "Its sha256", "ss_vae_name": "VAE",
        "ss_base_model_version": "Version", "ss_v2": "SD2", "ss_clip_skip": "Clip skip",
    },
    "Training": {
        "ss_training_started_at": "Started", "ss_training_finished_at": "Ended",
        "ss_steps": "Steps", "ss_max_train_steps": "of", "ss_epoch": "Epoch",
        "ss_num_epochs": "of epochs", "ss_learning_rate": "Learning rate", "ss_unet_lr": "UNet",
        "ss_text_encoder_lr": "Text encoder", "ss_optimizer": "Optimizer",
        "ss_lr_scheduler": "Schedule", "ss_lr_warmup_steps": "Warm-up steps",
        "ss_batch_size_per_device": "Batch", "ss_total_batch_size": "Batch in all",
        "ss_gradient_accumulation_steps": "Accumulated", "ss_mixed_precision": "Precision",
        "ss_seed": "Seed", "ss_min_snr_gamma": "Min-SNR gamma", "ss_noise_offset": "Noise offset",
        "ss_loss_type": "Loss", "ss_prior_loss_weight": "Prior loss",
    },
    "Pictures": {
        "ss_num_train_images": "Pictures, repeats counted",
        "ss_num_reg_images": "Regularisation pictures", "ss_resolution": "Resolution",
        "ss_enable_bucket": "Buckets", "ss_min_bucket_reso": "Smallest side",
        "ss_max_bucket_reso": "Largest side", "ss_flip_aug": "Mirrored",
        "ss_color_aug": "Colours changed", "ss_random_crop": "Cropped at random",
        "ss_shuffle_caption": "Captions shuffled", "ss_keep_tokens": "Tags kept first",
        "ss_caption_dropout_rate": "Captions dropped",
        "ss_caption_tag_dropout_rate": "Tags dropped", "ss_cache_latents": "Latents kept",
    },
}  # fmt: skip
_TIMES = ("ss_training_started_at", "ss_training_finished_at")
_NOTHING = ("", "None", "null", "{}")


@dataclass
class Page:
    """Headings with labels and what to say there; and lists with counts."""

    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    tags: list[tuple[str, int]] = field(default_factory=list)  # tag -> pictures
    buckets: list[tuple[str, int]] = field(default_factory=list)  # "512 × 768" -> pictures
    folders: list[tuple[str, int, int]] = field(default_factory=list)  # name, repeats, pictures
    problems: list[str] = field(default_factory=list)

    def lines(self, most: int | None = TAGS_SHOWN) -> list[str]:
        """As lines of text."""
        told = []
        for title, rows in self.sections.items():
            told += [f"{title}:", *(f"  {label}: {text}" for label, text in rows)]
        for title, counts in (("Buckets", self.buckets), ("Most frequent tags", self.tags)):
            if counts:
                shown = counts if most is None else counts[:most]
                more = f" (and {len(counts) - len(shown)} more)" if len(shown) < len(counts) else ""
                told.append(f"{title}{more}:")
                told.append("  " + ", ".join(f"{name} {count}" for name, count in shown))
        if self.folders:
            told.append("Folders:")
            told += [f"  {name}: {count} pictures × {n}" for name, n, count in self.folders]
        return told


def page_of(metadata: Mapping[str, str]) -> Page:
    """What is known of in some metadata; what cannot be read is said in `problems`."""
    page = Page()
    for title, keys in _SECTIONS.items():
        rows = [
            (label, _said(key, metadata[key]))
            for key, label in keys.items()
            if metadata.get(key, "").strip() not in _NOTHING
        ]
        if rows:
            page.sections[title] = rows
    try:
        page.tags = frequent_tags(metadata.get("ss_tag_frequency", ""), None)
    except FileProblem as problem:
        page.problems.append(str(problem))
    buckets = _object(metadata.get("ss_bucket_info", "")).get("buckets")
    for each in buckets.values() if isinstance(buckets, dict) else ():
        size = each.get("resolution") if isinstance(each, dict) else None
        if isinstance(size, list) and len(size) == 2 and _counts(each.get("count")):
            page.buckets.append((f"{size[0]} × {size[1]}", each["count"]))
    page.buckets.sort(key=lambda item: -item[1])
    for name, each in _object(metadata.get("ss_dataset_dirs", "")).items():
        if isinstance(each, dict) and _counts(each.get("img_count")):
            repeats = each["n_repeats"] if _counts(each.get("n_repeats")) else 1
            page.folders.append((name, repeats, each["img_count"]))
    return page


def _said(key: str, text: str) -> str:
    text = " ".join(text.split())
    if key in _TIMES:
        try:
            seconds = float(text)
            if math.isfinite(seconds):
                when = datetime.fromtimestamp(seconds, timezone.utc)
                return f"{when:%Y-%m-%d %H:%M} UTC"
        except (ValueError, OverflowError, OSError):
            return text  # a date in another form
    return text if len(text) <= 300 else f"{text[:300]}…"


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _counts(value: object) -> bool:
    return type(value) is int and 0 < value < MOST


def frequent_tags(text: str, most: int | None = TAGS_SHOWN) -> list[tuple[str, int]]:
    """The tags that most training pictures had, over all folders of pictures, with their numbers.

    text: `ss_tag_frequency` of kohya's trainers, {"folder": {"tag": number}}; entries of another
    form are passed over. Raises FileProblem if it is not a JSON object.
    """
    if not text:
        return []
    try:
        folders = json.loads(text)
    except (ValueError, RecursionError):
        folders = None
    if not isinstance(folders, dict):
        raise FileProblem("The training tags in its metadata (ss_tag_frequency) are not readable.")
    counts: Counter[str] = Counter()
    for tags in folders.values():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if tag.strip() and isinstance(count, int) and 0 < count < MOST:
                counts[tag.strip()] += count
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
