"""A step that is decided half-way: the blocks before the span run, then the policy says what the span does."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hicache.adapters.base import Streams
from hicache.adapters.hooks import guarded
from hicache.generation import Branch
from hicache.steps.setup import Setup
from hicache.tree import Action

__all__ = ["ProbedStep"]


class ProbedStep:
    """The model's forward, in which the span runs or is replaced by its forecast residual."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def run(self, branch: Branch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Action, Any]:
        """What was done, and the result."""
        setup, adapter = self.setup, self.setup.adapter
        entry: list[Tensor] = []

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entry.append(adapter.streams(args, kwargs)[0])

        with setup.observers.anchor(branch) as anchor:

            def choose(streams: Streams) -> Tensor | None:
                moved = streams[0] - entry.pop()
                branch.watch(moved)
                if branch.policy.decide(branch.clock) is Action.ESTIMATE and branch.forecaster.ready:
                    anchor.wanted = False
                    return branch.forecaster.predict(branch.clock.step)[0]
                branch.watched = moved
                return None

            hook = adapter.blocks()[0].register_forward_pre_hook(enter, with_kwargs=True)
            try:
                with guarded(adapter, setup.spans[0], choose):
                    result = setup.forward(*args, **kwargs)
            finally:
                hook.remove()
        return (Action.COMPUTE if anchor.wanted else Action.ESTIMATE), result
