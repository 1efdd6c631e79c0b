"""The best that published methods do with as many full steps: every forecaster at every sensible setting.

A forecaster runs at each schedule with the wanted number of full steps (published intervals after 1 or 2 warm-up steps,
even and late full steps with the last step computed or estimated, places that were searched for it or for another one
on the same model), at each scope, order and σ. Rounds thin the settings out, method by method, on more and more of the
judged items themselves, so the choice is in the methods' favour. Solvers with as few steps stand beside them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

import hicache
from experiments.artefacts.stored_places import places_path, read_places
from experiments.backends.base import Sampling, sampling_of
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.files import ASSETS
from experiments.runs.style import SOLVERS
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from experiments.studies.bench import Bench
from hicache import CacheMethod

__all__ = [
    "Contender",
    "Winner",
    "contenders",
    "hold_contest",
    "measure_fewer_steps",
    "find_placed",
    "find_sources",
    "forecasters",
    "intervals_for",
]

SCOPES = ("output", "modules")
WARMUPS = (1, 2)
NEAREST = 2
"""So many intervals per warm-up: those whose last full step is nearest the end."""
ORDERS = (1, 2, 4)
SIGMAS = {"hicache": (0.5, 0.6, 0.7, 0.75), "hi_taylor": (0.6, 0.75)}
ROUNDS = ((3, 6), (12, 2))
"""Items of a round, and how many settings of a method go on from it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """A method at one setting, of which `schedule` says where its full steps are."""

    title: str
    schedule: str
    setting: str
    method: CacheMethod


@dataclass(frozen=True, kw_only=True, eq=False)
class Winner:
    """What a method has at its best setting: PSNR per item, in dB."""

    title: str
    setting: str
    values: Tensor


def intervals_for(num_steps: int, budget: int, warmup: int) -> list[int]:
    """Every interval whose schedule has `budget` full steps: they differ in how far the last one is from the end."""
    known = range(1, num_steps + 1)
    return [interval for interval in known if len(hicache.full_steps(num_steps, interval, warmup)) == budget]


def schedules(num_steps: int, budget: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and knobs of every schedule with `budget` full steps that needs no calibration."""
    for warmup in WARMUPS:
        known = intervals_for(num_steps, budget, warmup)
        known.sort(key=lambda n: -hicache.full_steps(num_steps, n, warmup)[-1])
        for interval in known[:NEAREST]:
            yield f"N={interval}, warm-up {warmup}", {"interval": interval, "warmup_steps": warmup}
    yield "even", {"policy": "even", "budget": budget}
    for name, tail in (("even", 1), ("late", 0), ("late", 1)):
        yield f"{name}, tail {tail}", {"policy": name, "budget": budget, "policy_options": {"tail": tail}}
    yield "eased", {"policy": "eased", "budget": budget}


def forecasters() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, setting and knobs."""
    yield "fora", "", {}
    for order in ORDERS:
        yield "taylorseer", f"m={order}", {"order": order}
    for name, sigmas in SIGMAS.items():
        for order, sigma in itertools.product(ORDERS, sigmas):
            yield name, f"m={order}, σ={sigma:g}", {"order": order, "sigma": sigma}
    for name in ("dmd", "chebyshev", "foca"):
        yield name, "", {"order": 2, "sigma": 0.6}


def contenders(settings: Settings, budget: int) -> Iterator[Contender]:
    """Every forecaster at every setting with `budget` full steps."""
    for (name, own, knobs), scope in itertools.product(forecasters(), SCOPES):
        for where, schedule in schedules(settings.num_steps, budget):
            setting = ", ".join(filter(None, (own, where, scope)))
            made = hicache.method(name, scope=scope, **schedule, **knobs)
            yield Contender(title=hicache.METHODS[name].title, schedule=where, setting=setting, method=made)
        placed = find_placed(settings, name, scope, budget, knobs)
        known = {"placed": placed} if placed is not None else {}
        for source in find_sources(settings.num_steps, budget, settings.backend.name):
            steps = {"policy": "placed", "budget": budget, "policy_options": {"places": source.full}}
            other = f"placed for {hicache.METHODS[source.method].title} at {source.scope}"
            if placed is None or list(placed.policy.plan(settings.num_steps) or []) != source.full:
                known[other] = hicache.method(name, scope=scope, **steps, **knobs)
        for where, made in known.items():
            setting = ", ".join(filter(None, (own, where, scope)))
            yield Contender(title=hicache.METHODS[name].title, schedule="placed", setting=setting, method=made)


class Source(NamedTuple):
    """Full steps that were searched, and what they were searched for."""

    backend: str
    method: str
    scope: str
    full: list[int]


def find_sources(num_steps: int, budget: int, backend: str = "*") -> Iterator[Source]:
    """The stored places of runs with so many steps and full steps."""
    for path in sorted(ASSETS.glob(f"{backend}/places/*.json")):
        full, keys = read_places(path)
        if len(full) == budget and keys["num_steps"] == num_steps:
            yield Source(keys["backend"], keys["method"]["name"], keys["scope"], full)


def find_placed(settings: Settings, name: str, scope: str, budget: int, knobs: Mapping[str, Any]) -> CacheMethod | None:
    """A forecaster at full steps that were searched for it; None where none are stored."""
    words = {"backend": settings.backend.name, "num_steps": settings.num_steps, "method": name, "scope": scope}
    given = [f"{key}={value}" for key, value in (*words.items(), *knobs.items())]
    placed = resolve(compose([*given, "policy=placed", f"budget={budget}"]))
    return method_of(placed) if places_path(placed).is_file() else None


def hold_contest(
    bench: Bench, entries: Iterable[Contender], rounds: Sequence[tuple[int, int]] = ROUNDS
) -> list[Winner]:
    """The best setting of each method on all items of the bench, among those that came through the rounds."""
    left: dict[str, list[Contender]] = {}
    for entry in entries:
        left.setdefault(entry.title, []).append(entry)
    for items, count in rounds:
        part = bench.first(items)
        for title, known in left.items():
            if len(known) > count:
                left[title] = sorted(known, key=lambda entry: -part.psnr(entry.method)[0])[:count]
    found: list[Winner] = []
    for title, known in left.items():
        tried = [Winner(title=title, setting=e.setting, values=bench.decibels(e.method)) for e in known]
        found.append(max(tried, key=lambda winner: float(winner.values.mean())))
    return found


def measure_fewer_steps(bench: Bench, budget: int) -> list[Winner]:
    """Solvers of the backend with `budget` steps, each computed."""
    sampling, found = sampling_of(bench.settings), []
    for solver in [name for name in bench.backend.solvers if name in SOLVERS] or [None]:
        fewer: Sampling = dataclasses.replace(sampling, num_steps=budget, solver=solver)
        title = SOLVERS.get(solver or "", "Euler")
        found.append(Winner(title=title, setting=f"{budget} steps", values=bench.decibels(None, fewer)))
    return found
