"""How each kind of captioner begins: what its language model gets of the picture and the prompt.

A way takes the model, pixels [N, 3, H, W] and the prompt's token ids, the same for every picture,
and says what to call, with what, and how many tokens of the answer are the prompt. No row is
padded, so a row knows nothing of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Begun:
    """`generate(**inputs)` answers token ids [N, length]; the first `prompt` of them are given."""

    generate: Callable[..., torch.Tensor]
    inputs: dict[str, Any]
    prompt: int


Way = Callable[[Any, "torch.Tensor", Sequence[int]], Begun]


def _rows(ids: Sequence[int], pixels: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.tensor([list(ids)], device=pixels.device).repeat(len(pixels), 1)


def blip(model: Any, pixels: torch.Tensor, words: Sequence[int]) -> Begun:
    """BLIP: the caption goes on from the prompt; its generate() drops the last id."""
    text = model.config.text_config
    ids = _rows([text.bos_token_id, *words, text.sep_token_id], pixels)
    return Begun(model.generate, {"pixel_values": pixels, "input_ids": ids}, 1 + len(words))


def git(model: Any, pixels: torch.Tensor, words: Sequence[int]) -> Begun:
    """GIT: the caption goes on from the prompt, without the closing token a tokenizer adds."""
    ids = _rows([model.config.bos_token_id, *words], pixels)
    return Begun(model.generate, {"pixel_values": pixels, "input_ids": ids}, 1 + len(words))


def encoder_decoder(model: Any, pixels: torch.Tensor, words: Sequence[int]) -> Begun:
    """A vision encoder and a text decoder (as ViT and GPT-2)."""
    start = model.config.decoder_start_token_id
    if start is None:
        start = model.config.decoder.bos_token_id
    ids = _rows([start, *words], pixels)
    inputs = {
        "pixel_values": pixels,
        "decoder_input_ids": ids,
        "decoder_attention_mask": ids.new_ones(ids.shape),
    }
    return Begun(model.generate, inputs, 1 + len(words))


def blip2(model: Any, pixels: torch.Tensor, words: Sequence[int]) -> Begun:
    """BLIP-2: the Q-Former's answer to the picture stands before the prompt's embeddings.

    Put together here, since transformers' own generate() wants image tokens in the prompt from
    4.46 on, which folders saved before do not define.
    """
    import torch

    states = model.vision_model(pixels, return_dict=True).last_hidden_state
    former = next(model.qformer.parameters()).dtype  # kept in float32 by some versions
    queries = model.query_tokens.expand(len(pixels), -1, -1).to(former)
    answer = model.qformer(
        query_embeds=queries,
        encoder_hidden_states=states.to(former),
        encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
        return_dict=True,
    ).last_hidden_state
    seen = model.language_projection(answer.to(model.language_projection.weight.dtype))
    text = model.config.text_config
    seq2seq = model.language_model.config.is_encoder_decoder
    given = [*words, text.eos_token_id] if seq2seq else [text.bos_token_id, *words]
    embedded = model.get_input_embeddings()(_rows(given, pixels))
    inputs = {
        "inputs_embeds": torch.cat([seen.to(embedded.dtype), embedded], dim=1),
        "attention_mask": torch.ones(
            (len(pixels), seen.shape[1] + len(given)), dtype=torch.long, device=pixels.device
        ),
    }
    return Begun(model.language_model.generate, inputs, 0)


@dataclass(frozen=True)
class Kind:
    """A kind of captioner: transformers' class for it, and its way; None: by its own processor."""

    class_name: str
    way: Way | None


_KINDS: Mapping[str, Kind] = {
    "blip": Kind("BlipForConditionalGeneration", blip),
    "blip-2": Kind("Blip2ForConditionalGeneration", blip2),
    "git": Kind("GitForCausalLM", git),
    "vision-encoder-decoder": Kind("VisionEncoderDecoderModel", encoder_decoder),
}


def kind_of(model_type: str) -> Kind | None:
    """The kind that a config's `model_type` names: ours, or one transformers knows; else None."""
    if model_type in _KINDS:
        return _KINDS[model_type]
    from transformers.models.auto import modeling_auto

    for table in (
        "MODEL_FOR_VISION_2_SEQ_MAPPING_NAMES",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    ):
        name = getattr(modeling_auto, table, {}).get(model_type)
        if name is not None:
            return Kind(name, None)
    return None
