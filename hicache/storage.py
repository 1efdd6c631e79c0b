"""The memory of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, cast

from torch import Tensor

__all__ = ["bytes_of"]


def bytes_of(values: Iterable[Any]) -> int:
    """Bytes of the tensors among some values, and in their dicts, sequences and dataclasses; of one memory, once."""
    found: dict[int, int] = {}
    for tensor in tensors(values):
        memory = tensor.untyped_storage()
        found[id(tensor) if tensor.is_meta else memory.data_ptr()] = memory.nbytes()
    return sum(found.values())


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from tensors(cast("Mapping[Any, Any]", value).values())
        elif isinstance(value, list | tuple):
            yield from tensors(cast("Iterable[Any]", value))
        elif is_dataclass(value):
            yield from tensors(vars(value).values())
