"""Histories of nested values: one forecast for all tensors of a value together.

The floating-point leaves of a value (`hicache.generic.leaves`) are joined to one frame `[B, D]` per dtype and device,
or `[1, D]` without a batch. So a basis that fits its weights to the values (DMD, auto, an adaptive sigma) fits one set
to all leaves of a sample, and one for each sample: what a sample is generated beside does not change it. Without a
batch there is one set for everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hicache.forecast import Forecaster
from hicache.generic.leaves import Form, Inner, flatten, unflatten

__all__ = ["NestedForecaster"]

Group = tuple[torch.dtype, torch.device]


class NestedForecaster:
    """Observes nested values and forecasts them in the structure of the last one.

    Args:
        build: makes a forecaster for frames `[rows, D]`.
        batch: whether the first axis of every leaf is the batch.
    """

    def __init__(self, build: Callable[[], Forecaster], batch: bool) -> None:
        self.build = build
        self.batch = batch
        self.form: Form | None = None
        self.shapes: list[torch.Size] = []
        self.groups: list[Group] = []
        self.forecasters: dict[Group, Forecaster] = {}
        self.num_steps: int | None = None

    @property
    def ready(self) -> bool:
        """Whether there is an anchor to forecast from."""
        return bool(self.forecasters) and all(f.ready for f in self.forecasters.values())

    @property
    def bytes(self) -> int:
        """Memory of all histories."""
        return sum(forecaster.bytes for forecaster in self.forecasters.values())

    def reset(self, num_steps: int | None = None) -> None:
        """Forget all anchors; the next value may have another structure."""
        self.form, self.num_steps = None, num_steps
        for forecaster in self.forecasters.values():
            forecaster.reset(num_steps)

    @torch.no_grad()
    def observe(self, step: int, value: Any) -> None:
        """Take a copy of a value as the anchor at `step`.

        Raises:
            ValueError: if it has no tensor, or others than the last anchor, naming the leaf.
        """
        leaves, form = flatten(value)
        if not leaves:
            raise ValueError(f"value: must have a floating-point tensor in it, got {type(value).__name__}")
        groups: list[Group] = [(leaf.dtype, leaf.device) for leaf in leaves]
        self.check(value, leaves, form, groups)
        if self.form is None:
            self.groups, self.shapes = groups, [leaf.shape for leaf in leaves]
            self.forecasters = {key: self.forecasters.get(key) or self.fresh() for key in dict.fromkeys(groups)}
        self.form = form
        for key, forecaster in self.forecasters.items():
            rows = [leaf.reshape(self.rows(leaf), -1) for leaf, own in zip(leaves, groups, strict=True) if own == key]
            forecaster.observe(step, torch.cat(rows, dim=1))

    def fresh(self) -> Forecaster:
        """A new forecaster."""
        made = self.build()
        made.reset(self.num_steps)
        return made

    def rows(self, leaf: Tensor) -> int:
        """Samples in a leaf."""
        return leaf.shape[0] if self.batch else 1

    def check(self, value: Any, leaves: list[Tensor], form: Form, groups: list[Group]) -> None:
        """Raise for a value that does not go with the last anchor, or has no batch where it should."""
        names = names_of(value, len(leaves))
        if self.batch:
            opened = next((node for node in form.nodes if isinstance(node, Inner) and node.value is not None), None)
            if opened is not None:
                raise ValueError(f"batch: must be False for {opened.kind.__name__}, whose first axis is no batch")
            for name, leaf in zip(names, leaves, strict=True):
                if leaf.dim() < 2 or leaf.shape[0] != leaves[0].shape[0]:
                    raise ValueError(
                        f"batch: must be False unless all leaves begin with one batch, got {name} of {list(leaf.shape)}"
                    )
        if self.form is None:
            return
        if form != self.form:
            raise ValueError(f"value: must have the structure of the last anchor, got {form.spec}; call reset()")
        for name, leaf, shape, own, group in zip(names, leaves, self.shapes, groups, self.groups, strict=True):
            if leaf.shape != shape or own != group:
                raise ValueError(
                    f"value: {name} must be {list(shape)} {group[0]} on {group[1]} as in the last anchor, "
                    f"got {list(leaf.shape)} {own[0]} on {own[1]}; call reset()"
                )

    @torch.no_grad()
    def predict(self, at: float) -> Any:
        """The forecast at a step, which may be fractional."""
        if self.form is None:
            raise ValueError(f"step: nothing observed yet, cannot forecast step {at}")
        flat = {key: forecaster.predict(at) for key, forecaster in self.forecasters.items()}  # type: ignore[arg-type]
        used = dict.fromkeys(flat, 0)
        leaves: list[Tensor] = []
        for shape, key in zip(self.shapes, self.groups, strict=True):
            width = shape.numel() // (shape[0] if self.batch else 1)
            leaves.append(flat[key][:, used[key] : used[key] + width].reshape(shape))
            used[key] += width
        return unflatten(leaves, self.form)


def names_of(value: Any, count: int) -> list[str]:
    """Names of a value's leaves for messages."""
    paths, _ = pytree.tree_flatten_with_path(value)
    names = [pytree.keystr(path) or "the value" for path, leaf in paths if isinstance(leaf, Tensor)]
    return names if len(names) == count else [f"leaf {i}" for i in range(count)]
