"""Inception-v3 features with guided-diffusion's definitions, on torch-fidelity's port of the 2015 graph.

Per image: 2048 pool features; 2023 spatial features, the first 7 channels of `Mixed_6d.branch1x1` on its
17x17 grid in height-width-channel order (`mixed_6/conv` of the TensorFlow graph); 1008 class probabilities
from the logits without bias. The input is uint8 and of any size: the network resizes it to 299 as TensorFlow
1 does.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evaluation.pretrained import load_state

__all__ = ["POOL", "SPATIAL", "CLASSES", "InceptionFeatures", "Inception"]

POOL, SPATIAL, CLASSES = 2048, 17 * 17 * 7, 1008


class InceptionFeatures(NamedTuple):
    """Features of one batch: `[B, 2048]`, `[B, 2023]`, `[B, 1008]`."""

    pool: Tensor
    spatial: Tensor
    log_probabilities: Tensor


class Inception:
    """The extractor, loaded from torch-fidelity's weight file."""

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The library opens the file with unrestricted pickle; a file that passes here has nothing to execute.
        load_state(weights)
        self._network: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
        self._network.eval().to(device)
        self.device = device
        self._spatial: Tensor | None = None
        self._network.get_submodule("Mixed_6d.branch1x1").register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._spatial = output

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> InceptionFeatures:
        """Features of uint8 images `[B, 3, H, W]`."""
        pool, logits = self._network(images.to(self.device))
        if self._spatial is None:
            raise RuntimeError("Mixed_6d.branch1x1 was not called by the network")
        spatial = self._spatial[:, :7].permute(0, 2, 3, 1).flatten(1)
        return InceptionFeatures(pool, spatial, logits.double().log_softmax(1))
