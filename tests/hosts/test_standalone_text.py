"""Prompts to conditioning: against transformers and diffusers, and WebUI's formulas by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from extensions_lib.demo.vocabulary import write_clip_vocabulary
from extensions_lib.errors import CrucibleError, FileProblem
from extensions_lib.hosts.standalone import StandaloneHost
from extensions_lib.hosts.standalone.text import VOCABULARY, TextEncoder, load_tokenizer

Hosts = Callable[[str], StandaloneHost]


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.inference_mode():
        yield


def encoder(hosts: Hosts, family: str) -> tuple[TextEncoder, Any]:
    model = hosts(family).model()
    return TextEncoder(model), model


def close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, atol=1e-5)


def plain_tokens(text: str, pad: int = 49407) -> Tensor:
    ids = load_tokenizer()(text).input_ids
    return torch.tensor([ids + [pad] * (77 - len(ids))])


def test_the_vocabulary_gives_clips_own_numbers() -> None:
    ids = load_tokenizer()("a photo of a cat").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_the_vocabulary_can_be_derived_again(tmp_path: Path) -> None:
    merges = (VOCABULARY / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    table = tmp_path / "table.txt.gz"
    with gzip.open(table, "wt", encoding="utf-8") as file:
        file.write("\n".join(["heading", *merges, "not used", "not used"]))
    write_clip_vocabulary(table, tmp_path / "clip")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        derived = (tmp_path / "clip" / name).read_bytes()
        assert derived.replace(b"\r\n", b"\n") == (VOCABULARY / name).read_bytes(), name
    assert len(json.loads((tmp_path / "clip" / "vocab.json").read_text("utf-8"))) == 49408
    with pytest.raises(FileProblem, match="cannot be read"):
        write_clip_vocabulary(tmp_path / "clip" / "vocab.json", tmp_path)


@pytest.mark.parametrize("skip", [1, 2])
def test_sd1_is_clips_hidden_state_after_the_final_norm(hosts: Hosts, skip: int) -> None:
    text, model = encoder(hosts, "SD1")
    clip = model.text_encoders[0]
    answer = clip(plain_tokens("a red cat"), output_hidden_states=True)
    expected = clip.text_model.final_layer_norm(answer.hidden_states[-skip])
    assert close(text.encode(["a red cat"], clip_skip=skip)[0].context, expected[0])
    if skip == 1:
        assert close(expected, answer.last_hidden_state)


def test_clip_skip_past_the_first_layer_is_refused(hosts: Hosts) -> None:
    with pytest.raises(CrucibleError, match="has 2 layers; choose 1 to 2"):
        encoder(hosts, "SD1")[0].encode(["a"], clip_skip=3)


def test_sd2_is_the_penultimate_state_padded_with_zero(hosts: Hosts) -> None:
    text, model = encoder(hosts, "SD2")
    clip = model.text_encoders[0]
    answer = clip(plain_tokens("a red cat", pad=0), output_hidden_states=True)
    expected = clip.text_model.final_layer_norm(answer.hidden_states[-2])[0]
    for skip in (1, 2):
        assert close(text.encode(["a red cat"], clip_skip=skip)[0].context, expected)


def test_sdxl_is_diffusers_pipeline_encoding(hosts: Hosts) -> None:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    text, model = encoder(hosts, "SDXL")
    first, second = load_tokenizer(), load_tokenizer.__wrapped__(VOCABULARY)
    second.pad_token = "!"  # number 0
    pipeline = StableDiffusionXLPipeline(
        model.vae, *model.text_encoders, first, second, model.unet, EulerDiscreteScheduler()
    )
    expected = pipeline.encode_prompt("a red cat", negative_prompt="bad", device="cpu")
    positive, negative = text.encode(["a red cat"])[0], text.encode(["bad"], negative=True)[0]
    assert close(positive.context, expected[0][0]) and close(negative.context, expected[1][0])
    assert positive.pooled is not None and negative.pooled is not None
    assert close(positive.pooled, expected[2][0]) and close(negative.pooled, expected[3][0])


def test_only_an_empty_sdxl_negative_is_zero(hosts: Hosts) -> None:
    text, _ = encoder(hosts, "SDXL")
    empty = text.encode([""], negative=True)[0]
    assert empty.pooled is not None and not empty.context.any() and not empty.pooled.any()
    for other in (text.encode([""])[0], text.encode(["bad"], negative=True)[0]):
        assert other.context.any()
    assert encoder(hosts, "SD1")[0].encode([""], negative=True)[0].context.any()


@pytest.mark.parametrize("family", ["SD1", "SD2"])
def test_emphasis_multiplies_and_restores_the_mean(hosts: Hosts, family: str) -> None:
    text, _ = encoder(hosts, family)
    plain = text.encode(["a red cat on a mat"])[0].context.double()
    weights = torch.ones(77, dtype=torch.double)
    weights[2] = 1.3  # start, a, red, cat, on, a, mat
    weights[3] = 1.1 * 1.1
    weights[6] = 1 / 1.1
    weighted = plain * weights[:, None]
    expected = weighted * (plain.mean() / weighted.mean())
    actual = text.encode(["a (red:1.3) ((cat)) on a [mat]"])[0].context
    assert not close(actual, plain.float())
    assert close(actual, expected.float())


def test_long_prompts_come_in_chunks(hosts: Hosts) -> None:
    text, _ = encoder(hosts, "SD1")
    first, second = "cat " * 75, "dog"
    both = text.encode([first + second])[0].context
    assert both.shape[0] == 154
    assert close(both[:77], text.encode([first])[0].context)
    assert close(both[77:], text.encode([second])[0].context)
    broken = text.encode(["cat BREAK dog"])[0].context
    assert close(broken, torch.cat([text.encode([t])[0].context for t in ("cat", "dog")]))


def test_the_comma_takes_its_words_along(hosts: Hosts) -> None:
    text, _ = encoder(hosts, "SD1")
    chunks = text.chunks("cat " * 70 + ", " + "dog " * 8)
    assert [chunk.tokens.count(1929) for chunk in chunks] == [0, 8]


def test_sdxl_pools_the_first_chunk_only(hosts: Hosts) -> None:
    text, _ = encoder(hosts, "SDXL")
    long, short = text.encode(["cat BREAK dog"])[0], text.encode(["cat"])[0]
    assert long.pooled is not None and short.pooled is not None
    assert long.context.shape[0] == 154 and close(long.pooled, short.pooled)


def test_edited_prompts_are_encoded_together(hosts: Hosts) -> None:
    """All texts of one schedule become as long as the longest, with empty chunks."""
    text, _ = encoder(hosts, "SD1")
    short, long = text.encode(["cat", "cat BREAK dog"])
    assert short.context.shape == long.context.shape == (154, 32)
    assert close(short.context[77:], text.encode([""])[0].context)
    timeline = text.guidance("[cat:dog:0.5]", None, 10).parts[0][0]
    cat, dog = (text.encode(["cat", "dog"])[i].context for i in (0, 1))
    # WebUI counts evaluations from 0 and holds a text up to and with its last step.
    assert [close(timeline.at(i).context, cat) for i in (0, 5, 6, 9)] == [True, True, False, False]
    assert close(timeline.at(9).context, dog)


def test_what_was_encoded_is_remembered_by_its_networks(hosts: Hosts) -> None:
    text, _ = encoder(hosts, "SD1")
    first = text.encode(["a"])
    assert text.encode(["a"]) is first
    assert text.encode(["a"], networks=("x",)) is not first
    assert text.encode(["a"], clip_skip=2) is not first


def test_and_parts_carry_their_weights(hosts: Hosts) -> None:
    text, _ = encoder(hosts, "SD1")
    guidance = text.guidance("cat AND dog :0.5", "bad", 4)
    assert [weight for _, weight in guidance.parts] == [1.0, 0.5]
    assert guidance.negative is not None
