"""What is declared of single classes: optional rows, for what the engine cannot find by itself.

Of most classes nothing has to be known. A `Row` names the lists of blocks of a model where their names mislead, and
the streams of a block where two of them have equal shapes or where a block returns more than its streams. `Modules`
names what scope `modules` stubs in a block that has no plain attention and feed-forward modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

__all__ = ["MODULES", "ROWS", "Modules", "Row", "modules_row", "row_of"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model class.

    Attributes:
        lists: names of its block lists in the order in which they run; () = found by name.
        alternating: whether the lists run in turns, one block of each.
        streams: block class -> position of a tensor among those that the block returns -> the argument it continues.
            Positions that are left out continue none: such a tensor is forecast as it is.
    """

    lists: tuple[str, ...] = ()
    alternating: bool = False
    streams: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Modules:
    """One block class: the modules whose results are forecast, and those that then run for nothing (`hollow`)."""

    sites: tuple[str, ...]
    hollow: tuple[str, ...] = ()


ROWS: dict[str, Row] = {}
"""Rows by the name of the model's class."""

MODULES: dict[str, Modules] = {
    "FluxSingleTransformerBlock": Modules(sites=("proj_out",), hollow=("attn", "proj_mlp")),
    "HunyuanVideoSingleTransformerBlock": Modules(sites=("proj_out",), hollow=("attn", "proj_mlp")),
}
"""Modules by the name of the block's class."""


def row_of(model: nn.Module) -> Row:
    """The row of a model, by the names of its class and base classes; an empty one where there is none."""
    return next((ROWS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in ROWS), Row())


def modules_row(block: nn.Module) -> Modules | None:
    """The declared modules of a block."""
    return next((MODULES[kind.__name__] for kind in type(block).__mro__ if kind.__name__ in MODULES), None)
