"""The schedules of token-wise caching: intervals that follow the run, and two kinds of cached step in turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from hicache.checks import check_integer
from hicache.policy.base import Clock, Policy
from hicache.policy.static import Interval
from hicache.tree import Action, Site

__all__ = ["Alternate", "Modulated"]


@dataclass(kw_only=True)
class Modulated(Policy):
    """ToCa's schedule for DiT (arXiv 2410.05317): short intervals late in the run, where details are drawn.

    With t = T-1-s the remaining steps, a step is full if it is the first or `t mod n = 0`, and every full step sets

        n = 2 for int(0.2 T) <= t < int(0.4 T),
        n = round(interval / (1.4 - 0.8 t/T)) elsewhere,        n = interval at first.

    Attributes:
        interval: N.
        per_layer: the published code sets n inside the first block of a full step and asks again in every later
            block, which then may be cached: only the first block of such a step is computed. It takes this to
            reproduce the published FLOPs.
    """

    mixes = True
    interval: int
    per_layer: bool = False
    current: int = field(default=0, init=False, repr=False)
    partly: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_integer("interval", self.interval, 1)

    def decide(self, clock: Clock) -> Action:
        if clock.num_steps is None:
            raise ValueError("num_steps: modulated counts steps from the end; call begin(num_steps)")
        if self.interval == 1:
            return Action.COMPUTE
        total, left, first = clock.num_steps, clock.num_steps - 1 - clock.step, clock.step == 0
        self.partly = False
        if not first and left % self.current:
            return Action.MIXED
        late = int(0.2 * total) <= left < int(0.4 * total)
        self.current = 2 if late else max(round(self.interval / (1.4 - 0.8 * left / total)), 1)
        self.partly = self.per_layer and not first and left % self.current != 0
        return Action.MIXED if self.partly else Action.COMPUTE

    def site_action(self, clock: Clock, site: Site) -> Action:
        del clock
        return Action.COMPUTE if self.partly and site.layer == 0 else Action.ESTIMATE


@dataclass(kw_only=True)
class Alternate(Policy):
    """DuCa (arXiv 2412.18911): between full steps, skip the whole network and patch its modules in turn.

    Skipped steps estimate the scope, patched ones are `MIXED`. Where only the first block of a full step is computed
    (`per_layer`), the others are patched or left out by the same rule. The published codes differ in which comes first:

    Attributes:
        interval: N.
        warmup_steps: leading full steps.
        modulated: full steps as `Modulated` has them; then steps with odd `t mod n` are patched, as published for DiT.
        first: `skip` (FLUX) or `patch` (HunyuanVideo); null: by model family.
        per_layer: as in `Modulated`.
    """

    mixes = True
    interval: int
    warmup_steps: int = 1
    modulated: bool = False
    first: str | None = None
    per_layer: bool = False
    inner: Interval | Modulated = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.first not in (None, "skip", "patch"):
            raise ValueError(f"first: must be skip or patch, got {self.first!r}")
        if self.modulated:
            self.inner = Modulated(interval=self.interval, per_layer=self.per_layer)
        else:
            self.inner = Interval(interval=self.interval, warmup_steps=self.warmup_steps)

    def prepare(self, family: str, blocks: int) -> None:
        if self.first is None:
            self.first = "patch" if family == "hunyuan_video" else "skip"

    def decide(self, clock: Clock) -> Action:
        action, inner = self.inner.decide(clock), self.inner
        if action is Action.COMPUTE or (isinstance(inner, Modulated) and inner.partly):
            return action
        if isinstance(inner, Modulated):
            return Action.MIXED if self.odd(clock, inner) else Action.ESTIMATE
        since = clock.step - clock.anchors[-1] - 1
        return Action.MIXED if (since % 2 == 0) == (self.first == "patch") else Action.ESTIMATE

    def site_action(self, clock: Clock, site: Site) -> Action:
        action, inner = self.inner.site_action(clock, site), self.inner
        patched = action is Action.COMPUTE or not isinstance(inner, Modulated) or self.odd(clock, inner)
        return action if patched else Action.SKIP

    @staticmethod
    def odd(clock: Clock, inner: Modulated) -> bool:
        """Whether `t mod n` is odd."""
        return ((clock.num_steps or 0) - 1 - clock.step) % inner.current % 2 == 1
