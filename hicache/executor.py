"""The one loop that runs a model under a method.

Three things happen at a call: it finds its place (`hicache.session`), the policy decides, and a step is made:

    COMPUTE    the model's own forward, untouched; its features become an anchor
    ESTIMATE   the features are forecast
    MIXED      the model's own forward, in which every module has an action of its own

A policy that probes decides within the forward. An estimated step is *fused* (`hicache.steps.fused_steps`: no block's
Python runs) where the model has an adapter and passes the proof (`hicache.proof`); elsewhere it is *tapped*
(`hicache.steps.tapped`: the model's own forward runs, and stand-ins give the forecasts).

State left by an aborted generation is dropped when the next one begins. When the last step of a branch is done, the
executed full steps are compared with the planned ones.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hicache.adapters.base import Adapter, Call
from hicache.calls import binder, device_of, signature_of, timestep_of
from hicache.clock import SamplerClock
from hicache.forecast.frames import FeatureForecaster
from hicache.forecast.module_histories import ModuleHistories
from hicache.generation import Branch, Generation, Memory
from hicache.generation_report import PlanError, Report, Stopwatch
from hicache.methods import CacheMethod
from hicache.policy import Clock
from hicache.proof import disprove
from hicache.session import ADVICE, Place, Session
from hicache.steps.forecast_errors import errors_of, forecast
from hicache.steps.fused_steps import FusedSteps
from hicache.steps.setup import Setup
from hicache.steps.tapped import TappedSteps, channel_of
from hicache.steps.tapped_modules import TappedModules
from hicache.tree import Action

__all__ = ["Executor", "computes_all"]


def computes_all(method: CacheMethod) -> bool:
    """Whether a method is known to compute every step."""
    try:
        return not method.caches or copy.deepcopy(method.policy).plan(1000) == list(range(1000))
    except ValueError:
        return False


class Executor:
    """Runs the calls of one model under one method; see the module docstring.

    Args:
        adapter: of the model; None where its class has none.
        method: the method.
        forward: the model's own forward.
        model: the model, where there is no adapter.
        separate: whether the two stages of a solver like Heun's have histories of their own.

    Attributes:
        clocks: of the samplers that may drive the model.
        key: name of the branch of the call under way.
        lock: held during a call: two pipelines in two threads may share a model, not its buffers.
        errors: whether to measure at computed steps how wrong the forecast would have been.
        caches: whether there is anything to cache.
        fused: steps through the adapter, where there is one that has the scope.
        modules: steps module by module, where there is none.

    Raises:
        ValueError: if the model lacks the method's scope, or the method needs an adapter.
    """

    def __init__(
        self,
        adapter: Adapter | None,
        method: CacheMethod,
        forward: Callable[..., Any],
        model: nn.Module | None = None,
        separate: bool = False,
    ) -> None:
        self.adapter = adapter
        self.model: Any = model if adapter is None else adapter.model
        self.method = method
        self.forward = forward
        self.separate = separate
        self.clocks: list[SamplerClock] = []
        self.key = ""
        self.errors, self.proves = False, True
        self.lock = threading.RLock()
        self.caches = not computes_all(method)
        self.bind: Callable[..., Call] = binder(self.model) if adapter is None else adapter.bind
        self.fused: FusedSteps | None = None
        self.modules: TappedModules | None = None
        self._names = threading.local()
        self._tapped: TappedSteps | None = None
        self._idle: dict[str, Memory] = {}
        self._sessions: dict[tuple[int, int | None], Session] = {}
        self._last = Session(Generation(method.name, None))
        if self.caches:
            self._install()

    def _install(self) -> None:
        """Put the observers onto the modules that the model has now."""
        method, adapter = self.method, self.adapter
        if self.fused is not None:
            self.fused.setup.observers.detach()
        if adapter is not None and method.scope in adapter.scopes:
            self.fused = FusedSteps(Setup(adapter, method, self.forward))
            return
        if method.mixes:
            self.modules = TappedModules(self.model, method)
        else:
            self.tapped  # noqa: B018  (which looks for the scope)

    @property
    def tapped(self) -> TappedSteps:
        """Steps through a tap."""
        if self._tapped is None:
            self._tapped = TappedSteps(self.model, self.method)
        return self._tapped

    @property
    def setup(self) -> Setup:
        """The method on the model, for models with an adapter."""
        assert self.fused is not None
        return self.fused.setup

    @property
    def generation(self) -> Generation:
        """The one under way, or the last."""
        return self._last.generation

    @property
    def report(self) -> Report:
        """Of the generation under way, or the last."""
        return self.generation.report

    # -- the loop around the model -----------------------------------------------------------------------------

    @property
    def branch(self) -> str:
        """The name that was given to the calls of this thread at the moment."""
        return getattr(self._names, "name", "")

    @contextmanager
    def named(self, branch: str) -> Generator[None]:
        """Calls inside belong to `branch`."""
        previous, self._names.name = self.branch, branch
        try:
            yield
        finally:
            self._names.name = previous

    def begin(self, num_steps: int | None, clock: SamplerClock | None = None) -> None:
        """Start a generation: all branches of this thread forget the last one."""
        with self.lock:
            self._begin(num_steps, clock)

    def _begin(self, num_steps: int | None, clock: SamplerClock | None) -> None:
        thread, alive = threading.get_ident(), {each.ident for each in threading.enumerate()}
        if self.fused is not None and self.fused.stale:
            self._install()
        for key in [key for key in self._sessions if key[0] == thread or key[0] not in alive]:
            branches = self._sessions.pop(key).generation.branches
            self._idle.update((name, branch.memory) for name, branch in branches.items())
        driver = clock if clock is not None and clock.counts else None
        generation = Generation(self.method.name, num_steps)
        if self.caches and self.fused is None and (self._tapped is None or self._tapped.gated is None):
            kind = type(self.model).__name__
            generation.report.path, generation.report.reason = "tapped", f"no adapter of {kind} has the scope"
        self._last = Session(generation, driver, self.separate, announced=num_steps is not None)
        self._sessions[thread, None if driver is None else id(driver)] = self._last

    def session(self) -> Session:
        """The loop that this thread is in."""
        thread = threading.get_ident()
        driven = [(thread, id(clock)) for clock in self.clocks if clock.drives]
        key = next((key for key in driven if key in self._sessions), (thread, None))
        if key not in self._sessions:
            self.begin(None)
        self._last = self._sessions[key]
        return self._last

    def advance(self) -> None:
        """A step of an own loop is over."""
        with self.lock:
            self.session().advance()

    def own(self, clock: SamplerClock | None = None) -> Generation:
        """The generation of this thread's loop around the model, which `clock` drives."""
        thread = threading.get_ident()
        found = self._sessions.get((thread, None if clock is None else id(clock)))
        return (found or self._sessions.get((thread, None)) or self._last).generation

    def finish(self, clock: SamplerClock | None = None) -> None:
        """The generation is over: full steps that it reached must have been executed.

        Raises:
            PlanError: if one was not.
        """
        with self.lock:
            for branch in self.own(clock).branches.values():
                self.check(branch)

    def detach(self) -> None:
        """Remove every observer from the model and drop the histories."""
        if self.fused is not None:
            self.fused.setup.observers.detach()
        for session in (self._last, *self._sessions.values()):
            session.generation.branches = {}
        self._idle, self._sessions = {}, {}

    def call(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the model, whose own forward is `forward`."""
        with self.lock:
            self.forward = forward
            if self.fused is not None:
                self.fused.setup.forward = forward
            return self(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.bind(args, kwargs)
        branch = self.tick(call)
        watch = Stopwatch(device_of(call))
        action, result = self.step(branch, call, args, kwargs)
        watch.stop()
        self.generation.account(branch, action, watch)
        if branch.clock.step + 1 == branch.clock.num_steps:
            self.check(branch)
        return result

    def tick(self, call: Call) -> Branch:
        """The branch of this call, its clock moved to this step."""
        session, name = self.session(), self.branch
        if session.clock is not None:
            place = session.place(name)
        else:
            place = session.count(name, self._timestep(call))
            if place is None:
                self.begin(session.generation.num_steps)
                place = self._last.count(name, self._timestep(call)) or Place(name, None)
        self.key = place.branch
        branches = self.generation.branches
        branch = branches.get(self.key) or branches.setdefault(self.key, self._new_branch(place))
        clock = branch.clock
        step = clock.step + 1 if place.step is None else place.step - branch.first
        branch.late = bool(branch.steps) and step > clock.step + 1
        clock.step, clock.timestep = step, self._read_timestep(branch, call)
        branch.steps.append(step)
        if clock.num_steps is not None and step >= clock.num_steps:
            raise PlanError(
                f"branch {clock.branch!r}: call {step + 1} in a generation of {clock.num_steps} steps; {ADVICE}"
            )
        return branch

    def _timestep(self, call: Call) -> Tensor | float | None:
        """What tells the position of a call in an own loop."""
        found = timestep_of(call) if self.adapter is None else self.adapter.timestep(call)
        return None if isinstance(found, Tensor) and found.is_meta else found

    def _read_timestep(self, branch: Branch, call: Call) -> float | None:
        """The share of noise, for policies that ask for it; reading it makes a GPU wait."""
        timestep = self._timestep(call) if self.method.policy.timed else None
        return None if timestep is None else branch.noise_at(float(torch.as_tensor(timestep).max()))

    def _new_branch(self, place: Place) -> Branch:
        method, session, clock, first = self.method, self._last, self._last.clock, place.step or 0
        total = session.generation.num_steps if clock is None else clock.end
        if clock is not None and self.separate and clock.stages == 2 and total is not None:
            total = total // 2 if place.branch.endswith("'") else (total + 1) // 2
        num_steps = None if total is None else total - first
        if not session.generation.branches and not self.separate:
            session.generation.report.num_steps = num_steps
        memory = self._idle.pop(place.branch, None) or self._new_memory()
        memory.reset(num_steps, first + (0 if clock is None else clock.begin_index))
        policy, patch = copy.deepcopy(method.policy), copy.deepcopy(method.patch)
        policy.prepare(*self.family())
        if patch is not None and self.adapter is not None:
            patch.prepare(*self.family(), self.adapter.featured_block + 1)
        made = Clock(branch=place.branch, num_steps=num_steps)
        return Branch(made, memory, policy, patch, first=first, fused=self.fused is not None, proven=not self.proves)

    def family(self) -> tuple[str, int]:
        """The name of the model's family and the number of its blocks."""
        if self.adapter is not None:
            return self.adapter.family, len(self.adapter.blocks())
        if self.modules is not None:
            return "", self.modules.num_blocks
        return "", self.tapped.tap.num_blocks if self.caches else 0

    def _new_memory(self) -> Memory:
        method, sites = self.method, []
        channel = -1 if self.adapter is None else self.adapter.channel(method.scope)
        if self.fused is not None:
            sites = [module.site for module in self.fused.setup.modules]
        return Memory(
            method.build_forecaster(lead=2, channel=channel),
            ModuleHistories(sites, method.policy.grouping, lambda: method.build_forecaster(lead=2)),
            FeatureForecaster(lambda shape: method.build_forecaster(lead=2, channel=channel_of(method.scope, shape))),
            lambda: method.build_forecaster(lead=2),
        )

    def step(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Action, Any]:
        """What the policy decides, done."""
        if not self.caches:
            return Action.COMPUTE, self.forward(*args, **kwargs)
        signature = signature_of(call)
        changed = branch.signature not in (None, signature)
        if changed:
            branch.forget()
        if branch.policy.probe and not branch.late:
            action, result = self._probe(branch, args, kwargs)
        else:
            action = self._decide(branch, call, args, kwargs)
            if action is not Action.COMPUTE and (branch.late or changed):
                branch.forced.append(branch.clock.step)
                action = Action.COMPUTE
            first = self.errors and next(iter(self.generation.branches.values())) is branch
            before = forecast(branch) if first and action is Action.COMPUTE else []
            result = self.run(action, branch, call, args, kwargs)
            if before:
                self.report.errors |= errors_of(branch, before)
        if action is Action.COMPUTE:
            branch.signature = signature
        return action, result

    def _decide(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Action:
        """Ask the policy, after the look at the first block's input that it may need."""
        if branch.policy.indicator:
            with torch.no_grad():
                if self.fused is not None:
                    value = self.fused.watched(call)
                else:
                    value = self.tapped.entry(lambda: self.forward(*args, **kwargs))
            branch.watch(value)
            branch.watched = value
        action = branch.policy.decide(branch.clock)
        if self.fused is None:
            return action
        return self.fused.settle(action, branch.policy, branch.clock, branch.fused)

    def _probe(self, branch: Branch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Action, Any]:
        if self.fused is not None and branch.fused:
            return self.fused.probed.run(branch, args, kwargs)
        return self.tapped.probe(branch, lambda: self.forward(*args, **kwargs))

    def run(self, action: Action, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step of one kind, on the branch's path."""

        def own() -> Any:
            return self.forward(*args, **kwargs)

        self._check_reach(branch, call)
        by_module = self.fused is not None and self.fused.setup.by_module
        if self.fused is not None and (branch.fused or by_module):
            result = self.fused.run(action, branch, call, args, kwargs)
            if action is Action.COMPUTE and not branch.proven and (self.fused.whole or not by_module):
                self._prove(branch, call, result, own)
            return result
        if self.modules is not None:
            return self.modules.run(action, branch, own)
        if action is Action.MIXED:
            kind = type(self.model).__name__
            raise PlanError(f"method: {self.method.name} cannot go on with {kind} as it is called here: {branch.why}")
        return self.tapped.compute(branch, own) if action is Action.COMPUTE else self.tapped.estimate(branch, own)

    def _check_reach(self, branch: Branch, call: Call) -> None:
        """Leave the fused path where an argument reaches into the blocks."""
        adapter = self.adapter if branch.fused and self.method.scope != "output" else None
        if adapter is not None and (reason := adapter.reaches(call)):
            branch.fused, branch.proven, branch.why = False, True, reason

    def _prove(self, branch: Branch, call: Call, result: Any, own: Callable[[], Any]) -> None:
        """Leave the fused path where it does not reproduce what the model has just computed."""
        branch.proven = True
        branch.why = disprove(self.setup, branch, call, result)
        if not branch.why:
            return
        branch.fused = False
        if not self.setup.by_module:
            branch.forecaster.reset(branch.clock.num_steps, branch.memory.offset)
            self.tapped.compute(branch, own)

    def check(self, branch: Branch) -> None:
        """A branch is over: raise `PlanError` if its full steps are not the planned ones that it has reached."""
        if self.adapter is not None:
            self.adapter.release()
        self.generation.check(branch, self.planned(branch))

    def planned(self, branch: Branch) -> list[int] | None:
        """The full steps that a branch must have executed; None where they depend on the data."""
        return branch.policy.plan(branch.clock.num_steps or len(branch.steps))
