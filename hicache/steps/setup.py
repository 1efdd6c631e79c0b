"""What all kinds of step share: the model, the method, and the observers that make an anchor of a computed step."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hicache.adapters.base import Adapter
from hicache.adapters.hooks import attach_modules, attach_scope
from hicache.adapters.modules import Module
from hicache.forecast import Forecaster
from hicache.forecast.module_histories import ModuleHistories
from hicache.generation import Branch
from hicache.generation_report import PlanError
from hicache.methods import CacheMethod
from hicache.patch import Patch
from hicache.policy import Policy
from hicache.spans import check_mixing, check_names, check_probe, spans_of
from hicache.tree import Site

__all__ = ["Anchor", "Observers", "Setup", "tracked"]


def tracked(adapter: Adapter, policy: Policy, patch: Patch | None) -> list[Module]:
    """The modules whose values are remembered one by one."""
    single = policy.grouping != "all" or (patch is not None and patch.covers(Site(0, "fused", "joint")))
    return [m for m in adapter.modules() if policy.covers(m.site) and (single or m.feeds is None)]


class Anchor:
    """The values of a scope at the computed step under way; `wanted` until something says that it is an estimate."""

    def __init__(self, forecaster: Forecaster, sites: int) -> None:
        self.forecaster = forecaster
        self.sites = sites
        self.buffer: Tensor | None = None
        self.wanted = True
        self.taken: set[int] = set()

    @torch.no_grad()
    def take(self, index: int, value: Tensor) -> None:
        """Copy the value of one site."""
        if not self.wanted:
            return
        if self.buffer is None:
            self.buffer = self.forecaster.slot((self.sites, *value.shape), value.dtype, value.device)
        self.buffer[index].copy_(value, non_blocking=self.forecaster.aside(value))
        self.taken.add(index)


class Observers:
    """Hooks on the model that hand values to the anchor, or to the histories of modules, that is open."""

    def __init__(self, setup: Setup) -> None:
        self.scope = setup.method.scope
        self.sites = setup.sites
        self._anchor: Anchor | None = None
        self._histories: ModuleHistories | None = None
        self._hooks = attach_modules(setup.adapter, setup.modules, self._take_module)
        if setup.method.caches and not setup.by_module:
            self._hooks += attach_scope(setup.adapter, self.scope, setup.spans, self.take, self.wanted)

    def detach(self) -> None:
        """Remove them from the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def wanted(self) -> bool:
        """Whether an anchor is being made."""
        return self._anchor is not None and self._anchor.wanted

    def take(self, index: int, value: Tensor) -> None:
        """The value of a site of the scope."""
        if self._anchor is not None:
            self._anchor.take(index, value)

    def _take_module(self, site: Site, value: Tensor) -> None:
        if self._histories is not None:
            self._histories.record(site, value)

    @contextmanager
    def anchor(self, branch: Branch) -> Generator[Anchor]:
        """Inside, the scope's values are taken; at the end they are an anchor of the branch, if it is wanted."""
        anchor = self._anchor = Anchor(branch.forecaster, len(self.sites))
        try:
            yield anchor
        finally:
            self._anchor = None
        if not anchor.wanted:
            return
        if anchor.buffer is None or len(anchor.taken) < len(self.sites):
            silent = [str(site) for index, site in enumerate(self.sites) if index not in anchor.taken]
            name = branch.clock.branch
            raise PlanError(
                f"branch {name!r}: {len(silent)} sites of scope {self.scope} reported no value: {silent[:3]}"
            )
        branch.forecaster.commit(branch.clock.step, anchor.buffer)

    @contextmanager
    def modules(self, branch: Branch) -> Generator[None]:
        """Inside, every module runs and is remembered."""
        self._histories = branch.histories
        branch.histories.open()
        try:
            yield
        finally:
            self._histories = None
        branch.histories.close(branch.clock.step)


class Setup:
    """A method on a model.

    Attributes:
        sites: the sites of the scope, in the order of its frames.
        spans: the ranges of blocks that the scope caches as a whole.
        modules: those with an action of their own at mixed steps.
        by_module: whether module scope is decided module by module.
        observers: what makes anchors of computed steps.

    Raises:
        ValueError: if the model lacks the scope, or the method's parts do not fit together.
    """

    def __init__(self, adapter: Adapter, method: CacheMethod, forward: Callable[..., Any]) -> None:
        if method.scope not in adapter.scopes:
            known = ", ".join(adapter.scopes)
            raise ValueError(f"scope: {type(adapter.model).__name__} has {known}, got {method.scope!r}")
        self.spans = spans_of(method, len(adapter.blocks()))
        check_probe(method)
        check_mixing(method)
        check_names(method.policy, [module.site for module in adapter.modules()], type(adapter.model).__name__)
        if method.patch is not None and not adapter.patchable:
            raise ValueError(f"method: must not patch tokens of {type(adapter.model).__name__}, got {method.name!r}")
        self.adapter = adapter
        self.method = method
        self.forward = forward
        self.sites = adapter.sites(method.scope)
        self.modules = tracked(adapter, method.policy, method.patch) if method.mixes else []
        self.by_module = method.mixes and method.scope == "modules"
        self.known = [id(module.module) for module in adapter.modules()]
        self.observers = Observers(self)

    @property
    def stale(self) -> bool:
        """Whether modules of the model were exchanged since the observers were put onto them."""
        return [id(module.module) for module in self.adapter.modules()] != self.known

    def run(self, branch: Branch, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's forward; the scope's values become an anchor."""
        if self.by_module:
            return self.forward(*args, **kwargs)
        with self.observers.anchor(branch):
            result = self.forward(*args, **kwargs)
            if self.method.scope == "output":
                self.observers.take(0, self.adapter.output(call, result))
        return result
