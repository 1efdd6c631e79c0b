"""What happened in a generation: the executed plan, the time of its steps, the memory of its cache."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["PlanError", "Report", "Stopwatch"]


SHARES = {"attention": "of the keys", "mlp": "of the hidden units"}
"""What the shares that operators report are of."""


def shortened(steps: list[int], most: int = 24) -> str:
    """A list of steps in one line."""
    return str(steps) if len(steps) <= most else f"{str(steps[:most])[:-1]}, ... {len(steps) - most} more]"


class PlanError(RuntimeError):
    """The executed full steps differ from the planned ones."""


class Stopwatch:
    """Times steps: CUDA events on a GPU (read later, so that no step waits), a monotonic clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._started = self._mark()
        self._stopped: float | torch.cuda.Event | None = None

    def _mark(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def stop(self) -> None:
        """The step is over."""
        self._stopped = self._mark()

    @property
    def seconds(self) -> float:
        """Length of the step."""
        started, stopped = self._started, self._stopped
        if isinstance(started, torch.cuda.Event) and isinstance(stopped, torch.cuda.Event):
            stopped.synchronize()
            return started.elapsed_time(stopped) / 1000
        assert isinstance(started, float) and isinstance(stopped, float)
        return stopped - started


@dataclass(kw_only=True)
class Report:
    """One generation of one model under one method.

    Attributes:
        method: name of the method.
        num_steps: model calls of a branch, as announced; None where nobody announced it.
        full_steps: steps that were computed, of the first branch.
        estimated_steps: steps that were forecast, of the first branch.
        mixed_steps: steps at which each module was computed, forecast or patched, of the first branch.
        branches: full steps of every branch by its name.
        skipped_steps: steps whose unconditional prediction was not made (adaptive guidance).
        exempt_steps: those of them that the plan wanted computed.
        cache_bytes: memory of all histories.
        path: how steps were estimated: `fused` = without blocks, at scope modules in one sum over all sites; `tapped` =
            the model's own forward with stand-ins for its blocks or their modules.
        reason: why it is tapped.
        errors: at computed steps of the first branch, how wrong the forecast would have been: the 10 %, 50 % and 90 %
            quantiles over the sites of |forecast - computed| / |computed|; empty unless asked for.
        fallbacks: steps of the first branch at which another basis served in place of the method's, by its name:
            `hermite` where DMD had too few equally spaced anchors, `reuse` where its weights were not finite at any
            site.
        operators: what computed the full steps, where that is not the model's own: `name` and `provider`, mean shares
            of keys (`attention`) and hidden units (`mlp`) at sparse steps (None where there was none), `executed` = how
            often the busiest module ran, and `bytes` of state.
        kernel: what reduced the last estimate of scope modules or blocks: `torch` or `triton`; "" elsewhere.
    """

    method: str
    num_steps: int | None
    full_steps: list[int] = field(default_factory=list[int])
    estimated_steps: list[int] = field(default_factory=list[int])
    mixed_steps: list[int] = field(default_factory=list[int])
    branches: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    skipped_steps: list[int] = field(default_factory=list[int])
    exempt_steps: list[int] = field(default_factory=list[int])
    cache_bytes: int = 0
    kernel: str = ""
    path: str = "fused"
    reason: str = ""
    errors: dict[int, tuple[float, float, float]] = field(default_factory=dict[int, tuple[float, float, float]])
    fallbacks: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    operators: dict[str, Any] | None = None
    full_times: list[Stopwatch] = field(default_factory=list[Stopwatch], repr=False)
    estimated_times: list[Stopwatch] = field(default_factory=list[Stopwatch], repr=False)
    mixed_times: list[Stopwatch] = field(default_factory=list[Stopwatch], repr=False)

    @property
    def seconds_full(self) -> list[float]:
        """Seconds of each computed call, all branches."""
        return [watch.seconds for watch in self.full_times]

    @property
    def seconds_estimated(self) -> list[float]:
        """Seconds of each estimated call, all branches."""
        return [watch.seconds for watch in self.estimated_times]

    @property
    def seconds_mixed(self) -> list[float]:
        """Seconds of each mixed call, all branches."""
        return [watch.seconds for watch in self.mixed_times]

    @property
    def executed(self) -> int:
        """Steps that were made, of the first branch."""
        return len(self.full_steps) + len(self.mixed_steps) + len(self.estimated_steps)

    def fell_back(self, step: int, bases: set[str]) -> None:
        """At a step other bases than the method's have served."""
        for basis in sorted(bases):
            if self.fallbacks.setdefault(basis, [])[-1:] != [step]:
                self.fallbacks[basis].append(step)

    def __str__(self) -> str:
        lines = [f"{self.method}: {len(self.full_steps)} full steps of {self.executed}"]
        if self.num_steps is not None and self.executed != self.num_steps:
            lines[0] += f" ({self.num_steps} were announced)"
        lines.append(f"  full at {shortened(self.full_steps)}")
        if len(self.branches) > 1:
            counts = [f"{name or 'first'} {len(full)}" for name, full in list(self.branches.items())[:6]]
            lines.append(f"  full steps by branch: {', '.join(counts)}" + (", ..." if len(self.branches) > 6 else ""))
        if self.skipped_steps:
            lines.append(f"  no unconditional prediction at {shortened(self.skipped_steps)}")
        kinds = {"full": self.seconds_full, "mixed": self.seconds_mixed, "estimated": self.seconds_estimated}
        for kind, seconds in kinds.items():
            if seconds:
                middle = 1000 * statistics.median(seconds)
                lines.append(f"  {len(seconds)} {kind} steps in {sum(seconds):.2f} s, {middle:.2f} ms each (median)")
        lines.append(
            f"  cache {self.cache_bytes / 1e6:.1f} MB" + (f", reduced by {self.kernel}" if self.kernel else "")
        )
        if self.reason:
            lines.append(f"  {self.path}: {self.reason}")
        if self.errors:
            worst = max(self.errors.items(), key=lambda item: item[1][1])
            median = statistics.median(middle for _, middle, _ in self.errors.values())
            lines.append(f"  forecast error at full steps {median:.3f}, at most {worst[1][1]:.3f} at step {worst[0]}")
        for basis, steps in self.fallbacks.items():
            lines.append(f"  {basis} in place of the method's basis at {len(steps)} steps: {shortened(steps)}")
        if self.operators:
            shares = [f"{self.operators[kind]:.1%} {of}" for kind, of in SHARES.items() if self.operators[kind]]
            lines.append(f"  {self.operators['name']} ({self.operators['provider']}): {', '.join(shares) or 'dense'}")
        return "\n".join(lines)
