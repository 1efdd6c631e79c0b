"""Fidelity of an accelerated image to the un-cached reference made from the same noise.

Every function takes two float tensors `[B, C, H, W]` in [0, 1] and returns one value per image.

- `psnr`: `10 log10(1 / MSE)`, one mean square error per image over channels and pixels; +inf for equal
  images.
- `psnr_u8wrap`: the same formula on 8-bit images whose difference and square are both taken modulo 256, as
  numpy does on uint8 arrays. Unrelated images then score `20 log10(255 / sqrt(105.5)) = 27.9` dB, and the
  value agrees with `psnr` only while every difference stays below 16. Reported because published tables
  most likely contain it.
- `ssim`: Wang, Bovik, Sheikh & Simoncelli (IEEE TIP 2004): 11x11 Gaussian window, sigma 1.5, population
  moments.
- `ssim_skimage7`: scikit-image's default on 8-bit images: 7x7 uniform window, sample covariance.
- `lpips`: Zhang et al. (CVPR 2018), version 0.1, full resolution, inputs scaled to [-1, 1].
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from evaluation.metric import ItemMetric, Scorer

__all__ = [
    "Lpips",
    "Psnr",
    "PsnrU8Wrap",
    "Ssim",
    "SsimSkimage7",
    "load_lpips",
    "lpips",
    "psnr",
    "psnr_u8wrap",
    "ssim",
    "ssim_skimage7",
    "to_u8",
]

Backbone = Literal["alex", "vgg"]


_WINDOW, _SIGMA = 11, 1.5  # of the Gaussian, in pixels
_C1, _C2 = 0.01**2, 0.03**2


def _check_pair(a: Tensor, b: Tensor, smallest: int = 1) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"images: both must be [B, C, H, W] of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not a.is_floating_point() or not b.is_floating_point():
        raise ValueError(f"images: expected floats in [0, 1], got {a.dtype} and {b.dtype}")
    if min(a.shape[-2:]) < smallest:
        raise ValueError(f"images: height and width must be at least {smallest}, got {tuple(a.shape[-2:])}")


def to_u8(images: Tensor) -> Tensor:
    """Round [0, 1] floats to the 8-bit values an image file holds."""
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB per image, in float64."""
    _check_pair(a, b)
    mse = (a.double() - b.double()).square().flatten(1).mean(1)
    return -10 * mse.log10()


def psnr_u8wrap(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB per image with 8-bit wrap-around of the difference and of its square."""
    _check_pair(a, b)
    difference = to_u8(a) - to_u8(b)
    mse = (difference * difference).double().flatten(1).mean(1)
    return 10 * (255.0**2 / mse).log10()


def _blur(images: Tensor) -> Tensor:
    """The Gaussian window's weighted means where it lies inside the image: one pass along columns, one along rows."""
    weights = [math.exp(-((k - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for k in range(_WINDOW)]
    for axis in (-2, -1):
        size = images.shape[axis] - _WINDOW + 1
        shifted = [images.narrow(axis, k, size) for k in range(_WINDOW)]
        images = shifted[0] * (weights[0] / sum(weights))
        for weight, values in zip(weights[1:], shifted[1:], strict=True):
            images.add_(values, alpha=weight / sum(weights))
    return images


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per image, Gaussian window, averaged where the window lies inside the image.

        SSIM = (2 mu_a mu_b + c1) (2 cov_ab + c2) / ((mu_a^2 + mu_b^2 + c1) (var_a + var_b + c2)),
        c1 = 0.01^2, c2 = 0.03^2,

    in float64. The interior is what Wang's definition and scikit-image keep; torchmetrics averages over the whole map,
    where windows reach into mirrored pixels. The window is separable: 22 products per moment and pixel, not 121.
    """
    _check_pair(a, b, smallest=_WINDOW)
    a, b = a.double(), b.double()
    mean_a, mean_b, aa, bb, ab = _blur(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    means, squares = mean_a * mean_b, mean_a**2 + mean_b**2
    score = (2 * means + _C1) * (2 * (ab - means) + _C2) / ((squares + _C1) * (aa + bb - squares + _C2))
    return score.flatten(1).mean(1)


def ssim_skimage7(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per image as scikit-image computes it on 8-bit arrays; runs on the CPU."""
    from skimage.metrics import structural_similarity

    _check_pair(a, b, smallest=7)
    pairs = zip(to_u8(a).cpu().numpy(), to_u8(b).cpu().numpy(), strict=True)
    values = [structural_similarity(x, y, channel_axis=0) for x, y in pairs]
    return torch.tensor(values, dtype=torch.float64, device=a.device)


def load_lpips(net: Backbone, weights: Path, device: str = "cpu") -> nn.Module:
    """LPIPS with its calibrated heads (shipped in the `lpips` wheel) on the backbone file `weights`."""
    import lpips as package

    from evaluation.pretrained import load_state

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")  # lpips builds backbones by an old signature
        model = package.LPIPS(net=net, pnet_rand=True, verbose=False)
    load_backbone(model, load_state(weights))
    return model.eval().requires_grad_(False).to(device)


def load_backbone(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy torchvision's `features.N.*` into LPIPS's slices; every needed key must be there."""
    trunk = model.get_submodule("net")
    wanted = trunk.state_dict()
    # LPIPS splits torchvision's feature stack into slice1..slice5 and keeps the layer numbers as names.
    source = {key: "features." + key.split(".", 1)[1] for key in wanted}
    missing = [name for name in source.values() if name not in state]
    if missing:
        raise ValueError(f"LPIPS backbone: {len(missing)} keys are missing, the first is {missing[0]}")
    trunk.load_state_dict({key: state[name] for key, name in source.items()}, strict=True)


@lru_cache(maxsize=4)
def _locate_lpips(net: Backbone, device: str) -> nn.Module:
    from evaluation.pretrained import locate

    return load_lpips(net, locate(f"lpips_{net}"), device)


def lpips(a: Tensor, b: Tensor, net: Backbone = "alex", model: nn.Module | None = None) -> Tensor:
    """LPIPS distance per image; `model` defaults to the network whose weight file is found here."""
    _check_pair(a, b, smallest=32)
    network = model if model is not None else _locate_lpips(net, str(a.device))
    with torch.inference_mode():
        return network(a.float(), b.float(), normalize=True).double().flatten()


@dataclass(frozen=True, kw_only=True)
class _Pairwise(ItemMetric):
    """A metric that is a plain function of image and reference."""

    needs = frozenset({"reference"})
    media = frozenset({"image", "video"})
    function: ClassVar[Callable[[Tensor, Tensor], Tensor]]

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        return lambda batch: type(self).function(*batch.pair())


@dataclass(frozen=True, kw_only=True)
class Psnr(_Pairwise):
    """PSNR in float, mean over images."""

    name, title, better, function = "psnr", "PSNR", "higher", staticmethod(psnr)
    unit = "dB"


@dataclass(frozen=True, kw_only=True)
class PsnrU8Wrap(_Pairwise):
    """PSNR with 8-bit wrap-around; a record of the published convention, not a measure of quality."""

    name, title, better, function = "psnr_u8wrap", "PSNR (8-bit wrap)", "higher", staticmethod(psnr_u8wrap)
    unit = "dB"


@dataclass(frozen=True, kw_only=True)
class Ssim(_Pairwise):
    """SSIM with the Gaussian window."""

    name, title, better, function = "ssim", "SSIM", "higher", staticmethod(ssim)
    decimals, smallest = 4, _WINDOW


@dataclass(frozen=True, kw_only=True)
class SsimSkimage7(_Pairwise):
    """SSIM with the uniform 7x7 window."""

    name, title, better = "ssim_skimage7", "SSIM (7x7 uniform)", "higher"
    decimals, smallest = 4, 7
    function = staticmethod(ssim_skimage7)
    modules = ("skimage",)


@dataclass(frozen=True, kw_only=True)
class Lpips(ItemMetric):
    """LPIPS on `net`, alex or vgg."""

    name, title, better = "lpips", "LPIPS", "lower"
    decimals, smallest = 4, 32
    needs = frozenset({"reference"})
    media = frozenset({"image", "video"})
    modules = ("lpips", "torchvision")
    net: Backbone = "alex"

    def __post_init__(self) -> None:
        if self.net not in ("alex", "vgg"):
            raise ValueError(f"net: must be alex or vgg, got {self.net!r}")

    def weights(self) -> tuple[str, ...]:
        return (f"lpips_{self.net}",)

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        model = load_lpips(self.net, weights[f"lpips_{self.net}"], device)
        return lambda batch: lpips(*batch.pair(), model=model)
