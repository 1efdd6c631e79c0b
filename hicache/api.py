"""The public API: enable a method on a diffusers pipeline or on its transformer, and take it off again.

with hicache.cached(pipe, hicache.method("hicache", interval=7, order=2, sigma=0.5)) as cache:
    image = pipe(prompt, num_inference_steps=50).images[0]
print(cache.report)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from hicache.adapters import Adapter, adapter_for
from hicache.executor import Executor
from hicache.forecast import Forecaster
from hicache.guidance import AdaptiveGuidance, GuidedExecutor
from hicache.methods import CacheMethod, method
from hicache.operators import Chipmunk, Operators
from hicache.report import Report
from hicache.sampler import clock_of

__all__ = ["Handle", "cached", "disable", "enable", "forecaster"]

MARK = "_hicache_handle"


class Handle:
    """A method enabled on a model. `disable` restores the model and the pipeline exactly."""

    def __init__(
        self,
        target: Any,
        cache_method: CacheMethod,
        guidance: AdaptiveGuidance | None = None,
        operators: Chipmunk | None = None,
    ) -> None:
        self.pipe = target if hasattr(target, "transformer") else None
        self.model: nn.Module = target.transformer if self.pipe is not None else target
        if not isinstance(self.model, nn.Module):
            raise ValueError(
                f"target: must be a pipeline with a transformer, or a transformer, got {type(target).__name__}"
            )
        adapter = adapter_for(self.model)
        disable(self.model)
        self._patched: list[tuple[Any, str, Any, Any]] = []
        # An offload hook has replaced `forward` and keeps the model's own one here: stay inside it.
        name = "_old_forward" if "_old_forward" in vars(self.model) else "forward"
        parts = adapter, self._timed(cache_method), getattr(self.model, name)
        self.executor = Executor(*parts) if guidance is None else GuidedExecutor(*parts, guidance)
        self.operators = self._install(adapter, cache_method, operators)
        self._patch(self.model, name, self._forward(self.executor.forward))
        self._patch(self.model, MARK, self)
        context = getattr(self.model, "cache_context", None)
        if context is not None:
            self._patch(self.model, "cache_context", self._context(context))
        self._scheduler: Any = None
        self._follow_scheduler()
        if self.pipe is not None and hasattr(self.pipe, "maybe_free_model_hooks"):
            self._patch(self.pipe, "maybe_free_model_hooks", self._after(self.pipe.maybe_free_model_hooks))

    @property
    def report(self) -> Report:
        """The report of the last generation (of the one under way, during it)."""
        report = self.executor.report
        if self.operators is not None:
            report.operators = self.operators.facts
        return report

    def begin(self, num_steps: int | None = None) -> None:
        """Announce a generation of `num_steps` model calls per branch; a pipeline does it by itself."""
        self.executor.begin(num_steps)

    def finish(self) -> None:
        """Announce the end of a generation; raises `PlanError` if steps are missing."""
        self.executor.finish()

    def branch(self, name: str) -> AbstractContextManager[None]:
        """Calls inside the `with` belong to branch `name`, which has its own clock and history."""
        return self.executor.named(name)

    def disable(self) -> None:
        """Restore the model and the pipeline exactly. A second call does nothing."""
        for owner, name, ours, before in reversed(self._patched):
            slots = vars(owner)
            if slots.get(name) is ours:
                if before is None:
                    del slots[name]
                else:
                    slots[name] = before
            elif slots.get("_old_forward") is ours:
                slots["_old_forward"] = self.executor.forward
        self._patched = []
        if self.operators is not None:
            self.executor.report.operators = self.operators.facts
            self.operators.remove()
            self.operators = None
        self.executor.detach()

    def _install(self, adapter: Adapter, cache_method: CacheMethod, chosen: Chipmunk | None) -> Operators | None:
        """The operators of computed steps, below the cache; nothing stays on the model if they do not fit."""
        if chosen is None:
            return None
        try:
            if cache_method.patch is not None:
                name = cache_method.name
                raise ValueError(f"operators: must be none for method {name}, which recomputes rows of its own choice")
            return Operators(adapter, chosen, lambda: (self.executor.report, self.executor.branch))
        except ValueError:
            self.executor.detach()
            raise

    def _timed(self, cache_method: CacheMethod) -> CacheMethod:
        """The method with the clock that its time variable needs."""
        time = cache_method.knobs.time
        if time == "index" or not cache_method.caches:
            return cache_method
        pipe = self.pipe
        if getattr(pipe, "scheduler", None) is None:
            raise ValueError(f"time: must be index without a pipeline that has a scheduler, got {time!r}")
        return dataclasses.replace(cache_method, clock=lambda: clock_of(getattr(pipe, "scheduler", None), time))

    def _patch(self, owner: Any, name: str, ours: Any) -> None:
        self._patched.append((owner, name, ours, vars(owner).get(name)))
        vars(owner)[name] = ours

    def _forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What stands in for the model's forward."""

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if getattr(self.pipe, "scheduler", None) is not self._scheduler:
                self._follow_scheduler()
                self.executor.begin(len(self._scheduler.timesteps))
            return self.executor(*args, **kwargs)

        return forward

    def _context(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """diffusers' name of a guidance call, which is our branch."""

        @contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            with self.executor.named(name), original(name, *args, **kwargs):
                yield

        return cache_context

    def _follow_scheduler(self) -> None:
        """Make the pipeline's `scheduler.set_timesteps` begin a generation."""
        self._scheduler = getattr(self.pipe, "scheduler", None)
        if self._scheduler is None:
            return
        scheduler, original = self._scheduler, self._scheduler.set_timesteps

        @functools.wraps(original)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.executor.begin(len(scheduler.timesteps))
            return result

        self._patch(scheduler, "set_timesteps", set_timesteps)

    def _after(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def freed(*args: Any, **kwargs: Any) -> Any:
            self.executor.finish()
            return original(*args, **kwargs)

        return freed


def enable(
    target: Any,
    cache_method: CacheMethod,
    guidance: AdaptiveGuidance | None = None,
    operators: Chipmunk | None = None,
) -> Handle:
    """Enable a method on a diffusers pipeline or on its transformer.

    A method that is already enabled there is taken off first. On a pipeline, generations begin and end by
    themselves; on a bare transformer they begin when the timestep goes up, or with `handle.begin(num_steps)`.

    Args:
        target: a pipeline with a `transformer`, or the transformer.
        cache_method: from `hicache.method`.
        guidance: leave out unconditional predictions that have become superfluous; None makes them all.
        operators: what computes attention and MLPs at computed steps; None = the model's own.

    Raises:
        ValueError: if no adapter knows the transformer's class, it lacks the method's scope, or the operators do not
            fit the model or the method.
    """
    return Handle(target, cache_method, guidance, operators)


def disable(target: Any) -> None:
    """Take off whatever method is enabled on a pipeline or transformer; nothing happens where there is none."""
    model = getattr(target, "transformer", target)
    handle = vars(model).get(MARK)
    if isinstance(handle, Handle):
        handle.disable()


@contextmanager
def cached(
    target: Any,
    cache_method: CacheMethod,
    guidance: AdaptiveGuidance | None = None,
    operators: Chipmunk | None = None,
) -> Iterator[Handle]:
    """`enable` for the length of a `with` block; the handle's report stays readable after it."""
    handle = enable(target, cache_method, guidance, operators)
    try:
        yield handle
    finally:
        handle.disable()


def forecaster(name: str, **knobs: Any) -> Forecaster:
    """A forecaster on its own, to observe and predict tensors by hand.

    Args:
        name: a method's name; its basis, order and sigma are used.
        **knobs: as for `hicache.method`.

    >>> f = forecaster("taylorseer", order=1, warmup_steps=2)
    >>> f.observe(0, torch.tensor([0.0])); f.observe(1, torch.tensor([1.0]))
    >>> f.predict(4)
    tensor([4.])
    """
    return method(name, **knobs).build_forecaster()
