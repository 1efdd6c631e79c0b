"""HunyuanVideo pipelines with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from experiments.backends.tiny import random_weights, text

__all__ = ["TEMPLATE", "TRANSFORMER", "build"]

TEMPLATE = {"template": "{}", "crop_start": 0}
"""The published template is 95 tokens of its own tokenizer; in bytes it would fill the whole text."""

TRANSFORMER: dict[str, dict[str, Any]] = {
    "tiny": {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 3,
        "num_refiner_layers": 1,
        "patch_size": 1,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    },
    "full": {
        "in_channels": 16,
        "out_channels": 16,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "num_layers": 20,
        "num_single_layers": 40,
        "num_refiner_layers": 2,
        "patch_size": 2,
        "text_embed_dim": 4096,
        "pooled_projection_dim": 768,
        "rope_axes_dim": (16, 56, 56),
    },
}
VAE: dict[str, dict[str, Any]] = {
    "tiny": {
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
    },
    "full": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16},
}


def build(size: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> HunyuanVideoPipeline:
    """Text to video."""
    shape = TRANSFORMER[size]
    with random_weights(dtype, device):
        tokenizers = {"tokenizer": text.llama_tokenizer(), "tokenizer_2": text.clip_tokenizer()}
        return HunyuanVideoPipeline(
            transformer=HunyuanVideoTransformer3DModel(
                **shape, patch_size_t=1, qk_norm="rms_norm", guidance_embeds=True, rope_theta=256.0
            ),
            vae=AutoencoderKLHunyuanVideo(
                **VAE[size],
                down_block_types=("HunyuanVideoDownBlock3D",) * 4,
                up_block_types=("HunyuanVideoUpBlock3D",) * 4,
                scaling_factor=0.476986,
                spatial_compression_ratio=8,
                temporal_compression_ratio=4,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder=text.llama_encoder(shape["text_embed_dim"]),
            text_encoder_2=text.clip_encoder(shape["pooled_projection_dim"]),
            **tokenizers,
        )
