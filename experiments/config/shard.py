"""Which part of a run's batches a process works on."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.errors import check

__all__ = ["Shard"]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `rank` of `world` of a run's batches."""

    rank: int = 0
    world: int = 1

    @staticmethod
    def parse(text: str) -> Shard:
        """`"1/4"` = the second of four parts."""
        rank, _, world = text.partition("/")
        valid = rank.isdecimal() and world.isdecimal() and int(rank) < int(world)
        check(valid, "shard", "must be rank/world with 0 <= rank < world, as in 0/4", text)
        return Shard(rank=int(rank), world=int(world))
