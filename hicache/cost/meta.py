"""The calls by which a model is counted: of a model of its kind without values, and of the model itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hicache.adapters import adapter_for

__all__ = ["calls", "on_meta", "without_values"]


def on_meta(model: nn.Module) -> nn.Module:
    """The same architecture without values: from the model's configuration, where it has one, else a copy of it."""
    kind: Any = type(model)
    if not hasattr(kind, "from_config") or not hasattr(model, "config"):
        return copy.deepcopy(model, {id(each): without_values(each) for each in tensors_of(model)}).eval()
    with torch.device("meta"):
        empty = kind.from_config(model.config).eval()
    for module in empty.modules():
        own: dict[str, Any] = module.__dict__
        for name, value in own.items():
            if isinstance(value, Tensor) and not value.is_meta:
                own[name] = without_values(value)
    empty._apply(without_values)
    return empty if empty.dtype == model.dtype else empty.to(model.dtype)


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """The tensors that a model keeps: parameters, buffers, and plain attributes."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def without_values(value: Any) -> Any:
    """A tensor of the same kind on the meta device; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    empty = torch.empty_like(value, device="meta")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def calls(
    model: nn.Module, batch: int, example: Mapping[str, Any] | None, shape: Mapping[str, int]
) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Models with the arguments of a call, the next for where the one before cannot be counted.

    Args:
        model: the model.
        batch: rows of the call that the model's adapter makes, where there is no example.
        example: arguments of a call.
        shape: sizes of the adapter's call.

    Raises:
        ValueError: if the model has no adapter, and there is no example.
    """
    if example is None:
        empty = on_meta(model)
        yield empty, adapter_for(empty).example(batch, torch.device("meta"), **shape)
        return
    yield on_meta(model), tree_map(without_values, dict(example))
    if not any(each.is_meta for each in model.parameters()):
        yield model, dict(example)
