"""Image-to-text models that bring their own processor: LLaVA and other models one talks to.

What they are asked is made by the folder's processor, with its chat template where it has one. They
take one picture at a time, since their prompts differ in length with the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from extensions_lib.errors import FileProblem
from extensions_lib.tagging.caption_ways import Begun
from extensions_lib.tagging.devices import Place
from extensions_lib.tagging.pretrained import local

if TYPE_CHECKING:
    import torch
    from PIL import Image

QUESTION = "Describe this picture in one sentence."  # where there is a template and no prompt


class Chat:
    """The processor of a folder, with the text that goes with every picture."""

    def __init__(self, folder: Path, prompt: str) -> None:
        """Raises FileProblem when the folder has no processor that transformers can load."""
        from transformers import AutoProcessor

        self._folder = folder
        with local(folder, "its processor cannot be used"):
            self._processor = AutoProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_fast=False
            )
            self.tokenizer = self._processor.tokenizer
        with local(folder, "its chat template cannot be used"):
            self._text = self._asked(prompt)

    def _asked(self, prompt: str) -> str:
        if not getattr(self._processor, "chat_template", None):
            return prompt
        prompt = prompt or QUESTION
        parts = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self._told(parts)
        # A template for plain text writes the list itself; it places the picture on its own.
        return self._told(prompt) if "'type': 'image'" in text else text

    def _told(self, content: Any) -> str:
        said = [{"role": "user", "content": content}]
        return str(
            self._processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        )

    def begin(self, model: Any, image: Image.Image, place: Place) -> Begun:
        """The inputs for one picture. Raises FileProblem when the processor refuses them."""
        what = "its processor refuses the picture or the option prompt"
        with local(self._folder, what):
            inputs = dict(self._processor(images=[image], text=[self._text], return_tensors="pt"))
        for name, value in inputs.items():
            dtype = place.dtype if value.is_floating_point() else value.dtype
            inputs[name] = value.to(place.device, dtype)
        asked = inputs.get("input_ids")

        def generate(**arguments: Any) -> torch.Tensor:
            try:
                ids = model.generate(**arguments)
            except ValueError as error:
                raise FileProblem(f"{self._folder}: {what} ({error}).") from error
            # Some models repeat what they were asked, others answer alone.
            length = 0 if asked is None else asked.shape[1]
            repeated = 0 < length <= ids.shape[1] and bool((ids[:, :length] == asked).all())
            return ids[:, length:] if repeated else ids

        return Begun(generate, inputs, 0)
