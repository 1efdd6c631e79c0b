"""Scikit-learn's handwritten digits as 16x16 images in [-1, 1].

1797 real scans (UCI "Optical Recognition of Handwritten Digits", test part), 8x8 pixels with 17 grey
levels, upsampled bilinearly. The package carries the data, so nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CLASSES", "NULL_CLASS", "SIZE", "digits", "split"]

CLASSES = 10
NULL_CLASS = 10
"""Label of the unconditional branch (the extra row of the label table)."""
SIZE = 16
HELD_OUT = 197
"""Number of images kept out of training, drawn with a fixed seed."""


def digits() -> tuple[Tensor, Tensor]:
    """All images `[1797, 1, 16, 16]` float32 in [-1, 1] and their labels `[1797]` int64."""
    from sklearn.datasets import load_digits  # late: only training and metrics see the scans

    data: Any = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 16
    images = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return images * 2 - 1, torch.from_numpy(data.target).long()


def split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`(training images, labels), (held-out images, labels)`: 1600 and 197 items."""
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held, train = order[:HELD_OUT], order[HELD_OUT:]
    return (images[train], labels[train]), (images[held], labels[held])
