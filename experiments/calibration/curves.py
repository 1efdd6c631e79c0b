r"""Curves of un-cached runs, for the methods that are calibrated by them: SmoothCache, TeaCache, MagCache.

    python -m experiments calibrate method=smoothcache backend=digits
    python -m experiments calibrate method=teacache backend=digits
    python -m experiments calibrate method=magcache backend=digits

    smoothcache   E_kind[s][k] = mean over layers and items of ||o_{s-k} - o_s||_1 / ||o_s||_1,  k = 1..3
    teacache      P of degree 4 by least squares from the pairs ||u_s - u_{s-1}||_1 / ||u_{s-1}||_1, the same of f, one
                  per step and item: u the modulated input of the first block, f the model's prediction
    magcache      gamma_s = mean over tokens and items of ||r_s|| / ||r_{s-1}||,  r the residual of all blocks

No value is stored: a step is compared with at most three before it, and sums are kept. `items` items (10) with seeds of
their own, a batch at a time. Calls of one step (two-call guidance) are compared each with its own past.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.backends.base import Backend, Item, sampling_of
from experiments.calibration.around import Step, bind_hook, stepping
from experiments.calibration.feature_taps import FeatureTaps, first_tensor, fused_from, watch_modules
from experiments.config.run import Settings
from experiments.errors import check
from hicache.adapters import find_adapter
from hicache.adapters.hooks import attach_modules, attach_scope
from hicache.generic.blocks import flat_blocks
from hicache.policy.scheduled import kind_of

__all__ = ["CURVES", "HistoryObserver", "magnitudes", "polynomial", "smoothness"]

REACH = 3
DEGREE = 4

Sink = Callable[[str, Tensor], None]
"""`(name, value)` of what is watched, call by call."""


class HistoryObserver:
    """Tells a function, for every value that is watched, what it was up to `reach` steps before.

    `seen(name, step, value, past)` is called with the past values of the same call, newest first.
    """

    def __init__(self, backend: Backend, reach: int, seen: Callable[[str, int, Tensor, list[Tensor]], None]) -> None:
        self.backend, self.reach, self.seen = backend, reach, seen
        self.adapter: Any = find_adapter(backend.transformer)
        self.step = 0
        self._calls: dict[str, int] = defaultdict(int)
        self._past: dict[tuple[str, int], deque[Tensor]] = {}

    def sink(self, name: str, value: Tensor) -> None:
        """A value of this step."""
        key = (name, self._calls[name])
        self._calls[name] += 1
        past = self._past.setdefault(key, deque(maxlen=self.reach))
        value = value.detach().float()
        self.seen(name, self.step, value, list(past)[::-1])
        past.append(value.clone())

    @contextlib.contextmanager
    def watching(self, hooks: Sequence[Any]) -> Iterator[None]:
        """Inside, one generation is watched; `hooks` are removed at the end."""
        self.step, self._past = 0, {}
        self._calls.clear()

        def around(step: Step, *args: Any, **kwargs: Any) -> Any:
            self.step += 1
            self._calls.clear()
            return step(*args, **kwargs)

        try:
            with stepping(self.backend.pipe.scheduler, around):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def run(watcher: HistoryObserver, settings: Settings, items: list[Item], hooks: Callable[[], list[Any]]) -> None:
    """Generate all items un-cached under the watcher, a batch at a time."""
    backend, sampling, size = watcher.backend, sampling_of(settings), settings.batch_size
    for start in range(0, len(items), size):
        backend.prepare(sampling)
        with watcher.watching(hooks()):
            backend.generate(items[start : start + size], sampling)
        rule = "the sampler must call the model once per step"
        check(watcher.step == settings.num_steps, "num_steps", rule, settings.num_steps)


@dataclasses.dataclass
class Mean:
    """Running sums and counts."""

    total: Tensor
    count: Tensor

    @staticmethod
    def zeros(*shape: int) -> Mean:
        return Mean(torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64))

    def add(self, where: Any, values: Tensor) -> None:
        """Values that belong to one place."""
        self.total[where] += float(values.double().sum())
        self.count[where] += values.numel()

    @property
    def values(self) -> Tensor:
        return self.total / self.count.clamp(min=1)


def relative(now: Tensor, before: Tensor, base: Tensor) -> Tensor:
    """`||now - before||_1 / ||base||_1` per row of the batch."""
    return (now - before).abs().flatten(1).sum(1) / base.abs().flatten(1).sum(1).clamp(min=1e-30)


def smoothness(backend: Backend, settings: Settings, items: list[Item]) -> dict[str, Any]:
    """Error curves by kind, `[steps][k - 1]`, and the first layer that is fused (null = none)."""
    curves: dict[str, Mean] = {}
    steps = settings.num_steps

    def seen(name: str, step: int, value: Tensor, past: list[Tensor]) -> None:
        mean = curves.setdefault(name.partition("/")[0], Mean.zeros(steps, REACH))
        for k, before in enumerate(past):
            mean.add((step, k), relative(value, before, value))

    watcher, model = HistoryObserver(backend, REACH, seen), backend.transformer
    if watcher.adapter is None:
        run(watcher, settings, items, lambda: watch_modules(model, watcher.sink))
        rows = {kind: mean.values.tolist() for kind, mean in sorted(curves.items())}
        return {"errors": rows, "fused_from": fused_from(model)}
    modules = [module for module in watcher.adapter.modules() if module.feeds is None]

    def hooks() -> list[Any]:
        sink = watcher.sink
        return [
            bind_hook(watcher.adapter, model),
            *attach_modules(watcher.adapter, modules, lambda s, v: sink(f"{kind_of(s)}/{s.layer}", v)),
        ]

    run(watcher, settings, items, hooks)
    fused = [module.site.layer for module in modules if module.site.module == "fused"]
    rows = {kind: mean.values.tolist() for kind, mean in sorted(curves.items())}
    return {"errors": rows, "fused_from": min(fused, default=None)}


def polynomial(backend: Backend, settings: Settings, items: list[Item]) -> dict[str, Any]:
    """TeaCache's coefficients, highest degree first, and how well they fit (R squared).

    The fit may be negative, near a change of 0 above all; the policy takes max(0, P) of given coefficients.
    """
    pairs: dict[str, list[Tensor]] = {"input": [], "output": []}

    def seen(name: str, step: int, value: Tensor, past: list[Tensor]) -> None:
        if past:
            pairs[name].append(relative(value, past[0], past[0]).double().cpu())

    watcher = HistoryObserver(backend, 1, seen)
    adapter, model = watcher.adapter, backend.transformer

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if adapter is None:
            value = first_tensor([*args, *kwargs.values()])
        else:
            call = adapter.bind(args, kwargs)
            value = adapter.indicator(call, adapter.embed(call))
        watcher.sink("input", value)

    def leave(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        value = first_tensor(result) if adapter is None else adapter.output(adapter.bind(args, kwargs), result)
        watcher.sink("output", value)

    watched = model if adapter is not None else flat_blocks(model)[0]  # an adapter makes the first block's input

    def hooks() -> list[Any]:
        return [
            watched.register_forward_pre_hook(enter, with_kwargs=True),
            model.register_forward_hook(leave, with_kwargs=True),
        ]

    run(watcher, settings, items, hooks)
    x, y = (torch.cat(pairs[name]).numpy() for name in ("input", "output"))
    fitted = np.polynomial.Polynomial.fit(x, y, DEGREE)
    unexplained = float(np.square(y - fitted(x)).sum() / np.square(y - y.mean()).sum())
    coefficients = fitted.convert().coef[::-1].tolist()
    return {"coefficients": coefficients, "r_squared": 1 - unexplained, "range": [float(x.min()), float(x.max())]}


def magnitudes(backend: Backend, settings: Settings, items: list[Item]) -> dict[str, Any]:
    """MagCache's curve, one ratio per step; the first is 1."""
    mean = Mean.zeros(settings.num_steps)

    def seen(name: str, step: int, value: Tensor, past: list[Tensor]) -> None:
        if past:
            mean.add(step, value.norm(dim=-1) / past[0].norm(dim=-1).clamp(min=1e-30))

    watcher = HistoryObserver(backend, 1, seen)
    if watcher.adapter is None:

        def image(name: str, value: Tensor) -> None:
            if name in ("stack", "0.stack"):
                watcher.sink("stack", value)

        features = FeatureTaps(backend.transformer, ["stack"], image)
        with features.watching():
            run(watcher, settings, items, list)
        return {"curve": [1.0, *mean.values.tolist()[1:]]}
    blocks = [(0, len(watcher.adapter.blocks()))]

    def hooks() -> list[Any]:
        return [
            bind_hook(watcher.adapter, backend.transformer),
            *attach_scope(watcher.adapter, "stack", blocks, lambda _, value: watcher.sink("stack", value)),
        ]

    run(watcher, settings, items, hooks)
    return {"curve": [1.0, *mean.values.tolist()[1:]]}


CURVES: dict[str, Callable[[Backend, Settings, list[Item]], dict[str, Any]]] = {
    "smoothcache": smoothness,
    "teacache": polynomial,
    "magcache": magnitudes,
}
"""What is measured for a method."""
