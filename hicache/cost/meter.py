r"""What a plan costs: FLOPs from shapes alone, and bytes of cache.

The model is rebuilt from its configuration on the `meta` device, at its true size and without memory, and the
executor runs it under PyTorch's FLOP counter: a computed step, an estimated step, and every kind of mixed step that
the plan has. So the count is that of the code that runs. The convention is that of the papers: a multiply-add of a
matrix product or an attention counts 2; norms, softmax and other element-wise work count 0. The arithmetic of the
forecast is element-wise too; it is given separately as `overhead` (2 per value of every frame) and is not part
of `total`.

    total = n_full * full + sum of the mixed steps + n_estimated * estimated,      speedup = num_steps * full / total

Sparse operators below the method save what `hicache.operators.flops` counts at each execution of a module.

The published tables leave out what their authors did not charge: the attention maps and clusterings that a patch needs
at full steps, and everything outside the blocks for methods that skip the stack. HunyuanVideo's do charge a product
that the published code computes and throws away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hicache.adapters import Adapter, adapter_for, find_adapter
from hicache.adapters.modules import Module
from hicache.cost.meta import calls
from hicache.cost.published import discarded_flops, estimate_flops, full_flops
from hicache.cost.script import Scripted, any_step, count, fill_history, flops_of, rehearse
from hicache.executor import Executor
from hicache.generation import Branch
from hicache.generation_report import PlanError
from hicache.methods import CacheMethod, method
from hicache.operators import Chipmunk
from hicache.operators.flops import saved
from hicache.policy import Clock, Policy
from hicache.tree import Action, Site

__all__ = ["Cost", "measure", "prepared"]


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
        mixed: all mixed steps together.
        mixed_steps: number of mixed steps.
        saved: what sparse operators save in all steps together.
        parameters: of the model.
        uncached: a step of the un-cached run, where several models follow on one another; None = `full`.
    """

    full: float
    estimated: float
    overhead: float
    full_steps: int
    num_steps: int
    cache_bytes: int
    mixed: float = 0.0
    mixed_steps: int = 0
    saved: float = 0.0
    parameters: int = 0
    uncached: float | None = None

    @property
    def total(self) -> float:
        """FLOPs of the run."""
        estimated = self.num_steps - self.full_steps - self.mixed_steps
        return self.full_steps * self.full + self.mixed + estimated * self.estimated - self.saved

    @property
    def baseline(self) -> float:
        """FLOPs of the un-cached run."""
        return self.num_steps * (self.full if self.uncached is None else self.uncached)

    @property
    def speedup(self) -> float:
        """`baseline / total`."""
        return self.baseline / self.total


def measure(
    model: nn.Module,
    method: CacheMethod,
    num_steps: int,
    batch: int = 1,
    full_steps: Sequence[int] | None = None,
    convention: str = "executed",
    operators: Chipmunk | None = None,
    mlp_share: float | None = None,
    example: Mapping[str, Any] | None = None,
    **shape: int,
) -> Cost:
    """Cost of running `model` for `num_steps` steps under `method`.

    Args:
        model: any denoiser, on any device (the meta device too).
        method: the method; its policy gives the full steps unless `full_steps` does.
        num_steps: steps of the run.
        batch: rows of the model's batch; a guided image in one doubled batch has 2.
        full_steps: the executed full steps, for policies whose plan depends on the data.
        convention: `executed` counts the code that runs; `published` counts an estimated step at module scope as
            the papers' tables do, where they differ.
        operators: sparse operators below the method.
        mlp_share: share of the hidden units that their sparse steps recomputed; None = the expected one.
        example: arguments of one call by name, with its batch, on any device (`hicache.cost.trace` notes those of a
            pipeline); needed for models without an adapter. Where the model's forward reads values, it is not possible
            on the meta device; the call is then made where the example's tensors are.
        **shape: overrides of the adapter's published size, such as `height`, `width`, `frames`, `text`.

    Raises:
        ValueError: if the plan depends on the data and `full_steps` is not given, if a model without an adapter has no
            `example`, or if its calls cannot be counted.
    """
    if convention not in ("executed", "published"):
        raise ValueError(f"convention: must be executed or published, got {convention!r}")
    published = convention == "published"
    tried: list[str] = []
    for bare, call in calls(model, batch, example, shape):
        try:
            with torch.no_grad():
                meter = Meter(bare, method, call, published)
                return meter.measure(num_steps, full_steps, operators, mlp_share)
        except UNREADABLE as error:
            if example is None or isinstance(error, PlanError):
                raise
            tried.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    raise ValueError(f"example: must be a call that PyTorch's FLOP counter can follow, got {'; '.join(tried)}")


UNREADABLE = (RuntimeError, AssertionError)
"""What a forward that reads values raises on the meta device, and a kernel that no counter sees through."""


def prepared(policy: Policy, family: str, blocks: int) -> Policy:
    """A copy of the policy as it is on a model of that family and number of blocks; its plan may be asked for."""
    own = copy.deepcopy(policy)
    own.prepare(family, blocks)
    return own


RUNNING = (Action.COMPUTE, Action.VERIFY)
"""What a module does at a mixed step when it runs."""


def untimed(_call: Any) -> None:
    """The timestep of a call that has none: every call is the next step."""


class Meter:
    """Counts the steps of one method on one model, which is on the `meta` device where it can be.

    Args:
        model: the model that is run.
        method: the method.
        example: arguments of a call.
        published: whether to count as the papers' tables do.
        declared: whether the model's adapter is used, where it has one.
    """

    def __init__(
        self, model: nn.Module, method: CacheMethod, example: dict[str, Any], published: bool, declared: bool = True
    ) -> None:
        self.model = model
        self.published = published
        self.method = method
        self.example = example
        scripted = replace(method, policy=Scripted(method.policy), knobs=any_step(method.knobs))
        adapter = adapter_for(model) if published else find_adapter(model) if declared else None
        self.executor = Executor(adapter, scripted, model.forward, model)
        self.executor.proves = False
        vars(self.executor)["_timestep"] = untimed
        self._known: dict[Any, float] = {}

    @property
    def adapter(self) -> Adapter:
        """Of the model, for what only models with one have."""
        return adapter_for(self.model) if self.executor.adapter is None else self.executor.adapter

    def measure(
        self, num_steps: int, full_steps: Sequence[int] | None, operators: Chipmunk | None, mlp_share: float | None
    ) -> Cost:
        """The cost of a run; see the function of this name."""
        full_steps = self.policy().plan(num_steps) if full_steps is None else list(full_steps)
        if full_steps is None:
            raise ValueError("full_steps: the plan of this policy depends on the data, must be given, got None")
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        cost = replace(self.cost(num_steps, full_steps), parameters=parameters)
        if operators is None:
            return cost
        count = self.executions(num_steps, full_steps)
        return replace(cost, saved=saved(self.adapter, operators, self.example, count, mlp_share))

    def policy(self) -> Policy:
        """The method's policy as it is on this model."""
        return prepared(self.method.policy, *self.executor.family())

    @property
    def sites(self) -> list[Site]:
        """The modules that a mixed step tells apart."""
        tapped = self.executor.modules
        return [m.site for m in self.executor.setup.modules] if tapped is None else list(dict.fromkeys(tapped.sites))

    @property
    def branch(self) -> Branch:
        """The branch that the calls belong to."""
        return self.executor.generation.branches[self.executor.key]

    def settle(self, action: Action, policy: Policy, clock: Clock) -> Action:
        """What becomes of a policy's decision."""
        fused = self.executor.fused
        if fused is not None:
            return fused.settle(action, policy, clock)
        return Action.MIXED if action is Action.ESTIMATE and self.executor.modules is not None else action

    def cost(self, num_steps: int, full_steps: Sequence[int]) -> Cost:
        """The cost of a run."""
        self.executor.begin(2)
        full = self._count()
        common: dict[str, Any] = {"full": full, "num_steps": num_steps}
        if not self.method.caches:
            common["full"] = full_flops(self.adapter, full) if self.published else full
            return Cost(**common, estimated=0.0, overhead=0.0, full_steps=num_steps, cache_bytes=0)
        plan = self._plan(num_steps, full_steps)
        computed = [step for step, (action, _) in enumerate(plan) if action is Action.COMPUTE]
        histories = fill_history(self.branch, len(computed))
        mixed = [self._mixed(step, num_steps, actions) for step, (_, actions) in enumerate(plan) if actions]
        estimated = self._estimated() if len(computed) + len(mixed) < num_steps else 0.0
        if self.published:
            common["full"] = self._published_full(full)
        return Cost(
            **common,
            estimated=estimated,
            overhead=2.0 * sum(frame.numel() for history in histories for frame in history.frames),
            full_steps=len(computed),
            cache_bytes=sum(history.bytes for history in histories),
            mixed=sum(mixed),
            mixed_steps=len(mixed),
        )

    def executions(self, num_steps: int, full_steps: Sequence[int]) -> Callable[[Module], int]:
        """How many times a module runs in a run."""
        if not self.method.caches:
            return lambda module: num_steps
        plan, policy = self._plan(num_steps, full_steps), self.policy()

        def runs(module: Module, step: int) -> bool:
            action, actions = plan[step]
            if action is Action.MIXED:
                own, fed = (actions.get(site, Action.COMPUTE) for site in (module.site, module.feeds or module.site))
                return own in RUNNING and fed is not Action.ESTIMATE
            if action is Action.ESTIMATE and self.method.scope in ("span", "front_back"):
                start, stop = self.executor.setup.spans[policy.stage(Clock(num_steps=num_steps, step=step))]
                return not start <= module.site.layer < stop
            return action is Action.COMPUTE

        return lambda module: sum(runs(module, step) for step in range(num_steps))

    def _plan(self, num_steps: int, full_steps: Sequence[int]) -> list[tuple[Action, dict[Site, Action]]]:
        """The action of every step, and of every module at the mixed ones."""
        policy, clock = self.policy(), Clock(num_steps=num_steps)
        found: list[tuple[Action, dict[Site, Action]]] = []
        for clock.step in range(num_steps):
            action = policy.decide(clock)
            cached = Action.ESTIMATE if action is Action.COMPUTE else action
            action = Action.COMPUTE if clock.step in full_steps else cached
            action = self.settle(action, policy, clock)
            mixed = action is Action.MIXED
            sites = self.sites if mixed else []
            found.append((action, {site: policy.site_action(clock, site) for site in sites}))
            if action is Action.COMPUTE:
                clock.anchors.append(clock.step)
        return found

    def _mixed(self, step: int, num_steps: int, actions: dict[Site, Action]) -> float:
        """A mixed step: what runs whatever is patched, and the patched rows."""
        branch = rehearse(self.branch, step, num_steps)
        clock, patch, total = replace(branch.clock, step=step), branch.patch, self._unpatched(actions)
        if patch is None:
            return total
        for module in self.executor.setup.modules:
            if actions[module.site] is Action.ESTIMATE and patch.covers(module.site):
                rows = patch.count(module.site, clock, branch.histories.newest(module.site).shape[1])
                total += rows * self._row(module)
        return total

    def _unpatched(self, actions: dict[Site, Action]) -> float:
        """A mixed step without its patch; the tables charge what runs beside the modules as in an estimated step."""
        counted = self._unpatched_count(actions)
        if not self.published or self.method.patch is None:
            return counted
        skip = Action.SKIP
        beside = self._unpatched_count({k: a if a is skip else Action.ESTIMATE for k, a in actions.items()})
        return counted - beside + estimate_flops(self.adapter, self.example)

    def _unpatched_count(self, actions: dict[Site, Action]) -> float:
        if self.executor.modules is not None:  # a module that is verified runs; how wrong it is, is no number here
            actions = {site: Action.COMPUTE if act is Action.VERIFY else act for site, act in actions.items()}
        key = tuple(actions.items())
        if key not in self._known:
            branch = rehearse(self.branch, 1, None)
            assert isinstance(branch.policy, Scripted)
            branch.policy.action, branch.policy.actions = Action.MIXED, actions
            patch, branch.patch = branch.patch, None
            self._known[key] = self._count()
            branch.patch = patch
        return self._known[key]

    def _row(self, module: Module) -> float:
        """One patched row of a module, in every sample."""
        branch = rehearse(self.branch, 1, None)
        value = branch.histories.newest(module.site)
        row, layer = value[:, :1], module.module
        key = (module.site.module, module.site.stream)
        if key not in self._known:
            first = 0.0
            if (up := module.up) is not None:
                first = flops_of(lambda: up(row))
                row = row.new_empty(len(row), 1, int(layer.in_features))  # type: ignore[arg-type]
            self._known[key] = first + flops_of(lambda: layer(row))
        discarded = self.published and module.up is not None
        return self._known[key] + (discarded_flops(self.adapter) * len(row) if discarded else 0.0)

    def _estimated(self) -> float:
        """An estimated step."""
        if self.published and self.method.scope in ("modules", "final_hidden"):
            return estimate_flops(self.adapter, self.example)
        if self.published and self.method.scope == "stack":
            return 0.0
        branch = rehearse(self.branch, 1, None)
        assert isinstance(branch.policy, Scripted)
        branch.policy.action = Action.ESTIMATE
        return self._count()

    def _published_full(self, full: float) -> float:
        """A computed step as the tables count it."""
        if self.method.patch is not None:
            full = count(Executor(self.adapter, method("none"), self.model.forward), self.example)
        full = full_flops(self.adapter, full)
        return full - estimate_flops(self.adapter, self.example) if self.method.scope == "stack" else full

    def _count(self) -> float:
        return count(self.executor, self.example)
