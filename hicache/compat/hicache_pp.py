r"""The functions of the package `hicache-pp` (HiCache++) on this library's forecasters.

    from hicache.compat.hicache_pp import hicache_init, hicache_decide, hicache_update_derivatives, hicache_forecast

A sampling loop written for that package runs with the import changed, with the same plan and the same forecasts to
rounding: `hermite` is the scaled Hermite basis without the warm-up gate, `dmd` and `auto` are one set of weights for
the whole batch, from `history` anchors. A state is a dict: the caller adds 1 to `state["step"]`, `decide` appends to
`state["activated_steps"]`. Values may be tensors or trees: the names with `_tree` are the same functions.

What is different: anchors are always copied (a buffer may be reused), the Hermite forecast works to any order up to 6,
and budgets, manifests, audits and the risk controller of version 1.3 are not here. New loops want `hicache.Loop`.
"""

from __future__ import annotations

import copy
import math
import operator
import uuid
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hicache.forecast.dmd import FLOOR, Dmd
from hicache.forecast.window import uniform_tail
from hicache.guidance import AdaptiveGuidance, alignment
from hicache.methods import method
from hicache.nested import NestedForecaster

__all__ = [
    "adaptive_cfg_decide",
    "adaptive_cfg_init",
    "auto_forecast_state",
    "dmd_forecast",
    "dmd_forecast_state",
    "dmd_forecast_tree",
    "dmd_update_snapshots",
    "dmd_update_snapshots_tree",
    "forecast_guidance_tree",
    "guidance_term_tree",
    "hermite_coeff",
    "hicache_decide",
    "hicache_forecast",
    "hicache_forecast_tree",
    "hicache_init",
    "hicache_reset",
    "hicache_telemetry",
    "hicache_update_derivatives",
    "hicache_update_tree",
    "physicists_hermite",
    "reconstruct_cfg_tree",
    "scaled_hermite",
    "tree",
    "tree_axpy",
    "tree_cosine",
    "tree_detach",
    "tree_sub_div",
]

State = dict[str, Any]

BACKENDS = {"hermite": "hicache", "dmd": "dmd", "auto": "auto"}


def physicists_hermite(n: int, x: Any) -> Any:
    """`H_n(x)`: H_0 = 1, H_1 = 2x, H_{n+1} = 2x H_n - 2n H_{n-1}; of a number or a tensor."""
    if n < 0:
        raise ValueError(f"n: must be an integer >= 0, got {n}")
    before, now = torch.zeros_like(x) if isinstance(x, Tensor) else 0.0, x**0
    for k in range(n):
        before, now = now, 2 * x * now - 2 * k * before
    return now


def scaled_hermite(n: int, x: Any, sigma: float) -> Any:
    """`sigma^n H_n(sigma x)`."""
    return sigma**n * physicists_hermite(n, sigma * x)


def hermite_coeff(order: int, k: float, sigma: float) -> float:
    """The weight of the difference of an order at distance k: `sigma^n H_n(sigma k) / n!`."""
    return scaled_hermite(order, float(k), sigma) / math.factorial(order)


# -- the state -----------------------------------------------------------------------------------------------------


def hicache_init(
    num_steps: int,
    interval: int = 4,
    max_order: int = 1,
    first_enhance: int = 2,
    end_enhance: int | None = None,
    sigma: float = 0.5,
    backend: str = "hermite",
    history: int = 5,
    holdout: str = "1step",
) -> State:
    """A fresh state.

    Args:
        num_steps: steps of the generation.
        interval: distance of computed steps.
        max_order: of the Hermite forecast.
        first_enhance: leading computed steps.
        end_enhance: from this step on all are computed; None: none.
        sigma: contraction of the Hermite basis, in (0, 1).
        backend: `hermite`, `dmd` or `auto`; says what the caller means to use.
        history: anchors of `dmd` and `auto`.
        holdout: `1step` or `horizon`, of `auto`.
    """
    if interval < 1 or max_order < 1:
        raise ValueError(f"interval, max_order: must be integers >= 1, got {interval}, {max_order}")
    if not 0 < sigma < 1:
        raise ValueError(f"sigma: must be in (0, 1), got {sigma}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if holdout not in ("1step", "horizon"):
        raise ValueError(f"holdout: must be one of 1step, horizon, got {holdout!r}")
    state: State = {
        "num_steps": int(num_steps),
        "interval": int(interval),
        "max_order": int(max_order),
        "first_enhance": int(first_enhance),
        "end_enhance": int(num_steps if end_enhance is None else end_enhance),
        "sigma": float(sigma),
        "backend": backend,
        "history": int(history),
        "holdout": holdout,
        "branch_id": None,
    }
    return hicache_reset(state)


def hicache_reset(state: State, *, run_id: str | None = None, branch_id: str | None = None) -> State:
    """Forget everything but the configuration; gives the same dict back."""
    state["run_id"] = run_id or uuid.uuid4().hex
    state["branch_id"] = branch_id or state["branch_id"]
    fresh: State = {"step": 0, "counter": 0, "type": None, "activated_steps": [], "derivatives": {}}
    fresh["telemetry"] = {"decisions": {"full": 0, "forecast": 0}, "method_counts": {}, "fallbacks": {}}
    for key in [key for key in state if key.startswith("_frames")]:
        del state[key]
    state.update(fresh)
    return state


def hicache_telemetry(state: State) -> State:
    """A copy of the counts of decisions, of what forecast, and of fallbacks."""
    return copy.deepcopy(state["telemetry"])


def count(state: State, kind: str, name: str) -> None:
    """One more of something in the telemetry."""
    found = state["telemetry"][kind]
    found[name] = found.get(name, 0) + 1


def hicache_decide(state: State) -> str:
    """`full` or `forecast` for the step of the state."""
    step = state["step"]
    full = (
        step < state["first_enhance"]
        or step >= state["end_enhance"]
        or state["counter"] >= state["interval"] - 1
        or not state["derivatives"]
    )
    state["type"] = "full" if full else "forecast"
    state["counter"] = 0 if full else state["counter"] + 1
    if full:
        state["activated_steps"].append(step)
    count(state, "decisions", state["type"])
    return state["type"]


def frames_of(state: State, backend: str) -> NestedForecaster:
    """The history of a backend."""
    key = f"_frames_{backend}"
    if key not in state:
        options = {} if backend == "hermite" else {"history": state["history"]}
        if backend == "auto":
            options["holdout"] = state["holdout"]
        chosen = method(
            BACKENDS[backend],
            interval=state["interval"],
            order=state["max_order"],
            sigma=state["sigma"],
            gate=False,
            basis_options=options,
        )
        state[key] = NestedForecaster(lambda: chosen.build_forecaster(lead=1), batch=False)
    return state[key]


# -- forecasts -----------------------------------------------------------------------------------------------------


def hicache_update_derivatives(state: State, feature: Any) -> None:
    """Take the value of a computed step for the Hermite forecast."""
    state["derivatives"] = {0: tree_detach(feature)}
    frames_of(state, "hermite").observe(state["activated_steps"][-1], feature)


def hicache_forecast(state: State) -> Any:
    """The Hermite forecast at the step of the state."""
    if not state["derivatives"]:
        raise RuntimeError("step: hicache_forecast was called before any computed step")
    count(state, "method_counts", "hermite")
    return frames_of(state, "hermite").predict(state["step"])


def dmd_update_snapshots(state: State, feature: Any, history: int = 5) -> None:
    """Take the value of a computed step for `dmd` and `auto`.

    As in the package, the state's own number of anchors goes first; `history` counts for a state that says none.
    """
    state.setdefault("history", history)
    backends = ("auto",) if state["backend"] == "auto" else ("dmd",)
    for backend in backends:
        frames_of(state, backend).observe(state["activated_steps"][-1], feature)


def dmd_forecast_state(state: State) -> Any:
    """The DMD forecast at the step of the state; Hermite's below four equally spaced anchors."""
    return exponential(state, "dmd", FLOOR)


def auto_forecast_state(state: State) -> Any:
    """The forecast of DMD or Hermite, whichever forecast a held-out anchor better."""
    return exponential(state, "auto", FLOOR + 1)


def exponential(state: State, backend: str, floor: int) -> Any:
    """A forecast of `dmd` or `auto`, and an entry in the telemetry of what made it."""
    frames = frames_of(state, backend)
    steps = state["activated_steps"][-state["history"] :]
    if not frames.ready:
        raise RuntimeError("step: a forecast was asked for before any computed step")
    served = uniform_tail(steps) >= floor
    count(state, "method_counts", "dmd" if served else "hermite")
    if not served:
        short = len(steps) < FLOOR
        count(state, "fallbacks", "dmd_insufficient_uniform_history" if short else "dmd_nonuniform_or_short_tail")
    return frames.predict(state["step"])


def dmd_forecast(snapshots: Sequence[Tensor], k: float, rank: int = 0, ridge: float = 1e-8) -> Tensor:
    """The DMD forecast k spacings past the newest of equally spaced snapshots; that one itself below three of them."""
    if len(snapshots) < 3:
        return snapshots[-1].clone()
    columns = torch.stack([value.reshape(-1) for value in snapshots]).double()
    basis = Dmd(history=len(snapshots), rank=rank, ridge=ridge)
    weights = basis.identify((columns @ columns.mT)[None].cpu()).at(k)[0].to(columns.device)
    return (weights @ columns[-len(weights) :]).reshape(snapshots[-1].shape).to(snapshots[-1].dtype)


# -- trees and guidance --------------------------------------------------------------------------------------------

hicache_update_tree = hicache_update_derivatives
hicache_forecast_tree = hicache_forecast
dmd_update_snapshots_tree = dmd_update_snapshots
dmd_forecast_tree = dmd_forecast_state


def tree_axpy(c: float, a: Any, b: Any) -> Any:
    """`a + c b`."""

    def rule(x: Any, y: Any) -> Any:
        return x + c * y

    return tree_map(rule, a, b)


def tree_sub_div(a: Any, b: Any, d: float) -> Any:
    """`(a - b) / d`."""

    def rule(x: Any, y: Any) -> Any:
        return (x - y) / d

    return tree_map(rule, a, b)


def tree_detach(a: Any) -> Any:
    """The same tensors without their history of gradients."""

    def rule(x: Any) -> Any:
        return x.detach() if isinstance(x, Tensor) else x

    return tree_map(rule, a)


def tree_cosine(a: Any, b: Any) -> float:
    """The cosine similarity over all leaves together."""
    return alignment(a, b, batch=False)


def adaptive_cfg_init(num_steps: int, gamma_bar: float = 0.94, warmup: int = 2, max_order: int = 1) -> State:
    """A fresh state of adaptive guidance: the threshold, the leading steps with both predictions, the order of `g`."""
    if not 0 <= gamma_bar <= 1:
        raise ValueError(f"gamma_bar: must be in [0, 1], got {gamma_bar}")
    given = {"num_steps": int(num_steps), "gamma_bar": float(gamma_bar), "warmup": int(warmup)}
    state: State = {"max_order": int(max_order), "step": 0, "anchors": [], "last_gamma": None, "n_full": 0, "n_skip": 0}
    return {**given, **state}


def adaptive_cfg_decide(state: State, gamma: float | None) -> bool:
    """Whether both predictions are to be made, given their last similarity."""
    edge = state["step"] < state["warmup"] or state["step"] >= state["num_steps"] - 1
    return edge or not state["anchors"] or gamma is None or gamma < state["gamma_bar"]


def guidance_term_tree(y_cond: Any, y_uncond: Any, strength: float) -> Any:
    """`g = w (c - u)`."""

    def rule(c: Any, u: Any) -> Any:
        return strength * (c - u)

    return tree_map(rule, y_cond, y_uncond)


def forecast_guidance_tree(anchors: Sequence[tuple[int, Any]], step: int, max_order: int = 1) -> Any:
    """`g` at a step by Newton's interpolation through the last anchors `(step, g)`."""
    if not anchors:
        raise ValueError("anchors: must be at least one, got none")
    guidance = AdaptiveGuidance(order=max(0, max_order))
    frames = NestedForecaster(lambda: guidance.build_forecaster(), batch=False)  # type: ignore[arg-type, return-value]
    for at, value in anchors[-(max_order + 1) :]:
        frames.observe(at, value)
    return frames.predict(step)


def reconstruct_cfg_tree(y_cond: Any, g: Any) -> Any:
    """`v = c + g`."""
    return tree_map(operator.add, y_cond, g)


tree = SimpleNamespace(**{name: value for name, value in list(globals().items()) if name in __all__})
"""What `from hicache_pp import tree` gives."""
