r"""Super-resolution with Inf-DiT: `pipe(low, num_inference_steps=39).images`.

One run goes over the whole image, or over independent patches of it (`patch`), each through all calls by itself, as the
paper's "patch-based" does: a fraction of the memory, and every patch is a generation for a cache. Patches start from
crops of one noise and are blended where they overlap, with weights that rise linearly over the overlap:

    x = sum_p w_p x_p / sum_p w_p,      w_p(i, j) = min(i + 1, P - i, o) min(j + 1, P - j, o).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from experiments.backends.inf_dit.edm import EDMScheduler, Preconditioning
from experiments.backends.inf_dit.images import downscale, upscale
from experiments.backends.inf_dit.model import InfDiTTransformer2DModel

__all__ = ["InfDiTPipeline", "corners"]


def corners(side: int, patch: int, overlap: int) -> list[int]:
    """Where patches of one side begin: `patch - overlap` apart, the last one at the end."""
    return [*range(0, side - patch, patch - overlap), side - patch]


def ramp(patch: int, overlap: int) -> Tensor:
    """The weights `[P, P]` of a patch."""
    place = torch.arange(patch)
    rise = torch.minimum(torch.minimum(place + 1, patch - place), torch.tensor(max(overlap, 1))).float()
    return rise[:, None] * rise


class InfDiTPipeline(DiffusionPipeline):
    """Network, sampler, and what makes the image vector."""

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: InfDiTTransformer2DModel, scheduler: EDMScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.preconditioning = Preconditioning()
        self.vector: Callable[[Tensor], Tensor] = self.no_vector

    def no_vector(self, image: Tensor) -> Tensor:
        """Vectors of equal entries, for weights that were not trained."""
        size = self.transformer.config.vector_size
        return torch.full((image.shape[0], size), size**-0.5, device=image.device)

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        scale: int = 4,
        num_inference_steps: int = 39,
        generator: torch.Generator | list[torch.Generator] | None = None,
        patch: int | None = None,
        overlap: int = 0,
        noise_scale: float = 1.0,
        state_dtype: torch.dtype = torch.float32,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Enlarge images.

        Args:
            image: low-resolution images `[B, 3, h, w]` in [-1, 1].
            scale: factor of enlargement; the network sees the image at a quarter of the result's size.
            num_inference_steps: model calls: 39 are 20 steps of Heun.
            generator: one, or one per image.
            patch: pixels on a side of independent patches; None = the whole image.
            overlap: pixels that neighbouring patches share.
            noise_scale: of the initial noise; 1 draws from what the network has learned, less comes nearer its mean.
            state_dtype: of the image between the calls.
            output_type: pil, np or pt (`[B, 3, H, W]` in [0, 1]).
            return_dict: whether to return an output with `images`, else a tuple.
        """
        device = self._execution_device
        image = image.to(device)
        own = self.transformer.config.scale
        low = image if scale == own else downscale(image, own // scale)
        up = upscale(image, scale)
        noise = noise_scale * draw_noise(up.shape, generator).to(device)
        if patch is None:
            found = self.run(low, up, noise, self.vector(low), num_inference_steps, state_dtype)
        else:
            found = self.blend_patches(low, up, noise, num_inference_steps, state_dtype, patch, overlap)
        if not self.scheduler.by_step:  # the second stage has a call less than steps, which would be an early end
            self.maybe_free_model_hooks()
        images: Any = (found.float() / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def blend_patches(
        self, low: Tensor, up: Tensor, noise: Tensor, calls: int, dtype: torch.dtype, patch: int, overlap: int
    ) -> Tensor:
        """The blend of independent patches; they share the image's vector."""
        vector, factor = self.vector(low), self.transformer.config.scale
        total, weights = torch.zeros_like(up), torch.zeros_like(up[:1, :1])
        weight = ramp(patch, overlap).to(up)
        sides = (corners(side, min(patch, side), overlap) for side in up.shape[-2:])
        for top, left in itertools.product(*sides):
            here = (..., slice(top, top + patch), slice(left, left + patch))
            there = tuple(slice(start // factor, (start + patch) // factor) for start in (top, left))
            found = self.run(low[(..., *there)], up[here], noise[here], vector, calls, dtype).to(up)
            height, width = found.shape[-2:]
            total[here] += found * weight[:height, :width]
            weights[here] += weight[:height, :width]
        return total / weights

    def run(self, low: Tensor, up: Tensor, noise: Tensor, vector: Tensor, calls: int, dtype: torch.dtype) -> Tensor:
        """One sampling in `[-1, 1]`."""
        scheduler, edm, model = self.scheduler, self.preconditioning, self.transformer
        scheduler.set_timesteps(calls)
        network = model.dtype
        condition = vector.to(network), low.to(network)
        up = up.to(dtype)
        bar: Any = self.progress_bar
        progress = bar(total=calls)

        def denoise(x: Tensor, sigma: Tensor, stage: int) -> Tensor:
            level = (sigma.float().log() / 4).expand(len(x))
            inputs = edm.inputs(x, sigma, up).to(network)
            with model.cache_context(f"stage {stage}") if scheduler.by_step else nullcontext():
                predicted = model(inputs, level, *condition, return_dict=False)[0]
            progress.update()
            return edm.denoise(predicted.to(dtype), x, sigma, up)

        with progress:
            return scheduler.sample(denoise, up + noise.to(dtype) * scheduler.sigmas[0].to(dtype))


def draw_noise(shape: torch.Size, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Noise on the CPU, image by image where there are several generators."""
    if isinstance(generator, list):
        return torch.stack([torch.randn(shape[1:], generator=one) for one in generator])
    return torch.randn(shape, generator=generator)
