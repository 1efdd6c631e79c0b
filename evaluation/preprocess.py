"""From 8-bit pictures to the inputs of CLIP-like networks, with Pillow's antialiased bicubic.

`x = (resize(image) / 255 - mean) / std` per channel with CLIP's mean and std. `centre_crop` brings the
short side to the network's size and cuts the middle (OpenAI CLIP, ImageReward, PickScore); `pad` brings the
long side to it and fills with black (HPSv2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation.fidelity import to_u8

__all__ = ["CLIP_MEAN", "CLIP_STD", "centre_crop", "clip_inputs", "pad"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Short side to `size`, the long side truncated to whole pixels, then the middle square."""
    width, height = image.size
    short = min(width, height)
    new = (size * width // short, size * height // short)
    resized = image if short == size else image.resize(new, Image.Resampling.BICUBIC)
    left, top = (round((extent - size) / 2) for extent in resized.size)
    return resized.crop((left, top, left + size, top + size))


def pad(image: Image.Image, size: int) -> Image.Image:
    """Long side to `size`, centred on a black square."""
    width, height = image.size
    scale = size / max(width, height)
    new = (round(width * scale), round(height * scale))
    resized = image if scale == 1 else image.resize(new, Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(resized, ((size - new[0]) // 2, (size - new[1]) // 2))
    return canvas


def clip_inputs(
    images: Tensor,
    size: int,
    fit: Callable[[Image.Image, int], Image.Image] = centre_crop,
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
) -> Tensor:
    """Network inputs `[B, 3, size, size]` of [0, 1] images, on their device."""
    arrays = [np.asarray(fit(Image.fromarray(image), size)) for image in _arrays(images)]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    shift, scale = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    return ((pixels - shift) / scale).to(images.device)


def _arrays(images: Tensor) -> np.ndarray:
    return to_u8(images).permute(0, 2, 3, 1).cpu().numpy()
