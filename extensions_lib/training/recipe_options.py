"""The options of what else is trained than networks: each recipe's own, and all of it together.

They stand apart from what acts on them, so that a face can be built without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from extensions_lib.files.hypernetworks import ACTIVATIONS
from extensions_lib.options import option
from extensions_lib.training.option_groups import BlockRates, ObjectiveOptions, PromptOptions


@dataclass(frozen=True)
class EmbeddingOptions:
    """The options of an embedding that is trained."""

    token_string: str = option("", "the word in prompts that learns", group="Embedding")
    num_vectors_per_token: int = option(
        4, "vectors: how much it can learn, and its length in tokens", label="Vectors",
        group="Embedding", low=1, high=75,
    )  # fmt: skip
    init_word: str = option("*", "words from whose meaning it starts", group="Embedding")
    negative_embedding: bool = option(
        False, "learns one for the negative prompt too (DreamArtist)", group="Embedding"
    )
    negative_vectors: int = option(
        4, "vectors of the negative one", group="Embedding", low=1, high=75
    )
    negative_init_word: str = option(
        "*", "words from whose meaning the negative one starts", group="Embedding"
    )
    negative_ending: str = option(
        "-neg", "what its name ends with", group="Embedding", choices=("-neg", "-uc")
    )
    guidance: float = option(
        3.0, "CFG scale that both learn for; 3 to 5", group="Embedding", low=1, high=30
    )
    negative_lr_ratio: float = option(
        1.0, "the negative one learns this much faster", group="Learning rate", low=0
    )


@dataclass(frozen=True)
class EmbeddingTraining(EmbeddingOptions, PromptOptions, ObjectiveOptions):
    """All options of the recipe of an embedding."""


@dataclass(frozen=True)
class HypernetworkOptions:
    """The options of a hypernetwork that is trained, by the names of the WebUI's files."""

    layer_structure: tuple[float, ...] = option(
        (1.0, 2.0, 1.0), "widths of the layers in multiples of the context's, from 1 to 1",
        group="Hypernetwork",
    )  # fmt: skip
    activation_func: str = option(
        "linear", "what stands after each layer", group="Hypernetwork",
        choices=("linear", *sorted(ACTIVATIONS)),
    )  # fmt: skip
    weight_initialization: str = option(
        "Normal", "how its weights begin", group="Hypernetwork",
        choices=("Normal", "KaimingUniform", "KaimingNormal", "XavierUniform", "XavierNormal"),
    )  # fmt: skip
    is_layer_norm: bool = option(False, "a norm after each layer", group="Hypernetwork")
    activate_output: bool = option(
        False, "the activation stands after the last layer too", group="Hypernetwork"
    )
    use_dropout: bool = option(False, "leaves values out at random", group="Hypernetwork")
    dropout_structure: tuple[float, ...] = option(
        (), "share left out after each layer, first and last 0; none: 0.3 where it can be",
        group="Hypernetwork", low=0, high=0.99,
    )  # fmt: skip
    last_layer_dropout: bool = option(
        False, "dropout before the last layer too", group="Hypernetwork"
    )
    enable_sizes: tuple[int, ...] = option(
        (), "widths of contexts that are changed; none: all", group="Hypernetwork"
    )


@dataclass(frozen=True)
class HypernetworkTraining(HypernetworkOptions, PromptOptions, ObjectiveOptions):
    """All options of the recipe of a hypernetwork."""


@dataclass(frozen=True)
class FullOptions(BlockRates):
    """The options of what is trained of a checkpoint."""

    train_unet: bool = option(True, "the UNet is trained", group="Parts")
    train_text_encoder: bool = option(False, "the text encoders are trained too", group="Parts")
    unet_lr: float | None = option(None, "none: learning_rate", group="Learning rate", low=0)
    text_encoder_lr: tuple[float, ...] = option(
        (), "one for all text encoders, or one each; none: learning_rate", group="Learning rate"
    )


@dataclass(frozen=True)
class FullTraining(FullOptions, PromptOptions, ObjectiveOptions):
    """All options of the recipe of a checkpoint."""


@dataclass(frozen=True)
class LLLiteOptions:
    """The options of a ControlNet-LLLite that is trained."""

    cond_emb_dim: int = option(
        32, "width of what is said of the condition picture", group="ControlNet-LLLite", low=2,
        high=1024,
    )  # fmt: skip
    mlp_dim: int = option(
        64, "width of the side path: how much it can learn, and its size",
        group="ControlNet-LLLite", low=1, high=1024,
    )  # fmt: skip


@dataclass(frozen=True)
class LLLiteTraining(LLLiteOptions, PromptOptions, ObjectiveOptions):
    """All options of the recipe of a ControlNet-LLLite."""
