r"""An estimated step: no block runs.

modules       head(h_in + sum_site gate_site(t) * forecast_site), one reduction over all sites
blocks        head(h_in + sum_block forecast of its residual)
stack         head(h_in + forecast of (h_out - h_in))
final_hidden  head(forecast of h_out)
output        the forecast itself
span          the model's forward with the span's blocks replaced by their forecast residual
front_back    the same for one half of the blocks
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hicache.adapters.base import Call
from hicache.adapters.hooks import guarded
from hicache.generation import Branch
from hicache.generation_report import PlanError
from hicache.steps.setup import Setup
from hicache.tree import Site

__all__ = ["EstimatedStep"]


class EstimatedStep:
    """Forecasts the scope; see the module docstring."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def run(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The estimated result, which has no gradient.

        Raises:
            PlanError: if nothing was computed before.
        """
        if not torch.is_grad_enabled():
            return self._estimate(branch, call, args, kwargs)
        with torch.no_grad():
            return self._estimate(branch, call, args, kwargs)

    def _estimate(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        setup, adapter, step, forecaster = self.setup, self.setup.adapter, branch.clock.step, branch.forecaster
        if not (branch.histories if setup.by_module else forecaster).ready:
            raise PlanError(f"branch {branch.clock.branch!r}: step {step} is to be estimated before any full step")
        scope = setup.method.scope
        if scope in ("span", "front_back"):
            index = branch.policy.stage(branch.clock)
            residual = forecaster.predict(step)[index]
            with guarded(adapter, setup.spans[index], lambda streams: residual):
                return setup.forward(*args, **kwargs)
        if scope == "output":
            return adapter.wrap(call, forecaster.predict(step)[0])
        return adapter.wrap(call, adapter.head(call, self.last_hidden(branch, call)))

    def last_hidden(self, branch: Branch, call: Call) -> Tensor:
        """The estimated hidden state after the last block."""
        setup, adapter, forecaster, step = self.setup, self.setup.adapter, branch.forecaster, branch.clock.step
        scope = setup.method.scope
        if scope == "final_hidden":
            return forecaster.predict(step)[0]
        hidden = adapter.embed(call)
        if scope == "stack":
            return hidden + forecaster.predict(step)[0]
        if scope == "blocks":
            ones = hidden.new_ones(len(setup.sites), hidden.shape[0], hidden.shape[-1])
            return forecaster.gated_predict(step, hidden, ones)
        gates = adapter.gates(call, hidden)
        hidden = adapter.live(call, hidden, lambda site: self.forecast_of(branch, site))
        if setup.by_module:
            places = [(site.layer, site.module) for site in setup.sites]
            found = dict(zip(places, gates, strict=True))
            return branch.histories.add_to(hidden, step, found, adapter.rows("img"))
        return forecaster.gated_predict(step, hidden, gates)

    def forecast_of(self, branch: Branch, site: Site) -> Tensor:
        """The forecast of one module."""
        setup, step = self.setup, branch.clock.step
        if setup.by_module:
            return branch.histories.predict(site, step)
        return branch.forecaster.predict(step, setup.sites.index(site))
