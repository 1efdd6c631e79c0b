"""What the recipes of tiny random pipelines are made of (`experiments.backends.tiny.pictures`, `.films`).

A recipe names the class of every part with its arguments. Classes of transformers take the arguments of their
configuration; a lower-case name is a tokenizer or encoder of `experiments.backends.tiny.text`. Parts that are not named
are left out of the pipeline, which it must allow. A new pipeline is a new entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "CLIP",
    "DDIM",
    "FLOW",
    "PICTURE",
    "PROJECTED",
    "QWEN",
    "ROPE",
    "SHIFTED",
    "T5",
    "WIDTH",
    "Component",
    "Recipe",
    "clip",
    "clip_options",
    "decoder",
    "image_vae",
    "component",
]

WIDTH = 32
"""Of the text encoders."""


@dataclass(frozen=True)
class Component:
    """A component: its class and the arguments that it is built with."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One pipeline.

    Attributes:
        parts: components by name.
        values: arguments of the pipeline's constructor that are no components.
        call: arguments of a call that make it small.
        attributes: of the pipeline, set after it is built.
    """

    parts: Mapping[str, Component]
    values: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


def component(kind: str, **options: Any) -> Component:
    """A component."""
    return Component(kind, options)


def image_vae(channels: int = 4, levels: int = 2, **options: Any) -> Component:
    """An `AutoencoderKL` that halves `levels - 1` times."""
    return component(
        "AutoencoderKL",
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    )


def clip_options(width: int) -> dict[str, Any]:
    """The configuration of CLIP's text encoder; the tokenizer has two symbols per byte."""
    return {
        "vocab_size": 2 + 2 * 256,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }


def clip(kind: str = "CLIPTextModel", width: int = WIDTH) -> Component:
    """CLIP's text encoder."""
    return component(kind, **clip_options(width))


def decoder(kind: str, layers: int = 3, **options: Any) -> Component:
    """A language model that gives the text tokens."""
    return component(
        kind,
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        **options,
    )


T5 = {"text_encoder": component("t5_encoder", width=WIDTH), "tokenizer": component("t5_tokenizer")}
CLIP = {"text_encoder": clip(), "tokenizer": component("clip_tokenizer")}
PROJECTED = "CLIPTextModelWithProjection"
QWEN = {"tokenizer": component("chat_tokenizer")}
FLOW = component("FlowMatchEulerDiscreteScheduler", shift=3.0)
SHIFTED = component("FlowMatchEulerDiscreteScheduler", shift=3.0, use_dynamic_shifting=True)
DDIM = component("DDIMScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
PICTURE = {"height": 32, "width": 32}
