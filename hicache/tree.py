"""The words of the library: actions, sites and scopes.

A guided model is a tree: output - branch - stack - block - module - token rows. A method acts on a *scope*, a
cut through that tree; at each step every site of the scope is computed or estimated, and an estimated site is not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

__all__ = ["SCOPES", "Action", "Scope", "Site"]


class Action(Enum):
    """What happens to a site at a step; the first three are also the kinds of a step as a whole.

    COMPUTE runs it and remembers its value. ESTIMATE replaces it by a forecast. MIXED is a step of the model's own
    forward in which every module has an action of its own: one of these two, PATCH (a forecast of which some token
    rows are recomputed), VERIFY (run it, measure how wrong its forecast is, and go on with the forecast) or SKIP (from
    its block on nothing runs, and the scope is estimated as a whole).
    """

    COMPUTE = "compute"
    ESTIMATE = "estimate"
    MIXED = "mixed"
    PATCH = "patch"
    VERIFY = "verify"
    SKIP = "skip"


class Site(NamedTuple):
    """One place whose value is cached."""

    layer: int
    module: str
    stream: str = "img"

    def __str__(self) -> str:
        return f"{self.layer}.{self.module}.{self.stream}"


@dataclass(frozen=True)
class Scope:
    """A set of sites with the representation of their values."""

    name: str
    representation: str
    description: str


SCOPES: dict[str, Scope] = {
    scope.name: scope
    for scope in (
        Scope("modules", "value", "attention and MLP outputs after their projection, before the gate"),
        Scope("blocks", "residual", "hidden state after each block minus hidden state before it"),
        Scope("span", "residual", "both streams after a range of blocks minus before it; the other blocks run"),
        Scope("front_back", "residual", "the front and the back half of the blocks; one is estimated, the other runs"),
        Scope("stack", "residual", "hidden state after the last block minus hidden state before the first"),
        Scope("final_hidden", "hidden", "hidden state after the last block"),
        Scope("output", "value", "the prediction of the model"),
        Scope("deep", "value", "what the inner levels of a U-Net give to the layers around them, which run"),
    )
}
