"""Tiny random denoisers of every class of diffusers that can be built small, and calls of them.

`denoisers.json` has one line per configuration: the class (a second configuration of one has `-2` behind it), the
constructor's arguments, and the inputs of a call. A tensor is `{"shape": .., "dtype": float32, "values": normal}`, or has random integers `below` a number, an
object of the class's module `{"other": name, "args": []}`, a tuple `{"tuple": []}`.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TABLE: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "denoisers.json").read_text())

MOVING = ("hidden_states", "sample", "x", "vision_tokens", "decoder_input_tokens", "pooled_text_emb")
"""The inputs that change from step to step: the noisy sample under its names."""


def kind_of(name: str) -> type[nn.Module]:
    """The class of a configuration."""
    return getattr(importlib.import_module("diffusers"), name.split("-")[0])


def declared() -> list[str]:
    """The configurations of classes whose blocks have declared gates, by docs/models.md, which a test compares."""
    rows = (Path(__file__).parents[2] / "docs" / "models.md").read_text().splitlines()
    classes = {row.split("`")[1] for row in rows if row.startswith("| `") and row.endswith("| declared |")}
    return [name for name in TABLE if name.split("-")[0] in classes]


@functools.cache
def build(name: str) -> nn.Module:
    """The model; parameters that start at nought or one get random values, so that every block matters."""
    torch.manual_seed(0)
    model = kind_of(name)(**copy.deepcopy(TABLE[name]["init"])).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter.dim() < 2 or not parameter.any()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs_of(name: str, step: int = 0) -> dict[str, Any]:
    """The arguments of the call at a step."""
    module = inspect.getmodule(kind_of(name))
    generator = torch.Generator().manual_seed(2)
    made = {key: value_of(value, generator, module) for key, value in TABLE[name]["inputs"].items()}
    for key in MOVING:
        if key in made:
            made[key] = moved(made[key], step)
    return made


def moved(value: Any, step: int) -> Any:
    """A sample as it is `step` steps later."""
    if isinstance(value, Tensor):
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
        return value * (1 - 0.04 * step) + 0.05 * step * direction
    return [moved(each, step) for each in value]


def value_of(value: Any, generator: torch.Generator, module: Any) -> Any:
    """An input as it is written in the table."""
    if isinstance(value, list):
        return [value_of(each, generator, module) for each in value]
    if not isinstance(value, dict):
        return value
    if "other" in value:
        return getattr(module, value["other"])(*value.get("args", ()))
    if "tuple" in value:
        return tuple(value["tuple"])
    if "shape" not in value:
        return {number(key): value_of(each, generator, module) for key, each in value.items()}
    dtype = getattr(torch, value.get("dtype", "float32"))
    if "values" in value:
        given = torch.tensor(value["values"], dtype=dtype)
        return given.expand(value["shape"]).clone() if given.numel() == 1 else given.reshape(value["shape"])
    if "below" in value:
        return torch.randint(value["below"], value["shape"], generator=generator, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(value["shape"], generator=generator, dtype=dtype)
    return torch.zeros(value["shape"], dtype=dtype) if dtype != torch.bool else torch.ones(value["shape"], dtype=dtype)


def number(key: str) -> str | int:
    """A key of a dict as it was before it became JSON."""
    return int(key) if key.isdigit() else key


def tensors_of(result: Any) -> list[Tensor]:
    """All tensors of a result."""
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
