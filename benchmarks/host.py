"""Host time of calls: what a cached step costs before any arithmetic, and what an anchor costs beside its step.

    python -m benchmarks.host                 # FLUX's topology (19 + 38 blocks) at width 32, 16 tokens

CPU time of the process and the least of the repeats, step by step, so that a busy machine adds little. `embed + head`
is what the model's own embedders and head take of an estimated step at scopes `modules` and `stack`, and `bare` the
un-cached model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import hicache
from benchmarks.common import arguments, at_least, machine, markdown, publish
from experiments.cli import Exit
from hicache.adapters import adapter_for

__all__ = ["main"]

DEFAULTS = {"double": 19, "single": 38, "tokens": 16, "steps": 30, "interval": 7, "repeats": 7, "save": True}
METHODS = {"hicache": {"order": 2}, "hicache_adaptive": {"order": 2}, "dmd": {"order": 2}}
SCOPES = ("modules", "stack", "output")


def build(config: dict[str, Any]) -> nn.Module:
    """FLUX with random weights at width 32."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model: Any = FluxTransformer2DModel(
        num_layers=config["double"], num_single_layers=config["single"], attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, in_channels=16, axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def least(run: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of CPU, the least of some repeats."""
    found = []
    for _ in range(repeats):
        started = time.process_time_ns()
        run()
        found.append(time.process_time_ns() - started)
    return min(found) / 1e6


@torch.no_grad()
def per_step(model: Any, call: dict[str, Any], method: hicache.CacheMethod, config: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of a computed and of an estimated call: means over the steps of the least of the repeats."""
    steps, best = config["steps"], [float("inf")] * config["steps"]
    times = [torch.full((1,), 1 - step / steps) for step in range(steps)]
    with hicache.cached(model, method) as cache:
        for _ in range(config["repeats"]):
            cache.begin(steps)
            for step, timestep in enumerate(times):
                started = time.process_time_ns()
                model(**{**call, "timestep": timestep}, return_dict=False)
                best[step] = min(best[step], (time.process_time_ns() - started) / 1e6)
        estimated = set(cache.report.estimated_steps)
    kinds = {"full": [t for s, t in enumerate(best) if s not in estimated], "cached": [best[s] for s in estimated]}
    return {kind: sum(found) / len(found) if found else float("nan") for kind, found in kinds.items()}


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Measure all rows; returns them."""
    config = arguments(argv, DEFAULTS)
    at_least(config, 1, "double", "single", "tokens", "interval", "repeats")
    at_least(config, 8, "steps")
    torch.set_num_threads(1)
    model = build(config)
    adapter: Any = adapter_for(model)
    call = adapter.example(1, torch.device("cpu"), height=16, width=16 * config["tokens"], text=4)
    with torch.no_grad():
        around = least(lambda: adapter.head(bound := adapter.bind((), call), adapter.embed(bound)), 200)
    bare = per_step(model, call, hicache.method("none"), config)["full"]
    rows = []
    for name, knobs in METHODS.items():
        for scope in SCOPES:
            method = hicache.method(name, interval=config["interval"], warmup_steps=3, scope=scope, **knobs)
            found = per_step(model, call, method, config)
            rows.append({
                "method": name, "scope": scope, "cached step ms": found["cached"],
                "embed + head ms": around if scope != "output" else 0.0, "full step ms": found["full"],
                "full / bare": found["full"] / bare,
            })  # fmt: skip
    if config["save"]:
        publish("host", f"Host time: FLUX's topology at width 32, {config['tokens']} tokens", rows, machine())
    else:
        print(markdown(rows))
    return rows


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
