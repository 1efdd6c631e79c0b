"""The arguments of a model call, for models of any class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

__all__ = ["binder", "device_of", "signature_of", "timestep_of"]

TIMESTEPS = ("timestep", "timesteps", "time_step", "step", "t", "time", "sigma", "noise_level", "noise_labels")
"""What models call the argument that says how noisy their input is."""

UNSIGNED = frozenset(TIMESTEPS)
PLAIN = (bool, int, str, type(None))
"""Types of flags, names and whole numbers."""


def binder(model: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """What gives the arguments of a call of `model` by name, in the order of its signature, defaults filled in."""
    signature = inspect.signature(type(model).forward)
    known = list(signature.parameters.values())[1:]
    names = [each.name for each in known]
    defaults = {each.name: each.default for each in known}
    needed = {each.name for each in known if each.default is each.empty}
    plain = all(each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) for each in known)
    most = sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in known)

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        first = names[: len(args)]
        if plain and len(args) <= most and kwargs.keys().isdisjoint(first) and not needed.difference(first, kwargs):
            given = {**defaults, **dict(zip(first, args, strict=True)), **kwargs}
            if len(given) == len(names):
                return given
        bound = signature.bind(model, *args, **kwargs)
        bound.apply_defaults()
        return dict(list(bound.arguments.items())[1:])

    return bind


def timestep_of(call: Mapping[str, Any]) -> Tensor | float | None:
    """What tells the position of a call in its generation, if it is there."""
    found = next((call[name] for name in TIMESTEPS if call.get(name) is not None), None)
    if isinstance(found, Tensor):
        return None if found.is_meta or not found.numel() else found
    return float(found) if isinstance(found, int | float) else None


def signature_of(call: Mapping[str, Any]) -> tuple[Any, ...]:
    """The form of a call: shapes and dtypes of its tensors, and all flags, names and whole numbers.

    Calls of one generation differ in it where a model is asked for something else than before. Timesteps and
    fractions change from step to step and are left out.
    """
    found: list[Any] = []
    for name, value in call.items():
        if name in UNSIGNED or name[0] == "_":
            continue
        if isinstance(value, PLAIN):
            found.append((name, value))
        elif isinstance(value, Tensor):
            found.append((name, value.shape, value.dtype))
        elif isinstance(value, (dict, list, tuple)):
            leaves, spec = tree_flatten(value)
            kinds = ((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves if is_kept(leaf))
            found.append((name, str(spec), *kinds))
    return tuple(found)


def is_kept(leaf: Any) -> bool:
    """Whether something nested in an argument belongs to the form of a call."""
    return isinstance(leaf, Tensor | bool | int | str)


def device_of(call: Mapping[str, Any]) -> torch.device:
    """Where the call's tensors are."""
    found = next((value.device for value in call.values() if isinstance(value, Tensor)), None)
    if found is not None:
        return found
    return next((v.device for v in tree_flatten(dict(call))[0] if isinstance(v, Tensor)), torch.device("cpu"))
