"""A method enabled on one model or on all denoisers of a pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from hicache.adapters import find_adapter
from hicache.attachment import Dispatcher, check_whole, dispatcher_of, is_compiled, unwrapped
from hicache.clock import SamplerClock, follow, unfollow, unwatch, watch
from hicache.executor import Executor, computes_all
from hicache.generation_report import PlanError, Report
from hicache.generic.structure import denoisers
from hicache.guidance import AdaptiveGuidance, GuidedExecutor
from hicache.methods import CacheMethod
from hicache.operators import Chipmunk, Operators
from hicache.sampler import clock_of

__all__ = ["Attached", "Handle", "owners"]


class Attached:
    """A method on one model.

    Raises:
        ValueError: if the model lacks the scope, has another cache, or the guidance or operators do not fit.
    """

    def __init__(self, handle: Handle, model: nn.Module, method: CacheMethod, errors: bool) -> None:
        inner = unwrapped(model)
        refuse_foreign(inner)
        adapter, guidance, separate = find_adapter(inner), handle.guidance, handle.separate
        if not computes_all(method) and is_compiled(model):
            check_whole(model, method.scope)
        if guidance is None:
            self.executor = Executor(adapter, method, inner.forward, inner, separate)
        elif adapter is None:
            raise ValueError(
                f"guidance: must be plain for {type(inner).__name__}, which has no adapter, got 'adaptive'"
            )
        else:
            self.executor = GuidedExecutor(adapter, method, inner.forward, guidance)
        self.executor.errors = errors
        self.model = inner
        self._chosen = handle.chosen
        self.operators = self._install(method)
        self.dispatcher = Dispatcher(model, self.executor, handle)

    def _install(self, method: CacheMethod) -> Operators | None:
        """The operators of computed steps, below the cache; nothing stays on the model if they do not fit."""
        chosen, executor = self._chosen, self.executor
        if chosen is None:
            return None
        try:
            if method.patch is not None:
                raise ValueError(
                    f"operators: must be none for method {method.name}, which recomputes rows of its own choice"
                )
            if executor.adapter is None:
                raise ValueError(f"operators: must be none for {type(self.model).__name__}, which has no adapter")
            return Operators(executor.adapter, chosen, lambda: (executor.report, executor.key))
        except ValueError:
            executor.detach()
            raise

    @property
    def report(self) -> Report:
        """Of the generation under way, or the last."""
        report = self.executor.report
        if self.operators is not None:
            report.operators = self.operators.facts
        return report

    def take(self) -> None:
        """Enter the model."""
        if self.operators is None:
            self.operators = self._install(self.executor.method)
        self.dispatcher.take()
        if hasattr(self.model, "cache_context"):
            watch(self.model, "cache_context", self._context)

    def give_back(self) -> None:
        """Leave the model."""
        self.dispatcher.give_back()
        unwatch(self.model, "cache_context", self._context)
        if self.operators is not None:
            self.executor.report.operators = self.operators.facts
            self.operators.remove()
            self.operators = None

    def _context(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """diffusers' name of a guidance call, which is our branch."""
        name = args[0] if args else kwargs["name"]

        @contextmanager
        def cache_context() -> Generator[None]:
            with self.executor.named(str(name)), call(*args, **kwargs):
                yield

        return cache_context()


class Handle:
    """A method enabled on a model, or on all denoisers of a pipeline.

    `disable` restores models and pipeline exactly; the reports stay readable.
    """

    def __init__(
        self,
        target: Any,
        method: CacheMethod,
        guidance: AdaptiveGuidance | None = None,
        operators: Chipmunk | None = None,
        separate: bool = False,
        errors: bool = False,
    ) -> None:
        self.pipe = None if isinstance(target, nn.Module) else target
        self.guidance, self.chosen, self.separate = guidance, operators, separate
        models, timed = denoisers(target), self._timed(method)
        before = owners(models.values())
        for each in before:
            each.suspend()
        self._attached: dict[str, Attached] = {}
        self._reports: dict[str, Report] = {}
        self.enabled = False
        self._clock: SamplerClock | None = None
        self._calling = False
        try:
            for name, model in models.items():
                self._attached[name] = Attached(self, model, timed, errors)
        except BaseException:
            self.disable()
            for each in before:
                each.resume()
            raise
        for each in before:
            each.disable()
        self.resume()

    # -- what happened -----------------------------------------------------------------------------------------

    @property
    def executor(self) -> Executor:
        """Of the first model, while the method is enabled."""
        return next(iter(self._attached.values())).executor

    @property
    def report(self) -> Report:
        """The report of the last generation (of the one under way, during it), of the first model that took part."""
        reports = list(self.reports.values())
        return next((report for report in reports if report.branches), reports[0])

    @property
    def reports(self) -> dict[str, Report]:
        """The report of every model by its name in the pipeline."""
        return {**self._reports, **{name: attached.report for name, attached in self._attached.items()}}

    @property
    def operators(self) -> Operators | None:
        """Of the first model, while the method is enabled."""
        return next((attached.operators for attached in self._attached.values()), None)

    # -- an own loop -------------------------------------------------------------------------------------------

    def begin(self, num_steps: int | None = None) -> None:
        """Announce a generation of `num_steps` model calls per branch; a pipeline does it by itself."""
        for attached in self._attached.values():
            attached.executor.begin(None if num_steps is None else int(num_steps))

    def step(self) -> None:
        """A step of an own loop is over: calls from here on belong to the next one. A pipeline does it by itself."""
        for attached in self._attached.values():
            attached.executor.advance()

    def finish(self) -> None:
        """Announce the end of a generation.

        Raises:
            PlanError: if a full step that was reached was not executed, or an announced generation made no call.
        """
        executors = [attached.executor for attached in self._attached.values()]
        generations = [each.own(self._clock) for each in executors]
        announced = [each for each in generations if each.num_steps is not None]
        if announced and len(announced) == len(executors) and not any(each.branches for each in announced):
            names = ", ".join(f"{type(a.model).__name__ if n == 'model' else n}" for n, a in self._attached.items())
            raise PlanError(
                f"{names}: never called in a generation of {announced[0].num_steps} steps that was announced"
            )
        for executor in executors:
            executor.finish(self._clock)

    @contextmanager
    def branch(self, name: str) -> Generator[None]:
        """Calls inside the `with` belong to branch `name`, which has its own clock and history."""
        with ExitStack() as stack:
            for attached in self._attached.values():
                stack.enter_context(attached.executor.named(name))
            yield

    # -- life --------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Enter models and pipeline, at first and after something else was enabled for a while; not once disabled."""
        if self.enabled or not self._attached:
            return
        self.enabled = True
        for attached in self._attached.values():
            attached.take()
        self._follow()
        if self.pipe is not None:
            watch(self.pipe, "__call__", self._called)
            watch(self.pipe, "maybe_free_model_hooks", self._freed)

    def suspend(self) -> None:
        """Leave models and pipeline."""
        if not self.enabled:
            return
        self.enabled = False
        for attached in self._attached.values():
            attached.give_back()
        if self._clock is not None:
            unfollow(self._clock, self)
            self._clock = None
        if self.pipe is not None:
            unwatch(self.pipe, "__call__", self._called)
            unwatch(self.pipe, "maybe_free_model_hooks", self._freed)

    def disable(self) -> None:
        """Restore models and pipeline exactly and drop all histories. A second call does nothing."""
        self.suspend()
        self._reports |= self.reports
        for attached in self._attached.values():
            attached.executor.detach()
        self._attached, self.pipe = {}, None

    def prepare(self) -> None:
        """Before a call of a model: follow the pipeline's scheduler, if it was exchanged.

        Raises:
            PlanError: if copies of it make steps that have no common count, or none that the method can do without, or
                the pipeline's loop is longer than it said.
        """
        if self._exchanged():
            self._follow()
            timesteps = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
            if self._clock is not None and timesteps is not None and len(timesteps):
                self._clock.start()
        if self._clock is None or not self._clock.present:
            return
        self._clock.settle()
        if not self._clock.measured:
            self._clock.measure(*self._said())
        if self._calling and self._clock.passed:
            said = f"{type(self.pipe).__name__} says in num_timesteps"
            raise PlanError(f"scheduler: must make the {self._clock.num_steps} steps that {said}, got more")
        for attached in self._attached.values():
            check_rounds(self._clock, attached.executor)

    def _said(self) -> tuple[int | None, float | None]:
        """What the pipeline says of its loop, while it is called: rounds, and from which timestep on models change."""
        if not self._calling:
            return None, None
        pipe: Any = self.pipe
        rounds: object = getattr(pipe, "num_timesteps", None)
        ratio = getattr(getattr(pipe, "config", None), "boundary_ratio", None)
        boundary = None if ratio is None else ratio * pipe.scheduler.config.num_train_timesteps
        return rounds if isinstance(rounds, int) else None, boundary

    def _exchanged(self) -> bool:
        """Whether the pipeline has another scheduler than the one that is followed."""
        scheduler = getattr(self.pipe, "scheduler", None)
        return scheduler is not None and (self._clock is None or self._clock.scheduler() is not scheduler)

    def _follow(self) -> None:
        """Let the pipeline's scheduler give the steps."""
        scheduler = getattr(self.pipe, "scheduler", None)
        if self._clock is not None:
            unfollow(self._clock, self)
        self._clock = None if scheduler is None else follow(scheduler, self)
        for attached in self._attached.values():
            attached.executor.clocks = [] if self._clock is None else [self._clock]

    def announce(self, num_steps: int | None, clock: SamplerClock | None = None) -> None:
        """The scheduler begins a generation."""
        for attached in self._attached.values():
            refuse_foreign(attached.model)
            attached.dispatcher.renew()
            attached.executor.begin(num_steps, clock)

    def _called(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The pipeline makes a generation, which is over afterwards, also when it was broken off."""
        if self._exchanged():
            self._follow()
        self._calling = True
        try:
            result = call(*args, **kwargs)
        except BaseException:
            if self._clock is not None:
                self._clock.stop()
            raise
        finally:
            self._calling = False
        self._end()
        return result

    def _freed(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A pipeline that is driven by another method than its call is done with its models."""
        try:
            if not self._calling:
                self._end()
        finally:
            result = call(*args, **kwargs)
        return result

    def _end(self) -> None:
        """The generation is over."""
        if self._clock is not None and self._clock.active:
            self._clock.stop()
            self.finish()

    def _timed(self, method: CacheMethod) -> CacheMethod:
        """The method with the clock that its time variable needs."""
        time, pipe = method.knobs.time, self.pipe
        if time == "index" or computes_all(method):
            return method
        if getattr(pipe, "scheduler", None) is None:
            raise ValueError(f"time: must be index without a pipeline that has a scheduler, got {time!r}")
        return dataclasses.replace(method, clock=lambda: clock_of(getattr(pipe, "scheduler", None), time))


def owners(models: Iterable[Any]) -> list[Handle]:
    """The handles of what is enabled on models, each once."""
    return list(dict.fromkeys(found.owner for found in map(dispatcher_of, models) if found is not None))


def check_rounds(clock: SamplerClock, executor: Executor) -> None:
    """Raise a `PlanError` if frames are denoised one after the other and a method cannot follow."""
    method = executor.method
    if not executor.caches or not (clock.split or clock.lengthened):
        return
    if not clock.lengthened:
        raise PlanError(
            f"scheduler: its copies must step together, got one whose first step came after {clock.step} of "
            "the others (the pipeline does not say in num_timesteps how many rounds its loop has)"
        )
    if method.clock is not None:
        raise PlanError(f"time: must be index where frames are denoised one after the other, got {method.knobs.time!r}")
    if method.policy.timed:
        raise PlanError(
            f"method: {method.name} reads the timestep, which frames that are denoised one after the other do not share"
        )


def refuse_foreign(model: Any) -> None:
    """Raise a `ValueError` if diffusers' own cache is enabled on a model."""
    if getattr(model, "is_cache_enabled", False):
        kind = type(getattr(model, "_cache_config", None)).__name__
        raise ValueError(f"model: has a cache of diffusers ({kind}) already, call disable_cache() first")
