"""The dimensions of VBench that need no detector: one value per video, usable on any folder of videos.

- `temporal_flickering`: `(255 - mean |f_t - f_{t+1}|) / 255`, the mean over pixels, channels and pairs of
  frames.
- `subject_consistency`, `background_consistency`: with unit features `v_t` (DINO ViT-B/16, CLIP ViT-B/32),
  the mean over t >= 1 of `(max(0, v_t . v_{t-1}) + max(0, v_t . v_0)) / 2`.
- `aesthetic_quality`: mean over frames of a linear map of CLIP ViT-L/14's unit features, divided by 10.
- `appearance_style`: mean over frames of `exp(logit_scale) cos / 100` of CLIP ViT-B/32 with the style's
  wording, which is the item's prompt.
Frames are resized without antialiasing, as VBench does. VBench run as one process weights videos by their
number of frames in the two consistencies and in appearance_style; here every video counts once, which is
the same for videos of one length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from evaluation.errors import EvaluationError, TooFewError
from evaluation.fidelity import to_u8
from evaluation.metric import Batch, ItemMetric, Scorer
from evaluation.preprocess import CLIP_MEAN, CLIP_STD

__all__ = [
    "AestheticQuality",
    "AppearanceStyle",
    "BackgroundConsistency",
    "SubjectConsistency",
    "TemporalFlickering",
    "clip_frame_inputs",
    "consistency",
    "dino_inputs",
    "flickering",
    "resize_short_side",
]

_FRAMES = 32  # frames in one pass of a network
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def flickering(frames: Tensor) -> Tensor:
    """Temporal flickering score of 8-bit frames `[T, 3, H, W]`."""
    _two_frames(frames)
    pairs = zip(frames[:-1], frames[1:], strict=True)
    steps = [(b.float() - a.float()).abs().mean(dtype=torch.float64) for a, b in pairs]
    return (255 - torch.stack(steps).mean()) / 255


def consistency(features: Tensor) -> Tensor:
    """Mean similarity of unit features `[T, d]` to the previous and to the first frame."""
    _two_frames(features)
    previous = (features[1:] * features[:-1]).sum(-1).clamp_min(0)
    first = (features[1:] * features[0]).sum(-1).clamp_min(0)
    return ((previous + first) / 2).double().mean()


def _two_frames(frames: Tensor) -> None:
    if len(frames) < 2:
        raise TooFewError(f"video: needs at least 2 frames, got {len(frames)}")


def resize_short_side(frames: Tensor, size: int, mode: str) -> Tensor:
    """8-bit frames with the short side `size`, no antialiasing, rounded back to 8 bits."""
    height, width = frames.shape[-2:]
    short = min(height, width)
    if short == size:
        return frames
    new = (size * height // short, size * width // short)
    resized = interpolate(frames.float(), size=new, mode=mode, align_corners=False, antialias=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _inputs(frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    shift, scale = (torch.tensor(values, device=frames.device).reshape(1, 3, 1, 1) for values in (mean, std))
    return (frames.float() / 255 - shift) / scale


def clip_frame_inputs(images: Tensor, size: int) -> Tensor:
    """CLIP inputs of [0, 1] frames."""
    frames = resize_short_side(to_u8(images), size, "bicubic")
    top, left = (round((extent - size) / 2) for extent in frames.shape[-2:])
    return _inputs(frames[..., top : top + size, left : left + size], CLIP_MEAN, CLIP_STD)


def dino_inputs(frames: Tensor) -> Tensor:
    """DINO inputs of 8-bit frames: the short side is 224, nothing is cut."""
    return _inputs(resize_short_side(frames, 224, "bilinear"), _IMAGENET_MEAN, _IMAGENET_STD)


def _per_frame(function: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    return torch.cat([function(part) for part in frames.split(_FRAMES)])


@dataclass(frozen=True, kw_only=True)
class _VideoMetric(ItemMetric):
    """A metric of whole videos."""

    media = frozenset({"video"})
    better = "higher"
    decimals = 4
    framewise = False


@dataclass(frozen=True, kw_only=True)
class TemporalFlickering(_VideoMetric):
    """Stillness of static scenes; needs no weights."""

    name, title = "temporal_flickering", "temporal flickering"

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        return lambda batch: flickering(to_u8(batch.images)).reshape(1)


class _Dino(nn.Module):
    """DINO's class token for pictures of any size; the position embedding is resized as in DINO's code."""

    trained: Tensor

    def __init__(self, folder: Path) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        config = ViTConfig.from_pretrained(folder, local_files_only=True, layer_norm_eps=1e-6)
        loaded: Any = ViTModel.from_pretrained(
            folder,
            config=config,
            add_pooling_layer=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        self.model, info = loaded
        missing = sorted(str(key) for key in info["missing_keys"])
        if missing:
            raise EvaluationError(f"{folder}: lacks {len(missing)} tensors of ViT, the first is {missing[0]}")
        if not isinstance(config.patch_size, int):
            raise EvaluationError(f"{folder}: patch_size must be a whole number, got {config.patch_size}")
        self.cell = config.patch_size
        self.register_buffer("trained", self.model.embeddings.position_embeddings.detach().clone())
        self.model.embeddings.interpolate_pos_encoding = self._positions

    def _positions(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        tokens, side = self.trained[:, 1:], math.isqrt(self.trained.shape[1] - 1)
        rows, columns = height // self.cell, width // self.cell
        if (rows, columns) == (side, side):
            return self.trained
        grid = tokens.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        # DINO adds 0.1 so that the rounded-down output size is right; this moves the sampling points.
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.trained[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        # The patch convolution drops incomplete patches at the right and bottom.
        return self.model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]


@dataclass(frozen=True, kw_only=True)
class SubjectConsistency(_VideoMetric):
    """Constancy of the subject, by DINO."""

    name, title = "subject_consistency", "subject consistency"
    modules = ("transformers",)

    def weights(self) -> tuple[str, ...]:
        return ("dino_b16",)

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        dino = _Dino(weights["dino_b16"]).eval().to(device)

        def features(frames: Tensor) -> Tensor:
            return normalize(dino(dino_inputs(frames)), dim=-1)

        return lambda batch: consistency(_per_frame(features, to_u8(batch.images))).reshape(1)


@dataclass(frozen=True, kw_only=True)
class _ClipVideo(_VideoMetric):
    """A dimension on CLIP features of frames."""

    modules = ("transformers",)
    weight: ClassVar[str]

    def weights(self) -> tuple[str, ...]:
        return (self.weight,)

    def clip(self, device: str, weights: Mapping[str, Path]) -> Any:
        """The model, fed with frames resized VBench's way."""
        from evaluation.clip import load_transformers

        return load_transformers(weights[self.weight], device, inputs=clip_frame_inputs)


@dataclass(frozen=True, kw_only=True)
class BackgroundConsistency(_ClipVideo):
    """Constancy of the scene, by CLIP ViT-B/32."""

    name, title = "background_consistency", "background consistency"
    weight = "clip_b32"

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        clip = self.clip(device, weights)
        return lambda batch: consistency(_per_frame(clip.embed_images, batch.images)).reshape(1)


@dataclass(frozen=True, kw_only=True)
class AppearanceStyle(_ClipVideo):
    """Agreement of the frames with a style, by CLIP ViT-B/32."""

    name, title = "appearance_style", "appearance style"
    needs = frozenset({"prompt"})
    weight = "clip_b32"

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        clip = self.clip(device, weights)

        def score(batch: Batch) -> Tensor:
            style = clip.embed_texts(batch.texts()[:1])
            cosines = _per_frame(clip.embed_images, batch.images) @ style[0]
            return (clip.scale * cosines / 100).double().mean().reshape(1)

        return score


@dataclass(frozen=True, kw_only=True)
class AestheticQuality(_ClipVideo):
    """LAION's aesthetic predictor on CLIP ViT-L/14."""

    name, title = "aesthetic_quality", "aesthetic quality"
    weight = "clip_l14"

    def weights(self) -> tuple[str, ...]:
        return (self.weight, "aesthetic_linear")

    def load(self, device: str, weights: Mapping[str, Path]) -> Scorer:
        from evaluation.pretrained import load_state

        clip, path = self.clip(device, weights), weights["aesthetic_linear"]
        state = {key: value.to(device) for key, value in load_state(path).items()}
        if set(state) != {"weight", "bias"}:
            raise EvaluationError(f"{path}: must hold weight and bias of a linear map, got {sorted(state)}")

        def score(batch: Batch) -> Tensor:
            features = _per_frame(clip.embed_images, batch.images)
            rated = nn.functional.linear(features, state["weight"].float(), state["bias"].float())
            return (rated.squeeze(-1) / 10).double().mean().reshape(1)

        return score
