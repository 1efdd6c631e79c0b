"""The histories of single modules, for steps at which some are computed and others are not.

Modules with values of one shape that are always computed at the same steps share a history, so that one buffer
holds them. A module that is computed while others of its history are not overwrites the newest value in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hicache.forecast.forecaster import Forecaster
from hicache.tree import Action, Site

__all__ = ["ModuleHistories"]


class ModuleHistories:
    """The histories of one branch's modules.

    Args:
        sites: the modules whose values are remembered.
        grouping: which of them share a history: `all`, those of a `kind`, or none (`site`).
        build: makes a forecaster.
    """

    def __init__(self, sites: Sequence[Site], grouping: str, build: Callable[[], Forecaster]) -> None:
        self.groups: dict[tuple[str, str], list[Site]] = {}
        for site in sites:
            shared = {"all": "", "kind": site.module, "site": str(site)}[grouping]
            self.groups.setdefault((shared, site.stream), []).append(site)
        self.place = {site: (key, i) for key, members in self.groups.items() for i, site in enumerate(members)}
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

    def reset(self, num_steps: int | None, offset: int = 0) -> None:
        """Forget the last generation; `offset` as in `Forecaster.reset`."""
        self._open = {}
        for forecaster in self.forecasters.values():
            forecaster.reset(num_steps, offset)

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
        buffer[index].copy_(value, non_blocking=forecaster.aside(value))

    def close(self, step: int) -> None:
        """The step is over: its new anchors count."""
        for key, buffer in self._open.items():
            if buffer is not None:
                self.forecasters[key].commit(step, buffer)
        self._open = {}

    def amend(self, site: Site) -> Tensor:
        """The newest value of a site, to be changed in place."""
        key, index = self.place[site]
        return self.forecasters[key].amend(index)

    def newest(self, site: Site) -> Tensor:
        """The newest value of a site, in the dtype of the observed ones."""
        key, index = self.place[site]
        return self.forecasters[key].newest(index)

    def add_to(self, hidden: Tensor, step: int, gates: dict[tuple[int, str], Tensor], image: slice) -> Tensor:
        """`hidden + sum over image sites of gate * forecast`: a step at which nothing runs.

        Args:
            hidden: image tokens before the first block.
            step: the step to forecast.
            gates: gate `[B, D]` of every gated module, by layer and name.
            image: the image's tokens among the joint ones.
        """
        for (_, stream), sites in self.groups.items():
            if stream != "txt":
                none = torch.zeros_like(next(iter(gates.values())))
                found = torch.stack([gates.get((site.layer, site.module), none) for site in sites])
                forecaster = self.forecasters[self.place[sites[0]][0]]
                hidden = forecaster.gated_predict(step, hidden, found, None if stream == "img" else image)
        return hidden

    def predict(self, site: Site, step: int) -> Tensor:
        """The forecast of a site."""
        key, index = self.place[site]
        return self.forecasters[key].predict(step, index)
