"""The embedded default: a DiT on handwritten digits, made for two CPU cores and shipped with the code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation import decoders
from experiments.backends.base import Backend, Item, Sampling, item_seed
from experiments.backends.digits.data import CLASSES
from experiments.backends.weights import check_whole
from experiments.config.backend import BackendConfig, DigitsConfig
from experiments.errors import check
from experiments.files import ASSETS

__all__ = ["DigitsBackend", "folder_of"]

WEIGHTS_FOLDER = ASSETS / "digits"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def folder_of(config: BackendConfig) -> Path:
    """Where the weights are."""
    return Path(config.path) if config.path else WEIGHTS_FOLDER


class DigitsBackend(Backend):
    """Items cycle over the ten classes; noise is drawn on the CPU, so that it is the same on every device."""

    media: ClassVar[Literal["image", "video"]] = "image"
    side: ClassVar[int | None] = 16
    transformer_class = "DiTTransformer2DModel"
    doubled_by = "guidance"
    config: DigitsConfig

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        from diffusers import DiTTransformer2DModel  # late, as the pipeline: who reads finished runs needs no diffusers

        from experiments.backends.digits.pipeline import PixelDiTPipeline, scheduler

        # The weights are stored in bfloat16 to keep the repository small and computed with in float32.
        transformer = DiTTransformer2DModel.from_pretrained(
            folder_of(config) / "transformer", dtype=torch.float32, use_safetensors=True
        )
        self.pipe = PixelDiTPipeline(transformer.eval().requires_grad_(False), scheduler("ddim"))
        self.pipe.to(self.device)
        self.pipe.set_progress_bar_config(disable=True)

    @classmethod
    def check(cls, config: BackendConfig) -> None:
        """The weights must be there and be those that `backend.revision`, a part of the identity, names."""
        weights = folder_of(config) / "transformer" / WEIGHTS
        rule = f"must be a folder with transformer/{WEIGHTS}"
        check(weights.is_file(), "backend.path", rule, str(folder_of(config)))
        check_whole(weights, folder_of(config) / "classifier.safetensors")
        if config.path is None:
            found = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
            rule = f"must be that of the shipped weights ({found})"
            check(found == config.revision, "backend.revision", rule, config.revision)

    @classmethod
    def items(cls, config: BackendConfig, num_items: int, seed: int) -> list[Item]:
        """Item i has class i mod 10."""
        names = [f"{index:05d}" for index in range(num_items)]
        return [
            Item(
                name=name,
                title=str(index % CLASSES),
                seed=item_seed(seed, name),
                inputs={"class_labels": index % CLASSES},
            )
            for index, name in enumerate(names)
        ]

    def prepare(self, sampling: Sampling) -> None:
        from experiments.backends.digits.pipeline import scheduler

        self.pipe.scheduler = scheduler(sampling.solver or self.config.solver)

    def generate(self, items: Sequence[Item], sampling: Sampling) -> list[Tensor]:
        output = self.pipe(
            class_labels=[item.inputs["class_labels"] for item in items],
            guidance_scale=self.config.guidance,
            num_inference_steps=sampling.num_steps,
            generator=[torch.Generator().manual_seed(item.seed) for item in items],
            output_type="pt",
        )
        return list(output.images.float().cpu())

    @classmethod
    def save(cls, media: Tensor, folder: Path, item: Item) -> list[Path]:
        """A PNG to look at and the float32 pixels that the metrics read."""
        picture, pixels = folder / f"{item.name}.png", folder / f"{item.name}.npy"
        Image.fromarray((media[0] * 255).round().byte().numpy()).save(picture)
        np.save(pixels, media.numpy(), allow_pickle=False)
        return [picture, pixels]

    @classmethod
    def load_media(cls, folder: Path, item: Item) -> Tensor:
        return torch.from_numpy(decoders.read_array(folder / f"{item.name}.npy"))
