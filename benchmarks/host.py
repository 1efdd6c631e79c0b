"""Host time of calls: what a cached step costs before any arithmetic, and what an anchor costs beside its step.

    python -m benchmarks.host                 # FLUX's topology (19 + 38 blocks) at width 32, 16 tokens

CPU time of the process and the least of the repeats, step by step, so that a busy machine adds little. `embed + head`
is what the model's own embedders and head take of an estimated step at scopes `modules` and `stack`, and `bare` the
un-cached model.

A second table says what threshold policies look at in every step of FLUX at its true size (1024 x 1024, 512 text
tokens), by arithmetic: f FLOPs of matrix products and b bytes that its operations read and write one by one, as a share
of a full step's F FLOPs,

    (f / PEAK + b / BANDWIDTH) / (F / PEAK),

at the peak rates of an H200, which no full step reaches: an upper bound.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import hicache
from benchmarks.common import arguments, at_least, machine, markdown, publish
from experiments.cli import Exit
from hicache.adapters import adapter_for
from hicache.generation import relative_change

__all__ = ["main"]

DEFAULTS = {"double": 19, "single": 38, "tokens": 16, "steps": 30, "interval": 7, "repeats": 7, "save": True}
METHODS = {"hicache": {"order": 2}, "hicache_adaptive": {"order": 2}, "dmd": {"order": 2}}
SCOPES = ("modules", "stack", "output")
PEAK, BANDWIDTH = 989e12, 4.8e12
"""FLOPs (dense bfloat16) and bytes per second."""


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


class Traffic(TorchDispatchMode):
    """Bytes that the operations inside read and write, each for itself; views take none."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            moved = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in moved)
        return result


def counted(run: Callable[[], Any]) -> tuple[float, float]:
    """FLOPs and bytes."""
    with torch.no_grad(), FlopCounterMode(display=False) as flops, Traffic() as traffic:
        run()
    return float(flops.get_total_flops()), float(traffic.bytes)


def observers() -> list[dict[str, Any]]:
    """What threshold policies look at; see the module docstring."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        made: Any = FluxTransformer2DModel(guidance_embeds=True)
    model = made.to(torch.bfloat16).eval()
    adapter: Any = adapter_for(model)
    call = adapter.bind((), {**adapter.example(1, torch.device("meta")), "return_dict": False})
    hidden = torch.zeros(*adapter.image_tokens(call), model.inner_dim, dtype=model.dtype, device="meta")

    def indicator() -> Tensor:
        return relative_change(hidden, adapter.indicator(call, adapter.embed(call)))

    def probe() -> Tensor:
        return relative_change(hidden, hidden - hidden)

    full = counted(lambda: model(**call))[0] / PEAK
    rows = []
    for name, what, look in (
        ("teacache", "the first block's modulated input", indicator),
        ("fbcache", "what the first block adds, which runs anyway", probe),
    ):
        flops, moved = counted(look)
        share = 100 * (flops / PEAK + moved / BANDWIDTH) / full
        rows.append({"method": name, "looks at": what, "GFLOP": flops / 1e9, "GB": moved / 1e9, "% of a step": share})
    return rows


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
        publish(
            "observers",
            "What threshold policies look at in FLUX at its true size, by arithmetic",
            observers(),
            machine(),
        )
    else:
        print(markdown(rows), markdown(observers()), sep="\n\n")
    return rows


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
