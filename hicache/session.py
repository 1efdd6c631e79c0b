"""Where a model call belongs: to which step of which branch of which generation.

There are three kinds of loop around a model:

    driven    a pipeline whose scheduler is followed: its clock gives the step, and the ordinal of a call within the
              step and the name given by `cache_context` the branch
    stepped   an own loop that calls `handle.step()`: the same with a count of these
    counted   an own loop that does not: every call of a branch is a step

In a counted loop a second call at the timestep of the first is no second step: two calls of guidance without names
would become one mixed-up branch. After `begin` it may be the second call of a stepped loop's first step and is a branch
of its own; otherwise, and when the loop goes on without `handle.step()`, it is an error. A counted loop that nobody has
announced begins a new generation where its timestep turns back, whichever direction it goes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hicache.clock import SamplerClock
from hicache.generation import Generation
from hicache.generation_report import PlanError

__all__ = ["Place", "Session"]

ADVICE = (
    "name the branches of two-call guidance with `with handle.branch(name)`, or call handle.begin(num_steps) before "
    "the loop and handle.step() after each step"
)


MOST = 256
"""Calls under one name within one step, beyond which the steps must be made by a scheduler that is not followed."""


class Place(NamedTuple):
    """The branch of a call and the step of the sampler at which it is made; None: the next one of the branch."""

    branch: str
    step: int | None


@dataclass
class Timesteps:
    """The timesteps of one name in a counted loop."""

    first: Tensor | float
    last: float
    direction: float = 0.0
    calls: int = 1


@dataclass
class Session:
    """A loop and the generation in it.

    Attributes:
        generation: the one under way, or the last.
        clock: of the sampler that drives it.
        stepped: whether `handle.step()` was called.
        separate: whether the stages of a two-stage solver are branches of their own.
        failed: whether a call of it raised an error; in a counted loop that nobody announced the next begins anew.
    """

    generation: Generation
    clock: SamplerClock | None = None
    separate: bool = False
    failed: bool = False
    stepped: bool = False
    announced: bool = False
    step: int = 0
    _at: int = -1
    _ordinals: dict[str, int] = field(default_factory=dict[str, int])
    _timesteps: dict[str, Timesteps] = field(default_factory=dict[str, Timesteps])

    def advance(self) -> None:
        """A step of the own loop is over."""
        self.step, self.stepped = self.step + 1, True

    def place(self, name: str) -> Place:
        """The place of a call in a driven or stepped loop."""
        clock = self.clock
        step = self.step if clock is None else clock.step
        if step != self._at:
            self._at, self._ordinals = step, {}
        ordinal = self._ordinals.get(name, 0)
        if ordinal == MOST:
            raise PlanError(f"branch {name!r}: {MOST} calls within one step; whose scheduler makes the steps? {ADVICE}")
        self._ordinals[name] = ordinal + 1
        key = name if ordinal == 0 else f"{name}#{ordinal}"
        if clock is not None and self.separate and clock.stages == 2:
            return Place(f"{key}'" if clock.stage else key, step // 2)
        return Place(key, step)

    def count(self, name: str, timestep: Tensor | float | None) -> Place | None:
        """The place of a call in a counted loop; None where it begins a new generation.

        Raises:
            PlanError: if it is made at the timestep of the call before it.
        """
        if self.stepped:
            return self.place(name)
        if self.failed and not self.announced:
            return None
        past = self._timesteps.get(name)
        if timestep is None or (past is not None and self.announced and past.calls > 1):
            if past is not None:
                past.calls += 1
            return Place(name, None)
        if past is None:
            self._timesteps[name] = Timesteps(timestep, middle(timestep))
            self._at = 0
            self._ordinals[name] = 1
            return Place(name, None)
        if past.calls == 1 and equal(timestep, past.first):
            if not self.announced:
                raise PlanError(f"branch {name!r}: two calls at one timestep in an own loop; {ADVICE}")
            return self.place(name)
        if self._ordinals.get(name, 0) > 1:
            raise PlanError(f"branch {name!r}: two calls at one timestep, and the next without a step; {ADVICE}")
        now = middle(timestep)
        turn = now - past.last
        if not self.announced and turn * past.direction < 0:
            return None
        past.last, past.calls = now, past.calls + 1
        past.direction = past.direction or turn
        return Place(name, None)


def middle(timestep: Tensor | float) -> float:
    """One number for a timestep, per-token ones included; reading it waits for the GPU."""
    return float(timestep.double().mean()) if isinstance(timestep, Tensor) else float(timestep)


def equal(a: Tensor | float, b: Tensor | float) -> bool:
    """Whether two timesteps are the same."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    return middle(a) == middle(b)
