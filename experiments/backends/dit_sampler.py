r"""The sampler behind DiT's published numbers, around the classes of diffusers' `DiTPipeline`.

- Time steps are respaced over the whole range: `t_i = round(i 999 / (T - 1))`, so 50 steps are 0, 20, 41, ..., 999.
- DDIM along that chain, eta 0, nothing clipped:

      x_0 = (x - sqrt(1 - a_t) eps) / sqrt(a_t),      x' = sqrt(a') x_0 + sqrt(1 - a') eps

  with `a'` the cumulative alpha of the next step *of the chain*, and 1 after the last. diffusers' `DDIMScheduler`
  takes `a'` at `t - 1000 // T`, which is another time step where the spacing is not even.
- Guidance moves the first 3 of the 4 latent channels only; the fourth is the conditional prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    ConfigMixin,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    ImagePipelineOutput,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

__all__ = ["ChainDDIM", "ClassPipeline", "scheduler"]

TRAINING: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


class ChainDDIM(SchedulerMixin, ConfigMixin):
    """Deterministic DDIM over an evenly respaced chain; see the module docstring."""

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the chain; it stays on the CPU, so that reading a time step waits for no GPU."""
        del device
        last = len(self.alphas_cumprod) - 1
        gaps = max(num_inference_steps - 1, 1)
        chain = [round(i * last / gaps) for i in range(num_inference_steps)]
        self.timesteps = torch.tensor(chain[::-1])
        alphas = [float(self.alphas_cumprod[t]) for t in chain]
        self._alphas = dict(zip(chain, zip(alphas, [1.0, *alphas[:-1]], strict=True), strict=True))

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The model sees the sample as it is."""
        del timestep
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """One step of the chain."""
        del return_dict
        here, there = self._alphas[int(timestep)]
        clean = (sample - (1 - here) ** 0.5 * model_output) / here**0.5
        return (there**0.5 * clean + (1 - there) ** 0.5 * model_output,)


def scheduler(sampler: str, solver: str) -> Any:
    """A fresh solver; the multistep solvers are diffusers', evenly spaced from 999 down."""
    if solver == "ddim":
        return ChainDDIM() if sampler == "official" else DDIMScheduler(**TRAINING, clip_sample=False)
    spaced = TRAINING | {"timestep_spacing": "linspace", "solver_order": 2}
    if solver == "dpmpp":
        return DPMSolverMultistepScheduler(**spaced, algorithm_type="dpmsolver++")
    return UniPCMultistepScheduler(**spaced)


class ClassPipeline(DiTPipeline):
    """`DiTPipeline` with a choice of the guided channels."""

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.5,
        guided_channels: int = 3,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate one image per label; the fields are those of `DiTPipeline`, with `guided_channels` added."""
        device, config = self._execution_device, self.transformer.config
        guided, channels = guidance_scale > 1, config.in_channels
        labels = torch.tensor(list(class_labels), device=device)
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, config.num_embeds_ada_norm)])
        shape = (len(class_labels), channels, config.sample_size, config.sample_size)
        dtype = self.transformer.dtype
        sample = randn_tensor(shape, generator=generator, device=device, dtype=dtype).float()
        self.scheduler.set_timesteps(num_inference_steps)
        bar: Any = self.progress_bar
        for t in bar(self.scheduler.timesteps):
            pair = self.scheduler.scale_model_input(torch.cat([sample, sample]) if guided else sample, t)
            timestep = t.to(device).expand(len(pair))
            predicted = self.transformer(pair.to(dtype), timestep=timestep, class_labels=labels, return_dict=False)[0]
            noise = predicted[:, :channels].float()  # the other half is the learned variance, which DDIM has no use for
            if guided:
                noise = guide(*noise.chunk(2), guidance_scale, guided_channels)
            sample = self.scheduler.step(noise, t, sample, return_dict=False)[0]
        latents = (sample / self.vae.config.scaling_factor).to(self.vae.dtype)
        images: Any = self.vae.decode(latents).sample
        images = (images / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def guide(conditional: Tensor, unconditional: Tensor, scale: float, channels: int) -> Tensor:
    """Classifier-free guidance of the first `channels`."""
    moved = unconditional[:, :channels] + scale * (conditional[:, :channels] - unconditional[:, :channels])
    return torch.cat([moved, conditional[:, channels:]], dim=1)
