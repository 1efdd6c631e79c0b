"""Fidelity to ground truth after super-resolution, with the NTIRE restoration track's protocol.

`psnr_y` and `ssim_y` compare the luma of 8-bit RGB pictures without a border of `crop` pixels (the scale
factor, 4): `Y = (65.481 R + 128.553 G + 24.966 B) / 255 + 16` (BT.601, R, G, B in 0..255), on the scale
0..255, not rounded. SSIM uses the 11x11 Gaussian window on the interior. `psnr_rgb`, `ssim_rgb` do the same
on the three channels. In a run they and `lpips_truth` compare with the high-resolution image; the names with
`_uncached` compare with the un-cached result of the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from evaluation.fidelity import Lpips, psnr, ssim, to_u8
from evaluation.metric import Batch, ItemMetric, Scorer

__all__ = [
    "LpipsTruth",
    "PsnrRgb",
    "PsnrRgbUncached",
    "PsnrY",
    "PsnrYUncached",
    "SsimRgb",
    "SsimRgbUncached",
    "SsimY",
    "SsimYUncached",
    "crop_border",
    "luma",
]


def luma(images: Tensor) -> Tensor:
    """BT.601 studio-swing luma `[B, 1, H, W]`, 16/255 to 235/255, of [0, 1] RGB rounded to 8 bits."""
    if images.shape[1] != 3:
        raise ValueError(f"images: luma needs 3 channels, got {images.shape[1]}")
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64, device=images.device)
    y = torch.einsum("bchw,c->bhw", to_u8(images).double(), weights) / 255 + 16
    return y[:, None] / 255


def crop_border(images: Tensor, crop: int) -> Tensor:
    """Without `crop` pixels at each side."""
    height, width = images.shape[-2:]
    if min(height, width) <= 2 * crop:
        raise ValueError(f"crop: must leave something of {height} x {width} pixels, got {crop}")
    return images[..., crop : height - crop, crop : width - crop]


@dataclass(frozen=True, kw_only=True)
class _Cropped(ItemMetric):
    """A fidelity measure on the interior, after a colour transform."""

    needs = frozenset({"reference"})
    against = "truth"
    measure: ClassVar[Callable[[Tensor, Tensor], Tensor]]
    transform: ClassVar[Callable[[Tensor], Tensor]]
    crop: int = 4

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ValueError(f"crop: must not be negative, got {self.crop}")

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        cls = type(self)

        def score(batch: Batch) -> Tensor:
            a, b = (cls.transform(crop_border(images, self.crop)) for images in batch.pair())
            return cls.measure(a, b)

        return score


def _same(images: Tensor) -> Tensor:
    return images


@dataclass(frozen=True, kw_only=True)
class PsnrY(_Cropped):
    """PSNR of the luma."""

    name, title, better = "psnr_y", "PSNR (Y)", "higher"
    unit, smallest = "dB", 9
    measure, transform = staticmethod(psnr), staticmethod(luma)


@dataclass(frozen=True, kw_only=True)
class SsimY(_Cropped):
    """SSIM of the luma."""

    name, title, better = "ssim_y", "SSIM (Y)", "higher"
    decimals, smallest = 4, 19
    measure, transform = staticmethod(ssim), staticmethod(luma)


@dataclass(frozen=True, kw_only=True)
class PsnrRgb(_Cropped):
    """PSNR of the three channels together."""

    name, title, better = "psnr_rgb", "PSNR (RGB, cropped)", "higher"
    unit, smallest = "dB", 9
    measure, transform = staticmethod(psnr), staticmethod(_same)


@dataclass(frozen=True, kw_only=True)
class SsimRgb(_Cropped):
    """SSIM averaged over the three channels."""

    name, title, better = "ssim_rgb", "SSIM (RGB, cropped)", "higher"
    decimals, smallest = 4, 19
    measure, transform = staticmethod(ssim), staticmethod(_same)


@dataclass(frozen=True, kw_only=True)
class PsnrYUncached(PsnrY):
    """The same against the un-cached result."""

    name, title, against = "psnr_y_uncached", "PSNR (Y) to un-cached", "uncached"


@dataclass(frozen=True, kw_only=True)
class SsimYUncached(SsimY):
    """The same against the un-cached result."""

    name, title, against = "ssim_y_uncached", "SSIM (Y) to un-cached", "uncached"


@dataclass(frozen=True, kw_only=True)
class PsnrRgbUncached(PsnrRgb):
    """The same against the un-cached result."""

    name, title, against = "psnr_rgb_uncached", "PSNR (RGB, cropped) to un-cached", "uncached"


@dataclass(frozen=True, kw_only=True)
class SsimRgbUncached(SsimRgb):
    """The same against the un-cached result."""

    name, title, against = "ssim_rgb_uncached", "SSIM (RGB, cropped) to un-cached", "uncached"


@dataclass(frozen=True, kw_only=True)
class LpipsTruth(Lpips):
    """LPIPS against the high-resolution image."""

    name, title, against = "lpips_truth", "LPIPS to HR", "truth"
    media = frozenset({"image"})
