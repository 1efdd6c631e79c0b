"""Steps of a model without an adapter: its own forward runs, stand-ins give forecasts (`hicache.generic`).

At scope `modules`, blocks whose gates are declared are left out as a whole (`hicache.generic.gated`). The first
computed step of a branch puts that to the proof: played back from its own values it must give the model's own
result; where it does not, the branch goes on module by module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hicache.generation import Branch
from hicache.generation_report import PlanError
from hicache.generic import Tap, TapError
from hicache.generic.blocks import flat_blocks, leading
from hicache.generic.gated import Features, GatedTap
from hicache.generic.layout import Layout
from hicache.generic.leaves import flatten
from hicache.methods import CacheMethod
from hicache.proof import agreed, in_all_processes
from hicache.spans import check_mixing, check_probe
from hicache.tree import Action

__all__ = ["TappedSteps", "channel_of"]

Run = Callable[[], Any]
"""The model's own forward with the arguments of a call."""


def channel_of(scope: str, shape: torch.Size) -> int:
    """The feature axis of a value: the second of a picture or a video that is an output, the last elsewhere."""
    return 1 - len(shape) if scope == "output" and len(shape) > 3 else -1


class TappedSteps:
    """Computed, estimated and probed steps through a tap.

    Raises:
        ValueError: if the model lacks the method's scope.
    """

    def __init__(self, model: nn.Module, method: CacheMethod) -> None:
        knobs = method.knobs
        span = {"front": knobs.front, "back": knobs.back} if method.scope == "span" else {}
        check_mixing(method)
        if method.policy.probe:
            check_probe(method)
            span["front"] += leading(model)
        self.tap = Tap(model, method.scope, **span, depth=knobs.depth if method.scope == "deep" else 0)
        self.gated = GatedTap(model) if method.scope == "modules" and GatedTap.has(model) else None
        self.dtype = knobs.history_dtype

    def compute(self, branch: Branch, run: Run) -> Any:
        """The model's result; its features become an anchor."""
        if self.gated is not None and not branch.why:
            try:
                result, features, layout = self.gated.compute(run)
            except TapError as error:
                branch.why = f"it cannot be re-enacted ({error})"
            else:
                branch.why = "" if branch.proven else self.disprove(run, result, features, layout)
                if not branch.why:
                    branch.proven = True
                    self.remember(branch, features, layout)
                    return result
            branch.proven = True
        result, features = self.tap.compute(run)
        self.remember(branch, features, self.tap.layout)
        return result

    def disprove(self, run: Run, result: Any, features: Sequence[Tensor], layout: Layout) -> str:
        """Why blocks cannot be left out; "" where a computed step, played back from its values, gives its result."""
        assert self.gated is not None
        wanted, form = flatten(result)
        if wanted and wanted[0].is_meta:
            return ""
        try:
            found, other = flatten(self.gated.replay(run, Features(features), layout))
        except Exception as error:  # whatever stands in the way of re-enacting the model
            return f"it cannot be re-enacted ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]})"
        why = agreed(found, wanted, self.dtype) if form == other else "its result has another form"
        return in_all_processes(self.tap.model, why)

    def remember(self, branch: Branch, features: Sequence[Tensor], layout: Layout | None) -> None:
        """The features of this step become an anchor; of another layout than the last ones, the only one."""
        frames = branch.memory.frames
        if branch.layout is not None and branch.layout != layout:
            frames.reset(frames.num_steps, frames.offset)
        frames.observe(branch.clock.step, features)
        branch.layout = layout

    def estimate(self, branch: Branch, run: Run) -> Any:
        """The estimated result.

        Raises:
            PlanError: if nothing was computed before.
        """
        clock, frames = branch.clock, branch.memory.frames
        if not frames.ready:
            raise PlanError(f"branch {clock.branch!r}: step {clock.step} is to be estimated before any full step")
        if self.gated is not None and not branch.why:
            assert branch.layout is not None
            return self.gated.replay(run, frames.ahead(clock.step), branch.layout)
        with torch.no_grad():
            features = frames.predict(clock.step)
        return self.tap.replay(run, features, branch.layout, branch.policy.stage(clock))

    def probe(self, branch: Branch, run: Run) -> tuple[Action, Any]:
        """The blocks before the span run, then the policy decides: what was done, and the result."""
        frames, clock = branch.memory.frames, branch.clock

        def choose(moved: Tensor) -> Sequence[Tensor] | None:
            branch.watch(moved)
            if branch.policy.decide(clock) is Action.ESTIMATE and frames.ready:
                return frames.predict(clock.step)
            branch.watched = moved.detach().clone()
            return None

        result, features = self.tap.decide(run, choose, branch.layout)
        if features is None:
            return Action.ESTIMATE, result
        self.remember(branch, features, self.tap.layout)
        return Action.COMPUTE, result

    def entry(self, run: Run) -> Tensor:
        """The hidden state before the first block, for policies that watch it; the model runs no further."""
        first = flat_blocks(self.tap.model)[0]

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            raise Seen(value.detach().clone())  # it may be the sample itself, which a loop may change in place

        hook = first.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            run()
        except Seen as seen:
            return seen.value
        finally:
            hook.remove()
        raise PlanError(f"policy: {type(self.tap.model).__name__} did not call its first block, which is to be watched")


class Seen(Exception):
    """The first block has been reached."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value
