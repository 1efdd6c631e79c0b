"""Builds a tiny random pipeline from its recipe: one mechanism for all classes of diffusers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from experiments.backends.tiny import random_weights, text
from experiments.backends.tiny.components import Component, Recipe
from experiments.backends.tiny.films import FILMS
from experiments.backends.tiny.pictures import PICTURES
from experiments.errors import choose
from hicache.generic.structure import DENOISERS

__all__ = ["RECIPES", "build", "describe_denoisers"]

RECIPES: dict[str, Recipe] = {**PICTURES, **FILMS}
"""By the class of the pipeline."""


def build(pipeline: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A pipeline of that class with random weights.

    Raises:
        ConfigError: if there is no recipe for the class.
    """
    recipe = RECIPES[choose("backend.pipeline", pipeline, RECIPES)]
    with random_weights(dtype, device):
        parts = {name: make_component(part) for name, part in recipe.parts.items()}
        kind = getattr(diffusers, pipeline)
        left_out = dict.fromkeys(set(required_components(kind)) - parts.keys() - recipe.values.keys())
        pipe = kind(**left_out, **parts, **recipe.values)
    for name, value in recipe.attributes.items():
        setattr(pipe, name, value)
    return pipe


def describe_denoisers(pipeline: str) -> SimpleNamespace:
    """The denoisers of that pipeline by their names, on the meta device.

    Raises:
        ConfigError: if there is no recipe for the class.
    """
    recipe = RECIPES[choose("backend.pipeline", pipeline, RECIPES)]
    with torch.device("meta"):
        return SimpleNamespace(
            **{name: make_component(part) for name, part in recipe.parts.items() if name in DENOISERS}
        )


def required_components(kind: Any) -> list[str]:
    """The components that a pipeline's constructor asks for by all means."""
    required, _ = kind._get_signature_keys(kind)
    return sorted(set(required) - {"self"})


def make_component(part: Component) -> Any:
    """One component."""
    if part.kind.islower():
        return getattr(text, part.kind)(**part.options)
    kind = component_class(part.kind)
    if issubclass(kind, transformers.PreTrainedModel):
        options: Any = kind.config_class
        return lively(kind(options(**part.options)))
    found = kind(**part.options)
    return lively(found) if isinstance(found, nn.Module) else found


def component_class(name: str) -> Any:
    """A class of diffusers or transformers, by name."""
    if hasattr(diffusers, name):
        return getattr(diffusers, name)
    if hasattr(transformers, name):
        return getattr(transformers, name)
    from diffusers.pipelines import stable_audio

    return getattr(stable_audio, name)


def lively(model: nn.Module) -> nn.Module:
    """Parameters that begin at nought get random values, so that every block matters to the picture."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return model
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model
