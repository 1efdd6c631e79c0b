"""A run: its settings and all that follows from them, worked out once and handed on.

Identity, method and sampling are functions of the settings and of the files that they name (calibrated plans, curves,
weights). They are computed here and nowhere else while a run is executed, so that a file that changes meanwhile
cannot make the method another than the one that the identity says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import hicache
from experiments.backends import backend_of
from experiments.backends.base import Backend, Item, Sampling, sampling_of
from experiments.config.run import Settings
from experiments.settings.identity import run_id
from experiments.settings.library_method import guidance_of, method_of, operators_of
from hicache import AdaptiveGuidance, CacheMethod, Chipmunk, Handle

__all__ = ["Run", "caching", "items_of", "prepare"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, ready to be executed.

    Attributes:
        settings: resolved.
        id: name of its folder.
        method: the library's form of the method.
        guidance: the library's form of the guidance; None = both predictions at every step.
        operators: the library's form of the sparse operators; None = the model's own.
        sampling: solver and its steps.
        items: what is generated, in its order.
        reference: the un-cached run that it is compared with; None if it is one itself.
    """

    settings: Settings
    id: str
    method: CacheMethod
    guidance: AdaptiveGuidance | None
    operators: Chipmunk | None
    sampling: Sampling
    items: list[Item]
    reference: Run | None


def prepare(given: Settings | Run, identity: str | None = None) -> Run:
    """The run of these settings; a run is returned as it is. `identity` is its id where that is known already.

    Raises:
        ConfigError: for values that the method refuses, files that are missing or belong to other settings.
    """
    if isinstance(given, Run):
        return given
    return Run(
        settings=given,
        method=method_of(given),
        guidance=guidance_of(given),
        operators=operators_of(given),
        id=identity or run_id(given),
        sampling=sampling_of(given),
        items=items_of(given),
        reference=None if given.plain else prepare(given.reference()),
    )


def items_of(settings: Settings) -> list[Item]:
    """The items of a run, in their order."""
    return backend_of(settings.backend).items(settings.backend, settings.num_items, settings.seed)


@contextlib.contextmanager
def caching(backend: Backend, run: Run) -> Iterator[Handle | None]:
    """Run what is inside under the method; yields the library's handle, None where there is nothing for it to do."""
    backend.prepare(run.sampling)
    if not run.method.caches and run.guidance is None and run.operators is None:
        yield None
        return
    with hicache.cached(backend.pipe, run.method, run.guidance, run.operators) as handle:
        yield handle
