"""Speed and memory of the true-size transformers with random weights (speed does not depend on their values).

    python -m benchmarks.speed backend=flux                              # one GPU, bf16, 50 steps
    python -m benchmarks.speed backend=hunyuan_video intervals=6
    python -m benchmarks.speed backend=flux device=cpu size=small        # the script itself, anywhere

One process measures the un-cached model, fewer steps, every method at every scope, and the caches of diffusers and
cache-dit. Times are medians over the repeats after a warm-up, by CUDA events on a GPU; memory is the peak over
that of the un-cached run. What does not fit into the memory is named and left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import hicache
from benchmarks.common import arguments, at_least, machine, markdown, publish
from experiments.cli import Exit
from experiments.errors import check, choose
from hicache.adapters import Adapter, adapter_for
from hicache.generation_report import Stopwatch
from hicache.methods import MAX_ORDER
from hicache.tree import SCOPES

__all__ = ["main"]

DEFAULTS = {
    "backend": "flux", "device": "cuda", "size": "full", "intervals": "5,7,9", "scopes": "modules,stack,output",
    "steps": 50, "order": 2, "repeats": 5, "save": True,
}  # fmt: skip
FULL: dict[str, tuple[str, dict[str, Any], int]] = {  # class, constructor values, warm-up steps
    "flux": ("FluxTransformer2DModel", {"guidance_embeds": True}, 3),
    "dit": ("DiTTransformer2DModel", {"out_channels": 8, "num_embeds_ada_norm": 1000}, 2),
    "hunyuan_video": ("HunyuanVideoTransformer3DModel", {"text_embed_dim": 4096, "guidance_embeds": True}, 1),
    "qwen_image": ("QwenImageTransformer2DModel", {}, 3),
}
SMALL: dict[str, dict[str, Any]] = {
    "flux": {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2},
    "dit": {"num_layers": 3, "num_attention_heads": 2},
    "hunyuan_video": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2},
    "qwen_image": {"num_layers": 2, "num_attention_heads": 2},
}
SMALL_SHAPE = {"height": 128, "width": 128, "frames": 5, "text": 16}


def build(config: dict[str, Any]) -> nn.Module:
    """The transformer with random weights on the device; bfloat16 on a GPU."""
    import diffusers

    if config["device"].startswith("cuda:"):
        torch.cuda.set_device(config["device"])  # whose memory and name are asked for
    name, values, _ = FULL[config["backend"]]
    values = {**values, **(SMALL[config["backend"]] if config["size"] == "small" else {})}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if config["device"].startswith("cuda") else torch.float32)
    try:
        torch.manual_seed(0)
        with torch.device(config["device"]):
            return getattr(diffusers, name)(**values).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def denoise(model: Any, call: dict[str, Any], steps: int) -> tuple[float, list[float]]:
    """Seconds of a loop of `steps` calls with falling timesteps, and of each call."""
    device = call["hidden_states"].device
    top = 1000.0 if call["timestep"].dtype == torch.long else 1.0
    context = getattr(model, "cache_context", lambda name: contextlib.nullcontext())
    times = [torch.full_like(call["timestep"], top * (1 - s / steps)) for s in range(steps)]
    total, watches = Stopwatch(device), []
    for timestep in times:
        watch = Stopwatch(device)
        with context("cond"):
            model(**{**call, "timestep": timestep}, return_dict=False)
        watch.stop()
        watches.append(watch)
    total.stop()
    return total.seconds, [watch.seconds for watch in watches]


@contextlib.contextmanager
def ours(model: nn.Module, method: hicache.CacheMethod, steps: int) -> Iterator[None]:
    """One of our methods."""
    with hicache.cached(model, method) as cache:
        cache.begin(steps)
        yield


@contextlib.contextmanager
def diffusers_taylorseer(model: Any, interval: int, order: int, lite: bool) -> Iterator[None]:
    """diffusers' TaylorSeer, full steps every `interval` by its own schedule; `lite`: of the output only."""
    from diffusers import TaylorSeerCacheConfig

    config = TaylorSeerCacheConfig(cache_interval=interval, max_order=order, use_lite_mode=lite)
    model.enable_cache(config)
    try:
        yield
    finally:
        model.disable_cache()


@contextlib.contextmanager
def cache_dit_dbcache(model: Any, interval: int, warmup: int, steps: int) -> Iterator[None]:
    """cache-dit's DBCache (F1B0) made to compute every `interval`-th step."""
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=1.0, max_warmup_steps=warmup,
        max_continuous_cached_steps=interval - 1, num_inference_steps=steps,
    )  # fmt: skip
    cache_dit.enable_cache(model, cache_config=config)
    try:
        yield
    finally:
        cache_dit.disable_cache(model)


def candidates(config: dict[str, Any], model: Any) -> list[dict[str, Any]]:
    """What is measured: label, context, number of calls, full steps and, for ours, the method."""
    steps, warmup = config["steps"], FULL[config["backend"]][2]
    rows: list[dict[str, Any]] = [{"method": "none", "N": 1, "scope": "", "calls": steps, "full": list(range(steps))}]
    for interval in map(int, str(config["intervals"]).split(",")):
        full = hicache.full_steps(steps, interval, warmup)
        rows.append({"method": "steps", "N": interval, "scope": "", "calls": len(full), "full": list(range(len(full)))})
        for scope in config["scopes"].split(","):
            for name in ("fora", "taylorseer", "hicache"):
                knobs = {"interval": interval, "order": config["order"], "warmup_steps": warmup, "scope": scope}
                method = hicache.method(name, **knobs)
                row = {"method": name, "N": interval, "scope": scope, "calls": steps, "full": full, "ours": method}
                rows.append({**row, "context": lambda m=method: ours(model, m, steps)})
        rows += [{**row, "N": interval, "calls": steps} for row in partial(config, model, interval)]
        if hasattr(model, "enable_cache"):
            rows += taylorseers(config, model, interval)
        if importlib.util.find_spec("cache_dit") and config["device"].startswith("cuda"):
            row = {"method": "cache-dit DBCache", "N": interval, "scope": "span", "calls": steps, "full": full}
            rows.append({**row, "context": lambda n=interval: cache_dit_dbcache(model, n, warmup, steps)})
    return rows


def taylorseers(config: dict[str, Any], model: nn.Module, interval: int) -> list[dict[str, Any]]:
    """diffusers' TaylorSeer in its two forms, and ours at the full steps of its schedule."""
    steps, order = config["steps"], config["order"]
    theirs = [s for s in range(steps) if s < 3 or (s - 4) % interval == 0]
    shared = {"N": interval, "calls": steps, "full": theirs}
    rows = []
    for label, lite in (("modules", False), ("lite", True)):
        row = {"method": "diffusers TaylorSeer", "scope": label, **shared}
        rows.append({**row, "context": lambda n=interval, x=lite: diffusers_taylorseer(model, n, order, x)})
    for scope in config["scopes"].split(","):
        mine = hicache.method("taylorseer", policy="mask", mask=theirs, order=order, scope=scope)
        row = {"method": "taylorseer, their plan", "scope": scope, "ours": mine, **shared}
        rows.append({**row, "context": lambda m=mine: ours(model, m, steps)})
    return rows


def partial(config: dict[str, Any], model: nn.Module, interval: int) -> list[dict[str, Any]]:
    """Methods whose cached steps run a part of the model, and TeaCache at the same number of full steps."""
    steps, warmup = config["steps"], FULL[config["backend"]][2]
    shared = {"interval": interval, "warmup_steps": warmup, "order": config["order"]}
    held = {"threshold": float("inf"), "max_continuous": interval - 1}
    methods = {
        "toca": hicache.method("toca", **shared),
        "toca (random)": hicache.method("toca", **shared, patch_options={"select": "random"}),
        "duca": hicache.method("duca", **shared),
        "clusca": hicache.method("clusca", **shared),
        "hi_clusca": hicache.method("hi_clusca", **shared),
        "dbcache": hicache.method(
            "dbcache", warmup_steps=warmup, front=4 if config["size"] == "full" else 1, policy_options=held
        ),
    }
    rows = []
    for name, chosen in methods.items():
        planned = chosen.policy.plan(steps)
        rows.append({"method": name, "scope": chosen.scope, "full": planned, "ours": chosen})
    # What random weights indicate means nothing: every step counts one, so that each interval-th is computed.
    tea = hicache.method("teacache", policy_options={"threshold": interval, "polynomial": [1.0]})
    every = sorted({*range(0, steps, interval), steps - 1})
    rows.append({"method": "teacache", "scope": "stack", "full": every, "ours": tea})
    return [{**row, "context": lambda m=row["ours"]: ours(model, m, steps)} for row in rows]


def measure(row: dict[str, Any], model: nn.Module, call: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Median seconds of the loop, of a full and of a cached call, and peak memory."""
    loops, full, cached, memory = [], [], [], 0
    for repeat in range(repeats + 1):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with row.get("context", contextlib.nullcontext)():
            total, calls = denoise(model, call, row["calls"])
        if repeat:
            loops.append(total)
            full += [t for s, t in enumerate(calls) if s in row["full"]]
            cached += [t for s, t in enumerate(calls) if s not in row["full"]]
            memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "seconds": statistics.median(loops),
        "full": statistics.median(full),
        "cached": statistics.median(cached) if cached else float("nan"),
        "memory": memory,
    }


def measured(row: dict[str, Any], model: nn.Module, call: dict[str, Any], repeats: int) -> dict[str, Any] | None:
    """What `measure` finds; None, and a line, where the memory does not suffice."""
    try:
        return measure(row, model, call, repeats)
    except torch.OutOfMemoryError as error:
        said = (str(error).splitlines() or [""])[0]
    torch.cuda.empty_cache()  # here the frames of the failed call are gone
    print(f"{row['method']} N={row['N']} {row['scope']}: left out, {said}", file=sys.stderr, flush=True)
    return None


def check_config(config: dict[str, Any]) -> None:
    """All that can be wrong with the arguments, found before a model is built.

    Raises:
        ConfigError: naming the key.
    """
    choose("backend", config["backend"], FULL)
    choose("size", config["size"], ("full", "small"))
    at_least(config, 1, "steps", "repeats")
    check(0 <= config["order"] <= MAX_ORDER, "order", f"must be an integer from 0 to {MAX_ORDER}", config["order"])
    for scope in config["scopes"].split(","):
        choose("scopes", scope, SCOPES)
    whole = all(word.isdecimal() and int(word) >= 1 for word in config["intervals"].split(","))
    check(whole, "intervals", "must be integers >= 1, as in 5,7", config["intervals"])
    check_device(config["device"])


def check_device(name: str) -> None:
    """The device must be one of this machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    choose("device", name, ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))])


def filled(call: dict[str, Any]) -> dict[str, Any]:
    """The call with random states and texts: a GPU multiplies zeros and equal rows faster than others."""
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections")
    return call | {name: torch.randn_like(call[name]) for name in names if name in call}


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Measure all rows; returns them."""
    config = arguments(argv, DEFAULTS)
    check_config(config)
    model = build(config)
    adapter: Adapter = adapter_for(model)
    shape: dict[str, Any] = SMALL_SHAPE if config["size"] == "small" and config["backend"] != "dit" else {}
    call = adapter.example(2 if config["backend"] == "dit" else 1, torch.device(config["device"]), **shape)
    call, rows, base = filled(call), [], None
    for row in candidates(config, model):
        found = measured(row, model, call, config["repeats"])
        if found is None:
            check(base is not None, "device", "must have the memory of the un-cached model", config["device"])
            continue
        base = base or found
        speedup = config["steps"] / len(row["full"])
        if "ours" in row:
            batch = call["hidden_states"].shape[0]
            cost = hicache.cost.measure(model, row["ours"], config["steps"], batch, row["full"], **shape)
            speedup = cost.speedup
        wall = base["seconds"] / found["seconds"]
        rows.append({
            "method": row["method"], "N": row["N"], "scope": row["scope"], "full steps": len(row["full"]),
            "full ms": 1000 * found["full"], "cached ms": 1000 * found["cached"],
            "cached/full": found["cached"] / found["full"], "seconds": found["seconds"], "wall speed-up": wall,
            "FLOPs speed-up": speedup, "wall/FLOPs": wall / speedup,
            "extra memory GB": (found["memory"] - base["memory"]) / 1e9,
        })  # fmt: skip
        print(f"{row['method']} N={row['N']} {row['scope']}: {wall:.2f}x", file=sys.stderr, flush=True)
    if not config["save"]:
        print(markdown(rows))
    else:
        name = f"speed-{config['backend']}-{config['size']}"
        publish(
            name, f"{config['backend']} ({config['size']}), {config['steps']} steps", rows, machine(config["device"])
        )
    return rows


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
