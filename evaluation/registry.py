"""Every metric by name: the table to read first."""

from __future__ import annotations

from evaluation.base import Metric
from evaluation.fidelity import Lpips, Psnr, PsnrU8Wrap, Ssim, SsimSkimage7

__all__ = ["METRICS"]

_CLASSES: tuple[type[Metric], ...] = (
    # fidelity to the un-cached reference
    Psnr,
    PsnrU8Wrap,
    Ssim,
    SsimSkimage7,
    Lpips,
)

METRICS: dict[str, type[Metric]] = {metric.name: metric for metric in _CLASSES}
