"""A backend without weights: its models at true size on the `meta` device, so that costs can be counted anywhere.

The transformer alone tells whether a method fits the model before a weight is read.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from experiments.backends import backend_of
from experiments.backends.base import Backend
from experiments.backends.diffusers_backend import DiffusersBackend
from experiments.backends.digits.backend import DigitsBackend, folder_of
from experiments.backends.pipeline_backend import PipelineBackend
from experiments.config.backend import BackendConfig
from experiments.errors import ConfigError

__all__ = [
    "blueprint",
    "blueprint_of",
    "quiet",
    "skeleton",
]


def blueprint(config: BackendConfig) -> Backend:
    """The backend with its pipeline on the meta device."""
    kind = backend_of(config)
    backend: Any = object.__new__(kind)
    backend.config, backend.device = config, "meta"
    if issubclass(kind, DiffusersBackend):
        backend.pipe = kind.described(backend.config)
    elif issubclass(kind, PipelineBackend):
        backend.pipe = backend.random()
    elif issubclass(kind, DigitsBackend):
        described: Any = DiTTransformer2DModel.load_config(str(folder_of(config) / "transformer"))
        with torch.device("meta"):
            backend.pipe = SimpleNamespace(transformer=DiTTransformer2DModel.from_config(described))
    elif (skeleton_of := getattr(kind, "skeleton", None)) is not None:
        with torch.device("meta"):
            backend.pipe = SimpleNamespace(transformer=skeleton_of(config))
    else:
        raise TypeError(f"backend {config.name}: has no blueprint; its class must be a PipelineBackend")
    return backend


_blueprints: dict[str, Backend] = {}


def blueprint_of(config: BackendConfig) -> Backend:
    """The blueprint, built once."""
    key = repr(config)
    if key not in _blueprints:
        with quiet():
            _blueprints[key] = blueprint(config)
    return _blueprints[key]


@cache
def skeleton(kind: str, folder: Path) -> nn.Module:
    """The transformer that a folder describes, without values.

    Raises:
        ConfigError: if it describes none.
    """
    model: Any = getattr(diffusers, kind)
    try:
        described = model.load_config(str(folder / "transformer"))
        with torch.device("meta"), quiet():
            return model.from_config(described)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"backend.path: {folder}/transformer must describe a {kind}, got {said}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """diffusers warns about casting models that have no values."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
