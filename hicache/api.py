"""The public API: enable a method on a diffusers pipeline or on a model, and take it off again.

with hicache.cached(pipe, hicache.method("hicache", interval=7, order=2, sigma=0.5)) as cache:
    image = pipe(prompt, num_inference_steps=50).images[0]
print(cache.report)
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from hicache.forecast import Forecaster
from hicache.generic.structure import DENOISERS, denoisers
from hicache.guidance import AdaptiveGuidance
from hicache.handle import Handle, owners
from hicache.knobs import lookup
from hicache.methods import CacheMethod, method
from hicache.operators import Chipmunk

__all__ = ["Handle", "cached", "disable", "enable", "forecaster"]

STAGES = ("shared", "separate")


def enable(
    target: Any,
    cache_method: CacheMethod | str,
    guidance: AdaptiveGuidance | None = None,
    operators: Chipmunk | None = None,
    stages: str = "shared",
    errors: bool = False,
) -> Handle:
    """Enable a method on all denoisers of a diffusers pipeline, or on a model.

    A method that is already enabled there is taken off, once this one fits. On a pipeline, generations begin and end by
    themselves; on a bare model they begin when the timestep turns back, or with `handle.begin(num_steps)`.

    Args:
        target: a pipeline with a `transformer`, `transformer_2`, `unet`, `prior` or `decoder`, or a model.
        cache_method: from `hicache.method`, or a method's name.
        guidance: leave out unconditional predictions that have become superfluous; None makes them all.
        operators: what computes attention and MLPs at computed steps; None = the model's own.
        stages: whether the two stages of a solver like Heun's share a history, or have `separate` ones.
        errors: whether to measure at computed steps how wrong the forecast would have been.

    Raises:
        ValueError: if a model lacks the method's scope or has another cache, or the operators do not fit.
    """
    lookup("stages", stages, STAGES)
    chosen = method(cache_method) if isinstance(cache_method, str) else cache_method
    return Handle(target, chosen, guidance, operators, stages == "separate", errors)


def disable(target: Any) -> None:
    """Take off whatever method is enabled on a pipeline or model; nothing happens where there is none."""
    models = [target] if not any(hasattr(target, name) for name in DENOISERS) else denoisers(target).values()
    for handle in owners(models):
        handle.disable()


@contextmanager
def cached(
    target: Any,
    cache_method: CacheMethod | str,
    guidance: AdaptiveGuidance | None = None,
    operators: Chipmunk | None = None,
    stages: str = "shared",
    errors: bool = False,
) -> Generator[Handle]:
    """`enable` for the length of a `with` block; the handle's reports stay readable after it.

    What was enabled before is so again afterwards, and what was enabled inside of the block is not.
    """
    models = list(denoisers(target).values())
    outer = owners(models)
    for handle in outer:
        handle.suspend()
    try:
        handle = enable(target, cache_method, guidance, operators, stages, errors)
        try:
            yield handle
        finally:
            handle.disable()
            for inner in owners(models):
                inner.disable()
    finally:
        for handle in outer:
            handle.resume()


def forecaster(name: str, **knobs: Any) -> Forecaster:
    """A forecaster on its own, to observe and predict tensors by hand.

    Args:
        name: a method's name; its basis, order and sigma are used.
        **knobs: as for `hicache.method`.

    >>> f = forecaster("taylorseer", order=1, warmup_steps=2)
    >>> f.observe(0, torch.tensor([0.0])); f.observe(1, torch.tensor([1.0]))
    >>> f.predict(4)
    tensor([4.])

    Raises:
        ValueError: for a time that is not the index of the step, which nobody gives.
    """
    chosen = method(name, **knobs)
    if chosen.knobs.time != "index":
        raise ValueError(f"time: must be index for a forecaster on its own, got {chosen.knobs.time!r}")
    return chosen.build_forecaster()
