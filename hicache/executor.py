"""The one loop that runs a transformer under a method.

Three things happen at a call: the clock of its branch ticks, the policy decides, and the step is

    COMPUTE    the model's own forward, untouched; observers copy the values of the sites
    ESTIMATE   no block runs:
               modules       head(h_in + sum_site gate_site(t) * forecast_site), one reduction over all sites
               blocks        head(h_in + sum_block forecast of its residual)
               stack         head(h_in + forecast of (h_out - h_in))
               final_hidden  head(forecast of h_out)
               output        the forecast itself
    or, for scope span, the model's forward with the span's blocks replaced by their forecast residual
    MIXED      the model's own forward, in which every module has an action of its own (`hicache.mixed`)

A generation begins with `begin(num_steps)`, or when the timestep goes up; state left by an aborted one is dropped
there. When its last step is done, the executed full steps are compared with the planned ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hicache.adapters.base import Adapter, Call, Streams
from hicache.forecast import Forecaster
from hicache.methods import CacheMethod
from hicache.mixed import Ledger, MixedStep, attach, tracked
from hicache.observe import observed
from hicache.patch import Patch
from hicache.policy import Clock, Policy
from hicache.report import PlanError, Report, Stopwatch
from hicache.spans import check_mixing, spans_of
from hicache.tree import Action, Site

__all__ = ["Executor"]


class Branch:
    """The state of one branch (conditional, unconditional): its clock, histories, policy and patch.

    `forecaster` remembers the scope as a whole, `ledger` its modules one by one.
    """

    def __init__(
        self, clock: Clock, forecaster: Forecaster, ledger: Ledger, policy: Policy, patch: Patch | None
    ) -> None:
        self.clock = clock
        self.forecaster = forecaster
        self.ledger = ledger
        self.policy = policy
        self.patch = patch
        self.watched: Tensor | None = None

    @torch.no_grad()
    def watch(self, value: Tensor) -> None:
        """Tell the clock how much `value` changed: mean |v - before| / mean |before|, in float32 over the batch."""
        if self.watched is None:
            self.clock.change = None
        else:
            before = self.watched.float()
            self.clock.change = float((value.float() - before).abs().mean() / before.abs().mean())


class Executor:
    """Runs the calls of one transformer under one method; see the module docstring."""

    def __init__(self, adapter: Adapter, method: CacheMethod, forward: Callable[..., Any]) -> None:
        if method.scope not in adapter.scopes:
            known = ", ".join(adapter.scopes)
            raise ValueError(f"scope: {type(adapter.model).__name__} has {known}, got {method.scope!r}")
        self.spans = spans_of(method, len(adapter.blocks()))
        if method.policy.probe and method.scope != "span":
            raise ValueError(f"scope: must be span for a policy that probes the blocks before it, got {method.scope!r}")
        check_mixing(method)
        if method.patch is not None and not adapter.patchable:
            raise ValueError(f"method: must not patch tokens of {type(adapter.model).__name__}, got {method.name!r}")
        self.adapter = adapter
        self.method = method
        self.forward = forward
        self.sites = adapter.sites(method.scope)
        self.branch = ""
        self.num_steps: int | None = None
        self.report = Report(method=method.name, num_steps=None)
        self._branches: dict[str, Branch] = {}
        self._idle: dict[str, tuple[Forecaster, Ledger]] = {}
        self._announced = False
        self._target: tuple[Forecaster, list[Tensor]] | None = None
        self._listening: Ledger | None = None
        self.cells = tracked(adapter, method.policy, method.patch) if method.mixes else []
        self.by_module = method.mixes and method.scope == "modules"
        kept = {cell.site for cell in self.cells}
        self.whole = method.patch is None and all(cell.site in kept for cell in adapter.cells() if not cell.feeds)
        self._hooks = attach(adapter, self.cells, self._record_cell)
        if method.caches and not self.by_module:
            self._hooks += adapter.attach(method.scope, self.spans, self._record)

    def detach(self) -> None:
        """Remove every observer from the model and drop the histories."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._branches, self._idle = [], {}, {}

    def begin(self, num_steps: int | None) -> None:
        """Start a generation: all branches forget the last one."""
        self._idle.update((name, (branch.forecaster, branch.ledger)) for name, branch in self._branches.items())
        self._branches = {}
        self._announced = num_steps is not None
        self.num_steps = num_steps
        self.report = Report(method=self.method.name, num_steps=num_steps)

    @contextmanager
    def named(self, branch: str) -> Iterator[None]:
        """Calls inside belong to `branch`."""
        previous, self.branch = self.branch, branch
        try:
            yield
        finally:
            self.branch = previous

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.adapter.bind(args, kwargs)
        branch = self._tick(call)
        watch = Stopwatch(_device(call))
        action, result = self._step(branch, call, args, kwargs)
        watch.stop()
        self._account(branch, action, watch)
        return result

    # -- the clock ---------------------------------------------------------------------------------------------

    def _tick(self, call: Call) -> Branch:
        """The branch of this call, its clock moved to this step."""
        timestep = self._read_timestep(call)
        last = self._branches.get(self.branch)
        if last and timestep is not None and last.clock.timestep is not None and timestep > last.clock.timestep:
            self.begin(self.num_steps)
        branch = self._branches.get(self.branch)
        if branch is None:
            branch = self._branches[self.branch] = self._new_branch()
        clock = branch.clock
        clock.step, clock.timestep = clock.step + 1, timestep
        if clock.num_steps is not None and clock.step >= clock.num_steps:
            raise PlanError(
                f"branch {clock.branch!r}: call {clock.step + 1} in a generation of {clock.num_steps} steps; "
                "name the branches of two-call guidance with `with handle.branch(name)`, or call begin(num_steps)"
            )
        return branch

    def _read_timestep(self, call: Call) -> float | None:
        """The timestep as a number, unless reading it would make the GPU wait for no need."""
        timestep = self.adapter.timestep(call)
        wait = self.method.policy.timed or not self._announced
        if timestep is None or timestep.is_meta or (timestep.is_cuda and not wait):
            return None
        return float(timestep.flatten()[0]) / self.adapter.timestep_range

    def _new_branch(self) -> Branch:
        method, adapter = self.method, self.adapter
        forecaster, ledger = self._idle.pop(self.branch, (None, None))
        if forecaster is None or ledger is None:
            forecaster = method.build_forecaster(lead=2, channel=adapter.channel(method.scope))
            ledger = Ledger(self.cells, method.policy.grouping, lambda: method.build_forecaster(lead=2))
        forecaster.reset(self.num_steps)
        ledger.reset(self.num_steps)
        policy, patch = copy.deepcopy(method.policy), copy.deepcopy(method.patch)
        policy.prepare(adapter.family, len(adapter.blocks()))
        if patch is not None:
            patch.prepare(adapter.family, len(adapter.blocks()), adapter.featured_block + 1)
        return Branch(Clock(branch=self.branch, num_steps=self.num_steps), forecaster, ledger, policy, patch)

    # -- the step ----------------------------------------------------------------------------------------------

    def _step(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Action, Any]:
        """What the policy decides, done."""
        if branch.policy.probe:
            return self._probe(branch, args, kwargs)
        action = self._decide(branch, call)
        run = {Action.COMPUTE: self._compute, Action.ESTIMATE: self._estimate, Action.MIXED: self._mix}[action]
        return action, run(branch, call, args, kwargs)

    def _decide(self, branch: Branch, call: Call) -> Action:
        """Ask the policy, after the look at the first block's input that it may need."""
        if branch.policy.indicator:
            with torch.no_grad():
                value = self.adapter.indicator(call, self.adapter.embed(call))
            branch.watch(value)
            branch.watched = value
        return self.settled(branch.policy.decide(branch.clock), branch.policy, branch.clock)

    def settled(self, action: Action, policy: Policy, clock: Clock) -> Action:
        """A step decided module by module is mixed, unless nothing at all runs."""
        if not self.by_module or action is Action.COMPUTE:
            return action
        idle = self.whole and (
            action is Action.ESTIMATE
            or all(policy.site_action(clock, cell.site) is Action.ESTIMATE for cell in self.cells if not cell.feeds)
        )
        return Action.ESTIMATE if idle else Action.MIXED

    def _probe(self, branch: Branch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Action, Any]:
        """Run the model's forward; the policy decides at the entry of the span, once the blocks before it have run."""
        buffer: list[Tensor] = []
        entry: list[Tensor] = []
        self._target = (branch.forecaster, buffer)
        first = self.adapter.blocks()[0]

        def choose(streams: Streams) -> Tensor | None:
            moved = streams[0] - entry.pop()
            branch.watch(moved)
            if branch.policy.decide(branch.clock) is Action.ESTIMATE and branch.forecaster.ready:
                self._target = None
                return branch.forecaster.predict(branch.clock.step)[0]
            branch.watched = moved
            return None

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entry.append(self.adapter.streams(args, kwargs)[0])

        hook = first.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with self.adapter.guarded(self.spans[0], choose):
                result = self.forward(*args, **kwargs)
        finally:
            hook.remove()
            estimated, self._target = self._target is None, None
        if estimated:
            return Action.ESTIMATE, result
        branch.forecaster.commit(branch.clock.step, buffer[0])
        return Action.COMPUTE, result

    def _compute(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.method.caches:
            return self.forward(*args, **kwargs)
        with ExitStack() as stack:
            if branch.patch is not None:
                branch.patch.renew()
                stack.enter_context(observed(self.adapter, branch.patch))
            if self.method.mixes:
                stack.enter_context(self._listen(branch))
            return self._run(branch, call, args, kwargs)

    def _run(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's forward; the scope's values become an anchor."""
        if self.by_module:
            return self.forward(*args, **kwargs)
        buffer: list[Tensor] = []
        self._target = (branch.forecaster, buffer)
        try:
            result = self.forward(*args, **kwargs)
            if self.method.scope == "output":
                self._record(0, self.adapter.output(call, result))
        finally:
            self._target = None
        if not buffer:
            raise PlanError(f"branch {branch.clock.branch!r}: no site of scope {self.method.scope} reported a value")
        branch.forecaster.commit(branch.clock.step, buffer[0])
        return result

    @contextmanager
    def _listen(self, branch: Branch) -> Iterator[None]:
        """Inside, every cell runs and is remembered."""
        self._listening = branch.ledger
        branch.ledger.open()
        try:
            yield
        finally:
            self._listening = None
        branch.ledger.close(branch.clock.step)

    def _record_cell(self, site: Site, value: Tensor) -> None:
        if self._listening is not None:
            self._listening.record(site, value)

    @torch.no_grad()
    def _mix(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's forward with an action for every module."""
        clock, patch = branch.clock, branch.patch
        if not branch.ledger.ready:
            raise PlanError(f"branch {clock.branch!r}: step {clock.step} is to be estimated before any full step")
        step = MixedStep(self.adapter, self.cells, branch.ledger, branch.policy, patch, clock)
        with ExitStack() as stack:
            if patch is not None and patch.needs != "hidden" and Action.COMPUTE in step.actions.values():
                stack.enter_context(observed(self.adapter, patch))
            stack.enter_context(step.installed())
            result = self._run(branch, call, args, kwargs)
        clock.error = float(torch.stack(step.errors).mean()) if step.errors and not step.errors[0].is_meta else None
        return result

    @torch.no_grad()
    def _record(self, index: int, value: Tensor) -> None:
        """Copy the value of one site into the frame of the step under way."""
        if self._target is None:
            return
        forecaster, buffer = self._target
        if not buffer:
            shape = (len(self.sites), *value.shape)
            buffer.append(forecaster.slot(shape, value.dtype, value.device))
        buffer[0][index].copy_(value)

    def _estimate(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step, forecaster = branch.clock.step, branch.forecaster
        if not (branch.ledger if self.by_module else forecaster).ready:
            raise PlanError(f"branch {branch.clock.branch!r}: step {step} is to be estimated before any full step")
        with torch.no_grad():
            if self.method.scope in ("span", "front_back"):
                index = branch.policy.stage(branch.clock)
                residual = forecaster.predict(step)[index]
                with self.adapter.guarded(self.spans[index], lambda streams: residual):
                    return self.forward(*args, **kwargs)
            if self.method.scope == "output":
                return self.adapter.wrap(call, forecaster.predict(step)[0])
            hidden = self._last_hidden(branch, call)
            return self.adapter.wrap(call, self.adapter.head(call, hidden))

    def _last_hidden(self, branch: Branch, call: Call) -> Tensor:
        """The estimated hidden state after the last block."""
        scope, adapter, forecaster, step = self.method.scope, self.adapter, branch.forecaster, branch.clock.step
        if scope == "final_hidden":
            return forecaster.predict(step)[0]
        hidden = adapter.embed(call)
        if scope == "stack":
            return hidden + forecaster.predict(step)[0]
        if scope == "blocks":
            ones = hidden.new_ones(len(self.sites), hidden.shape[0], hidden.shape[-1])
            return forecaster.gated_predict(step, hidden, ones)
        gates = adapter.gates(call, hidden)
        hidden = adapter.live(call, hidden, lambda site: self._forecast_of(branch, site))
        if self.by_module:
            places = [(site.layer, site.module) for site in self.sites]
            return branch.ledger.add_to(hidden, step, dict(zip(places, gates, strict=True)), adapter)
        return forecaster.gated_predict(step, hidden, gates)

    def _forecast_of(self, branch: Branch, site: Site) -> Tensor:
        """The forecast of one module."""
        step = branch.clock.step
        return (
            branch.ledger.predict(site, step)
            if self.by_module
            else branch.forecaster.predict(step, self.sites.index(site))
        )

    # -- the account -------------------------------------------------------------------------------------------

    def _account(self, branch: Branch, action: Action, watch: Stopwatch) -> None:
        clock, report = branch.clock, self.report
        if action is not Action.MIXED:
            clock.error = None
        first = clock.branch == next(iter(self._branches))
        full = report.branches.setdefault(clock.branch, [])
        if action is Action.COMPUTE:
            clock.anchors.append(clock.step)
            full.append(clock.step)
            report.full_times.append(watch)
            if first:
                report.full_steps.append(clock.step)
        else:
            mixed = action is Action.MIXED
            (report.mixed_times if mixed else report.estimated_times).append(watch)
            if first:
                (report.mixed_steps if mixed else report.estimated_steps).append(clock.step)
        report.kernel = branch.forecaster.kernel
        report.cache_bytes = sum(b.forecaster.bytes + b.ledger.bytes for b in self._branches.values())
        if clock.num_steps is not None and clock.step == clock.num_steps - 1:
            self._check(branch)

    def _check(self, branch: Branch) -> None:
        clock = branch.clock
        planned = self._planned(branch)
        if planned is not None and planned != clock.anchors:
            missing = sorted(set(planned) - set(clock.anchors))
            extra = sorted(set(clock.anchors) - set(planned))
            raise PlanError(f"branch {clock.branch!r}: planned full steps not executed {missing}, not planned {extra}")

    def _planned(self, branch: Branch) -> list[int] | None:
        """The full steps that a branch must have executed; None where they depend on the data."""
        return branch.policy.plan(branch.clock.num_steps or 0)

    def finish(self) -> None:
        """The generation is over: every branch must have run all its steps.

        Raises:
            PlanError: if a branch stopped early.
        """
        for branch in self._branches.values():
            clock = branch.clock
            if clock.num_steps is not None and clock.step != clock.num_steps - 1:
                raise PlanError(f"branch {clock.branch!r}: {clock.step + 1} of {clock.num_steps} steps were executed")


def _device(call: Call) -> torch.device:
    """Where the call's tensors are."""
    return next((value.device for value in call.values() if isinstance(value, Tensor)), torch.device("cpu"))
