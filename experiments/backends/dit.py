"""DiT-XL/2 on ImageNet at 256 x 256: 28 blocks, classifier-free guidance in one doubled batch, DDIM.

DiT embeds a timestep t with the cosines and sines of `10000^(-i/128) t`, i = 0..127; diffusers' class has i/127 in
the place of i/128 (`downscale_freq_shift=1`). The released weights, diffusers' copy of them too, were trained with the
former, and with `time_embedding=published` they get it: then forward and sampler are the published ones to rounding.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from experiments.backends.base import Item, Sampling
from experiments.backends.dit_sampler import ClassPipeline, scheduler
from experiments.backends.pipeline_backend import PipelineBackend
from experiments.backends.tiny import dit
from experiments.backends.weights import DTYPES, Hub
from experiments.config.backend import SOLVERS, BackendConfig, DiTConfig
from experiments.errors import ConfigError

__all__ = ["DiTBackend", "embed_time"]


class DiTBackend(PipelineBackend):
    """Items have i.i.d. classes, drawn from the run seed and the index, or cycle over `backend.classes`."""

    transformer_class = "DiTTransformer2DModel"
    solvers = SOLVERS
    doubled_by = "guidance"
    config: DiTConfig

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        embed_time(self.pipe.transformer, self.config.time_embedding or "diffusers")

    @classmethod
    def hub(cls, config: DiTConfig) -> Hub:
        return Hub(repository="facebook/DiT-XL-2-256", gigabytes=3.4, terms="CC BY-NC 4.0")

    @classmethod
    def pipeline(cls, config: DiTConfig) -> Any:
        return ClassPipeline

    def random(self) -> Any:
        return dit.build(self.config.size, DTYPES[str(self.config.dtype)], self.device)

    def pretrained(self) -> Any:
        pipe = super().pretrained()
        if self.config.vae is not None:
            options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
            pipe.vae = AutoencoderKL.from_pretrained(self.config.vae, dtype=DTYPES[str(self.config.dtype)], **options)
        return pipe

    @classmethod
    def check_weights(cls, config: Any, folder: Path) -> None:
        super().check_weights(config, folder)
        try:
            if config.vae is not None:
                AutoencoderKL.load_config(config.vae, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"backend.vae: must be the folder of a VAE, got {config.vae!r}") from error

    @classmethod
    def items(cls, config: BackendConfig, num_items: int, seed: int) -> list[Item]:
        if not isinstance(config, DiTConfig):
            raise TypeError(f"{cls.__name__} needs a DiTConfig, got {type(config).__name__}")
        found = []
        for index in range(num_items):
            drawn = random.Random(f"{seed}/{index}").randrange(1000)
            label = config.classes[index % len(config.classes)] if config.classes else drawn
            inputs = {"class_labels": label, "format": config.format}
            found.append(Item(name=f"{index:05d}", title=f"class {label}", seed=seed + index, inputs=inputs))
        return found

    def prepare(self, sampling: Sampling) -> None:
        self.pipe.scheduler = scheduler(self.config.sampler, sampling.solver or "ddim")

    def arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        channels = 3 if self.config.sampler == "official" else self.pipe.transformer.config.in_channels
        return {
            "class_labels": [item.inputs["class_labels"] for item in items],
            "guidance_scale": self.config.guidance,
            "guided_channels": channels,
        }


def embed_time(transformer: Any, kind: str) -> None:
    """Set the frequencies of a `DiTTransformer2DModel`'s time embedding: `published` or `diffusers`."""
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = int(kind == "diffusers")
