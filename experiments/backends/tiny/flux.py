"""FLUX.1 pipelines with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from experiments.backends.tiny import image_vae, random_weights, text

__all__ = ["TRANSFORMER", "build", "scheduler"]

TRANSFORMER: dict[str, dict[str, Any]] = {
    "tiny": {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    },
    "full": {
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": (16, 56, 56),
    },
}
VAE: dict[str, dict[str, Any]] = {
    "tiny": {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4},
    "full": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16},
}


def scheduler(guided: bool) -> FlowMatchEulerDiscreteScheduler:
    """dev shifts its time steps with the resolution, schnell does not."""
    if not guided:
        return FlowMatchEulerDiscreteScheduler(shift=1.0)
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def build(size: str, guided: bool, dtype: torch.dtype = torch.float32, device: str = "cpu") -> FluxPipeline:
    """FLUX.1 [dev] if `guided`, else [schnell]."""
    shape, vae = TRANSFORMER[size], VAE[size]
    with random_weights(dtype, device):
        return FluxPipeline(
            scheduler=scheduler(guided),
            transformer=FluxTransformer2DModel(patch_size=1, guidance_embeds=guided, **shape),
            vae=AutoencoderKL(
                **image_vae(**vae),
                use_quant_conv=False,
                use_post_quant_conv=False,
                scaling_factor=0.3611,
                shift_factor=0.1159,
            ),
            text_encoder=text.clip_encoder(shape["pooled_projection_dim"]),
            tokenizer=text.clip_tokenizer(),
            text_encoder_2=text.t5_encoder(shape["joint_attention_dim"]),
            tokenizer_2=text.t5_tokenizer(),
        )
