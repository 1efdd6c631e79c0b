"""Adapters by the class name of the transformer they know; each is imported when it is first needed."""

from __future__ import annotations

import importlib

from torch import nn

from hicache.adapters.base import Adapter

__all__ = ["ADAPTERS", "Adapter", "adapter_for", "find_adapter"]

ADAPTERS: dict[str, str] = {
    "DiTTransformer2DModel": "hicache.adapters.dit:DiTAdapter",
    "FluxTransformer2DModel": "hicache.adapters.mmdit:FluxAdapter",
    "HunyuanVideoTransformer3DModel": "hicache.adapters.mmdit:HunyuanVideoAdapter",
    "InfDiTTransformer2DModel": "hicache.adapters.inf_dit:InfDiTAdapter",
    "QwenImageTransformer2DModel": "hicache.adapters.mmdit:QwenImageAdapter",
}
"""Transformer class name -> `module:class` of its adapter. Adding a model: one file, one line here."""


def find_adapter(model: nn.Module) -> Adapter | None:
    """The adapter of a transformer, found by the names of its class and base classes; None where there is none."""
    for base in type(model).__mro__:
        if base.__name__ in ADAPTERS:
            module, name = ADAPTERS[base.__name__].split(":")
            return getattr(importlib.import_module(module), name)(model)
    return None


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a transformer, found by the names of its class and base classes.

    Raises:
        ValueError: if no adapter knows the class; the message lists the known ones.
    """
    found = find_adapter(model)
    if found is not None:
        return found
    raise ValueError(f"model: must be one of {', '.join(sorted(ADAPTERS))}, got {type(model).__name__}")
