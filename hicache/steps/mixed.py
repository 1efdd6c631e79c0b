r"""Steps at which every module has an action of its own.

The model's own forward runs, embedders, norms and gates included, with the modules' forwards replaced:

    COMPUTE    the module runs; its value is remembered
    ESTIMATE   its forecast is returned and it does not run
    PATCH      it runs on some rows; those are merged into its newest value, from which the forecast is made
               (`amend=before`), or into the forecast (`amend=after`)
    VERIFY     it runs, its value y is compared with the forecast, e = mean |y - y^| / (|y| + 1e-10), and the
               forecast is returned; or (`Policy.whole_block`) its block runs once with forecasts and once without,
               both outputs are compared, and the first is returned
    SKIP       its block and all later ones do not run, and the result is that of an estimated step

In a single block attention and MLP share one output projection. Where the fusion is estimated neither half runs; where
it is patched, the MLP half runs on the picked rows and is fused with the remembered attention of these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from hicache.adapters.base import Adapter, Call, Streams
from hicache.adapters.hooks import guarded, join
from hicache.adapters.modules import Module, replaced
from hicache.generation import Branch
from hicache.generation_report import PlanError
from hicache.generic.stubs import uncompiled
from hicache.observe import observed
from hicache.patch import Patch
from hicache.patch.base import gather
from hicache.policy import Clock, Policy
from hicache.steps.estimated import EstimatedStep
from hicache.steps.setup import Setup
from hicache.tree import Action, Site

__all__ = ["MixedStep", "ModuleActions", "site_actions"]


class MixedStep:
    """The model's forward with an action for every module."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.estimated = EstimatedStep(setup)

    @torch.no_grad()
    def run(self, branch: Branch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's result.

        Raises:
            PlanError: if nothing was computed before.
        """
        setup, clock, patch = self.setup, branch.clock, branch.patch
        if not branch.histories.ready:
            raise PlanError(f"branch {clock.branch!r}: step {clock.step} is to be estimated before any full step")
        actions = ModuleActions(setup.adapter, setup.modules, branch)
        with ExitStack() as stack:
            if patch is not None and patch.needs != "hidden" and Action.COMPUTE in actions.actions.values():
                stack.enter_context(observed(setup.adapter, patch))
            stack.enter_context(actions.installed())
            if actions.end is None:
                result = setup.run(branch, call, args, kwargs)
            else:
                self._begin(branch, actions.end, args, kwargs)
                result = self.estimated.run(branch, call, args, kwargs)
        measured = actions.errors and not actions.errors[0].is_meta
        clock.error = float(torch.stack(actions.errors).mean()) if measured else None
        return result

    def _begin(self, branch: Branch, end: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the blocks before `end`, for what is remembered of them."""
        setup = self.setup

        def nothing(streams: Streams) -> Tensor:
            return torch.zeros_like(join(streams, text=True))

        with setup.observers.anchor(branch) as anchor:
            anchor.wanted = False
            with guarded(setup.adapter, (end, len(setup.adapter.blocks())), nothing):
                setup.forward(*args, **kwargs)


class ModuleActions:
    """The replaced forwards of one mixed step of one branch."""

    def __init__(self, adapter: Adapter, modules: Sequence[Module], branch: Branch) -> None:
        self.adapter, self.modules = adapter, modules
        self.histories, self.patch, self.clock = branch.histories, branch.patch, branch.clock
        self.actions = site_actions(modules, branch.policy, branch.patch, branch.clock)
        self.end = min((site.layer for site, action in self.actions.items() if action is Action.SKIP), default=None)
        self.verified: set[int] = set()
        if branch.policy.whole_block:
            self.verified = {site.layer for site, action in self.actions.items() if action is Action.VERIFY}
            estimated = {site: Action.ESTIMATE for site in self.actions if site.layer in self.verified}
            self.actions.update(estimated)
        self.errors: list[Tensor] = []
        self._rows: dict[Site, Tensor] = {}

    @contextmanager
    def installed(self) -> Generator[None]:
        """Inside, the model's forward is this step."""
        forwards: list[tuple[Any, Callable[..., Any]]] = []
        fused = {module.site for module in self.modules if module.up is not None}
        for module in self.modules:
            if module.up is not None:
                forwards += [(module.up, self._up(module)), (module.module, self._fusion(module))]
            elif module.feeds is None:
                forwards.append((module.module, self._plain(module)))
        for module in self.adapter.modules():
            if module.feeds is not None and (module.feeds in fused or module.site in self.actions):
                forwards.append((module.module, self._feeding(module)))
        forwards += [(self.adapter.blocks()[layer], self._block(layer)) for layer in self.verified]
        self.histories.open(self.actions)
        with uncompiled(self.adapter.blocks()), replaced(forwards):
            yield
        self.histories.close(self.clock.step)

    def _plain(self, module: Module) -> Callable[..., Any]:
        """A module that returns its value at once."""
        original, site = module.module.forward, module.site

        def forward(*args: Any, **kwargs: Any) -> Any:
            action = self.actions[site]
            if action in (Action.COMPUTE, Action.VERIFY):
                return self._computed(module, action, original(*args, **kwargs))
            if action is Action.PATCH:
                rows = self._pick(site, args[0])
                return self._patched(site, rows, original(gather(args[0], rows), *args[1:], **kwargs))
            return self.adapter.module_output(module, self._forecast(site))

        return forward

    def _up(self, module: Module) -> Callable[..., Any]:
        """The opening layer of a single block's MLP: it runs on the rows that are fused anew."""
        assert module.up is not None
        original, site, width = module.up.forward, module.site, module.up.out_features

        def forward(x: Tensor) -> Tensor:
            action = self.actions[site]
            if action is Action.ESTIMATE:
                return x.new_empty(len(x), 0, int(width))  # type: ignore[arg-type]
            if action is Action.PATCH:
                self._rows[site] = self._pick(site, x)
                return original(gather(x, self._rows[site]))
            return original(x)

        return forward

    def _feeding(self, module: Module) -> Callable[..., Any]:
        """The attention of a single block: only the rows that are fused anew are wanted."""
        original, site, fusion = module.module.forward, module.site, module.feeds
        assert fusion is not None
        fused = self.actions.get(fusion, Action.COMPUTE)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if fused is Action.ESTIMATE:
                x = kwargs["hidden_states"]
                return self.adapter.module_output(module, x[:, :0])
            if fused is Action.PATCH:
                return self.adapter.module_output(module, gather(self._forecast(site), self._rows[fusion]))
            if self.actions.get(site, Action.COMPUTE) is Action.ESTIMATE:
                return self.adapter.module_output(module, self._forecast(site))
            output = original(*args, **kwargs)
            return self._computed(module, Action.COMPUTE, output) if site in self.actions else output

        return forward

    def _fusion(self, module: Module) -> Callable[..., Any]:
        """The output projection of a single block."""
        original, site = module.module.forward, module.site

        def forward(x: Tensor) -> Any:
            action = self.actions[site]
            if action is Action.ESTIMATE:
                return self._forecast(site)
            if action is Action.PATCH:
                return self._patched(site, self._rows.pop(site), original(x))
            return self._computed(module, action, original(x))

        return forward

    def _block(self, layer: int) -> Callable[..., Any]:
        """A block that is verified as a whole: its modules' forecasts against the modules themselves."""
        block = self.adapter.blocks()[layer]
        parts = [part for m in self.adapter.modules() if m.site.layer == layer for part in (m.module, m.up)]
        original, own = block.forward, [(part, part.forward) for part in parts if part is not None]

        def forward(*args: Any, **kwargs: Any) -> Any:
            drafted = original(*args, **kwargs)
            with replaced(own):
                true = original(*args, **kwargs)
            self._compare(self.adapter.unpack(true)[0], self.adapter.unpack(drafted)[0], "img")
            return drafted

        return forward

    def _pick(self, site: Site, x: Tensor) -> Tensor:
        assert self.patch is not None
        return self.patch.pick(site, self.clock, x.shape[1], len(x), x.device)

    def _patched(self, site: Site, rows: Tensor, fresh: Tensor) -> Tensor:
        """The forecast with the fresh rows in it."""
        assert self.patch is not None
        if self.patch.amend == "before":
            self.patch.merge(site, self.histories.amend(site), rows, fresh)
            return self._forecast(site)
        value = self._forecast(site)
        self.patch.merge(site, value, rows, fresh)
        return value

    def _computed(self, module: Module, action: Action, output: Any) -> Any:
        """A module that ran: remember its value, or measure its forecast."""
        value = self.adapter.module_value(module, output)
        if action is Action.COMPUTE:
            self.histories.record(module.site, value)
            if self.patch is not None:
                self.patch.renew(module.site)
            return output
        drafted = self._forecast(module.site)
        self._compare(value, drafted, module.site.stream)
        return self.adapter.module_output(module, drafted)

    def _compare(self, value: Tensor, drafted: Tensor, stream: str) -> None:
        """Note how wrong a forecast is."""
        error = ((value - drafted).abs() / (value.abs() + 1e-10)).float().mean(-1)
        valid = self.adapter.valid(stream)
        self.errors.append(error.mean() if valid is None else (error * valid).sum() / valid.sum())

    def _forecast(self, site: Site) -> Tensor:
        return self.histories.predict(site, self.clock.step)


def site_actions(modules: Sequence[Module], policy: Policy, patch: Patch | None, clock: Clock) -> dict[Site, Action]:
    """What every tracked module does at a MIXED step: an estimated module that the patch covers is patched."""
    actions = {module.site: policy.site_action(clock, module.site) for module in modules}
    if patch is not None:
        for site, action in actions.items():
            if action is Action.ESTIMATE and patch.covers(site):
                actions[site] = Action.PATCH
    return actions
