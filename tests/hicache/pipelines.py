"""Tiny random pipelines of the real classes, whose gates and modulations matter, with fixed calls."""

import functools

import torch
from PIL import Image

import hicache

SIZE = {"height": 32, "width": 32, "output_type": "latent"}
FLUX = {**SIZE, "max_sequence_length": 16}
PICTURE = Image.new("RGB", (32, 32), "red")


def lively(module, seed=0):
    """Random vectors in the place of zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipe


def flux():
    """A FluxPipeline with guidance embedded."""
    from experiments.backends.tiny.flux import build

    pipe = quiet(build("tiny", True))
    lively(pipe.transformer)
    return pipe


def wan(models=2):
    """A WanPipeline of two transformers, of which the second makes the late steps."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    def transformer(seed):
        torch.manual_seed(seed)
        model = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=32, freq_dim=256, ffn_dim=32, num_layers=3, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )  # fmt: skip
        return lively(model, seed)

    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return quiet(
        WanPipeline(
            tokenizer=None, text_encoder=None, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            transformer=transformer(0), transformer_2=transformer(1) if models > 1 else None,
            boundary_ratio=0.875 if models > 1 else None, expand_timesteps=models == 1,
        )
    )  # fmt: skip


def skyreels():
    """A pipeline of diffusion forcing, whose scheduler is copied for every latent frame."""
    from diffusers import (
        AutoencoderKLWan,
        SkyReelsV2DiffusionForcingPipeline,
        SkyReelsV2Transformer3DModel,
        UniPCMultistepScheduler,
    )

    torch.manual_seed(0)
    model = SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32, inject_sample_info=False,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction")
    return quiet(
        SkyReelsV2DiffusionForcingPipeline(
            tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=lively(model)
        )
    )


@functools.cache
def embeddings():
    return torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))


def run(pipe, steps=8, seed=0, **kwargs):
    """Latents of one generation."""
    if type(pipe).__name__.startswith(("Wan", "SkyReels")):
        kwargs = {"prompt_embeds": embeddings(), "negative_prompt_embeds": -embeddings(), "num_frames": 9, **kwargs}
        kwargs = {"prompt": None, "height": 16, "width": 16, "output_type": "latent", **kwargs}
    else:
        kwargs = {"prompt": "a cat", **FLUX, **kwargs}
    result = pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), **kwargs)
    return result.frames if hasattr(result, "frames") else result.images


def method(name="hicache", **knobs):
    """A method with small numbers for what it reads."""
    common = {"interval": 3, "order": 2, "sigma": 0.6, "warmup_steps": 2}
    read = hicache.reads(name)
    return hicache.method(name, **{**{key: value for key, value in common.items() if key in read}, **knobs})
