r"""A cache for a sampling loop of one's own: any callable, any nested result.

    loop = hicache.Loop(hicache.method("dmd", interval=5, warmup_steps=4), num_steps=len(ts))
    for i, t in enumerate(ts):
        v = loop(i, lambda: model(x, t, cond))     # computed or forecast; dict, list, tuple, dataclass of tensors
        x = scheduler.step(v, t, x)
    print(loop.report)

Nothing is wrapped: what the callable returns at the steps that the method's policy computes is remembered, and forecast
at the others. Predictions that are made side by side at a step are *branches*, each with its own history. With
`guided` the two predictions c and u of classifier-free guidance are branches, joined in one of the two conventions

    u+w(c-u)   v = u + w (c - u)          diffusers, Hunyuan3D
    1+w        v = (1 + w) c - w u        TRELLIS, SAM 3D

and with `hicache.AdaptiveGuidance` u is left out where it says the same as c (`hicache.guidance`).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hicache.forecast.forecaster import taken
from hicache.generation_report import Report, Stopwatch
from hicache.generic.leaves import flatten, unflatten
from hicache.guidance import COND, UNCOND, AdaptiveGuidance, alignment
from hicache.methods import CacheMethod, method
from hicache.nested import NestedForecaster
from hicache.policy import Clock
from hicache.tree import Action

__all__ = ["CONVENTIONS", "Loop", "LoopBranch", "Step"]

CONVENTIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "u+w(c-u)": (lambda w: w, lambda w: 1 - w),
    "1+w": (lambda w: 1 + w, lambda w: -w),
}
"""Name -> the weights of c and u from the scale w."""


class LoopBranch:
    """One branch of a loop: its clock, its policy, its history."""

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop = loop
        self.clock = Clock(branch=name, num_steps=loop.num_steps)
        self.policy = copy.deepcopy(loop.method.policy)
        self.frames = NestedForecaster(loop.build, loop.batch)
        self.frames.reset(loop.num_steps)
        self.forced = False
        self.forgets = False
        self.pending: int | None = None

    def __call__(self, step: int, compute: Callable[[], Any]) -> Any:
        """The value at a step: what `compute` returns, or its forecast.

        Raises:
            ValueError: if the steps of this branch do not grow, or the value is unlike the last anchor.
        """
        watch = Stopwatch(self.device)
        if self.decide(step):
            value = compute()
            self.observe(value)
        else:
            value = self.predict()
        watch.stop()
        times = self.loop.report.full_times if self.clock.anchors[-1:] == [step] else self.loop.report.estimated_times
        times.append(watch)
        return value

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.frames.groups[0][1] if self.frames.groups else torch.device("cpu")

    @property
    def present(self) -> bool:
        """Whether it belongs to the generation under way, and not to one before it."""
        return self.loop.branches.get(self.clock.branch) is self

    def decide(self, step: int) -> bool:
        """Move to a step and say whether it is to be computed."""
        loop, clock = self.loop, self.clock
        if isinstance(step, bool) or not hasattr(step, "__index__") or step < 0:
            raise ValueError(f"step: must be an integer >= 0, got {step!r}")
        step = int(step)
        if step == 0 and (clock.step > 0 or (clock.step == 0 and loop.num_steps == 1)) and self.present:
            loop.reset(loop.num_steps)
        if not self.present:
            return loop.branch(clock.branch).adopt(self).decide(step)
        if step <= clock.step:
            raise ValueError(
                f"step: must grow within a branch, got {step} after {clock.step}; "
                "name a second prediction of a step with loop.branch(name), or call loop.reset()"
            )
        clock.step = step
        computes = self.policy.decide(clock) is Action.COMPUTE or self.forced or not self.frames.ready
        if clock.num_steps is not None and step >= clock.num_steps - loop.last_steps:
            computes = True
        self.pending = step if computes else None
        if not computes and clock.branch == loop.first:
            loop.report.estimated_steps.append(step)
        return computes

    def adopt(self, old: LoopBranch) -> LoopBranch:
        """Stand in for the branch of the generation before, which callers may still hold."""
        vars(old).update(vars(self))
        self.loop.branches[self.clock.branch] = old
        return old

    def observe(self, value: Any) -> None:
        """Take the value of the step that `decide` wanted computed."""
        if self.pending is None:
            raise ValueError(f"step: {self.clock.step} was not to be computed, its value cannot be observed")
        if self.forgets:
            self.frames.reset(self.loop.num_steps)
        self.frames.observe(self.pending, value)
        self.clock.anchors.append(self.pending)
        report = self.loop.report
        report.branches.setdefault(self.clock.branch, []).append(self.pending)
        if self.clock.branch == self.loop.first:
            report.full_steps.append(self.pending)
        report.cache_bytes = sum(branch.frames.bytes for branch in self.loop.branches.values())
        self.pending, self.forced, self.forgets = None, False, False

    def predict(self, at: float | None = None) -> Any:
        """The forecast at the step under way, or at any later one, which may be fractional."""
        found = self.frames.predict(self.clock.step if at is None else at)
        bases = taken(*self.frames.forecasters.values())
        if self.clock.branch == self.loop.first:
            self.loop.report.fell_back(self.clock.step, bases)
        return found


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of `for step in loop`, for callers who branch themselves."""

    index: int
    computes: bool
    branch: LoopBranch

    def observe(self, value: Any) -> None:
        """The value that was computed."""
        self.branch.observe(value)

    def predict(self) -> Any:
        """The forecast in its place."""
        return self.branch.predict()


class Loop:
    """A method on a loop of one's own; see the module docstring.

    Args:
        cache_method: from `hicache.method`, or a method's name. Its scope does not matter.
        num_steps: steps of a generation, for policies that count from the end and for `last_steps`.
        batch: whether the first axis of all results is the batch; False for one sample, for sparse tensors and
            for the weights of HiCache++, which are one set for a whole batch.
        last_steps: how many steps at the end are computed whatever the policy says.
        guidance: when `guided` leaves out the unconditional prediction; None: never.
        times: the growing time of every step, in which the forecast extrapolates (of noise levels, which fall, their
            negatives); None: the step itself.

    Raises:
        ValueError: for a method that decides within the model, which a loop does not see, and for times that do not
            grow, or are missing where the method extrapolates in another time than the step.
    """

    def __init__(
        self,
        cache_method: CacheMethod | str,
        num_steps: int | None = None,
        *,
        batch: bool = True,
        last_steps: int = 0,
        guidance: AdaptiveGuidance | None = None,
        times: Sequence[float] | None = None,
    ) -> None:
        chosen = method(cache_method) if isinstance(cache_method, str) else cache_method
        policy = chosen.policy
        if chosen.mixes or policy.probe or policy.indicator or policy.timed:
            raise ValueError(f"policy: must decide by the step alone in a loop, got {type(policy).__name__}")
        if last_steps < 0 or (last_steps and num_steps is None):
            raise ValueError(f"last_steps: must be 0 without num_steps, else an integer >= 0, got {last_steps}")
        if times is not None:
            check_times(times, num_steps)
        elif chosen.knobs.time != "index":
            raise ValueError(f"time: must be index in a loop without times, got {chosen.knobs.time!r}")
        self.method = chosen if times is None else dataclasses.replace(chosen, clock=lambda: times)
        self.num_steps = num_steps
        self.batch = batch
        self.last_steps = last_steps
        self.guidance = guidance
        self.reset(num_steps)

    def build(self) -> Any:
        """A forecaster for frames `[rows, D]`."""
        return self.method.build_forecaster(lead=1)

    def reset(self, num_steps: int | None = None) -> None:
        """Begin a generation: everything is forgotten. A loop that starts again at step 0 does it by itself."""
        self.num_steps = self.num_steps if num_steps is None else num_steps
        self.report = Report(method=self.method.name, num_steps=self.num_steps)
        self.branches: dict[str, LoopBranch] = {}
        self.aligned = False
        build = None if self.guidance is None else self.guidance.build_forecaster
        self.gap = None if build is None or build() is None else NestedForecaster(build, self.batch)  # type: ignore[arg-type]

    @property
    def first(self) -> str:
        """The branch whose steps the report lists."""
        return next(iter(self.branches), "")

    def branch(self, name: str) -> LoopBranch:
        """A prediction with its own history: `loop.branch("uncond")(i, compute)`."""
        if name not in self.branches:
            self.branches[name] = LoopBranch(self, name)
        return self.branches[name]

    def __call__(self, step: int, compute: Callable[[], Any]) -> Any:
        """The value at a step: what `compute` returns, or its forecast; see `LoopBranch`."""
        return self.branch("")(step, compute)

    def __iter__(self) -> Iterator[Step]:
        """The steps of a generation, each told whether it is to be computed."""
        if self.num_steps is None:
            raise ValueError("num_steps: must be given to go through the steps of a loop, got None")
        self.reset(self.num_steps)
        branch = self.branch("")
        for index in range(self.num_steps):
            yield Step(index, branch.decide(index), branch)

    def refresh(self, forget: bool = False) -> None:
        """Compute the next step of every branch, as where guidance begins or ends; `forget` drops what came before."""
        for branch in self.branches.values():
            branch.forced, branch.forgets = True, forget

    def wrap(self, model: Callable[..., Any], branch: str = "") -> Callable[..., Any]:
        """`model` with this cache in front; its calls are the steps of a branch, and begin anew after `num_steps`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            step = self.branch(branch).clock.step + 1
            step = 0 if self.num_steps is not None and step >= self.num_steps else step
            return self.branch(branch)(step, lambda: model(*args, **kwargs))

        return call

    # -- guidance ----------------------------------------------------------------------------------------------

    def guided(
        self,
        step: int,
        cond: Callable[[], Any],
        uncond: Callable[[], Any],
        scale: float,
        convention: str = "u+w(c-u)",
    ) -> Any:
        """The guided prediction at a step, from two branches.

        Args:
            step: the step.
            cond: makes the conditional prediction c.
            uncond: makes the unconditional prediction u.
            scale: w.
            convention: how both are joined, a key of `CONVENTIONS`.
        """
        if convention not in CONVENTIONS:
            raise ValueError(f"convention: must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
        c = self.branch(COND)(step, cond)
        u = self.unconditional(step, c) if self.skips(step) else self.branch(UNCOND)(step, uncond)
        if self.report.skipped_steps[-1:] != [step]:
            self.compare(step, c, u)
        of_c, of_u = (weight(scale) for weight in CONVENTIONS[convention])
        return mapped(lambda a, b: of_c * a + of_u * b, c, u)

    def skips(self, step: int) -> bool:
        """Whether the unconditional prediction is left out."""
        guidance = self.guidance
        if guidance is None or not self.aligned or step < guidance.warmup_steps:
            return False
        if guidance.last and self.num_steps is None:
            raise ValueError("num_steps: must be given for adaptive guidance with last=True, got None")
        return not (guidance.last and step + 1 == self.num_steps)

    def unconditional(self, step: int, c: Any) -> Any:
        """u without the model: c less the forecast of c - u."""
        self.report.skipped_steps.append(step)
        branch = self.branch(UNCOND)
        branch.clock.step, branch.forced = step, True
        if self.gap is None or not self.gap.ready:
            return c
        return mapped(lambda a, g: (a.float() - g).to(a.dtype), c, self.gap.predict(step))

    def compare(self, step: int, c: Any, u: Any) -> None:
        """Learn from a step at which both predictions were computed."""
        computed = all(self.branches[name].clock.anchors[-1:] == [step] for name in (COND, UNCOND))
        if self.guidance is None or not computed:
            return
        if self.gap is not None:
            self.gap.observe(step, mapped(lambda a, b: a.float() - b.float(), c, u))
        self.aligned = self.aligned or alignment(c, u, self.batch) >= self.guidance.threshold


def check_times(times: Sequence[float], num_steps: int | None) -> None:
    """Raise a `ValueError` for times of steps that do not grow, or are too few."""
    if any(not b > a for a, b in itertools.pairwise(times)):
        raise ValueError(f"times: must grow from step to step, got {[round(float(t), 3) for t in times]}")
    if num_steps is not None and len(times) < num_steps:
        raise ValueError(f"times: must be one for each of the {num_steps} steps, got {len(times)}")


def mapped(rule: Callable[[Tensor, Tensor], Tensor], a: Any, b: Any) -> Any:
    """`rule` on the leaves of two values of one structure; the rest is taken from the first."""
    leaves, form = flatten(a)
    return unflatten([rule(*pair) for pair in zip(leaves, flatten(b)[0], strict=True)], form)
