"""What can be said on the command line of `experiments calibrate`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from experiments.artefacts.artefact import check_output
from experiments.calibration.search import SEARCH_ITEMS
from experiments.errors import ConfigError, check, choose
from hicache.forecast import BASES

__all__ = ["CURVE_OPTIONS", "MOMENT_OPTIONS", "PLACE_OPTIONS", "PLAN_OPTIONS", "Options"]

REFINEMENTS = ("none", "loop", "search", "newton")
NEWTON_ITEMS = 64
LEAST_ITEMS = 8
TRIALS_PER_ITEM = 20
"""Candidates per item: the best of many on few items is best on these alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The choices of a calibration; `experiments calibrate` says what they mean."""

    items: int = 32
    calibration_seed: int = 1000
    data: str = "trajectories"
    memory: int | None = None
    place_memory: int | None = None
    cost: str = "sampler"
    refine: str | None = None
    """null = search, loop or none: what the scope and the sampler allow; newton is asked for."""
    rounds: int = 2
    full_steps: str | None = None
    """Given full steps, as in 0+8+19; null = they are placed."""
    trials: int = 100
    """Candidates that a search for full steps scores at most."""
    ridge: float | None = None
    tokens: int = 96
    """Rows of tokens, a seeded choice, that inner products at scopes inside the model are of."""
    output: str | None = None
    basis: str | None = None
    time: str = "index"
    classes: str | None = None
    """Item titles to calibrate on, as in 0+1+2; null = all."""

    def __post_init__(self) -> None:
        choose("data", self.data, ("trajectories", "gaussian"))
        choose("cost", self.cost, ("sampler", "uniform"))
        choose("time", self.time, ("index", "sigma", "log_snr"))
        if self.refine is not None:
            choose("refine", self.refine, REFINEMENTS)
            if self.refine == "newton":
                rule = f"must be an integer >= {LEAST_ITEMS} for refine=newton, which holds some out"
                check(self.items >= LEAST_ITEMS, "items", rule, self.items)
            possible = self.data == "trajectories" or self.refine == "none"
            check(possible, "refine", "must be none for data=gaussian", self.refine)
        if self.full_steps is not None:
            check_places(self.full_steps)
            check(self.refine != "search", "refine", "must not be search beside full_steps, which stay", self.refine)
        if self.basis is not None:
            choose("basis", self.basis, BASES)
            check(self.data == "gaussian", "basis", "must be null unless data=gaussian", self.basis)
        for key in ("items", "rounds", "tokens"):
            check(getattr(self, key) >= 1, key, "must be an integer >= 1", getattr(self, key))
        check(self.memory is None or self.memory >= 1, "memory", "must be an integer >= 1", self.memory)
        valid = self.place_memory is None or 1 <= self.place_memory <= min(3, self.memory or 3)
        check(valid, "place_memory", "must be 1, 2 or 3 and no more than memory", self.place_memory)
        check(self.trials >= 0, "trials", "must be an integer >= 0", self.trials)
        valid = 0 <= self.calibration_seed < 1 << 63
        check(valid, "calibration_seed", "must be an integer from 0 to 2^63 - 1", self.calibration_seed)
        if self.output is not None:
            check_output(self.output)
        # Without a ridge neighbouring values, or one anchor counted twice, leave the weights undetermined.
        valid = self.ridge is None or 0 < self.ridge < math.inf
        check(valid, "ridge", "must be a finite number > 0", self.ridge)

    @property
    def penalty(self) -> float:
        """The ridge; a model of the schedule is smoother than any data and needs a larger one."""
        return (1e-8 if self.data == "trajectories" else 1e-4) if self.ridge is None else self.ridge

    @property
    def places(self) -> list[int]:
        """The given full steps; none where they are placed."""
        return [] if self.full_steps is None else [int(text) for text in self.full_steps.split("+")]

    @property
    def candidates(self) -> int:
        """How many candidates the search at scope output scores at most: `trials`, fewer where few items judge."""
        return 0 if self.full_steps is not None else min(self.trials, TRIALS_PER_ITEM * min(self.items, SEARCH_ITEMS))

    @staticmethod
    def parse(given: dict[str, str]) -> Options:
        """From the strings of the command line."""
        kinds: dict[str, Any] = {"ridge": float}
        whole = ("items", "calibration_seed", "memory", "place_memory", "rounds", "trials", "tokens")
        kinds |= dict.fromkeys(whole, int)
        typed: dict[str, Any] = {}
        for key, text in given.items():
            try:
                typed[key] = kinds.get(key, str)(text)
                if isinstance(typed[key], int) and abs(typed[key]) >= 1 << 63:
                    raise ValueError("too large")
            except ValueError:
                raise ConfigError(f"{key}: must be of type {kinds[key].__name__}, got {text!r}") from None
        for key in ("trials", "place_memory", "cost"):
            read = "full_steps" not in given or key not in given
            check(read, key, "must be left out beside full_steps, which are not searched", given.get(key))
        if typed.get("refine") == "newton":
            typed.setdefault("items", NEWTON_ITEMS)
        return Options(**typed)


def check_places(text: str) -> None:
    """Refuse what are no full steps.

    Raises:
        ConfigError: unless they are integers that grow from 0.
    """
    words = text.split("+")
    numbers = [int(word) if word.isdecimal() else -1 for word in words]
    valid = numbers[0] == 0 and all(a < b for a, b in itertools.pairwise(numbers))
    check(valid, "full_steps", "must be integers that grow from 0, as in 0+8+19", text)


PLAN_OPTIONS = ("budget", "quality", *(f.name for f in dataclasses.fields(Options)))
CURVE_OPTIONS = ("items", "calibration_seed", "classes", "output")
MOMENT_OPTIONS = ("items", "calibration_seed", "classes", "time")
PLACE_OPTIONS = ("budget", "items", "calibration_seed", "classes", "trials")
"""What is read for a plan, for curves, for what `sigma=auto` chooses from, and for placed full steps."""
