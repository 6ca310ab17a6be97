"""Models one talks to, through their own processor: a tiny random LLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from extensions_lib.errors import FileProblem
from extensions_lib.tagging import chat
from tests.tagging.test_captioners import made, pictures
from tests.tagging.tiny_captioners import tiny_llava

PARTS = (
    "{% for message in messages %}{{ message.role }} : {% for part in message.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endfor %} . is"
)
PLAIN = "{% for message in messages %}user : <image> {{ message.content }}{% endfor %} . is"

pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "LlavaForConditionalGeneration"),
    reason="this transformers has no LLaVA",
)


def by_transformers(folder: Path, text: str, images: Any) -> list[str]:
    processor = transformers.AutoProcessor.from_pretrained(folder, use_fast=False)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    said = []
    for image in images:
        inputs = processor(images=[image], text=[text], return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, num_beams=2, max_new_tokens=10, min_new_tokens=4)
        answer = ids[0, inputs["input_ids"].shape[1] :]
        said.append(" ".join(processor.decode(answer, skip_special_tokens=True).split()))
    return said


@pytest.mark.parametrize("template", [PARTS, PLAIN], ids=["parts", "plain"])
def test_asks_through_the_chat_template(tmp_path: Path, template: str) -> None:
    folder = tiny_llava(tmp_path / "llava", template)
    images = pictures(4)
    captioner = made(folder, beams=2, max_length=10, min_length=4, prompt="what is it?")
    expected = by_transformers(folder, "user : <image> what is it? . is", images)
    assert captioner.caption(images) == expected and len(set(expected)) > 1
    assert captioner.caption(images[::-1]) == expected[::-1]
    asked = made(folder, beams=2, max_length=10, min_length=4)
    text = f"user : <image> {chat.QUESTION} . is"
    assert asked.caption(images) == by_transformers(folder, text, images)


def test_without_a_template_the_prompt_is_all(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path / "llava", None)
    images = pictures(2)
    captioner = made(folder, beams=2, max_length=10, min_length=4, prompt="<image> the cat")
    assert captioner.caption(images) == by_transformers(folder, "<image> the cat", images)
    with pytest.raises(FileProblem, match="refuses the picture or the option prompt"):
        made(folder, prompt="<image> and <image>").caption(images)
    with pytest.raises(FileProblem, match="refuses the picture or the option prompt"):
        made(folder, prompt="the cat").caption(images)


def test_a_kind_without_a_processor_is_said(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path / "llava", PARTS)
    for file in ("vocab.txt", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(FileProblem, match="llava: its processor cannot be used"):
        made(folder)
