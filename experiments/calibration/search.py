r"""A search for full steps by hill climbing, bounded by a count: its result does not depend on how fast a machine is.

Sought are s_0 = 0 < s_1 < ... < s_{K-1} < T with the largest score. From every start, the best one first, one step at a
time is moved by each of some sizes in turn, and a move stays if the score grows; a size is done when no move by it
helps. No candidate is scored twice, and when `trials` of them have been scored, the best of these is the answer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

__all__ = ["SEARCH_ITEMS", "Places", "search"]

SEARCH_ITEMS = 32
"""How many of the items full steps are moved for, at scope output."""

Places = tuple[int, ...]


def search(
    score: Callable[[Places], float], starts: Sequence[Places], num_steps: int, trials: int, sizes: Sequence[int]
) -> Places:
    """The best places that moving one step at a time finds from any of the starts.

    Args:
        score: larger is better.
        starts: increasing steps, each beginning with 0, which stays.
        num_steps: T; places are below it.
        trials: how many candidates are scored at most, starts included; 0 gives the first start.
        sizes: by how much a step is moved, in this order.
    """
    known = dict[Places, float]()

    def value(places: Places) -> float:
        if places not in known:
            if len(known) >= trials:
                return -math.inf
            known[places] = score(places)
        return known[places]

    def climb(best: Places, size: int) -> Places:
        before = None
        while before != best:
            before = best
            for i, shift in ((i, shift) for i in range(1, len(best)) for shift in (-size, size)):
                moved = (*best[:i], best[i] + shift, *best[i + 1 :])
                valid = all(a < b for a, b in zip(moved, (*moved[1:], num_steps), strict=True))
                if valid and value(moved) > value(best):
                    best = moved
        return best

    first = sorted(starts, key=value, reverse=True)
    return max((functools.reduce(climb, sizes, start) for start in first), key=value)
