"""The options of the parts of a run: what is trained, on which prompts, to which end, how fast.

They stand apart from what acts on them, so that a face can be built without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from extensions_lib.options import option
from extensions_lib.training.schedulers import SchedulerOptions

KINDS = (
    "lora",
    "lora-fa",
    "dylora",
    "loha",
    "lokr",
    "glora",
    "ia3",
    "full",
    "norm",
    "oft",
    "diag-oft",
    "boft",
)
LAYERS = ("attn-mlp", "attn-only", "full", "full-lin", "unet-convblock-only", "ia3")


@dataclass(frozen=True)
class BlockRates:
    """The option of how fast each block of the UNet learns."""

    block_lr_weight: tuple[float, ...] = option(
        (), "what unet_lr is multiplied by in each block; 0: not trained", group="Blocks"
    )


@dataclass(frozen=True)
class NetworkOptions(BlockRates):
    """The options of a network that is trained."""

    kind: str = option("lora", "the kind of network", group="Network", choices=KINDS)
    layers: str = option(
        "attn-mlp",
        "which layers, by LyCORIS' presets; conv_dim adds the residual blocks to attn-…",
        group="Network",
        choices=LAYERS,
    )
    network_dim: int = option(16, "rank: how much it can learn, and its size", low=1, high=1024)
    network_alpha: float | None = option(
        None, "strength is alpha / rank; none: 1", group="Network", low=0
    )
    conv_dim: int | None = option(
        None, "rank of convolutions; none: they are not trained", group="Network", low=1
    )
    conv_alpha: float | None = option(
        None, "alpha of convolutions; none: network_alpha", group="Network", low=0
    )
    block_dims: tuple[int, ...] = option(
        (), "ranks of the UNet's blocks, 25 of SD1, 23 of SDXL; 0: not trained", group="Blocks"
    )
    block_alphas: tuple[float, ...] = option(
        (), "alphas of the UNet's blocks; none: network_alpha", group="Blocks"
    )
    conv_block_dims: tuple[int, ...] = option(
        (), "ranks of the convolutions of the UNet's blocks", group="Blocks"
    )
    conv_block_alphas: tuple[float, ...] = option(
        (), "alphas of the convolutions of the UNet's blocks; none: conv_alpha", group="Blocks"
    )
    use_tucker: bool = option(False, "3x3 convolutions as a Tucker decomposition", group="Network")
    dora_wd: bool = option(False, "learns direction and size apart (DoRA)", group="Network")
    factor: int = option(-1, "LoKr: near this are its parts split; -1: the root", group="Network")
    decompose_both: bool = option(False, "LoKr: both parts by rank", group="Network")
    full_matrix: bool = option(False, "LoKr: no part by rank", group="Network")
    constraint: float | None = option(
        None, "OFT and BOFT: how far they may turn; none: any", group="Network", low=0
    )
    rescaled: bool = option(False, "OFT and BOFT: learns sizes too", group="Network")
    train_norm: bool = option(False, "norms are trained too", group="Network")
    unit: int = option(4, "DyLoRA: ranks that learn together", group="Network", low=1)
    network_dropout: float = option(
        0.0, "share of values left out", group="Network", low=0, high=0.99
    )
    rank_dropout: float = option(0.0, "share of ranks left out", group="Network", low=0, high=0.99)
    module_dropout: float = option(
        0.0, "share of layers left out", group="Network", low=0, high=0.99
    )
    scale_weight_norms: float | None = option(
        None,
        "LoRA, LoHa, LoKr: shortens a layer's change beyond this norm; 1",
        group="Network",
        low=0,
    )
    train_unet: bool = option(True, "the UNet is trained", group="Parts")
    train_text_encoder: bool = option(True, "the text encoders are trained", group="Parts")
    unet_lr: float | None = option(None, "none: learning_rate", group="Learning rate", low=0)
    text_encoder_lr: tuple[float, ...] = option(
        (), "one for all text encoders, or one each; none: learning_rate", group="Learning rate"
    )
    loraplus_lr_ratio: float | None = option(
        None, "LoRA+: up learns this much faster; 16", group="Learning rate", low=0
    )
    loraplus_unet_lr_ratio: float | None = option(
        None, "LoRA+ of the UNet; none: loraplus_lr_ratio", group="Learning rate", low=0
    )
    loraplus_text_encoder_lr_ratio: float | None = option(
        None, "LoRA+ of the text encoders; none: loraplus_lr_ratio", group="Learning rate", low=0
    )


@dataclass(frozen=True)
class PromptOptions:
    """The options of what the text encoders are given."""

    clip_skip: int = option(1, "layer from the end that is read", group="Prompts", low=1, high=12)
    max_token_length: int = option(
        225, "longest prompt", group="Prompts", unit="tokens", choices=(75, 150, 225)
    )


@dataclass(frozen=True)
class ObjectiveOptions:
    """The options of the objective."""

    loss_type: str = option(
        "l2",
        "how far an answer is off",
        group="Loss",
        choices=("l2", "l1", "huber", "smooth_l1"),
    )
    huber_c: float = option(
        0.1, "where huber and smooth_l1 turn from squares to lines", group="Loss", low=1e-6
    )
    huber_schedule: str = option(
        "snr",
        "how huber_c depends on the noise: less the more noise there is",
        group="Loss",
        choices=("snr", "exponential", "constant"),
    )
    huber_scale: float = option(
        1.0, "times huber_c of the schedules exponential and constant", group="Loss", low=1e-6
    )
    min_snr_gamma: float | None = option(
        None, "weighs steps with little noise down to this ratio of signal; 5", group="Loss", low=0
    )
    debiased_estimation_loss: bool = option(
        False, "weighs each step by the root of its noise", group="Loss"
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False, "weighs v-prediction as if noise were predicted", group="Loss"
    )
    v_pred_like_loss: float | None = option(
        None, "adds the loss weighed as for v-prediction, times this", group="Loss", low=0
    )
    prior_loss_weight: float = option(1.0, "weight of regularisation pictures", group="Loss", low=0)
    min_timestep: int = option(0, "least noisy step", group="Noise", low=0, high=999)
    max_timestep: int = option(
        1000, "end of the steps, not included", group="Noise", low=1, high=1000
    )
    noise_offset: float | None = option(
        None, "noise that is the same over the picture; for dark and light", group="Noise"
    )
    noise_offset_random_strength: bool = option(
        False, "a noise offset of 0 to noise_offset, drawn each step", group="Noise"
    )
    adaptive_noise_scale: float | None = option(
        None, "adds to the offset this times the picture's own mean", group="Noise"
    )
    multires_noise_iterations: int | None = option(
        None, "coarser layers of noise; 6 to 10", group="Noise", low=1
    )
    multires_noise_discount: float = option(
        0.3, "strength of each coarser layer to the one before", group="Noise", low=0, high=1
    )
    ip_noise_gamma: float | None = option(
        None, "disturbs the input with this much more noise; 0.1", group="Noise", low=0
    )
    ip_noise_gamma_random_strength: bool = option(
        False, "a disturbance of 0 to ip_noise_gamma, drawn each step", group="Noise"
    )


@dataclass(frozen=True)
class NetworkTraining(NetworkOptions, PromptOptions, ObjectiveOptions):
    """All options of this recipe."""


@dataclass(frozen=True)
class LoopOptions(SchedulerOptions):
    """The options of the loop."""

    seed: int = option(0, "from which all that is random follows", group="Steps", low=0)
    max_train_steps: int = option(1000, "steps of the optimizer", group="Steps", low=1)
    gradient_accumulation_steps: int = option(1, "batches that make one step", group="Steps", low=1)
    max_grad_norm: float = option(1.0, "longest gradient of a step; 0: any", group="Steps", low=0)
    learning_rate: float = option(1e-4, "of all that has none of its own", low=0)
    optimizer_type: str = option("AdamW", "a name, or package.module.Class", group="Optimizer")
    optimizer_args: tuple[str, ...] = option(
        (), "more for the optimizer, such as weight_decay=0.01", group="Optimizer"
    )
    ema_decay: float = option(
        0.0,
        "saves the moving mean of the steps, of this weight; 0.999",
        group="Steps",
        low=0,
        high=1,
    )
