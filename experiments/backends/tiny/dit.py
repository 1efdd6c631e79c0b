"""Class-conditional DiT pipelines with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel

from experiments.backends.dit_sampler import ChainDDIM, ClassPipeline
from experiments.backends.tiny import image_vae, random_weights

__all__ = ["TRANSFORMER", "build"]

TRANSFORMER: dict[str, dict[str, Any]] = {
    "tiny": {"sample_size": 8, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 2},
    "full": {"sample_size": 32, "num_layers": 28, "attention_head_dim": 72, "num_attention_heads": 16},
}
VAE: dict[str, dict[str, Any]] = {
    "tiny": {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    "full": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
}


def build(size: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> ClassPipeline:
    """DiT-XL/2 at size full."""
    with random_weights(dtype, device):
        transformer = DiTTransformer2DModel(
            **TRANSFORMER[size],
            patch_size=2,
            in_channels=4,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )
        vae = AutoencoderKL(**image_vae(**VAE[size], latent_channels=4, scaling_factor=0.18215))
        solver: Any = ChainDDIM()
        return ClassPipeline(transformer=transformer, vae=vae, scheduler=solver)
