r"""Adaptive guidance: the unconditional prediction is left out once it says the same as the conditional one.

Classifier-free guidance makes two predictions per step, `v = u + w (c - u)`. As the sample takes shape they align, and
from the first step on at which

    min over the batch of  cos(c, u) = <c, u> / (|c| |u|)  >=  gamma         (float32, over the flattened sample)

only `c` is made (Adaptive Guidance, arXiv 2312.12487). HiCache++ makes both predictions at the first `warmup_steps`
steps and at the last, and forecasts the guidance term `g = c - u` in between from the steps at which both were
computed, by Newton's interpolation of order 0 or 1. The scale `w` belongs to the pipeline, which is given

    u^ = c - g^        so that        u^ + w (c - u^) = c + (w - 1) g^

and needs no change, whatever else it does with `c` and `u^` (Qwen-Image rescales). Without a forecast `u^ = c`.

It composes with a cache: each prediction is a branch with its own clock, history and policy. `g` and the cosine are
taken only where the model computed both. The clock of the unconditional branch goes on at a skipped step; the first
call after one is computed, because what the branch remembers is too old to forecast from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hicache.adapters.base import Adapter, Call
from hicache.clock import SamplerClock
from hicache.executor import Executor
from hicache.forecast import Forecaster
from hicache.generation import Branch
from hicache.generation_report import PlanError
from hicache.generic.leaves import flatten
from hicache.methods import MAX_ORDER, CacheMethod, method
from hicache.tree import Action

__all__ = ["COND", "UNCOND", "AdaptiveGuidance", "GuidedExecutor", "alignment"]

COND, UNCOND = "cond", "uncond"
"""The names of the two branches; diffusers' own, in the order in which pipelines call them."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveGuidance:
    """When the unconditional prediction is left out, and what takes its place.

    Attributes:
        threshold: gamma; .94 in HiCache++, .991 in the paper. Above 1 nothing is ever skipped.
        warmup_steps: leading steps with both predictions, >= 1.
        order: of the forecast of `c - u`: 0 reuses the last one, 1 is HiCache++'s; None = no guidance at a skipped
            step, as in the paper.
        last: whether the last step has both predictions.
    """

    threshold: float = 0.94
    warmup_steps: int = 2
    order: int | None = 1
    last: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(f"guidance.threshold: must be a finite number, got {self.threshold}")
        if self.warmup_steps < 1:
            raise ValueError(f"guidance.warmup_steps: must be an integer >= 1, got {self.warmup_steps}")
        if self.order is not None and not 0 <= self.order <= MAX_ORDER:
            raise ValueError(f"guidance.order: must be null or an integer from 0 to {MAX_ORDER}, got {self.order}")

    def build_forecaster(self) -> Forecaster | None:
        """What forecasts `c - u`."""
        return None if self.order is None else method("newton", order=self.order, gate=False).build_forecaster()


def alignment(a: Any, b: Any, batch: bool = True) -> float:
    """The least cosine similarity of a batch, over all leaves together; reading it waits for the GPU."""
    rows = [
        torch.cat([leaf.reshape(leaf.shape[0] if batch else 1, -1).float() for leaf in flatten(value)[0]], dim=1)
        for value in (a, b)
    ]
    return float(F.cosine_similarity(rows[0], rows[1]).min())


class GuidedExecutor(Executor):
    """An executor whose two branches are the two predictions of guidance.

    A model that is called twice per step names the calls `cond` and `uncond`; a doubled batch is split and joined.
    """

    def __init__(
        self, adapter: Adapter, method: CacheMethod, forward: Callable[..., Any], guidance: AdaptiveGuidance
    ) -> None:
        if adapter.guidance == "none":
            kind = type(adapter.model).__name__
            raise ValueError(f"guidance: must be plain for {kind}, which has no separable guidance, got 'adaptive'")
        super().__init__(adapter, method, forward)
        self.guidance = guidance
        self.gap = guidance.build_forecaster()
        self._conditional: Tensor | None = None
        self._aligned = False
        self._forced: list[int] = []

    def begin(self, num_steps: int | None, clock: SamplerClock | None = None) -> None:
        super().begin(num_steps, clock)
        self._conditional, self._aligned, self._forced = None, False, []
        if self.gap is not None:
            self.gap.reset(num_steps)

    def detach(self) -> None:
        super().detach()
        self._conditional, self.gap = None, self.guidance.build_forecaster()

    def finish(self, clock: SamplerClock | None = None) -> None:
        super().finish(clock)
        if self.own(clock).branches and UNCOND not in self.own(clock).branches:
            raise PlanError("guidance: must be plain for a generation without an unconditional prediction")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.adapter is not None
        self.session()
        if self.branch in (COND, UNCOND):
            return self._half(args, kwargs)
        if self.adapter.guidance != "batch":
            raise PlanError(f"guidance: the branch of a call must be {COND!r} or {UNCOND!r}, got {self.branch!r}")
        call = self.adapter.bind(args, kwargs)
        halves = self.adapter.halves(call)
        outputs: list[Tensor] = []
        if not self.generation.branches and not torch.equal(*(half["hidden_states"] for half in halves)):
            raise PlanError("guidance: must be plain for a batch that is not doubled, got two different halves")
        for name, half in zip((COND, UNCOND), halves, strict=True):
            with self.named(name):
                outputs.append(self.adapter.output(half, self._half((), half)))
        return self.adapter.wrap(call, torch.cat(outputs))

    def _half(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One of the two predictions of a step."""
        assert self.adapter is not None
        call = self.adapter.bind(args, kwargs)
        if self.branch == UNCOND and self._skips():
            return self._skip(call)
        result = super().__call__(*args, **kwargs)
        self._observe(self.adapter.output(call, result).detach())
        if self.gap is not None:
            self.report.cache_bytes = self.generation.bytes + self.gap.bytes
        return result

    # -- the decision ------------------------------------------------------------------------------------------

    def _skips(self) -> bool:
        """Whether the unconditional prediction of this step, whose conditional one is made, is left out."""
        clock = self.generation.branches[COND].clock if COND in self.generation.branches else None
        before = self.generation.branches[UNCOND].clock.step if UNCOND in self.generation.branches else -1
        if clock is None or clock.step != before + 1:
            raise PlanError(f"guidance: the {COND!r} call of a step must come first, got {UNCOND!r}")
        if not self._aligned or clock.step < self.guidance.warmup_steps:
            return False
        if self.guidance.last and clock.num_steps is None:
            raise PlanError("guidance: adaptive with last=true needs the number of steps; call begin(num_steps)")
        return not (self.guidance.last and clock.step + 1 == clock.num_steps)

    def _observe(self, output: Tensor) -> None:
        """Keep the conditional prediction; compare the unconditional one with it where both were computed."""
        assert self.adapter is not None
        if self.branch == COND:
            self._conditional = output
            return
        conditional, step = self._conditional, self.generation.branches[UNCOND].clock.step
        computed = all(branch.clock.anchors[-1:] == [step] for branch in self.generation.branches.values())
        if conditional is None or not computed:
            return
        if self.gap is not None:
            self.gap.observe(step, conditional.float() - output.float())
        cosine = alignment(self.adapter.prediction(conditional), self.adapter.prediction(output))
        self._aligned = self._aligned or cosine >= self.guidance.threshold

    # -- the step ----------------------------------------------------------------------------------------------

    def _skip(self, call: Call) -> Any:
        """The unconditional prediction without the model: the conditional one less the forecast of their difference."""
        assert self.adapter is not None
        branch, conditional = self.tick(call), self._conditional
        if conditional is None:
            raise PlanError(f"guidance: step {branch.clock.step} has no conditional prediction")
        step, estimate = branch.clock.step, conditional
        if self.gap is not None:
            with torch.no_grad():
                estimate = (conditional.float() - self.gap.predict(step)).to(conditional.dtype)
        self.report.skipped_steps.append(step)
        if step in (branch.policy.plan(branch.clock.num_steps or 0) or []):
            self.report.exempt_steps.append(step)
        if step + 1 == branch.clock.num_steps:
            self.check(branch)
        return self.adapter.wrap(call, estimate)

    def step(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Action, Any]:
        step = branch.clock.step
        if not self.caches or branch.clock.branch != UNCOND or self.report.skipped_steps[-1:] != [step - 1]:
            return super().step(branch, call, args, kwargs)
        self._forced.append(step)
        return Action.COMPUTE, self.run(Action.COMPUTE, branch, call, args, kwargs)

    def planned(self, branch: Branch) -> list[int] | None:
        """The plan of the unconditional branch without what was skipped, and with the steps that followed."""
        planned = super().planned(branch)
        if planned is None or branch.clock.branch != UNCOND:
            return planned
        return sorted({*planned, *self._forced} - set(self.report.skipped_steps))
