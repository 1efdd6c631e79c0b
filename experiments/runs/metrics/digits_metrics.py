"""Distribution metrics of generated digits, in the features of the shipped classifier.

They are to the digits what FID, sFID and the Inception Score are to ImageNet and are named apart from them on
purpose: the feature network, the image size and the number of samples differ, so the values compare with each
other only. The real set is all 1797 digits.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore

from evaluation.frechet import frechet_distance
from evaluation.metric import summarise
from experiments.backends.digits.classifier import FEATURES, SPATIAL, DigitsClassifier, load_classifier
from experiments.backends.digits.data import digits
from experiments.files import ASSETS
from experiments.runs.metrics.evidence import Evidence, Summary, over_set

__all__ = ["class_accuracy", "digits_fid", "digits_is", "digits_sfid"]


@lru_cache(maxsize=2)
def classifier(path: str) -> DigitsClassifier:
    return load_classifier(Path(path))


def network(evidence: Evidence) -> DigitsClassifier:
    """The classifier beside the weights in use."""
    return classifier(str(Path(evidence.settings.backend.path or ASSETS / "digits") / "classifier.safetensors"))


def to_signed(evidence: Evidence) -> Tensor:
    """The samples in [-1, 1], as the classifier takes them."""
    return evidence.samples() * 2 - 1


def frechet(real: Tensor, samples: Tensor, evidence: Evidence) -> Summary:
    """Frechet distance between Gaussians fitted to the features `[n, d]`."""
    mean, covariance = moments(real)

    def distance(features: Tensor) -> float:
        return frechet_distance(mean, covariance, *moments(features))

    return over_set(distance, samples, evidence.bootstrap, least=2)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance in float64."""
    features = features.double()
    return features.mean(0), features.T.cov()


@torch.inference_mode()
def digits_fid(evidence: Evidence) -> Summary:
    """Frechet distance in the 64 pooled features."""
    model = network(evidence)
    return frechet(model.features(digits()[0]), model.features(to_signed(evidence)), evidence)


@torch.inference_mode()
def digits_sfid(evidence: Evidence) -> Summary:
    """Frechet distance in the 448 spatial features; below some thousand samples dominated by its bias."""
    model = network(evidence)
    real, samples = model.spatial(digits()[0]), model.spatial(to_signed(evidence))
    assert real.shape[1] == SPATIAL and model.head.in_features == FEATURES
    return frechet(real, samples, evidence)


@torch.inference_mode()
def digits_is(evidence: Evidence) -> Summary:
    """exp E KL(p(y|x) || p(y)), from 1 to 10, in one split (the order of the items then does not matter)."""
    logits = network(evidence)(to_signed(evidence)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "will save all features": a few hundred here
        metric = InceptionScore(feature=nn.Identity(), splits=1)

    def score(selected: Tensor) -> float:
        metric.reset()
        metric.update(selected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one split has no spread over splits
            return float(metric.compute()[0])

    return over_set(score, logits, evidence.bootstrap)


@torch.inference_mode()
def class_accuracy(evidence: Evidence) -> Summary:
    """Share of samples that the classifier takes for the class they were asked to be."""
    wanted = torch.tensor([item.inputs["class_labels"] for item in evidence.items])
    hits = network(evidence)(to_signed(evidence)).argmax(1) == wanted
    return summarise(hits.double().tolist(), evidence.bootstrap)
