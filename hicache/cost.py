r"""What a plan costs: FLOPs from shapes alone, and bytes of cache.

The model is rebuilt from its configuration on the `meta` device, at its true size and without memory, and the
executor runs it under PyTorch's FLOP counter: one computed step, one estimated step. So the count is that of the
code that runs. The convention is that of the papers: a multiply-add of a matrix product or an attention
counts 2; norms, softmax and other element-wise work count 0. The arithmetic of the forecast is element-wise
too; it is given separately as `overhead` (2 per value of every frame) and is not part of `total`.

    total = n_full * full + n_estimated * estimated,        speedup = num_steps * full / total
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hicache.adapters import adapter_for
from hicache.executor import Executor
from hicache.methods import CacheMethod, Knobs
from hicache.policy import Mask

__all__ = ["Cost", "measure"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """FLOPs of a plan. `full`, `estimated` and `overhead` are per step, the others per run.

    Attributes:
        full: a computed step.
        estimated: matrix products of an estimated step (embedders, gates, head).
        overhead: element-wise arithmetic of its forecasts.
        full_steps: number of computed steps.
        num_steps: number of steps.
        cache_bytes: memory of the histories once they are full.
    """

    full: float
    estimated: float
    overhead: float
    full_steps: int
    num_steps: int
    cache_bytes: int

    @property
    def total(self) -> float:
        """FLOPs of the run."""
        return self.full_steps * self.full + (self.num_steps - self.full_steps) * self.estimated

    @property
    def baseline(self) -> float:
        """FLOPs of the un-cached run."""
        return self.num_steps * self.full

    @property
    def speedup(self) -> float:
        """`baseline / total`."""
        return self.baseline / self.total


def on_meta(model: nn.Module) -> nn.Module:
    """The same architecture without weights, from the model's configuration."""
    kind: Any = type(model)
    if not hasattr(kind, "from_config"):
        raise ValueError(f"model: must be a diffusers model with a configuration, got {kind.__name__}")
    with torch.device("meta"):
        empty = kind.from_config(model.config).eval()
    return empty if empty.dtype == model.dtype else empty.to(model.dtype)


def measure(
    model: nn.Module,
    method: CacheMethod,
    num_steps: int,
    batch: int = 1,
    full_steps: Sequence[int] | None = None,
    convention: str = "executed",
    **shape: int,
) -> Cost:
    """Cost of running `model` for `num_steps` steps under `method`.

    Args:
        model: a transformer with an adapter, on any device (the meta device too).
        method: the method; its policy gives the full steps unless `full_steps` does.
        num_steps: steps of the run.
        batch: rows of the model's batch; a guided image in one doubled batch has 2.
        full_steps: the executed full steps, for policies whose plan depends on the data.
        convention: `executed` counts the code that runs; `published` counts an estimated step at module scope as
            the papers' tables do, where they differ.
        **shape: overrides of the adapter's published size, such as `height`, `width`, `frames`, `text`.

    Raises:
        ValueError: if the plan depends on the data and `full_steps` is not given.
    """
    if convention not in ("executed", "published"):
        raise ValueError(f"convention: must be executed or published, got {convention!r}")
    steps = method.policy.plan(num_steps) if full_steps is None else list(full_steps)
    if steps is None:
        raise ValueError("full_steps: the plan of this policy depends on the data, must be given, got None")
    meta = on_meta(model)
    adapter = adapter_for(meta)
    executor = Executor(adapter, replace(method, policy=Mask(steps=[0]), knobs=any_step(method.knobs)), meta.forward)
    example = adapter.example(batch, torch.device("meta"), **shape)
    executor.begin(2)
    with torch.no_grad():
        full = _count(executor, example)
        if not method.caches:
            return Cost(
                full=full,
                estimated=0.0,
                overhead=0.0,
                full_steps=num_steps,
                num_steps=num_steps,
                cache_bytes=0,
            )
        history = executor.fill_history(len(steps))
        estimated = _count(executor, example)
    if convention == "published" and method.scope == "modules":
        estimated = adapter.published_estimate(example)
    return Cost(
        full=full,
        estimated=estimated,
        overhead=2.0 * sum(frame.numel() for frame in history.frames),
        full_steps=len(steps),
        num_steps=num_steps,
        cache_bytes=history.bytes,
    )


def any_step(knobs: Knobs) -> Knobs:
    """The same knobs, with a table of weights without its rows: those know the steps of their plan only."""
    if knobs.basis != "table":
        return knobs
    return replace(knobs, basis_options={k: v for k, v in knobs.basis_options.items() if k != "rows"})


def _count(executor: Executor, example: dict[str, Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        executor(**example)
    return float(counter.get_total_flops())
