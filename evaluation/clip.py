"""CLIP models by name, from transformers or open_clip, as a function of images and prompts to cosines.

A name is a hub repository (`openai/clip-vit-large-patch14`) or `open_clip:ARCHITECTURE/TAG`
(`open_clip:ViT-g-14/laion2b_s12b_b42k`). Prompts are cut to the model's context length, 77 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from evaluation.errors import EvaluationError
from evaluation.preprocess import CLIP_MEAN, CLIP_STD, centre_crop, clip_inputs
from evaluation.pretrained import WEIGHTS, Weight, load_state

__all__ = ["Clip", "load_open_clip", "load_transformers", "open_clip_weight", "weight_name"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Embedders of unit length and the learned temperature."""

    embed_images: Callable[[Tensor], Tensor]
    embed_texts: Callable[[list[str]], Tensor]
    scale: float

    def cosines(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Cosine of each image with its own prompt."""
        return (self.embed_images(images) * self.embed_texts(prompts)).sum(-1)


def weight_name(model: str) -> str:
    """Name of the weight that a model needs, registering open_clip's on the way."""
    if model.startswith("open_clip:"):
        weight = open_clip_weight(model)
        WEIGHTS.setdefault(weight.name, weight)
        return weight.name
    known = [
        name for name, weight in WEIGHTS.items() if weight.repository == model and "model.safetensors" in weight.files
    ]
    if known:
        return known[0]
    if model.count("/") != 1 or not all(model.split("/")):
        raise EvaluationError(f"clip_score.model: must be ORG/NAME or open_clip:ARCHITECTURE/TAG, got {model!r}")
    return model.replace("/", "--")


def open_clip_weight(model: str) -> Weight:
    """The hub file behind an open_clip architecture and tag."""
    import open_clip

    architecture, _, tag = model.removeprefix("open_clip:").partition("/")
    config = open_clip.get_pretrained_cfg(architecture, tag)
    if not config or not config.get("hf_hub"):
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise EvaluationError(f"clip_score.model: {architecture} has the tags {', '.join(tags)}, got {tag!r}")
    repository = config["hf_hub"].strip("/")
    return Weight(
        name=f"open_clip--{architecture}--{tag}",
        files=("open_clip_model.safetensors",),
        megabytes=None,
        licence="see the hub page",
        repository=repository,
    )


def load_transformers(
    folder: Path,
    device: str,
    tokenizer_folder: Path | None = None,
    inputs: Callable[[Tensor, int], Tensor] = clip_inputs,  # [0, 1] images and the network's size to its inputs
) -> Clip:
    """A transformers CLIP folder; every tensor of the architecture must be in it."""
    from transformers import CLIPModel, CLIPTokenizer

    loaded = CLIPModel.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    model, info = cast(tuple[Any, dict[str, Any]], loaded)
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        keys = sorted(str(key) for key in info[kind] if "position_ids" not in str(key))
        if keys:
            raise EvaluationError(f"{folder}: {len(keys)} {kind.replace('_', ' ')}, the first is {keys[0]}")
    tokenizer: Any = CLIPTokenizer.from_pretrained(tokenizer_folder or folder, local_files_only=True)
    model = model.eval().requires_grad_(False).to(device)
    size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings

    def texts(prompts: list[str]) -> Tensor:
        tokens = tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt").to(device)
        output = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return normalize(output.pooler_output, dim=-1)

    def pictures(images: Tensor) -> Tensor:
        output = model.get_image_features(pixel_values=inputs(images.to(device), size))
        return normalize(output.pooler_output, dim=-1)

    return Clip(embed_images=pictures, embed_texts=texts, scale=float(model.logit_scale.exp()))


def load_open_clip(
    architecture: str,
    tag: str | None,
    weights: Path,
    device: str,
    fit: Callable[[Image.Image, int], Image.Image] = centre_crop,
) -> Clip:
    """An open_clip architecture with a local weight file, loaded strictly."""
    import open_clip

    config = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    model: Any = open_clip.create_model(
        architecture,
        pretrained=None,
        load_weights=False,
        force_quick_gelu=bool(config.get("quick_gelu")),
        device="cpu",
    )
    _strict(model, load_state(weights), weights)
    model = model.eval().requires_grad_(False).to(device)
    tokenizer: Any = open_clip.get_tokenizer(architecture)
    size = model.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    mean, std = tuple(config.get("mean", CLIP_MEAN)), tuple(config.get("std", CLIP_STD))

    def pictures(images: Tensor) -> Tensor:
        return model.encode_image(clip_inputs(images.to(device), size, fit, mean, std), normalize=True)

    def texts(prompts: list[str]) -> Tensor:
        return model.encode_text(tokenizer(prompts).to(device), normalize=True)

    return Clip(embed_images=pictures, embed_texts=texts, scale=float(model.logit_scale.exp()))


def _strict(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    plain.pop("positional_ids", None)
    try:
        model.load_state_dict(plain, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise EvaluationError(f"{path}: must fit the architecture exactly, got: {reason}") from error
