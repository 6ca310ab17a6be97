"""What sd-scripts calls its arguments: those that are options here under another name or default,
those that matter to its own program alone, and those that cannot be followed, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extensions_lib.datasets.options import SD_SCRIPTS_DEFAULTS

# What train_network.py takes for arguments that are not named, where that differs from here.
DEFAULTS: Mapping[str, Any] = {
    **SD_SCRIPTS_DEFAULTS,
    "max_train_steps": 1600,
    "learning_rate": 2e-6,
    "network_dim": 4,
    "network_alpha": 1.0,
    "lr_scheduler": "constant",
    "save_precision": "float",
    "max_token_length": 75,
    "sample_at_first": False,
    "output_name": "last",
}
# Other names of options.
RENAMED: Mapping[str, str] = {
    "caption_extention": "caption_extension",
    "dataset_repeats": "num_repeats",
    "weights": "network_weights",
}
# What concerns how their program runs, and nothing of what is learnt. The last lines are what
# kohya_ss and LoRA_Easy_Training_Scripts write for themselves.
NO_MATTER = frozenset(
    """
    xformers sdpa mem_eff_attn max_data_loader_n_workers persistent_data_loader_workers lowram
    highvram no_half_vae output_dir log_prefix log_tracker_name log_tracker_config
    log_config wandb_run_name wandb_api_key console_log_level console_log_file console_log_simple
    save_state save_state_on_train_end save_state_to_huggingface torch_compile dynamo_backend
    ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph full_fp16 full_bf16 fp8_base
    fp8_base_unet config_file skip_cache_check cache_info debug_dataset dim_from_weights
    tokenizer_cache_dir disable_mmap_load_safetensors save_last_n_epochs_state
    save_last_n_steps_state initial_epoch initial_step diffusers_xformers use_safetensors
    fused_backward_pass fused_optimizer_groups cpu_offload_checkpointing text_encoder_batch_size
    huggingface_repo_type huggingface_path_in_repo huggingface_token huggingface_repo_visibility
    async_upload zero_stage offload_optimizer_device offload_optimizer_nvme_path
    offload_param_device offload_param_nvme_path zero3_init_flag zero3_save_16bit_model
    fp16_master_weights_and_gradients metadata_thumbnail metadata_merged_from
    metadata_preprocessor metadata_is_negative_embedding
    epoch noise_offset_type sdxl tag_occurrence tag_file_location save_toml save_toml_location
    easy_name
    """.split()  # noqa: SIM905
)
# What only the programs that train checkpoints take.
OF_CHECKPOINTS = frozenset(
    ["train_text_encoder", "learning_rate_te", "learning_rate_te1", "learning_rate_te2", "block_lr"]
)
# What is taken from the checkpoint that is loaded.
OF_THE_CHECKPOINT = frozenset(["v2", "v_parameterization", "zero_terminal_snr"])
# Arguments whose 0 means that they are not used, beside those that may be none.
OFF_AT_0 = frozenset(["clip_skip", "max_timestep", "vae_batch_size"])

_TEMPLATES = "write captions instead, with {a|b} in them and enable_wildcard"
_MERGED = "no network is merged before training; bake it into a checkpoint, and train on that"
REFUSED: Mapping[str, str] = {
    "vae": "training uses the VAE of the checkpoint that is loaded; leave it out, or in a WebUI"
    " choose it there",
    "resume": "their states cannot be read; name the network as network_weights instead",
    "resume_from_huggingface": "their states cannot be read; name the network as network_weights"
    " instead",
    "base_weights": _MERGED,
    "base_weights_multiplier": _MERGED,
    "in_json": "name the file as metadata_file in a dataset_config",
    "dataset_class": "pictures are those of train_data_dir or dataset_config",
    "huggingface_repo_id": "nothing is uploaded from here; leave it out, and upload the file after",
    "deepspeed": "several processes are begun by accelerate launch or torchrun, without it",
    "output_config": "it trains nothing in their program either; leave it out",
    "skip_until_initial_step": "a run of here goes on from its own state; leave it out",
    "no_token_padding": "prompts are padded as they are in generation",
    "use_object_template": _TEMPLATES,
    "use_style_template": _TEMPLATES,
    "train_inpainting": "inpainting is not trained here",
}
