"""A diffusers pipeline around `FluxTransformer2DModel` for 32x32 pictures: no VAE, guidance by dropped captions.

What is FLUX's own: the transformer, packing of 2x2 patches, the position ids, flow matching with Euler steps, and the
shift of the noise levels by the number of tokens. What is not: the "VAE" is a lossless pixel-unshuffle, so a token is a
4x4 patch of pixels, and guidance doubles the batch of one call,

    v = v_0 + g (v_c - v_0)          v_0 for the empty caption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    ImagePipelineOutput,
)
from torch import Tensor

from experiments.backends.emoji.captions import SIZE
from experiments.backends.emoji.text_encoder import TextEncoder, encode

__all__ = ["TOKENS", "EmojiPipeline", "pack", "predict", "scheduler", "shift", "unpack"]

PATCH = 4
CHANNELS = 3 * PATCH * PATCH
TOKENS = (SIZE // PATCH) ** 2
FLOW: dict[str, Any] = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""FLUX.1 [dev]'s scheduler."""


def pack(images: Tensor) -> Tensor:
    """`[B, 3, 32, 32]` to `[B, 64, 48]`: a token is a patch of 4x4 pixels."""
    return F.pixel_unshuffle(images, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor) -> Tensor:
    """`[B, 64, 48]` to `[B, 3, 32, 32]`, the inverse of `pack`."""
    side = SIZE // PATCH
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), PATCH)


def shift(tokens: int = TOKENS) -> float:
    """FLUX's mu: linear in the number of tokens; noise levels become e^mu s / (1 + (e^mu - 1) s)."""
    slope = (FLOW["max_shift"] - FLOW["base_shift"]) / (FLOW["max_image_seq_len"] - FLOW["base_image_seq_len"])
    return FLOW["base_shift"] + slope * (tokens - FLOW["base_image_seq_len"])


def shift_levels(levels: Tensor) -> Tensor:
    """Noise levels in [0, 1] under FLUX's shift."""
    ratio = math.exp(shift())
    return ratio * levels / (1 + (ratio - 1) * levels)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Flow matching with Euler steps."""
    return FlowMatchEulerDiscreteScheduler(**FLOW)


def positions() -> Tensor:
    """Position ids `[64, 3]` of the image tokens: nothing, row, column."""
    side = SIZE // PATCH
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()


def predict(transformer: FluxTransformer2DModel, hidden: Tensor, levels: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
    """Velocity `[B, 64, 48]` of the packed pictures at noise levels `[B]`; `text` is the text encoder's output."""
    sequence, pooled = text
    return transformer(
        hidden_states=hidden,
        timestep=levels,
        encoder_hidden_states=sequence,
        pooled_projections=pooled,
        img_ids=positions().to(hidden.device),
        txt_ids=torch.zeros(sequence.shape[1], 3, device=hidden.device),
        return_dict=False,
    )[0]


class EmojiPipeline(DiffusionPipeline):
    """`pipe(["flat fox on blue"]).images`: float tensor `[B, 3, 32, 32]` in [0, 1], or PIL images."""

    model_cpu_offload_seq = "text_encoder->transformer"

    def __init__(self, transformer: FluxTransformer2DModel, text_encoder: TextEncoder, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, text_encoder=text_encoder, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        guidance_scale: float = 2.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate a picture per prompt; `latents` is the initial noise `[B, 3, 32, 32]`."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        guided = guidance_scale > 1
        device = self._execution_device
        tokens = encode([*prompts, *[""] * len(prompts)] if guided else prompts).to(device)
        text = self.text_encoder(tokens)
        sample = pack(self._noise(len(prompts), generator, latents))
        sigmas: Any = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=shift(), device=device)
        bar: Any = self.progress_bar
        for t in bar(self.scheduler.timesteps):
            hidden = torch.cat([sample, sample]) if guided else sample
            velocity = predict(self.transformer, hidden, (t / 1000).expand(len(hidden)).to(hidden.dtype), text)
            if guided:
                conditional, unconditional = velocity.chunk(2)
                velocity = unconditional + guidance_scale * (conditional - unconditional)
            sample = self.scheduler.step(velocity, t, sample, return_dict=False)[0]
        images: Any = (unpack(sample) / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _noise(
        self, batch: int, generator: torch.Generator | list[torch.Generator] | None, latents: Tensor | None
    ) -> Tensor:
        """The given noise, or noise drawn picture by picture from its generator."""
        shape = (3, SIZE, SIZE)
        if latents is None:
            generators = generator if isinstance(generator, list) else [generator] * batch
            draws = [torch.randn(shape, generator=g, device=g.device if g else "cpu") for g in generators]
            latents = torch.stack(draws)
        if latents.shape != (batch, *shape):
            raise ValueError(f"latents: must have shape {(batch, *shape)}, got {tuple(latents.shape)}")
        return latents.to(self._execution_device, self.transformer.dtype)
