"""Which calls a pipeline makes of its denoisers, and what a run of it costs: nothing has to be known of the pipeline.

    with hicache.cost.trace(pipe) as calls:
        pipe(prompt, num_inference_steps=50)
    print(calls.cost(hicache.method("hicache", scope="stack")).total)

A call is noted once per kind (model, shapes, other arguments), with the number of times it was made; its tensors are
kept, because some models can be counted with values only (`hicache.cost.measure`). Steps are those of the scheduler.
The FLOPs of a step are a mean where calls differ from step to step, such as skip-layer guidance, which has a third one
at some of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from hicache.clock import SamplerClock, follow, unfollow
from hicache.cost.meter import Cost, measure
from hicache.generic.structure import denoisers
from hicache.methods import CacheMethod

__all__ = ["Calls", "CallKind", "trace"]


@dataclass
class CallKind:
    """Calls of one model that do the same: their arguments by name, and how many there were."""

    model: str
    example: dict[str, Any]
    count: int = 0


@dataclass
class Calls:
    """The calls of one generation.

    Attributes:
        models: the pipeline's denoisers by name.
        kinds: of calls.
        steps: the scheduler's steps at which each model was called.
    """

    models: dict[str, nn.Module]
    kinds: dict[Any, CallKind] = field(default_factory=dict[Any, CallKind])
    steps: dict[str, set[int]] = field(default_factory=dict[str, set[int]])

    @property
    def num_steps(self) -> int:
        """Steps of the generation, all models together: two that run at one step make two of it."""
        return sum(len(steps) for steps in self.steps.values())

    def note(self, name: str, step: int | None, example: dict[str, Any]) -> None:
        """A call at a step; None: of a pipeline whose scheduler does not tell, every call of a kind is a step."""
        leaves, form = tree_flatten(example)
        key = (name, form, tuple(kind_of(leaf) for leaf in leaves))
        kind = self.kinds.setdefault(key, CallKind(name, example))
        kind.count += 1
        self.steps.setdefault(name, set()).add(kind.count if step is None else step)

    def cost(self, method: CacheMethod, full_steps: Sequence[int] | None = None, part: float = 1.0) -> Cost:
        """The cost of the generation under a method, all models together.

        Args:
            method: the method.
            full_steps: the executed full steps, for policies whose plan depends on the data: where several models
                follow on one another, those of the first, then those of the second counted from its first step, ...
            part: what to count of every call, such as one of the items of a batch.

        Raises:
            ValueError: as in `measure`, and if nothing was called.
        """
        if not self.kinds:
            raise ValueError("trace: must have seen a call of a denoiser, got none")
        first = 0
        costs: list[Cost] = []
        for name, steps in self.steps.items():
            last = first + len(steps)
            own = None if full_steps is None else [s - first for s in full_steps if first <= s < last]
            kinds = [kind for kind in self.kinds.values() if kind.model == name]
            costs.append(self._cost(name, kinds, method, own, part))
            first = last
        return costs[0] if len(costs) == 1 else joined(costs)

    def _cost(
        self, name: str, kinds: list[CallKind], method: CacheMethod, full_steps: list[int] | None, part: float
    ) -> Cost:
        """The cost of the calls of one model."""
        steps, found = len(self.steps[name]), None
        for kind in kinds:
            one = measure(self.models[name], method, steps, full_steps=full_steps, example=kind.example)
            one = scaled(one, part * kind.count / steps)
            found = one if found is None else added(found, one)
        assert found is not None
        return found


def kind_of(leaf: Any) -> Any:
    """What two calls of one kind have in common: the shape of a tensor, the type of a number."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype
    return leaf if isinstance(leaf, str | bool | type(None)) else type(leaf).__name__


def scaled(cost: Cost, factor: float) -> Cost:
    """So many of the same calls at every step; each branch has histories of its own."""
    parts = ("full", "estimated", "overhead", "mixed", "saved")
    return replace(
        cost, **{key: factor * getattr(cost, key) for key in parts}, cache_bytes=round(factor * cost.cache_bytes)
    )


def added(one: Cost, other: Cost) -> Cost:
    """Calls of two kinds at the same steps."""
    parts = ("full", "estimated", "overhead", "mixed", "saved", "cache_bytes")
    return replace(one, **{key: getattr(one, key) + getattr(other, key) for key in parts})


def joined(costs: Sequence[Cost]) -> Cost:
    """Models that follow on one another: steps add up, and the FLOPs of a step are a mean over those of its kind."""
    steps = sum(cost.num_steps for cost in costs)
    full = sum(cost.full_steps for cost in costs)
    mixed = sum(cost.mixed_steps for cost in costs)
    estimated = [cost.num_steps - cost.full_steps - cost.mixed_steps for cost in costs]

    def mean(values: Sequence[float], weights: Sequence[int]) -> float:
        return sum(v * w for v, w in zip(values, weights, strict=True)) / max(sum(weights), 1)

    return Cost(
        full=mean([cost.full for cost in costs], [cost.full_steps for cost in costs]),
        estimated=mean([cost.estimated for cost in costs], estimated),
        overhead=mean([cost.overhead for cost in costs], estimated),
        full_steps=full,
        num_steps=steps,
        cache_bytes=sum(cost.cache_bytes for cost in costs),
        mixed=sum(cost.mixed for cost in costs),
        mixed_steps=mixed,
        saved=sum(cost.saved for cost in costs),
        parameters=sum(cost.parameters for cost in costs),
        uncached=mean([cost.full for cost in costs], [cost.num_steps for cost in costs]),
    )


class Follower:
    """Follows a scheduler's steps and does nothing when a generation begins."""

    def announce(self, num_steps: int | None, clock: SamplerClock | None = None) -> None:
        """A generation begins."""


@contextmanager
def trace(target: Any) -> Generator[Calls]:
    """Note the calls that are made of a pipeline's denoisers, or of a model, inside of the `with` block.

    Raises:
        ValueError: where there is no denoiser.
    """
    found, scheduler, follower = Calls(denoisers(target)), getattr(target, "scheduler", None), Follower()
    clock = None if scheduler is None else follow(scheduler, follower)
    with ExitStack() as stack:
        if clock is not None:
            stack.callback(unfollow, clock, follower)
        for name, model in found.models.items():
            bare: nn.Module = getattr(model, "_orig_mod", model)
            signature = inspect.signature(type(bare).forward)

            def before(
                module: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                name: str = name,
                signature: inspect.Signature = signature,
            ) -> None:
                example = dict(signature.bind(module, *args, **kwargs).arguments)
                example.pop("self", None)
                example |= example.pop("kwargs", {})
                found.note(name, clock.step if clock is not None and clock.counts else None, example)

            stack.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield found
