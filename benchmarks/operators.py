"""Chipmunk's operators on FLUX.1 at true size with random weights: the model alone, under them, and with HiCache above.

    python -m benchmarks.operators                                # one GPU, bf16, 50 steps, 1024 x 1024
    python -m benchmarks.operators providers=reference,triton,chipmunk
    python -m benchmarks.operators device=cpu size=small steps=6  # the script itself, anywhere

First the providers are checked against the reference on the device, one sparse attention and one sparse MLP; then
whole loops are timed in turn. Random weights make random masks: a real model's sparse steps read memory better, if
anything. A provider that cannot run here is named with the reason.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hicache
from benchmarks.common import arguments, at_least, machine, markdown, publish
from benchmarks.speed import build, check_device, denoise
from experiments.cli import Exit
from experiments.errors import choose
from hicache import Chipmunk
from hicache.adapters import adapter_for
from hicache.operators.chipmunk import PROVIDERS
from hicache.operators.kernels import Kernels, Reference
from hicache.operators.mlp import Layers
from hicache.operators.providers import kernels_of

__all__ = ["main"]

DEFAULTS = {
    "device": "cuda", "size": "full", "steps": 50, "interval": 5, "repeats": 3, "providers": "reference,triton",
    "save": True,
}  # fmt: skip
SMALL = Chipmunk(query_group=16, key_multiple=4, token_group=16, hidden_multiple=8, sampled=64, dense_layers=1)


def call_of(model: nn.Module, device: str, small: bool) -> dict[str, Any]:
    """Arguments of a call on one grid of image tokens."""
    pixels, text = (128, 16) if small else (1024, 512)
    call = adapter_for(model).example(1, torch.device(device), height=pixels, width=pixels, text=text)
    call["hidden_states"] = torch.randn_like(call["hidden_states"])
    side, n = pixels // 16, torch.arange((pixels // 16) ** 2, device=device)
    call["img_ids"] = torch.stack([torch.zeros_like(n), n // side, n % side], dim=1).to(call["img_ids"])
    return call


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative distance in float32."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def agreement(kernels: Kernels, config: Chipmunk, device: str, dtype: torch.dtype, small: bool) -> dict[str, float]:
    """How far a provider is from the reference on one attention and one MLP of the model's size."""
    heads, tokens, width, units = (2, 80, 32, 64) if small else (24, 4608, 128, 12288)
    kind: dict[str, Any] = {"device": device, "dtype": dtype}
    q, k, v = torch.randn(3, 1, heads, tokens, width, **kind)
    groups = -(-tokens // config.query_group)
    columns = torch.rand(1, heads, groups, tokens, device=device).topk(config.keys(tokens), -1).indices.sort(-1).values
    one, two = (of.attention(q, k, v, columns, config.query_group, None) for of in (Reference(), kernels))
    channels = heads * width
    x = torch.randn(tokens, channels, **kind)
    weights = [torch.randn(*shape, **kind) / 50 for shape in ((units, channels), (units,), (channels, units))]
    layers = Layers(*weights, act=lambda z: F.gelu(z, approximate="tanh"), layer=0)
    chosen = torch.stack([torch.randperm(units, device=device) for _ in range(tokens // config.token_group)])
    counts, found = (config.rounded(units // 3, units),) * len(chosen), []
    start = torch.randn(tokens, units, **kind), torch.randn(tokens, channels, **kind)
    for of in (Reference(), kernels):
        hidden, output = (t.clone() for t in start)
        of.mlp(x, layers, hidden, output, chosen, counts, config.token_group)
        found.append(output)
    return {"attention": relative(two, one), "mlp": relative(found[1], found[0])}


def time_loop(model: nn.Module, call: dict[str, Any], config: dict[str, Any], chosen: Any) -> dict[str, Any]:
    """Median seconds of a loop under a method and operators, its full steps and peak memory."""
    method, operators = chosen
    cuda = config["device"].startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with hicache.cached(model, method, operators=operators) as handle:
        seconds = []
        for _ in range(config["repeats"] + 1):
            handle.begin(config["steps"])
            seconds.append(denoise(model, call, config["steps"])[0])
        report = handle.report
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return {"s": statistics.median(seconds[1:]), "full": len(report.full_steps), "peak GB": peak}


def check_config(config: dict[str, Any]) -> None:
    """All that can be wrong with the arguments, found before a model is built.

    Raises:
        ConfigError: naming the key.
    """
    choose("size", config["size"], ("full", "small"))
    at_least(config, 1, "steps", "interval", "repeats")
    for name in config["providers"].split(","):
        choose("providers", name, PROVIDERS)
    check_device(config["device"])


def main(argv: list[str]) -> None:
    """Check the providers, time the loops, publish the table."""
    config = arguments(argv, DEFAULTS)
    check_config(config)
    small = config["size"] == "small"
    base = SMALL if small else Chipmunk()
    model = build({**config, "backend": "flux"})
    dtype, call = next(model.parameters()).dtype, call_of(model, config["device"], small)
    hermite = hicache.method("hicache", interval=config["interval"], order=2, sigma=0.5, warmup_steps=3)
    plans: dict[str, tuple[Any, Chipmunk | None]] = {
        "none": (hicache.method("none"), None),
        f"HiCache N={config['interval']}": (hermite, None),
    }
    about = machine(config["device"])
    for name in config["providers"].split(","):
        operators = replace(base, provider=name)
        try:
            kernels = kernels_of(operators, torch.device(config["device"]), dtype)
        except ValueError as error:
            print(error)
            continue
        for kind, distance in agreement(kernels, base, config["device"], dtype, small).items():
            about[f"{name} {kind} against the reference"] = f"{distance:.1e}"
        plans[f"Chipmunk ({name})"] = (hicache.method("none"), operators)
        plans[f"Chipmunk ({name}) + HiCache N={config['interval']}"] = (hermite, operators)
    rows = [{"method": label, **time_loop(model, call, config, chosen)} for label, chosen in plans.items()]
    rows = [{**row, "speed-up": rows[0]["s"] / row["s"]} for row in rows]
    if config["save"]:
        publish("operators", "Sparse operators on FLUX.1", rows, about)
    else:
        print(markdown(rows))


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
