r"""SpeCa (speculative caching): forecasts are drafts, and one block tells whether they may go on.

After a full step `min_drafts` steps are estimated unseen. From then on the last block is run on the drafted hidden
state too; with y the values of its modules and y^ their forecasts, the error

    e = mean |y - y^| / (|y| + 1e-10)            is compared with            max(base decay^(s/T), floor),

with s the verified step of T, and if it is larger the *next* step is full, as it is after `max_drafts` drafts in any
case. The verified step itself goes on with its draft. Published: FLUX base 7, decay 0.3, floor 0.1, at least 2 drafts;
DiT 0.3, 0.05, 0.01 and 3.

The error is a mean over the batch: which steps are computed depends on what is generated together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hicache.policy.base import Clock, Policy
from hicache.tree import Action, Site

__all__ = ["Verify"]

PUBLISHED: dict[str, tuple[float, float, float, int]] = {
    "flux": (7.0, 0.3, 0.1, 2),
    "dit": (0.3, 0.05, 0.01, 3),
}
"""base, decay, floor and the least number of drafts; other families have FLUX's (ours)."""


@dataclass(kw_only=True)
class Verify(Policy):
    """Draft until the verified error is too large.

    Attributes:
        base: threshold at the first step; null, here and below: by model family.
        decay: factor of the threshold over the whole run.
        floor: the threshold's least value.
        min_drafts: estimated steps after a full one that are not verified.
        max_drafts: estimated steps after a full one at most.
        warmup_steps: leading full steps.
    """

    mixes = True
    batched = True
    base: float | None = None
    decay: float | None = None
    floor: float | None = None
    min_drafts: int | None = None
    max_drafts: int = 8
    warmup_steps: int = 3
    last: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        for key in ("base", "decay", "floor"):
            value = getattr(self, key)
            if value is not None and not value >= 0:
                raise ValueError(f"{key}: must be a number >= 0, got {value}")
        for key, low in (("min_drafts", 0), ("max_drafts", 0), ("warmup_steps", 1)):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise ValueError(f"{key}: must be an integer >= {low}, got {value!r}")

    def prepare(self, family: str, blocks: int) -> None:
        base, decay, floor, drafts = PUBLISHED.get(family, PUBLISHED["flux"])
        self.base = base if self.base is None else self.base
        self.decay = decay if self.decay is None else self.decay
        self.floor = floor if self.floor is None else self.floor
        self.min_drafts = drafts if self.min_drafts is None else self.min_drafts
        self.last = blocks - 1

    def threshold(self, clock: Clock) -> float:
        """The error of the step before, the last that may have been verified, up to which drafts go on."""
        if clock.num_steps is None:
            raise ValueError("num_steps: verify needs the number of steps; call begin(num_steps)")
        assert self.base is not None and self.decay is not None and self.floor is not None
        return max(self.base * self.decay ** ((clock.step - 1) / clock.num_steps), self.floor)

    def decide(self, clock: Clock) -> Action:
        if clock.step < self.warmup_steps or not clock.anchors:
            return Action.COMPUTE
        drafts = clock.step - clock.anchors[-1] - 1
        if drafts >= self.max_drafts or (clock.error is not None and clock.error > self.threshold(clock)):
            return Action.COMPUTE
        return Action.MIXED if drafts >= (self.min_drafts or 0) else Action.ESTIMATE

    def site_action(self, clock: Clock, site: Site) -> Action:
        drafts = clock.step - clock.anchors[-1] - 1
        verified = site.layer == self.last and site.stream != "txt" and drafts >= (self.min_drafts or 0)
        return Action.VERIFY if verified else Action.ESTIMATE

    def plan(self, num_steps: int) -> list[int] | None:
        """Known only where nothing may be drafted."""
        return list(range(num_steps)) if self.max_drafts == 0 else None
