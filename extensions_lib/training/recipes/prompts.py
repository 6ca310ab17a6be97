"""The prompts of a batch as the UNet takes them, for recipes that leave the text encoders alone."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from extensions_lib.models.trainable import Conditioning, Trainable
from extensions_lib.training.option_groups import PromptOptions
from extensions_lib.training.step import Batch


def conditioning_of(
    model: Trainable, batch: Batch, options: PromptOptions, *, learning: bool = False
) -> Conditioning:
    """What was encoded before, or else is encoded now; `learning`: always now, with gradients."""
    if batch.conditioning is not None and not learning:
        return batch.conditioning
    with nullcontext() if learning else torch.no_grad():
        return model.encode_text(
            batch.prompts, clip_skip=options.clip_skip, chunks=options.max_token_length // 75
        )
