"""Qwen-Image and Qwen-Image-Edit pipelines with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

from experiments.backends.tiny import random_weights, text

__all__ = ["EDIT_SIDE", "TRANSFORMER", "build", "build_edit"]

EDIT_SIDE = 32
"""Side in pixels to which the tiny editing pipelines scale their pictures; the real ones take a megapixel."""

TRANSFORMER: dict[str, dict[str, Any]] = {
    "tiny": {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (8, 4, 4),
    },
    "full": {
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 60,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
        "axes_dims_rope": (16, 56, 56),
    },
}
VAE: dict[str, dict[str, Any]] = {
    "tiny": {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2, 4],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    },
    "full": {},
}


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Shifts with the resolution and ends at 0.02."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )


def parts(size: str) -> dict[str, Any]:
    """What text to image and editing share."""
    shape, tokenizer = TRANSFORMER[size], text.qwen_tokenizer()
    return {
        "transformer": QwenImageTransformer2DModel(patch_size=2, **shape),
        "vae": AutoencoderKLQwenImage(**VAE[size]),
        "scheduler": scheduler(),
        "tokenizer": tokenizer,
        "text_encoder": text.qwen_encoder(shape["joint_attention_dim"], tokenizer),
    }


def build(size: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> QwenImagePipeline:
    """Text to image."""
    with random_weights(dtype, device):
        return QwenImagePipeline(**parts(size))


def build_edit(
    size: str, plus: bool, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> QwenImageEditPipeline | QwenImageEditPlusPipeline:
    """Editing of one image, or of several if `plus`."""
    kinds: dict[tuple[str, bool], Any] = {
        ("tiny", False): SmallEditPipeline,
        ("tiny", True): SmallEditPlusPipeline,
        ("full", False): QwenImageEditPipeline,
        ("full", True): QwenImageEditPlusPipeline,
    }
    with random_weights(dtype, device):
        found = parts(size)
        return kinds[size, plus](**found, processor=text.qwen_processor(found["tokenizer"]))


@contextmanager
def dimensions(module: ModuleType, fixed: Callable[..., tuple[Any, ...]]) -> Iterator[None]:
    """Let a pipeline's module scale pictures to fixed dimensions; a megapixel is 16 000 tokens of a tiny model."""
    original = module.calculate_dimensions  # type: ignore[attr-defined]
    module.calculate_dimensions = fixed  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.calculate_dimensions = original  # type: ignore[attr-defined]


class SmallEditPipeline(QwenImageEditPipeline):
    """The editing pipeline at 32 x 32 pixels."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's."""
        with dimensions(pipeline_qwenimage_edit, lambda area, ratio: (EDIT_SIDE, EDIT_SIDE, None)):
            return super().__call__(*args, **kwargs)


class SmallEditPlusPipeline(QwenImageEditPlusPipeline):
    """The editing pipeline of the later checkpoints at 32 x 32 pixels."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's."""
        with dimensions(pipeline_qwenimage_edit_plus, lambda area, ratio: (EDIT_SIDE, EDIT_SIDE)):
            return super().__call__(*args, **kwargs)
