"""Module by module on a model without an adapter: its own forward runs, and every module does what the policy says.

The modules are those that scope `modules` finds in the blocks. Each has histories of its own, one for every tensor that
it returns. Where attention and MLP of a block are fused in one projection, the layers before it run only if it does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hicache.forecast import Forecaster
from hicache.generation import Branch
from hicache.generation_report import PlanError
from hicache.generic import Form, flatten, unflatten
from hicache.generic.blocks import flat_blocks
from hicache.generic.layout import hollow, outline
from hicache.generic.modules_tap import FEED_FORWARD, ModulesTap
from hicache.generic.stubs import Run, stubbed, uncompiled
from hicache.methods import CacheMethod
from hicache.spans import check_mixing, check_names
from hicache.tree import Action, Site

__all__ = ["TappedModules", "site_of"]

TEXT = re.compile(r"(^|_)(txt|text|context|encoder|c|added)(_|$)")


def site_of(layer: int, name: str) -> Site:
    """What a module of a block is called, from its name among the block's children."""
    if name == "proj_out":
        return Site(layer, "fused", "joint")
    kind = "mlp" if FEED_FORWARD.match(name) else "cross" if "cross" in name else "attn"
    return Site(layer, kind, "txt" if TEXT.search(name) else "img")


class TappedModules:
    """Steps of which every module has an action of its own.

    Raises:
        ValueError: if the model has no modules of that kind, or the method patches them.
    """

    def __init__(self, model: nn.Module, method: CacheMethod) -> None:
        kind = type(model).__name__
        check_mixing(method)
        if method.patch is not None:
            raise ValueError(f"method: {method.name} recomputes rows of tokens, for which {kind} has no adapter")
        if method.policy.whole_block:
            raise ValueError(f"compare: must be modules for {kind}, which has no adapter, got 'hidden'")
        self.method, self.blocks = method, flat_blocks(model)
        self.modules: list[nn.Module] = []
        self.sites: list[Site] = []
        self.feeds: list[bool] = []
        for layer, block in enumerate(self.blocks):
            for name, feeds in ModulesTap.named(block).items():
                self.modules.append(block.get_submodule(name))
                fused = feeds and ModulesTap.joint(block)
                self.sites.append(Site(layer, "fused", "joint") if fused else site_of(layer, name))
                self.feeds.append(feeds)
        if not self.modules:
            raise ValueError(f"scope: {kind} has no attention or feed-forward modules in blocks, got 'modules'")
        check_names(method.policy, self.sites, kind)

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    def run(self, action: Action, branch: Branch, run: Callable[[], Any]) -> Any:
        """The model's result at a step of any kind."""
        step = ModulesOfStep(self, action, branch)
        with uncompiled(self.blocks), stubbed(self.modules, step):
            result = run()
        branch.clock.error = float(torch.stack(step.errors).mean()) if step.errors else None
        return result


class ModulesOfStep:
    """Stands in for the modules at one step of one branch."""

    def __init__(self, owner: TappedModules, action: Action, branch: Branch) -> None:
        self.owner, self.action, self.branch = owner, action, branch
        self.counts: dict[int, int] = {}
        self.errors: list[Tensor] = []

    def action_of(self, site: Site) -> Action:
        """What a module does."""
        policy, clock = self.branch.policy, self.branch.clock
        if self.action is Action.COMPUTE or not policy.covers(site):
            return Action.COMPUTE
        return policy.site_action(clock, site)

    def __call__(self, index: int, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = (index, self.counts.get(index, 0))
        self.counts[index] = place[1] + 1
        action, known = self.action_of(self.owner.sites[index]), self.branch.memory.forms
        if action is Action.COMPUTE or (action is Action.VERIFY and self.owner.feeds[index]):
            result = run(*args, **kwargs)
            outs, form = flatten(result)
            if self.owner.feeds[index]:
                known[place] = (form, [outline(out) for out in outs])
            elif self.branch.policy.covers(self.owner.sites[index]):
                known[place] = (form, [])
                self.remember(place, outs)
            return result
        if place not in known:
            name, step = self.branch.clock.branch, self.branch.clock.step
            raise PlanError(f"branch {name!r}: step {step} is to be estimated before any full step")
        form, kinds = known[place]
        if self.owner.feeds[index]:
            return unflatten([hollow(kind, first_device(args, kwargs)) for kind in kinds], form)
        drafted = self.forecasts(place, form)
        if action is Action.VERIFY:
            self.verify(flatten(run(*args, **kwargs))[0], drafted)
        return unflatten(drafted, form)

    @torch.no_grad()
    def remember(self, place: tuple[int, int], outs: list[Tensor]) -> None:
        """The values of a module that ran become an anchor of its histories."""
        for position, out in enumerate(outs):
            self.forecaster((*place, position)).observe(self.branch.clock.step, out[None])

    @torch.no_grad()
    def forecasts(self, place: tuple[int, int], form: Form) -> list[Tensor]:
        """The forecast of what a module returns."""
        step = self.branch.clock.step
        return [self.forecaster((*place, position)).predict(step)[0] for position in range(form.size)]

    def forecaster(self, place: tuple[int, int, int]) -> Forecaster:
        """The history of one tensor of a module."""
        return self.branch.memory.module(place)

    @torch.no_grad()
    def verify(self, values: list[Tensor], drafted: list[Tensor]) -> None:
        """Measure the forecast of what a module returns: mean |y - y^| / (|y| + 1e-10)."""
        for value, draft in zip(values[:1], drafted, strict=False):
            self.errors.append(((value - draft).abs() / (value.abs() + 1e-10)).float().mean())


def first_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Where a module's arguments are."""
    return next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
