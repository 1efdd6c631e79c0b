r"""LESA (arXiv 2602.20497): a learned residual predictor, one small expert per noise stage.

The window of step s holds the K latest features h_0 (newest), h_1, .., h_{K-1}, at offsets dt_i = (s_i - s) / T:

    F^(s) = h_0 + alpha(dt) z,        z = W[h_0..h_{K-1}] + b,        alpha = sum_m phi_m(a_m^T dt)

W has a weight per slot and channel (`channel`) or per slot (`scalar`), the phi_m are learned: a KAN layer, or the
hidden layer of an MLP for comparison. High noise, middle and low noise have experts of their own, with their own K. The
forecast of a step enters the window of the next one, so k steps are forecast one by one. Where there are fewer
than K features the oldest is repeated.

*The window.* It holds anchors and the forecasts made since the last anchor. At the next anchor those are dropped: it
knows better. (With every past forecast kept the offsets would be -1..-K at every step, and alpha a constant.)

*Affine.* alpha depends on the offsets only and z is affine in h, so the whole recursion is an affine function of the
anchors, per channel. It is carried out on the weights, `[n + 1, d]` numbers for n anchors and the bias:

    F^(s) = sum_j w_j(s) F(a_j) + w_n(s).

A forecast reads each anchor once at any horizon, and no forecast is kept. The same weights are what training
differentiates. Only abstract and secondary notes of the paper were at hand: the shape of W, the stages, the
grid and the window are choices of this implementation (docs/learned.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hicache.forecast.kan import KanLayer
from hicache.forecast.window import ElementwiseBasis

__all__ = ["MIXINGS", "TEMPORALS", "Expert", "Lesa", "Predictor", "window"]

TEMPORALS = ("kan", "mlp")
MIXINGS = ("channel", "scalar")


def window(times: Sequence[int], memory: int) -> list[int]:
    """The `memory` latest of `times` (growing), newest first; the oldest is repeated where there are fewer.

    >>> window([0, 1, 2], 5)
    [2, 1, 0, 0, 0]
    """
    found = list(reversed(times[-memory:]))
    return found + found[-1:] * (memory - len(found))


class Expert(nn.Module):
    """The predictor of one stage.

    It starts as reuse: W takes the last difference h_0 - h_1, and alpha is small.

    Args:
        memory: K, features in the window.
        channels: d.
        temporal: `kan` or `mlp`.
        mixing: `channel` or `scalar`.
        width: functions phi_m.
        splines: B-splines per function.
    """

    def __init__(self, memory: int, channels: int, temporal: str, mixing: str, width: int, splines: int) -> None:
        super().__init__()
        self.memory = memory
        weights = torch.zeros(memory, channels if mixing == "channel" else 1)
        weights[:2] = torch.tensor([[1.0], [-1.0]])[:memory]
        self.weights = nn.Parameter(weights)
        self.bias = nn.Parameter(torch.zeros(channels))
        last = KanLayer(width, 1, splines) if temporal == "kan" else nn.Sequential(nn.SiLU(), nn.Linear(width, 1))
        self.temporal = nn.Sequential(nn.Linear(memory, width, bias=temporal == "mlp"), last)

    def forward(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """`(w, b)` with F^ = sum_i w_i h_i + b, `[n, K, d]` and `[n, d]`, for windows with offsets `[n, K]`."""
        alpha = self.temporal(offsets)
        weights = (alpha[:, None] * self.weights).expand(-1, -1, len(self.bias))
        newest = torch.zeros(self.memory, 1, dtype=weights.dtype)
        newest[0] = 1.0
        return weights + newest, alpha * self.bias


class Predictor(nn.Module):
    """Experts of all stages.

    Args:
        channels: size of the feature axis.
        num_steps: T of the runs that it is for.
        memories: K of each stage, from high to low noise.
        cuts: first steps of the second and later stages; equal thirds (or other parts) by default.
        temporal: `kan`, or `mlp`.
        mixing: `channel`, or `scalar`.
        width: functions phi_m.
        splines: B-splines per function.
        axis: the feature axis of a value.
        scope: where the values come from.
    """

    def __init__(
        self,
        channels: int,
        num_steps: int,
        memories: Sequence[int] = (4, 6, 8),
        cuts: Sequence[int] | None = None,
        temporal: str = "kan",
        mixing: str = "channel",
        width: int = 16,
        splines: int = 8,
        axis: int = -1,
        scope: str = "final_hidden",
    ) -> None:
        super().__init__()
        stages = len(memories)
        cuts = [round(i * num_steps / stages) for i in range(1, stages)] if cuts is None else list(cuts)
        if not memories or min(memories) < 1:
            raise ValueError(f"memories: must be integers >= 1, one per stage, got {list(memories)}")
        if len(cuts) != stages - 1 or sorted({*cuts, 0, num_steps}) != [0, *cuts, num_steps]:
            raise ValueError(f"cuts: must be {stages - 1} growing steps between 0 and {num_steps}, got {cuts}")
        for key, value, known in (("temporal", temporal, TEMPORALS), ("mixing", mixing, MIXINGS)):
            if value not in known:
                raise ValueError(f"{key}: must be one of {', '.join(known)}, got {value!r}")
        self.num_steps, self.cuts, self.memories = num_steps, cuts, list(memories)
        self.axis, self.scope = axis, scope
        self.described: dict[str, Any] = {
            **{"channels": channels, "num_steps": num_steps, "memories": self.memories, "cuts": cuts},
            **{"temporal": temporal, "mixing": mixing, "width": width, "splines": splines},
            **{"axis": axis, "scope": scope},
        }
        self.experts = nn.ModuleList(Expert(k, channels, temporal, mixing, width, splines) for k in memories)
        self._known: dict[tuple[int, ...], Tensor] = {}

    def stage(self, step: int) -> int:
        """Which expert forecasts `step`."""
        return sum(step >= cut for cut in self.cuts)

    def one_step(self, windows: dict[int, list[int]]) -> dict[int, tuple[Tensor, Tensor]]:
        """`(w [K, d], b [d])` for every step by the times of its window, an expert at a time."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for index, expert in enumerate(self.experts):
            steps = [step for step in windows if self.stage(step) == index]
            if steps:
                offsets = torch.tensor([[t - step for t in windows[step]] for step in steps]) / self.num_steps
                found |= {step: (w, b) for step, w, b in zip(steps, *expert(offsets), strict=True)}
        return found

    def windows(self, times: Sequence[int], last: int) -> dict[int, list[int]]:
        """The window of each step from the newest anchor to `last`, in which the steps between are forecasts."""
        seen = list(times)
        found: dict[int, list[int]] = {}
        for step in range(times[-1] + 1, last + 1):
            found[step] = window(seen, self.memories[self.stage(step)])
            seen.append(step)
        return found

    def unrolled(self, times: Sequence[int], last: int) -> dict[int, Tensor]:
        """`[n + 1, d]` for every step up to `last`: weights of the n anchors at `times`, and the bias."""
        windows = self.windows(times, last)
        factors = self.one_step(windows)
        identity = torch.eye(len(times) + 1)[:, :, None]
        known: dict[int, Tensor] = {t: identity[j] for j, t in enumerate(times)}
        for step, times_of in windows.items():
            weights, bias = factors[step]
            members = torch.stack([known[t].expand(-1, weights.shape[1]) for t in times_of])
            known[step] = torch.einsum("kd,knd->nd", weights, members) + identity[-1] * bias
        return {step: known[step] for step in windows}

    @torch.no_grad()
    def forecast(self, times: Sequence[int], target: int) -> Tensor:
        """The weights for `target`, remembered: they depend on the steps alone."""
        key = (*times, target)
        if key not in self._known:
            self._known[key] = self.unrolled(times, target)[target].detach()
        return self._known[key]

    def knobs(self) -> dict[str, Any]:
        """For `hicache.method("lesa", **knobs)`."""
        return {"basis_options": {"predictor": self}, "scope": self.scope}


@dataclass(frozen=True, kw_only=True)
class Lesa(ElementwiseBasis):
    """The learned predictor as a basis; without one it reuses the last anchor.

    Attributes:
        predictor: trained for these features.
    """

    predictor: Predictor | None = None

    def __post_init__(self) -> None:
        if not (self.predictor is None or isinstance(self.predictor, Predictor)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"predictor: must be a Predictor or None, got {type(self.predictor).__name__}")

    def anchors(self, order: int) -> int:
        return 1 if self.predictor is None else max(self.predictor.memories)

    def counts_steps(self) -> bool:
        return True

    def evaluate(self, times: Sequence[float], anchors: Sequence[Tensor], target: float, out: Tensor) -> None:
        if self.predictor is None:
            out.copy_(anchors[-1])
            return
        shape = [1] * out.dim()
        shape[self.predictor.axis] = -1
        wide = torch.promote_types(out.dtype, torch.float32)
        weights = self.predictor.forecast([int(t) for t in times], int(target)).to(out.device, wide)
        total = weights[-1].reshape(shape).expand(out.shape).clone()
        for weight, anchor in zip(weights[:-1], anchors, strict=True):
            total.addcmul_(anchor.to(wide), weight.reshape(shape))
        out.copy_(total)
