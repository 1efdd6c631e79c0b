"""A small convolutional classifier of 16x16 digits: the feature network of the digits metrics.

It plays the part that Inception-v3 plays for ImageNet: pooled features for a Frechet distance, spatial
features for its sFID-style variant, logits for an Inception-Score-style number and class accuracy. Its
numbers are comparable with each other only, never with ImageNet's.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["FEATURES", "SPATIAL", "DigitsClassifier", "load_classifier"]

FEATURES = 64
SPATIAL = 7 * 8 * 8
"""Size of the spatial features: the first 7 channels of an 8x8 map, as sFID takes 7 of Inception's."""


class DigitsClassifier(nn.Module):
    """Images `[B, 1, 16, 16]` in [-1, 1] to logits `[B, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.SiLU())
        self.tail = nn.Sequential(
            nn.Conv2d(32, 64, 3, 2, 1), nn.SiLU(), nn.Conv2d(64, FEATURES, 3, padding=1), nn.SiLU()
        )
        self.head = nn.Linear(FEATURES, 10)

    def spatial(self, images: Tensor) -> Tensor:
        """Spatial features `[B, 448]`: 7 channels of the 8x8 map after the stem."""
        return self.stem(images)[:, :7].flatten(1)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features `[B, 64]`: the input of the last linear layer."""
        return self.tail(self.stem(images)).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def load_classifier(path: Path) -> DigitsClassifier:
    """The shipped classifier in evaluation mode, float32."""
    model = DigitsClassifier()
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)
