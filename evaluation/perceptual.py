"""Perceptual quality of restored images by the networks of the NTIRE challenges, through pyiqa.

    dists     structure and texture against the high-resolution image (Ding et al., 2020), lower is better
    niqe      distance to statistics of natural images (Mittal et al., 2013), no reference, lower is better
    musiq     multi-scale transformer trained on KonIQ-10k (Ke et al., 2021), no reference, higher is better
    maniqa    attention network trained on KonIQ-10k (Yang et al., 2022), no reference, higher is better
    clipiqa   CLIP's agreement with words for good and bad images (Wang et al., 2023), no reference, higher is better

pyiqa is licensed under PolyForm Noncommercial 1.0.0 and therefore an extra of its own (`pip install '.[iqa]'`), part of
no other; it is imported when one of these is computed. It opens weights as pickles, so they are first read here as
plain tensors, and it would download what it lacks, so every file is given to it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from evaluation.errors import EvaluationError
from evaluation.metric import Batch, ItemMetric, Scorer

__all__ = ["ClipIqa", "Dists", "Maniqa", "Musiq", "Niqe"]


def check_weights(path: Path) -> str:
    """A weight file that holds tensors and nothing else.

    Raises:
        EvaluationError: if it would run code.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise EvaluationError(f"{path}: must be a plain file of tensors, got: {reason}") from error
    return str(path)


@contextmanager
def hub_with(*files: Path) -> Iterator[None]:
    """Inside, torch hub's folder has these checkpoints and no others."""
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        for file in files:
            (Path(folder) / "checkpoints" / file.name).symlink_to(file.resolve())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


@dataclass(frozen=True, kw_only=True)
class _Pyiqa(ItemMetric):
    """A metric of pyiqa."""

    modules = ("pyiqa",)

    def build(self, create: Callable[..., Any], weights: Mapping[str, Path]) -> Any:
        """pyiqa's metric with the weights given to it."""
        raise NotImplementedError

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        import pyiqa  # type: ignore[import-not-found]

        def create(**options: Any) -> Any:
            return pyiqa.create_metric(self.name, device=torch.device(device), **options)

        metric = self.build(create, weights)

        def score(batch: Batch) -> torch.Tensor:
            pair = batch.pair() if "reference" in self.needs else (batch.images,)
            with torch.no_grad():
                return metric(*(images.to(device) for images in pair)).flatten().double().cpu()

        return score


@dataclass(frozen=True, kw_only=True)
class Dists(_Pyiqa):
    """DISTS."""

    name, title, better, against = "dists", "DISTS", "lower", "truth"
    decimals = 4
    needs = frozenset({"reference"})

    def weights(self) -> tuple[str, ...]:
        return ("dists", "lpips_vgg")

    def build(self, create: Callable[..., Any], weights: Mapping[str, Path]) -> Any:
        with hub_with(weights["lpips_vgg"]):
            return create(pretrained_model_path=check_weights(weights["dists"]))


@dataclass(frozen=True, kw_only=True)
class Niqe(_Pyiqa):
    """NIQE on the luma."""

    name, title, better = "niqe", "NIQE", "lower"

    def weights(self) -> tuple[str, ...]:
        return ("niqe",)

    def build(self, create: Callable[..., Any], weights: Mapping[str, Path]) -> Any:
        return create(pretrained_model_path=str(weights["niqe"]))


@dataclass(frozen=True, kw_only=True)
class Musiq(_Pyiqa):
    """MUSIQ."""

    name, title, better = "musiq", "MUSIQ", "higher"

    def weights(self) -> tuple[str, ...]:
        return ("musiq",)

    def build(self, create: Callable[..., Any], weights: Mapping[str, Path]) -> Any:
        return create(pretrained_model_path=check_weights(weights["musiq"]))


@dataclass(frozen=True, kw_only=True)
class Maniqa(_Pyiqa):
    """MANIQA; its backbone's weights are part of the checkpoint."""

    name, title, better = "maniqa", "MANIQA", "higher"
    decimals = 4

    def weights(self) -> tuple[str, ...]:
        return ("maniqa",)

    def build(self, create: Callable[..., Any], weights: Mapping[str, Path]) -> Any:
        import timm

        original = timm.create_model
        with mock.patch.object(timm, "create_model", lambda name, **o: original(name, **{**o, "pretrained": False})):
            return create(pretrained_model_path=check_weights(weights["maniqa"]))


@dataclass(frozen=True, kw_only=True)
class ClipIqa(_Pyiqa):
    """CLIP-IQA on OpenAI's ResNet-50."""

    name, title, better = "clipiqa", "CLIP-IQA", "higher"
    decimals = 4

    def weights(self) -> tuple[str, ...]:
        return ("clip_rn50",)

    def build(self, create: Callable[..., Any], weights: Mapping[str, Path]) -> Any:
        return create(backbone=str(weights["clip_rn50"]))
