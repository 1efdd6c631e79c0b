"""What the emoji judge says of generated pictures: see `experiments.backends.emoji.judge`.

Named apart from CLIP score, ImageReward, FID and LPIPS on purpose: the judge knows 48 objects in 32x32 pixels, and its
numbers compare with each other only.

    emoji_alignment      100 x cosine of picture and prompt
    emoji_object, ...    share of pictures that show the object(s), colour, count, style of their caption
    emoji_frechet        Frechet distance of 64 features to 2000 pictures by the composer
    emoji_distance       distance of the judge's feature maps to those of the same item of the un-cached reference
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.frechet import frechet_distance
from evaluation.metric import summarise
from experiments.backends.emoji.backend import folder_of
from experiments.backends.emoji.captions import Scene, draw, parse, random_scene
from experiments.backends.emoji.judge import FEATURES, EmojiJudge, Verdict, load_judge
from experiments.runs.metrics.evidence import Evidence, Summary, no_value, over_set

__all__ = [
    "emoji_alignment",
    "emoji_colour",
    "emoji_count",
    "emoji_distance",
    "emoji_frechet",
    "emoji_object",
    "emoji_style",
]

REAL = 2000


@lru_cache(maxsize=2)
def judge_of(path: str) -> EmojiJudge:
    return load_judge(Path(path))


def judge(evidence: Evidence) -> EmojiJudge:
    """The judge beside the weights in use."""
    return judge_of(str(folder_of(evidence.settings.backend) / "judge.safetensors"))


def look(evidence: Evidence) -> Verdict:
    """What the judge sees in all samples."""
    return judge(evidence)(evidence.samples() * 2 - 1)


@lru_cache(maxsize=1)
def real_moments(path: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the features of the composer's pictures, of any scene."""
    rng = np.random.default_rng([5, REAL])
    images = torch.stack([draw(random_scene(rng, held=None), rng) for _ in range(REAL)])
    return moments(judge_of(path)(images).features)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance in float64."""
    features = features.double()
    return features.mean(0), features.T.cov()


@torch.inference_mode()
def emoji_alignment(evidence: Evidence) -> Summary:
    """100 times the mean cosine of pictures and prompts, any prompts; from -100 to 100."""
    prompts = [item.inputs["prompt"] for item in evidence.items]
    scores = 100 * judge(evidence).alignment(evidence.samples() * 2 - 1, prompts)
    return summarise(scores.double().tolist(), evidence.bootstrap)


def aspect(name: str) -> Callable[[Evidence], Summary]:
    """Accuracy of object, colour, count or style over the items whose prompt is one of the composer's captions.

    `object` is about pictures of a single object, as classifiers are; prompts that the composer would not write have no
    known answer and are left out.
    """

    @torch.inference_mode()
    def metric(evidence: Evidence) -> Summary:
        found = [parse(item.inputs["prompt"]) for item in evidence.items]
        chosen = [i for i, scene in enumerate(found) if scene and (name != "object" or len(scene.objects) == 1)]
        if not chosen:
            kind = "of a single object " if name == "object" else ""
            return no_value(0, f"no caption {kind}in the composer's form among the prompts")
        scenes: list[Scene] = [scene for i in chosen if (scene := found[i]) is not None]
        pictures = evidence.samples()[chosen] * 2 - 1
        hits = judge(evidence)(pictures).correct(scenes)[name]
        return summarise(hits.double().tolist(), evidence.bootstrap)

    return metric


emoji_object, emoji_colour, emoji_count, emoji_style = map(aspect, ("object", "colour", "count", "style"))


@torch.inference_mode()
def emoji_frechet(evidence: Evidence) -> Summary:
    """Frechet distance of Gaussians fitted to the judge's features; it needs more samples than features."""
    real = real_moments(str(folder_of(evidence.settings.backend) / "judge.safetensors"))
    features = look(evidence).features
    return over_set(lambda f: frechet_distance(*real, *moments(f)), features, evidence.bootstrap, least=FEATURES + 1)


@torch.inference_mode()
def emoji_distance(evidence: Evidence) -> Summary:
    """Mean distance of the judge's feature maps between each item and its un-cached reference, times 100."""
    if evidence.reference is None:
        raise ValueError("a paired metric needs a reference run")
    samples, references = evidence.samples(), evidence.load(evidence.reference, evidence.items)
    values = (100 * judge(evidence).distance(samples * 2 - 1, references * 2 - 1)).double().tolist()
    evidence.keep("emoji_distance", {item.name: value for item, value in zip(evidence.items, values, strict=True)})
    return summarise(values, evidence.bootstrap)
