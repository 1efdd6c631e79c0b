"""A diffusers pipeline for a class-conditional DiT in pixel space: no VAE, one doubled batch per step.

The counterpart of diffusers' `DiTPipeline` with three differences: the samples are pixels, the null class is
the last row of the label table, and the initial noise can be given per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    ImagePipelineOutput,
    UniPCMultistepScheduler,
)
from torch import Tensor

from experiments.backends.digits.data import NULL_CLASS

__all__ = ["SCHEDULERS", "PixelDiTPipeline", "scheduler"]

TRAINING = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    # "trailing" starts at t=999, pure noise, as the official DiT sampler does, and each step ends where the
    # next one begins (999, 979, ..., 19, clean), which "linspace" does not do in diffusers' DDIM. "leading"
    # starts at t=980, or at 875 with 8 steps, where the model expects a trace of the image.
    "timestep_spacing": "trailing",
}
SCHEDULERS: dict[str, Any] = {
    "ddim": lambda: DDIMScheduler(**TRAINING, clip_sample=False),
    "dpmpp": lambda: DPMSolverMultistepScheduler(**TRAINING, solver_order=2, algorithm_type="dpmsolver++"),
    "unipc": lambda: UniPCMultistepScheduler(**TRAINING, solver_order=2),
}


def scheduler(name: str) -> Any:
    """A fresh solver; all three see the same training schedule and spacing."""
    return SCHEDULERS[name]()


class PixelDiTPipeline(DiffusionPipeline):
    """`pipe(class_labels=[3, 7]).images`: float tensor `[B, 1, 16, 16]` in [0, 1], or PIL images."""

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: DiTTransformer2DModel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.5,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate one image per label; `latents` is the initial noise `[B, 1, 16, 16]`."""
        device, batch = self._execution_device, len(class_labels)
        guided = guidance_scale > 1
        labels = torch.tensor(list(class_labels), device=device)
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, NULL_CLASS)])
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        sample = self._noise(batch, generator, latents) * self.scheduler.init_noise_sigma
        bar: Any = self.progress_bar
        for t in bar(self.scheduler.timesteps):
            model_input = self.scheduler.scale_model_input(torch.cat([sample, sample]) if guided else sample, t)
            timestep = t.to(device).expand(len(model_input))
            predicted = self.transformer(model_input, timestep=timestep, class_labels=labels, return_dict=False)[0]
            if guided:
                conditional, unconditional = predicted.chunk(2)
                predicted = unconditional + guidance_scale * (conditional - unconditional)
            sample = self.scheduler.step(predicted, t, sample, return_dict=False)[0]
        images: Any = (sample / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _noise(
        self, batch: int, generator: torch.Generator | list[torch.Generator] | None, latents: Tensor | None
    ) -> Tensor:
        """The given noise, or noise drawn image by image from its generator."""
        config, dtype = self.transformer.config, self.transformer.dtype
        shape = (config.in_channels, config.sample_size, config.sample_size)
        if latents is None:
            generators = generator if isinstance(generator, list) else [generator] * batch
            draws = [torch.randn(shape, generator=g, device=g.device if g else "cpu") for g in generators]
            latents = torch.stack(draws)
        if latents.shape != (batch, *shape):
            raise ValueError(f"latents: must have shape {(batch, *shape)}, got {tuple(latents.shape)}")
        return latents.to(self._execution_device, dtype)
