r"""Steps at which every module has an action of its own.

The model's own forward runs, embedders, norms and gates included, with the modules' forwards replaced:

    COMPUTE    the module runs; its value is remembered
    ESTIMATE   its forecast is returned and it does not run
    PATCH      it runs on some rows; those are merged into its newest value, from which the forecast is made
               (`amend=before`), or into the forecast (`amend=after`)
    VERIFY     it runs, its value y is compared with the forecast, e = mean |y - y^| / (|y| + 1e-10), and the
               forecast is returned

In a single block attention and MLP share one output projection. Where the fusion is estimated neither half runs; where
it is patched, the MLP half runs on the picked rows and is fused with the remembered attention of these rows.

Modules with values of one shape that are always computed at the same steps share a history, so that one buffer
holds them. A module that is computed while others of its history are not overwrites the newest value in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from hicache.adapters.base import Adapter, eager, see_hooks
from hicache.adapters.cells import Cell, compiled, replaced, uncompiled
from hicache.forecast import Forecaster
from hicache.patch import Patch
from hicache.patch.base import gather
from hicache.policy import Clock, Policy
from hicache.tree import Action, Site

__all__ = ["Ledger", "MixedStep", "attach", "site_actions", "tracked"]


def tracked(adapter: Adapter, policy: Policy, patch: Patch | None) -> list[Cell]:
    """The cells whose values are remembered."""
    single = policy.grouping != "all" or (patch is not None and patch.covers(Site(0, "fused", "joint")))
    return [cell for cell in adapter.cells() if policy.covers(cell.site) and (single or cell.feeds is None)]


class Ledger:
    """The histories of one branch's cells."""

    def __init__(self, cells: Sequence[Cell], grouping: str, build: Callable[[], Forecaster]) -> None:
        self.groups: dict[tuple[str, str], list[Site]] = {}
        for cell in cells:
            shared = {"all": "", "kind": cell.site.module, "site": str(cell.site)}[grouping]
            self.groups.setdefault((shared, cell.site.stream), []).append(cell.site)
        self.place = {site: (key, i) for key, sites in self.groups.items() for i, site in enumerate(sites)}
        self.forecasters = {key: build() for key in self.groups}
        self._open: dict[tuple[str, str], Tensor | None] = {}

    @property
    def ready(self) -> bool:
        """Whether there is a value to forecast from."""
        return all(forecaster.ready for forecaster in self.forecasters.values())

    @property
    def bytes(self) -> int:
        """Memory of all histories."""
        return sum(forecaster.bytes for forecaster in self.forecasters.values())

    def reset(self, num_steps: int | None) -> None:
        """Forget the last generation."""
        self._open = {}
        for forecaster in self.forecasters.values():
            forecaster.reset(num_steps)

    def open(self, actions: dict[Site, Action] | None = None) -> None:
        """A step begins: histories all of whose sites are computed get a new anchor."""
        self._open = {
            key: None
            for key, sites in self.groups.items()
            if actions is None or all(actions[site] is Action.COMPUTE for site in sites)
        }

    @torch.no_grad()
    def record(self, site: Site, value: Tensor) -> None:
        """Remember a computed value."""
        key, index = self.place[site]
        forecaster = self.forecasters[key]
        if key not in self._open:
            forecaster.amend(index).copy_(value)
            return
        buffer = self._open[key]
        if buffer is None:
            shape = (len(self.groups[key]), *value.shape)
            buffer = self._open[key] = forecaster.slot(shape, value.dtype, value.device)
        buffer[index].copy_(value)

    def close(self, step: int) -> None:
        """The step is over: its new anchors count."""
        for key, buffer in self._open.items():
            if buffer is not None:
                self.forecasters[key].commit(step, buffer)
        self._open = {}

    def newest(self, site: Site) -> Tensor:
        """The newest value of a site, to be changed in place."""
        key, index = self.place[site]
        return self.forecasters[key].amend(index)

    def add_to(self, hidden: Tensor, step: int, gates: dict[tuple[int, str], Tensor], adapter: Adapter) -> Tensor:
        """`hidden + sum over image sites of gate * forecast`: a step at which nothing runs.

        Args:
            hidden: image tokens before the first block.
            step: the step to forecast.
            gates: gate `[B, D]` of every gated module, by layer and name.
            adapter: knows which tokens are the image's.
        """
        for (_, stream), sites in self.groups.items():
            if stream != "txt":
                none = torch.zeros_like(next(iter(gates.values())))
                found = torch.stack([gates.get((site.layer, site.module), none) for site in sites])
                forecaster = self.forecasters[self.place[sites[0]][0]]
                hidden = forecaster.gated_predict(step, hidden, found, None if stream == "img" else adapter.rows("img"))
        return hidden

    def predict(self, site: Site, step: int) -> Tensor:
        """The forecast of a site."""
        key, index = self.place[site]
        return self.forecasters[key].predict(step, index)


def attach(adapter: Adapter, cells: Sequence[Cell], sink: Callable[[Site, Tensor], None]) -> list[RemovableHandle]:
    """Hooks that give the value of every cell of a computed step to `sink`."""

    def observer(cell: Cell) -> Callable[..., None]:
        @eager
        def observe(module: Any, args: tuple[Any, ...], output: Any) -> None:
            sink(cell.site, adapter.cell_value(cell, output))

        return observe

    if any(compiled(block) for block in adapter.blocks()):
        see_hooks()
    return [cell.module.register_forward_hook(observer(cell)) for cell in cells]


class MixedStep:
    """The replaced forwards of one step of one branch."""

    def __init__(
        self, adapter: Adapter, cells: Sequence[Cell], ledger: Ledger, policy: Policy, patch: Patch | None, clock: Clock
    ) -> None:
        self.adapter, self.cells, self.ledger, self.patch, self.clock = adapter, cells, ledger, patch, clock
        self.actions = site_actions(cells, policy, patch, clock)
        self.errors: list[Tensor] = []
        self._rows: dict[Site, Tensor] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, the model's forward is this step."""
        forwards: list[tuple[Any, Callable[..., Any]]] = []
        fused = {cell.site for cell in self.cells if cell.up is not None}
        for cell in self.cells:
            if cell.up is not None:
                forwards += [(cell.up, self._up(cell)), (cell.module, self._fusion(cell))]
            elif cell.feeds is None:
                forwards.append((cell.module, self._plain(cell)))
        for cell in self.adapter.cells():
            if cell.feeds is not None and (cell.feeds in fused or cell.site in self.actions):
                forwards.append((cell.module, self._feeding(cell)))
        self.ledger.open(self.actions)
        with uncompiled(self.adapter.blocks()), replaced(forwards):
            yield
        self.ledger.close(self.clock.step)

    def _plain(self, cell: Cell) -> Callable[..., Any]:
        """A module that returns its value at once."""
        original, site = cell.module.forward, cell.site

        def forward(*args: Any, **kwargs: Any) -> Any:
            action = self.actions[site]
            if action in (Action.COMPUTE, Action.VERIFY):
                return self._computed(cell, action, original(*args, **kwargs))
            if action is Action.PATCH:
                rows = self._pick(site, args[0])
                return self._patched(site, rows, original(gather(args[0], rows), *args[1:], **kwargs))
            return self.adapter.cell_output(cell, self._forecast(site))

        return forward

    def _up(self, cell: Cell) -> Callable[..., Any]:
        """The opening layer of a single block's MLP: it runs on the rows that are fused anew."""
        assert cell.up is not None
        original, site, width = cell.up.forward, cell.site, cell.up.out_features

        def forward(x: Tensor) -> Tensor:
            action = self.actions[site]
            if action is Action.ESTIMATE:
                return x.new_empty(len(x), 0, int(width))  # type: ignore[arg-type]
            if action is Action.PATCH:
                self._rows[site] = self._pick(site, x)
                return original(gather(x, self._rows[site]))
            return original(x)

        return forward

    def _feeding(self, cell: Cell) -> Callable[..., Any]:
        """The attention of a single block: only the rows that are fused anew are wanted."""
        original, site, fusion = cell.module.forward, cell.site, cell.feeds
        assert fusion is not None
        fused = self.actions.get(fusion, Action.COMPUTE)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if fused is Action.ESTIMATE:
                x = kwargs["hidden_states"]
                return self.adapter.cell_output(cell, x[:, :0])
            if fused is Action.PATCH:
                return self.adapter.cell_output(cell, gather(self._forecast(site), self._rows[fusion]))
            if self.actions.get(site, Action.COMPUTE) is Action.ESTIMATE:
                return self.adapter.cell_output(cell, self._forecast(site))
            output = original(*args, **kwargs)
            return self._computed(cell, Action.COMPUTE, output) if site in self.actions else output

        return forward

    def _fusion(self, cell: Cell) -> Callable[..., Any]:
        """The output projection of a single block."""
        original, site = cell.module.forward, cell.site

        def forward(x: Tensor) -> Any:
            action = self.actions[site]
            if action is Action.ESTIMATE:
                return self._forecast(site)
            if action is Action.PATCH:
                return self._patched(site, self._rows.pop(site), original(x))
            return self._computed(cell, action, original(x))

        return forward

    def _pick(self, site: Site, x: Tensor) -> Tensor:
        assert self.patch is not None
        return self.patch.pick(site, self.clock, x.shape[1], len(x), x.device)

    def _patched(self, site: Site, rows: Tensor, fresh: Tensor) -> Tensor:
        """The forecast with the fresh rows in it."""
        assert self.patch is not None
        if self.patch.amend == "before":
            self.patch.merge(site, self.ledger.newest(site), rows, fresh)
            return self._forecast(site)
        value = self._forecast(site)
        self.patch.merge(site, value, rows, fresh)
        return value

    def _computed(self, cell: Cell, action: Action, output: Any) -> Any:
        """A module that ran: remember its value, or measure its forecast."""
        value = self.adapter.cell_value(cell, output)
        if action is Action.COMPUTE:
            self.ledger.record(cell.site, value)
            if self.patch is not None:
                self.patch.renew(cell.site)
            return output
        drafted = self._forecast(cell.site)
        error = ((value - drafted).abs() / (value.abs() + 1e-10)).float().mean(-1)
        valid = self.adapter.valid(cell.site.stream)
        self.errors.append(error.mean() if valid is None else (error * valid).sum() / valid.sum())
        return self.adapter.cell_output(cell, drafted)

    def _forecast(self, site: Site) -> Tensor:
        return self.ledger.predict(site, self.clock.step)


def site_actions(cells: Sequence[Cell], policy: Policy, patch: Patch | None, clock: Clock) -> dict[Site, Action]:
    """What every tracked cell does at a MIXED step: an estimated cell that the patch covers is patched."""
    actions = {cell.site: policy.site_action(clock, cell.site) for cell in cells}
    if patch is not None:
        for site, action in actions.items():
            if action is Action.ESTIMATE and patch.covers(site):
                actions[site] = Action.PATCH
    return actions
