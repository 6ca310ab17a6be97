"""Small random captioners and a CLIP, saved as transformers saves them, for tests.

    from tests.tagging.tiny_captioners import tiny_captioner
    folder = tiny_captioner(tmp_path / "captioners" / "small", "blip")

The weights are random and the words few, so a caption means nothing; but it depends on the picture,
as the tests check, and everything about it is computed as for the large models.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image

from extensions_lib.options import checked
from extensions_lib.tagging.captioners import Captioner, CaptionOptions

_TEXT = (
    "a an the of on in with and red blue green yellow white black small large round square disc "
    "triangle star house tree boat cat dog bird sky sea hill night day photo picture painting two "
    "three above below left right is what it"
)
WORDS = _TEXT.split()
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZE = 32  # sides of the pictures the vision parts take

_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 8,
}


def tiny_captioner(folder: Path, kind: str, *, seed: int = 0, safe: bool = True) -> Path:
    """Writes a random model of "blip", "git", "blip-2", "blip-2-t5" or "vision-encoder-decoder"."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = _MAKERS[kind](folder)
    _stir(model)
    if kind == "blip":  # equal in every real file, though not in every version of transformers
        text = model.text_decoder
        with torch.no_grad():
            words = text.bert.embeddings.word_embeddings.weight
            text.cls.predictions.decoder.weight.copy_(words)
    model.save_pretrained(folder, safe_serialization=safe)
    _write_processor(folder, kind)
    return folder


def _stir(model: torch.nn.Module) -> None:
    """Weights large enough that pictures and words matter; a fresh model says one word for ever."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.6 / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)


def bert_words(folder: Path, extra: tuple[str, ...] = ()) -> int:
    """Writes a BERT vocabulary; returns its size."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    words = [*_SPECIAL, *WORDS, *letters, "?", ":", ",", ".", "[DEC]", *extra]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    told = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    told["additional_special_tokens"] = ["[DEC]", *extra]
    _json(folder / "tokenizer_config.json", told)
    return len(words)


def byte_words(folder: Path, *, clip: bool = False, extra: tuple[str, ...] = ()) -> dict[str, int]:
    """Writes a byte-level BPE vocabulary without merges; returns its special words' ids."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    units = list(bytes_to_unicode().values())
    words = [*units, *(f"{unit}</w>" for unit in units)] if clip else units
    words = [*words, *extra]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return {word: words.index(word) for word in extra}


def _blip(folder: Path) -> Any:
    from transformers import BlipConfig, BlipForConditionalGeneration

    size = bert_words(folder)
    text = {
        "vocab_size": size,
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": size - 1,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    config = BlipConfig(text_config=text, vision_config=_VISION, projection_dim=32)
    return BlipForConditionalGeneration(config)


def _git(folder: Path) -> Any:
    from transformers import GitConfig, GitForCausalLM

    size = bert_words(folder)
    config = GitConfig(
        vision_config=_VISION,
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    return GitForCausalLM(config)


def _blip2(folder: Path, text: Any) -> Any:
    from transformers import Blip2Config, Blip2ForConditionalGeneration
    from transformers import Blip2QFormerConfig as QFormer
    from transformers import Blip2VisionConfig as Vision

    former = QFormer(
        vocab_size=10,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        encoder_hidden_size=32,
    )
    config = Blip2Config.from_vision_qformer_text_configs(Vision(**_VISION), former, text)
    config.num_query_tokens = 4
    return Blip2ForConditionalGeneration(config)


def _blip2_opt(folder: Path) -> Any:
    from transformers import OPTConfig

    ids = byte_words(folder, extra=("<pad>", "</s>", "<unk>"))
    told = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **told})
    text = OPTConfig(
        vocab_size=259,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=64,
        max_position_embeddings=64,
        bos_token_id=ids["</s>"],
        eos_token_id=ids["</s>"],
        pad_token_id=ids["<pad>"],
    )
    return _blip2(folder, text)


def _blip2_t5(folder: Path) -> Any:
    from transformers import T5Config

    size = bert_words(folder)
    text = T5Config(
        vocab_size=size,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
    )
    return _blip2(folder, text)


def _encoder_decoder(folder: Path) -> Any:
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel
    from transformers import ViTConfig as Vision

    ids = byte_words(folder, extra=("<|endoftext|>",))
    told = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **told})
    end = ids["<|endoftext|>"]
    text = GPT2Config(
        vocab_size=257,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=end,
        eos_token_id=end,
        add_cross_attention=True,
        is_decoder=True,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(Vision(**_VISION), text)
    config.decoder_start_token_id = config.pad_token_id = config.eos_token_id = end
    model = VisionEncoderDecoderModel(config)
    return model


def tiny_llava(folder: Path, template: str | None) -> Path:
    """Writes a random LLaVA with its processor, and a chat template where one is given."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Model

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    size = bert_words(folder, extra=("<image>",))
    vision = {**_VISION, "projection_dim": 32}
    text = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    config = LlavaConfig(
        CLIPVisionConfig(**vision), text, image_token_index=size - 1, image_seq_length=16
    )
    config.pad_token_id = 0
    model = Model(config)
    _stir(model)
    model.save_pretrained(folder)
    _write_processor(folder, "git")
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words["model_input_names"] = ["input_ids", "attention_mask"]
    _json(folder / "tokenizer_config.json", words)
    told = {
        "processor_class": "LlavaProcessor",
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
    }
    _json(folder / "processor_config.json", told)
    if template is not None:
        _json(folder / "chat_template.json", {"chat_template": template})
    return folder


def tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Writes a random CLIP with text and vision and a byte-level vocabulary."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    ids = byte_words(folder, clip=True, extra=("<|startoftext|>", "<|endoftext|>"))
    names = ("eos_token", "unk_token", "pad_token")
    told = {"bos_token": "<|startoftext|>", **{name: "<|endoftext|>" for name in names}}
    told |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}  # type: ignore[dict-item]
    _json(folder / "tokenizer_config.json", told)
    text = {
        "vocab_size": 514,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "projection_dim": 24,
        "bos_token_id": ids["<|startoftext|>"],
        "eos_token_id": 2,
    }
    config = CLIPConfig(
        text_config=text,
        vision_config={**_VISION, "intermediate_size": 128, "projection_dim": 24},
        projection_dim=24,
    )
    model = CLIPModel(config)
    _stir(model)
    model.save_pretrained(folder, safe_serialization=True)
    _write_processor(folder, "git")
    return folder


_MAKERS = {
    "blip": _blip,
    "git": _git,
    "blip-2": _blip2_opt,
    "blip-2-t5": _blip2_t5,
    "vision-encoder-decoder": _encoder_decoder,
}


def _write_processor(folder: Path, kind: str) -> None:
    sides = {"height": SIZE, "width": SIZE}
    told: dict[str, Any] = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "size": sides,
        "image_processor_type": "BlipImageProcessor",
    }
    if kind == "git":
        told |= {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIZE}}
        told |= {"do_center_crop": True, "crop_size": sides}
    if kind == "vision-encoder-decoder":
        told["image_processor_type"] = "ViTImageProcessor"
    _json(folder / "preprocessor_config.json", told)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


KINDS = ("blip", "git", "blip-2", "blip-2-t5", "vision-encoder-decoder")


def pictures(count: int = 9) -> list[Image.Image]:
    """Random pictures of several shapes."""
    random = np.random.default_rng(7)
    found = []
    for _ in range(count):
        width, height = (int(side) for side in random.integers(20, 90, 2))
        blocks = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        found.append(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
    return found


def made(folder: Path, **options: Any) -> Captioner:
    return Captioner(folder.name, folder, checked(CaptionOptions, {"device": "cpu", **options}))


def config(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
