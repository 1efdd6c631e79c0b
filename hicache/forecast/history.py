"""Histories: what a forecaster remembers of its anchors.

`Snapshots` keeps the last anchors as they are and leaves all arithmetic to the weights. It is the default: nothing
is lost to rounding before the final cast. For bases that ask for it, it keeps the Gram matrix of the anchors too, and
what was fitted to them until the next one comes. `Elementwise` is the same for bases without weights. `Differences`
keeps the ladder `D_0..D_m` in the feature dtype, as the published code does.

All hold *frames*, tensors that a list of scalars combines to the forecast, and all have the published *warm-up gate*:
the ladder is extended only from step `warmup_steps - 1` on. Before it an anchor replaces the history instead of
extending it, so after a warm-up of 3 steps (0, 1, 2) the first difference is F(2) - F(1) and F(0) is forgotten.
Without the gate (`warmup_steps=None`) every anchor extends it.

Anchors are known by their steps. Where the forecast is to extrapolate in another variable, `clock` gives the time of
every step, and differences, weights and horizons are taken in it.

Frames live in buffers that are allocated once per shape and reused from one generation to the next, on the device of
the values or, with `place="cpu"`, in pinned host memory that is copied to and from without blocking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hicache.forecast.basis import Basis, LadderBasis, Scalar
from hicache.forecast.window import ElementwiseBasis, GramBasis, extend_gram

__all__ = ["HISTORIES", "Differences", "Elementwise", "History", "Snapshots"]


class History(ABC):
    """Frames of past anchors, oldest first, and the coefficients that forecast from them.

    `instead` is the basis that served in place of this one's at the last forecast, "" where none did.
    """

    def __init__(
        self,
        basis: Basis,
        order: int,
        warmup_steps: int | None,
        dtype: torch.dtype | None = None,
        place: str = "device",
        lead: int = 1,
    ) -> None:
        self.basis = basis
        self.order = order
        self.warmup_steps = warmup_steps
        self.dtype = dtype
        self.place = place
        self.lead = lead
        self.times: list[int] = []
        self.clock: Sequence[float] | None = None
        self.instead = ""
        self.frames: list[Tensor] = []
        self._spare: list[Tensor] = []

    def at(self, step: int) -> float:
        """The time of a step; its index, unless there is a clock."""
        return step if self.clock is None else self.clock[step]

    @property
    def moments(self) -> list[float]:
        """The times of the anchors."""
        return [*self.times] if self.clock is None else [self.clock[step] for step in self.times]

    def gated(self, step: int) -> bool:
        """Whether an anchor at `step` is still before the ladder starts."""
        return self.warmup_steps is not None and step <= self.warmup_steps - 2

    def slot(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised buffer for the next anchor; fill it, then `push` it."""
        dtype = self.dtype or dtype
        pinned = self.place == "cpu" and device.type == "cuda"
        device = torch.device("cpu") if self.place == "cpu" and device.type != "meta" else device
        while self._spare:
            buffer = self._spare.pop()
            if buffer.shape == shape and buffer.dtype == dtype and buffer.device == device:
                return buffer
        with torch.inference_mode(False):  # a buffer made in inference mode could not be written to outside of it
            return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)

    @abstractmethod
    def push(self, step: int, value: Tensor) -> None:
        """Take `value`, a buffer from `slot`, as the anchor at `step`."""

    @abstractmethod
    def coefficients(self, step: int, sigma: Scalar) -> list[Scalar]:
        """Scalars that combine `frames` to the forecast at `step`."""

    @property
    def newest(self) -> Tensor:
        """The value of the last anchor."""
        return self.frames[-1]

    @abstractmethod
    def slope(self) -> tuple[Tensor, Tensor | None, float] | None:
        """`(newer, older, gap)` with `D_1 = (newer - older) / gap` (`older` None: 0), None if there is none yet."""

    @property
    def learnt(self) -> Sequence[Any]:
        """What is kept beside the frames."""
        return ()

    def reset(self) -> None:
        """Forget the anchors, keep the buffers."""
        self._spare.extend(self.frames)
        self.frames, self.times = [], []

    @property
    def bytes(self) -> int:
        """Memory of the frames and of the buffers kept for reuse."""
        return sum(t.numel() * t.element_size() for t in (*self.frames, *self._spare))


class Snapshots(History):
    """The last anchors themselves; the oldest makes room when the next slot is asked for."""

    gram: Tensor | None = None
    """Inner products of the frames, `[*leading, K, K]`, where the basis uses them: of the frames as they were observed,
    so that rows amended between anchors are forecast with weights that were fitted without them."""
    _fitted: Any = None

    def slot(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        if len(self.frames) == self.basis.anchors(self.order):
            self.times.pop(0)
            self._spare.append(self.frames.pop(0))
            self._fitted, self.gram = None, None if self.gram is None else self.gram[..., 1:, 1:]
        return super().slot(shape, dtype, device)

    def push(self, step: int, value: Tensor) -> None:
        if self.times and step <= self.times[-1]:
            raise ValueError(f"step: must grow, got {step} after {self.times[-1]}")
        if self.gated(step):
            self.reset()
        self.times.append(step)
        self.frames.append(value)
        if self.basis.uses_gram:
            self._fitted, self.gram = None, extend_gram(self.gram, self.frames, self.lead)

    def coefficients(self, step: int, sigma: Scalar) -> list[Scalar]:
        if not isinstance(self.basis, GramBasis):
            return self.basis.weights(self.moments, self.at(step), self.order, sigma)
        assert self.gram is not None
        if self._fitted is None:
            self._fitted = self.basis.fit(self.moments, self.at(step), self.order, sigma, self.gram)
        found = self.basis.advance(self._fitted, self.at(step), sigma)
        self.instead = self.basis.instead(self._fitted, found)
        return found

    @property
    def learnt(self) -> Sequence[Any]:
        return self.gram, self._fitted

    def reset(self) -> None:
        super().reset()
        self._fitted, self.gram = None, None

    def slope(self) -> tuple[Tensor, Tensor | None, float] | None:
        if len(self.frames) < 2:
            return None
        return self.frames[-1], self.frames[-2], float(self.at(self.times[-1]) - self.at(self.times[-2]))


class Elementwise(History):
    """The last anchors of a basis without weights; the only frame is the forecast, written when it is asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.anchors: list[Tensor] = []

    def slot(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        if len(self.anchors) == self.basis.anchors(self.order):
            self.times.pop(0)
            self._spare.append(self.anchors.pop(0))
        return super().slot(shape, dtype, device)

    def push(self, step: int, value: Tensor) -> None:
        if self.times and step <= self.times[-1]:
            raise ValueError(f"step: must grow, got {step} after {self.times[-1]}")
        if self.gated(step):
            self.reset()
        self.times.append(step)
        self.anchors.append(value)
        if not self.frames:
            self.frames = [super().slot(value.shape, value.dtype, value.device)]

    def coefficients(self, step: int, sigma: Scalar) -> list[Scalar]:
        del sigma
        assert isinstance(self.basis, ElementwiseBasis)
        self.basis.evaluate(self.moments, self.anchors, self.at(step), self.frames[0])
        return [1.0]

    def reset(self) -> None:
        super().reset()
        self._spare.extend(self.anchors)
        self.anchors = []

    def slope(self) -> tuple[Tensor, Tensor | None, float] | None:
        if len(self.anchors) < 2:
            return None
        return self.anchors[-1], self.anchors[-2], float(self.at(self.times[-1]) - self.at(self.times[-2]))

    @property
    def newest(self) -> Tensor:
        return self.anchors[-1]

    @property
    def bytes(self) -> int:
        return super().bytes + sum(t.numel() * t.element_size() for t in self.anchors)


class Differences(History):
    """The ladder `D_0..D_m`, each a tensor in the feature dtype (the arithmetic of the published code).

    `D_i` of the new anchor takes the place of `D_{i-1}` of the one before, and the new anchor that of its `D_m`.
    """

    def slot(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        if len(self.frames) == self.basis.anchors(self.order):
            self._spare.append(self.frames.pop())
        return super().slot(shape, dtype, device)

    def push(self, step: int, value: Tensor) -> None:
        if not isinstance(self.basis, LadderBasis):
            raise ValueError(f"history: differences need a ladder basis, got {type(self.basis).__name__}")
        gap = self.at(step) - self.at(self.times[-1]) if self.times else 1
        if gap <= 0:
            raise ValueError(f"step: must grow, got {step} after {self.times[-1]}")
        kept = 0 if self.gated(step) else self.basis.anchors(self.order) - 1
        self._spare.extend(self.frames[kept:])
        new = [value]
        for lower in self.frames[:kept]:
            new.append(torch.sub(new[-1], lower, out=lower).div_(gap))
        self.frames, self.times = new, [*self.times, step][-(self.order + 1) :]

    def coefficients(self, step: int, sigma: Scalar) -> list[Scalar]:
        assert isinstance(self.basis, LadderBasis)
        return self.basis.coefficients(self.at(step) - self.at(self.times[-1]), len(self.frames) - 1, sigma)

    @property
    def newest(self) -> Tensor:
        return self.frames[0]

    def slope(self) -> tuple[Tensor, Tensor | None, float] | None:
        if len(self.frames) < 2:
            return None
        return self.frames[1], None, 1.0


HISTORIES: dict[str, type[History]] = {"snapshots": Snapshots, "differences": Differences}
