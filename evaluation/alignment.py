"""How well a picture follows its prompt and how people would rate it; one value per picture.

- `image_reward`: see `evaluation.image_reward`. The prompt is cut to 35 tokens as in the published
  package's `score`; `max_length=512` reproduces tools that use BERT's full length.
- `clip_score`: `max(0, 100 cos)` with CLIP (Hessel et al. 2021, in torchmetrics' form); `scale=learned`
  uses the model's own temperature `exp(logit_scale)` without the clamp, which is how logits are reported
  elsewhere.
- `hpsv2`: cosine of OpenCLIP ViT-H/14 fine-tuned on human preferences (Wu et al. 2023).
- `pickscore`: `exp(logit_scale) cos` of CLIP-H fine-tuned on Pick-a-Pic (Kirstain et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from evaluation.metric import Batch, ItemMetric, Scorer

__all__ = ["ClipScore", "HpsV2", "ImageReward", "PickScore"]


@dataclass(frozen=True, kw_only=True)
class ImageReward(ItemMetric):
    """Human-preference reward; `backend=package` runs the published package with the interpreter `python`."""

    name, title, better = "image_reward", "ImageReward", "higher"
    decimals = 4
    needs = frozenset({"prompt"})
    media = frozenset({"image", "video"})
    modules = ("transformers",)
    backend: Literal["port", "package"] = "port"
    max_length: int = 35
    python: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in ("port", "package"):
            raise ValueError(f"backend: must be port or package, got {self.backend!r}")
        if self.backend == "package" and self.python is None:
            raise ValueError("python: must name the interpreter of the package's environment, got nothing")
        if self.backend == "package" and self.max_length != 35:
            raise ValueError(f"max_length: the package always uses 35, got {self.max_length}")
        if not 2 <= self.max_length <= 512:
            raise ValueError(f"max_length: must lie between 2 and 512, got {self.max_length}")

    def weights(self) -> tuple[str, ...]:
        return ("image_reward", "bert_vocabulary")

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        checkpoint, vocabulary = weights["image_reward"], weights["bert_vocabulary"]
        if self.backend == "package":
            from evaluation.parity.image_reward_package import package_scorer

            return package_scorer(str(self.python), checkpoint, vocabulary)
        from evaluation.image_reward import load_network, read_vocabulary, tokenize
        from evaluation.preprocess import clip_inputs

        network, tokenizer = load_network(checkpoint, device), read_vocabulary(vocabulary)

        def score(batch: Batch) -> Tensor:
            ids, mask = tokenize(tokenizer, batch.texts(), self.max_length)
            return network(clip_inputs(batch.images, 224), ids.to(device), mask.to(device))

        return score


@dataclass(frozen=True, kw_only=True)
class ClipScore(ItemMetric):
    """CLIP similarity of picture and prompt."""

    name, title, better = "clip_score", "CLIP score", "higher"
    needs = frozenset({"prompt"})
    media = frozenset({"image", "video"})
    modules = ("transformers",)
    model: str = "openai/clip-vit-large-patch14"
    scale: Literal["hundred", "learned"] = "hundred"

    def __post_init__(self) -> None:
        if self.scale not in ("hundred", "learned"):
            raise ValueError(f"scale: must be hundred or learned, got {self.scale!r}")

    def weights(self) -> tuple[str, ...]:
        from evaluation.clip import weight_name

        return (weight_name(self.model),)

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        from evaluation.clip import load_open_clip, load_transformers, weight_name

        path = weights[weight_name(self.model)]
        if self.model.startswith("open_clip:"):
            architecture, _, tag = self.model.removeprefix("open_clip:").partition("/")
            clip = load_open_clip(architecture, tag, path, device)
        else:
            clip = load_transformers(path, device)

        def score(batch: Batch) -> Tensor:
            cosines = clip.cosines(batch.images, batch.texts())
            return clip.scale * cosines if self.scale == "learned" else (100 * cosines).clamp_min(0)

        return score


@dataclass(frozen=True, kw_only=True)
class HpsV2(ItemMetric):
    """Human preference score v2; `version` is 2.0 or 2.1."""

    name, title, better = "hpsv2", "HPSv2", "higher"
    needs = frozenset({"prompt"})
    modules = ("open_clip",)
    version: Literal["2.0", "2.1"] = "2.1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", str(self.version))  # the command line reads 2.1 as a number
        if self.version not in ("2.0", "2.1"):
            raise ValueError(f"version: must be 2.0 or 2.1, got {self.version!r}")

    def weights(self) -> tuple[str, ...]:
        return ("hpsv2" if self.version == "2.0" else "hpsv2_1",)

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        from evaluation.clip import load_open_clip
        from evaluation.preprocess import pad

        clip = load_open_clip("ViT-H-14", None, weights[self.weights()[0]], device, fit=pad)
        return lambda batch: clip.cosines(batch.images, batch.texts())


@dataclass(frozen=True, kw_only=True)
class PickScore(ItemMetric):
    """PickScore."""

    name, title, better = "pickscore", "PickScore", "higher"
    needs = frozenset({"prompt"})
    modules = ("transformers",)

    def weights(self) -> tuple[str, ...]:
        return ("pickscore", "pickscore_processor")

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        from evaluation.clip import load_transformers

        clip = load_transformers(weights["pickscore"], device, weights["pickscore_processor"])
        return lambda batch: clip.scale * clip.cosines(batch.images, batch.texts())
