"""Forecaster = history x basis x sigma schedule: it observes anchors and predicts the value at a later step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hicache.forecast.basis import Scalar
from hicache.forecast.combine import combine, gated_sum
from hicache.forecast.fused import kernel_for, triton_gated_sum
from hicache.forecast.history import Elementwise, History
from hicache.forecast.scale import SigmaSchedule
from hicache.storage import bytes_of

__all__ = ["Forecaster", "taken"]


class Forecaster:
    """Predicts a tensor from its values at earlier anchors.

    Args:
        history: frames and the coefficients that combine them.
        sigma: contraction factor of the basis.
        numerics: `clean` accumulates in float32 and casts once; `reference` rounds every product and sum to the
            feature dtype, as the published code does.
        lead: number of leading dimensions that an adaptive sigma keeps apart (1: samples; 2: sites and samples).
        channel: the feature axis.
        clock: gives the growing times of all steps, asked for at every `reset`; None = time is the step index.
    """

    def __init__(
        self,
        history: History,
        sigma: SigmaSchedule,
        numerics: str = "clean",
        lead: int = 1,
        channel: int = -1,
        clock: Callable[[], Sequence[float]] | None = None,
    ) -> None:
        self.history = history
        self.sigma = sigma
        self.numerics = numerics
        self.lead = lead
        self.channel = channel
        self.clock = clock
        self.num_steps: int | None = None
        self.kernel = ""
        self.among: tuple[Tensor, int] | None = None
        """Which its sites are of so many that weights may be for; None: all of them."""
        self._dtype: torch.dtype | None = None
        self._device: torch.device | None = None

    @property
    def ready(self) -> bool:
        """Whether there is an anchor to forecast from."""
        return bool(self.history.times)

    @property
    def last_anchor(self) -> int:
        """Step of the newest anchor."""
        return self.history.times[-1]

    @property
    def bytes(self) -> int:
        """Memory of the history, and of what was learnt from it, in bytes."""
        return self.history.bytes + bytes_of((self.sigma, self.history.learnt))

    def slot(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer for the next anchor, to be filled in place and given to `commit`.

        Raises:
            ValueError: if the anchors before it have another shape.
        """
        known = list(self.history.newest.shape) if self.ready else list(shape)
        if list(shape) != known:
            raise ValueError(f"value: must have the shape {known} of the anchors until `reset`, got {list(shape)}")
        self._dtype, self._device = dtype, device
        return self.history.slot(torch.Size(shape), dtype, device)

    def aside(self, value: Tensor) -> bool:
        """Whether `value` may be copied into a slot beside what the GPU computes: `commit` waits for the copy."""
        return self.history.place == "cpu" and value.is_cuda and value.device == self._device

    def commit(self, step: int, buffer: Tensor) -> None:
        """Take a filled buffer from `slot` as the anchor at `step`; copies to host memory are waited for here."""
        self._await(buffer)
        self.history.push(step, buffer)
        self.sigma.observe(self.history, self.lead, self.channel)

    def _await(self, frame: Tensor) -> None:
        """Copies between a frame in host memory and the GPU are over: the host may read and write it."""
        if self._device is not None and self._device.type == "cuda" and frame.device.type == "cpu":
            torch.cuda.current_stream(self._device).synchronize()

    def observe(self, step: int, value: Tensor) -> None:
        """Record a copy of `value` as the anchor at `step` (steps must grow until `reset`)."""
        buffer = self.slot(value.shape, value.dtype, value.device)
        buffer.copy_(value.detach(), non_blocking=self.aside(value))
        self.commit(step, buffer)

    def coefficients(self, step: int) -> list[Scalar]:
        """Scalars that combine `history.frames` to the forecast at `step`.

        Raises:
            ValueError: without an anchor, if `step` is not later than the last one, or for weights of other sites.
        """
        if not self.ready:
            raise ValueError(f"step: nothing observed yet, cannot forecast step {step}")
        if step <= self.last_anchor:
            raise ValueError(f"step: must be later than the last anchor {self.last_anchor}, got {step}")
        if isinstance(self.history, Elementwise):
            self._await(self.history.newest)  # the host writes the forecast where the last one is copied from
        k = self.history.at(step) - self.history.at(self.last_anchor)
        found = self.history.coefficients(step, self.sigma.at(step, k, self.num_steps))
        return [self._own(w).to(self._device, non_blocking=True) if isinstance(w, Tensor) else w for w in found]

    def _own(self, weights: Tensor) -> Tensor:
        """The weights of these sites, of those of all sites."""
        if self.among is not None and weights.dim() and len(weights) == self.among[1]:
            weights = weights[self.among[0].to(weights.device)]
        sites = len(self.history.frames[0])
        if weights.dim() and len(weights) not in (1, sites):
            raise ValueError(f"weights: must be one for each of {sites} sites, got {len(weights)}")
        return weights

    def predict(self, step: int, site: int | slice | None = None) -> Tensor:
        """The forecast at `step`, in the dtype of the observed values; of some sites only, if `site` is given."""
        weights, frames = self.coefficients(step), self.history.frames
        if site is not None:
            weights = [w[site] if isinstance(w, Tensor) else w for w in weights]
            frames = [frame[site] for frame in frames]
        if self.numerics == "reference":
            frames = [frame.to(self._device, non_blocking=True) for frame in frames]
            total = frames[0].clone()
            for weight, frame in zip(weights[1:], frames[1:], strict=True):
                lead = weight.dim() if isinstance(weight, Tensor) else 0
                factor = torch.as_tensor(weight, dtype=frame.dtype, device=frame.device)
                total += frame * factor.reshape(factor.shape + (1,) * (frame.dim() - lead))
            return total
        return combine(weights, frames, self._dtype, self._device)

    def amend(self, site: int) -> Tensor:
        """The newest value of a site, to be changed in place: what a forecast starts from (the ladder's `D_0`)."""
        return self.history.newest[site]

    def newest(self, site: int) -> Tensor:
        """The newest value of a site, in the dtype of the observed ones."""
        return self.amend(site).to(self._dtype)

    def gated_predict(
        self, step: int, base: Tensor, gates: Tensor, rows: slice | None = None, sites: slice | None = None
    ) -> Tensor:
        """`base + sum_site gate_site * forecast_site` at `step`, for frames of many sites.

        Args:
            step: the step to forecast.
            base: hidden state before the first block, `[B, N, D]`.
            gates: gate of each site, `[S, B, D]`.
            rows: the tokens of the frames that belong to `base`; all of them by default.
            sites: which sites of the frames; all of them by default.
        """
        if self.numerics == "reference":
            for gate, value in zip(gates, self.predict(step, sites), strict=True):
                base = gate[:, None] * value[:, rows or slice(None)] + base
            return base
        weights, frames = self.coefficients(step), self.history.frames
        if rows is not None:
            frames = [frame[:, :, rows] for frame in frames]
        if sites is not None:
            weights = [w[sites] if isinstance(w, Tensor) and w.dim() else w for w in weights]
            frames = [frame[sites] for frame in frames]
        self.kernel = kernel_for(base, frames)
        reduce = triton_gated_sum if self.kernel == "triton" else gated_sum
        return reduce(base, gates, weights, frames)

    def reset(self, num_steps: int | None = None, offset: int = 0) -> None:
        """Forget all anchors; a run of `num_steps` may follow, whose first one is step `offset` of the clock.

        Raises:
            ValueError: if the weights are not for a run of so many steps.
        """
        if num_steps is not None:
            self.history.basis.check_run(num_steps)
        self.history.reset()
        self.history.clock = None if self.clock is None else self.clock()[offset:]
        self.sigma.reset()
        self.num_steps = num_steps


def taken(*forecasters: Forecaster) -> set[str]:
    """The bases that served in place of the forecasters' own since they were asked last."""
    histories = [forecaster.history for forecaster in forecasters]
    found = {history.instead for history in histories} - {""}
    for history in histories:
        history.instead = ""
    return found
