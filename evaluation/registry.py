"""Every metric by name: the table to read first."""

from __future__ import annotations

from evaluation.alignment import ClipScore, HpsV2, ImageReward, PickScore
from evaluation.distribution import Fid, InceptionScore, Precision, Recall, SFid
from evaluation.fidelity import Lpips, Psnr, PsnrU8Wrap, Ssim, SsimSkimage7
from evaluation.ground_truth import (
    LpipsTruth,
    PsnrRgb,
    PsnrRgbUncached,
    PsnrY,
    PsnrYUncached,
    SsimRgb,
    SsimRgbUncached,
    SsimY,
    SsimYUncached,
)
from evaluation.metric import Metric
from evaluation.perceptual import ClipIqa, Dists, Maniqa, Musiq, Niqe
from evaluation.points import Chamfer, FScore
from evaluation.vbench.total import OWN, VBench

__all__ = ["METRICS"]

_CLASSES: tuple[type[Metric], ...] = (
    # fidelity to the un-cached reference
    Psnr,
    PsnrU8Wrap,
    Ssim,
    SsimSkimage7,
    Lpips,
    # distance between two sets
    Fid,
    SFid,
    InceptionScore,
    Precision,
    Recall,
    # agreement with the prompt and human preference
    ImageReward,
    ClipScore,
    HpsV2,
    PickScore,
    # super-resolution against the high-resolution image, and against the un-cached result
    PsnrY,
    SsimY,
    PsnrRgb,
    SsimRgb,
    LpipsTruth,
    Dists,
    PsnrYUncached,
    SsimYUncached,
    PsnrRgbUncached,
    SsimRgbUncached,
    # quality of an image by itself
    Niqe,
    Musiq,
    Maniqa,
    ClipIqa,
    # video
    *OWN.values(),
    VBench,
    # 3-D
    Chamfer,
    FScore,
)

METRICS: dict[str, type[Metric]] = {metric.name: metric for metric in _CLASSES}
