"""Nested results as a list of tensors and a form: what is forecast, and what it is put back into.

Understood are tensors, dicts, lists, tuples and everything that torch knows as a pytree (diffusers' outputs among
them), dataclasses, and types that were introduced with `register`. Floating-point tensors are the *leaves*; whatever
else there is (None, numbers, strings, masks, indices) belongs to the form and is put back as it was.

>>> tensors, form = flatten({"v": torch.ones(2), "scale": 3})
>>> unflatten([2 * tensors[0]], form)
{'v': tensor([2., 2.]), 'scale': 3}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Form", "flatten", "register", "unflatten"]


@dataclass(frozen=True)
class Opened:
    """A type that torch does not know: how to take its tensors out and to put others in."""

    take: Callable[[Any], Any]
    replace: Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Kept:
    """What is no leaf: put back as it was; two forms are equal whatever it is."""

    value: Any = field(compare=False)


@dataclass(frozen=True)
class Inner:
    """A dataclass or registered object: its type, the object itself (for `replace`) and the form of what is in it."""

    kind: type[object]
    form: Form
    value: Any = field(compare=False, default=None)


@dataclass(frozen=True)
class Form:
    """A nested value without its tensors; None stands for a leaf."""

    spec: pytree.TreeSpec
    nodes: tuple[Kept | Inner | None, ...]

    @property
    def size(self) -> int:
        """Number of leaves."""
        return sum(1 if node is None else node.form.size if isinstance(node, Inner) else 0 for node in self.nodes)


OPENED: dict[type, Opened] = {}


def register(kind: type, take: Callable[[Any], Any], replace: Callable[[Any, Any], Any]) -> None:
    """Introduce a type whose tensors may be forecast.

    Args:
        kind: the type.
        take: gives the tensors of an object, as any nested value that is understood.
        replace: gives an object like the one given, with other tensors in the same places.

    >>> register(SparseTensor, lambda x: x.feats, lambda x, feats: x.replace(feats))  # doctest: +SKIP
    """
    if not isinstance(kind, type):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"kind: must be a type, got {kind!r}")
    OPENED[kind] = Opened(take, replace)


def flatten(value: Any) -> tuple[list[Tensor], Form]:
    """The floating-point tensors of a nested value, and its form."""
    tensors: list[Tensor] = []
    found, spec = pytree.tree_flatten(value, is_leaf=lambda x: type(x) in OPENED)
    return tensors, Form(spec, tuple(node_of(x, tensors) for x in found))


def node_of(value: object, tensors: list[Tensor]) -> Kept | Inner | None:
    """The node of one of torch's leaves; its tensors are appended to `tensors`."""
    if isinstance(value, Tensor) and type(value) not in OPENED:
        if not torch.is_floating_point(value):
            return Kept(value)
        tensors.append(value)
        return None
    opened = next((OPENED[kind] for kind in type(value).__mro__ if kind in OPENED), None)
    if opened is not None:
        inner, form = flatten(opened.take(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner, form = flatten({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    else:
        return Kept(value)
    tensors += inner
    return Inner(type(value), form, None if opened is None else value)


def unflatten(tensors: Sequence[Tensor], form: Form) -> Any:
    """The nested value of this form with these tensors in it."""
    given = list(tensors)
    if len(given) != form.size:
        raise ValueError(f"tensors: must be {form.size} for this form, got {len(given)}")
    return rebuilt(iter(given), form)


def rebuilt(given: Any, form: Form) -> Any:
    """`unflatten` from an iterator."""
    return pytree.tree_unflatten([value_of(node, given) for node in form.nodes], form.spec)


def value_of(node: Kept | Inner | None, given: Any) -> Any:
    """What stands at a node."""
    if node is None:
        return next(given)
    if isinstance(node, Kept):
        return node.value
    content = rebuilt(given, node.form)
    opened = next((OPENED[kind] for kind in node.kind.__mro__ if kind in OPENED), None)
    if opened is not None:
        return opened.replace(node.value, content)
    made = object.__new__(node.kind)
    for name, value in content.items():
        object.__setattr__(made, name, value)
    return made
