"""The second embedded model: text to image with FLUX's architecture, shipped with the code and run on a CPU core."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from evaluation import decoders
from experiments.backends.base import Backend, Item, Sampling, item_seed
from experiments.backends.emoji.captions import SIZE, random_scene
from experiments.backends.emoji.pipeline import EmojiPipeline, scheduler
from experiments.backends.emoji.text_encoder import LENGTH, TextEncoder, read_words
from experiments.backends.weights import check_whole
from experiments.config.backend import BackendConfig, EmojiConfig
from experiments.errors import check
from experiments.files import ASSETS

__all__ = ["EmojiBackend", "digest", "folder_of", "prompts_of"]

WEIGHTS_FOLDER = ASSETS / "emoji"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = ("transformer", "text_encoder")
CAPTION_SEED = 20
PIXELS = 16
"""Pixels that FLUX's adapter counts per side of a token."""


def folder_of(config: BackendConfig) -> Path:
    """Where the weights are."""
    return Path(config.path) if config.path else WEIGHTS_FOLDER


def digest(folder: Path) -> str:
    """Twelve hexadecimal digits of the weights of both parts."""
    found = hashlib.sha256()
    for part in PARTS:
        found.update((folder / part / WEIGHTS).read_bytes())
    return found.hexdigest()[:12]


def prompts_of(config: EmojiConfig, num_items: int, seed: int) -> list[str]:
    """The first prompts of the file, or captions of scenes that were not trained on, other ones for every seed."""
    if config.prompts is None:
        rngs = (np.random.default_rng([CAPTION_SEED, seed, index]) for index in range(num_items))
        return [random_scene(rng, held=True).caption for rng in rngs]
    texts = [prompt.text for prompt in config.read()]
    check(num_items <= len(texts), "num_items", f"must be at most the {len(texts)} prompts", num_items)
    return texts[:num_items]


@functools.cache
def notice(prompt: str) -> None:
    """Say once what of a prompt the model does not see."""
    reading = read_words(prompt)
    lines = []
    if reading.unknown:
        lines.append(f"unknown words are left out: {', '.join(reading.unknown)}")
    if reading.cut:
        lines.append(f"only the first {LENGTH} known words are read, without: {' '.join(reading.cut)}")
    for line in lines:
        print(f"prompt {prompt!r}: {line}", file=sys.stderr, flush=True)


class EmojiBackend(Backend):
    """Items are captions; noise is drawn on the CPU, so that it is the same on every device."""

    media: ClassVar[Literal["image", "video"]] = "image"
    transformer_class = "FluxTransformer2DModel"
    solvers: ClassVar[tuple[str, ...]] = ()
    doubled_by = "guidance"
    config: EmojiConfig

    def __init__(self, config: BackendConfig) -> None:
        super().__init__(config)
        # The weights are stored in bfloat16 to keep the repository small and computed with in float32.
        folder, options = folder_of(config), {"dtype": torch.float32}
        transformer: Any = FluxTransformer2DModel.from_pretrained(folder / "transformer", **options)
        text: Any = TextEncoder.from_pretrained(folder / "text_encoder", **options)
        for part in (transformer, text):
            part.eval().requires_grad_(False)
        self.pipe = EmojiPipeline(transformer, text, scheduler())
        self.pipe.to(self.device)
        self.pipe.set_progress_bar_config(disable=True)

    @classmethod
    def check(cls, config: BackendConfig) -> None:
        """The weights must be there and be those that `backend.revision`, a part of the identity, names."""
        folder = folder_of(config)
        there = all((folder / part / WEIGHTS).is_file() for part in PARTS)
        rule = f"must be a folder with {' and '.join(f'{part}/{WEIGHTS}' for part in PARTS)}"
        check(there, "backend.path", rule, str(folder))
        check_whole(*(folder / part / WEIGHTS for part in PARTS))
        if config.path is None:
            found = digest(folder)
            rule = f"must be that of the shipped weights ({found})"
            check(found == config.revision, "backend.revision", rule, config.revision)

    @classmethod
    def skeleton(cls, config: BackendConfig) -> FluxTransformer2DModel:
        """The transformer as its folder describes it; made on the meta device, it has no values."""
        described: Any = FluxTransformer2DModel.load_config(str(folder_of(config) / "transformer"))
        model: Any = FluxTransformer2DModel.from_config(described)
        return model

    @classmethod
    def items(cls, config: BackendConfig, num_items: int, seed: int) -> list[Item]:
        """Item i has prompt i and noise of its own."""
        assert isinstance(config, EmojiConfig)
        names = [f"{index:05d}" for index in range(num_items)]
        return [
            Item(name=name, title=prompt, seed=item_seed(seed, name), inputs={"prompt": prompt})
            for name, prompt in zip(names, prompts_of(config, num_items, seed), strict=True)
        ]

    def prepare(self, sampling: Sampling) -> None:
        del sampling  # there is one solver
        self.pipe.scheduler = scheduler()

    def generate(self, items: Sequence[Item], sampling: Sampling) -> list[Tensor]:
        prompts = [item.inputs["prompt"] for item in items]
        for prompt in prompts:
            notice(prompt)
        output = self.pipe(
            prompts,
            guidance_scale=self.config.guidance,
            num_inference_steps=sampling.num_steps,
            generator=[torch.Generator().manual_seed(item.seed) for item in items],
            output_type="pt",
        )
        return list(output.images.float().cpu())

    def shape(self) -> dict[str, int]:
        side = SIZE // 4 * PIXELS
        return {"height": side, "width": side, "text": LENGTH}

    @classmethod
    def save(cls, media: Tensor, folder: Path, item: Item) -> list[Path]:
        """A PNG to look at and the float32 pixels that the metrics read."""
        picture, pixels = folder / f"{item.name}.png", folder / f"{item.name}.npy"
        Image.fromarray((media.permute(1, 2, 0) * 255).round().byte().numpy()).save(picture)
        np.save(pixels, media.numpy(), allow_pickle=False)
        return [picture, pixels]

    @classmethod
    def load_media(cls, folder: Path, item: Item) -> Tensor:
        return torch.from_numpy(decoders.read_array(folder / f"{item.name}.npy"))
