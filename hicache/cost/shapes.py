"""Shapes of the meta device, remembered: a model of 57 equal blocks asks for each of them 57 times.

PyTorch infers them in Python, which takes most of the time of counting a model. An operation without values depends on
its arguments' shapes, strides and types alone, so that its result can be remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["RememberedShapes"]


class RememberedShapes(TorchDispatchMode):
    """Gives the results of operations on the meta device that were seen before; all others run."""

    known: ClassVar[dict[Any, tuple[TreeSpec, list[tuple[Any, ...]]]]] = {}
    """Of an operation with its arguments: the form of its result, and shape, strides and type of its tensors."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            key = (func, signature(args), signature(tuple(kwargs.items()))) if pure(func) else None
            found = None if key is None else self.known.get(key)
        except (TypeError, Concrete):  # an argument that cannot be compared, or that has values
            key = found = None
        if found is not None:
            form, described = found
            return tree_unflatten(
                [torch.empty_strided(*each, device="meta", dtype=kind) for *each, kind in described], form
            )
        result = func(*args, **kwargs)
        leaves, form = tree_flatten(result)
        if key is not None and all(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
            self.known[key] = form, [(tuple(leaf.shape), leaf.stride(), leaf.dtype) for leaf in leaves]
        return result


class Concrete(Exception):
    """A tensor with values."""


def pure(func: Any) -> bool:
    """Whether an operation gives new tensors and changes none."""
    schema = func._schema
    return not schema.is_mutable and all(each.alias_info is None for each in schema.returns)


def signature(value: Any) -> Any:
    """What an operation sees of an argument.

    Raises:
        Concrete: for a tensor with values.
    """
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise Concrete
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(signature(each) for each in cast("Iterable[Any]", value))
    return type(value), value
