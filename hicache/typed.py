"""Functions of torch that carry no types there, with their types; nothing is added to what they do."""

# pyright: basic

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

__all__ = [
    "eig",
    "eigh",
    "named_modules",
    "never_compiled",
    "own_call",
    "pinv",
    "solve",
    "solve_ex",
    "split",
    "tolist",
    "vector_norm",
    "version",
]

F = TypeVar("F", bound=Callable[..., Any])

eig: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.linalg.eig
eigh: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.linalg.eigh
pinv: Callable[..., Tensor] = torch.linalg.pinv
solve: Callable[[Tensor, Tensor], Tensor] = torch.linalg.solve
solve_ex: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = torch.linalg.solve_ex
vector_norm: Callable[..., Tensor] = torch.linalg.vector_norm
split: Callable[..., tuple[Tensor, ...]] = torch.split
named_modules: Callable[[nn.Module], Iterator[tuple[str, nn.Module]]] = nn.Module.named_modules
tolist: Callable[[Tensor], list[Any]] = Tensor.tolist


def never_compiled(function: F) -> F:
    """A function that `torch.compile` leaves alone, as `torch.compiler.disable` makes it.

    The compiler, whose import takes seconds, is loaded when the function is called, not when it is defined.
    """
    return _disable_dynamo(function)  # pyright: ignore[reportReturnType]


def own_call(module: nn.Module) -> Callable[..., Any]:
    """What a call of a module runs: its forward with its hooks."""
    return module._call_impl


def version(tensor: Tensor) -> int:
    """How often a tensor, or what it is a view of, was changed in place; 0 in inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version
