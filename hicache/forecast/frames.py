"""The history of a list of tensors of any shapes: one forecaster for all of one shape and dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hicache.forecast.forecaster import Forecaster

__all__ = ["Ahead", "FeatureForecaster"]

Kind = tuple[torch.Size, torch.dtype]


class FeatureForecaster:
    """Remembers the features of computed steps and forecasts them.

    Args:
        build: makes a forecaster whose leading dimension tells the tensors apart, given a tensor's shape.
    """

    def __init__(self, build: Callable[[torch.Size], Forecaster]) -> None:
        self.build = build
        self.kinds: list[Kind] = []
        self.forecasters: dict[Kind, Forecaster] = {}
        self.num_steps: int | None = None
        self.offset = 0

    @property
    def ready(self) -> bool:
        """Whether there are features to forecast from."""
        return bool(self.kinds) and all(self.forecasters[kind].ready for kind in self.kinds)

    @property
    def bytes(self) -> int:
        """Memory of all histories."""
        return sum(forecaster.bytes for forecaster in self.forecasters.values())

    @property
    def kernel(self) -> str:
        """What reduced the last sum of forecasts; "" where there was none."""
        return next((forecaster.kernel for forecaster in self.forecasters.values() if forecaster.kernel), "")

    def reset(self, num_steps: int | None, offset: int = 0) -> None:
        """Forget the last generation; `offset` as in `Forecaster.reset`."""
        self.kinds, self.num_steps, self.offset = [], num_steps, offset
        for forecaster in self.forecasters.values():
            forecaster.reset(num_steps, offset)

    @torch.no_grad()
    def observe(self, step: int, features: Sequence[Tensor]) -> None:
        """Remember the features of a step; features of other shapes than before begin a new history."""
        kinds = [(feature.shape, feature.dtype) for feature in features]
        if kinds != self.kinds:
            self.forecasters = {kind: each for kind, each in self.forecasters.items() if kind in kinds}
            for kind in kinds:
                forecaster = self.forecasters.setdefault(kind, self.build(kind[0]))
                forecaster.reset(self.num_steps, self.offset)
                places = [index for index, other in enumerate(kinds) if other == kind]
                forecaster.among = None if len(places) == len(kinds) else (torch.tensor(places), len(kinds))
            self.kinds = kinds
        for kind, forecaster in self.forecasters.items():
            members = [feature for feature, other in zip(features, kinds, strict=True) if other == kind]
            buffer = forecaster.slot((len(members), *kind[0]), kind[1], members[0].device)
            for place, feature in zip(buffer, members, strict=True):
                place.copy_(feature, non_blocking=forecaster.aside(feature))
            forecaster.commit(step, buffer)

    def newest(self) -> list[Tensor]:
        """The features of the last anchor, in their order."""
        found = {kind: iter(forecaster.history.newest) for kind, forecaster in self.forecasters.items()}
        return [next(found[kind]) for kind in self.kinds]

    def predict(self, step: int) -> list[Tensor]:
        """The forecast of all features, in their order."""
        found = {kind: iter(forecaster.predict(step)) for kind, forecaster in self.forecasters.items()}
        return [next(found[kind]) for kind in self.kinds]

    def ahead(self, step: int) -> Ahead:
        """The forecasts at a step, each made when it is asked for."""
        return Ahead(self, step)


class Ahead:
    """Forecasts of features at a step; a weighted sum of many is one reduction over the histories."""

    def __init__(self, frames: FeatureForecaster, step: int) -> None:
        self.frames, self.step = frames, step

    def of(self, index: int) -> Tensor:
        """The forecast of one feature."""
        kind = self.frames.kinds[index]
        return self.frames.forecasters[kind].predict(self.step, self.frames.kinds[:index].count(kind))

    def add(self, base: Tensor, first: int, gates: Tensor) -> Tensor:
        """`base + sum_i gates[i] * forecast of feature first + i`.

        Args:
            base: a hidden state, `[B, N, D]`.
            first: the first of the features, which follow on one another and have the shape of `base`.
            gates: theirs, `[S, B, D]`.
        """
        kinds = self.frames.kinds
        used = kinds[first : first + len(gates)]
        for kind in dict.fromkeys(used):
            start = kinds[:first].count(kind)
            own = gates if len(set(used)) == 1 else gates[[i for i, other in enumerate(used) if other == kind]]
            sites = slice(start, start + len(own))
            base = self.frames.forecasters[kind].gated_predict(self.step, base, own, sites=sites)
        return base
