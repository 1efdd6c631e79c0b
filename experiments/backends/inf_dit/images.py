"""Low-resolution images as the network wants them: made, cropped, enlarged, described.

Enlarging and reducing are bicubic (a = -1/2) with antialiasing, which is what torchvision does with tensors and the
release relies on. Images are float tensors `[B, 3, h, w]` in [-1, 1]; a reduced one is rounded to 8 bits, as its file
would be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["channel_statistics", "crop", "upscale", "downscale", "to_eight_bits"]


def to_eight_bits(image: Tensor) -> Tensor:
    """The nearest image in [-1, 1] that 8 bits a channel can hold."""
    return ((image + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def downscale(image: Tensor, scale: int) -> Tensor:
    """The low-resolution image of a high-resolution one whose sides are multiples of `scale`."""
    size = [side // scale for side in image.shape[-2:]]
    return to_eight_bits(F.interpolate(image, size=size, mode="bicubic", antialias=True))


def upscale(image: Tensor, scale: int) -> Tensor:
    """The image at `scale` times its size, clipped to [-1, 1]."""
    return F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=True).clamp(-1, 1)


def crop(image: Tensor, multiple: int) -> Tensor:
    """The centre of the image whose sides are the largest multiples of `multiple`; empty where it is smaller."""
    height, width = (side // multiple * multiple for side in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


def channel_statistics(image: Tensor) -> Tensor:
    """Mean and deviation of each channel, `[B, 6]`: the image vector of the small model, in place of CLIP's."""
    return torch.cat([image.mean((-2, -1)), image.std((-2, -1))], 1)
