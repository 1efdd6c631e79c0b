r"""A search for full steps by hill climbing, bounded by a count: its result does not depend on how fast a machine is.

Sought are s_0 = 0 < s_1 < ... < s_{K-1} < T with the largest score. From every start, the best one first, one step at a
time is moved by each of some sizes in turn, and a move stays if the score grows; a size is done when no move by it
helps. No candidate is scored twice, and when `trials` of them have been scored, the best of these is the answer.

Scores have many local maxima, so where a climb begins counts more than how long it is. `draw_places` draws starts:
from s_0 = 0 to s_{K-1} = T-1-t, with gaps in proportion to

    g_i = exp(a u_i + b cos(pi u_i) + 0.2 e_i),    u_i = 2 i / (K-2) - 1,  i = 0..K-2,

a from -.8 to .8 (gaps grow or shrink), b from -.5 to .5 (longer or shorter in the middle), e normal, t from 0 to 3.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence

__all__ = ["SCREEN_ITEMS", "SEARCH_ITEMS", "START_SHARE", "Places", "draw_places", "find_starts", "search"]

SEARCH_ITEMS = 32
"""How many of the items full steps are moved for, at scope output."""
SCREEN_ITEMS = 4
"""How many of them tell which of many starts are worth a score."""
START_SHARE = 4
"""One of so many trials is a start."""
SLOPE, BEND, NOISE, TAILS = 0.8, 0.5, 0.2, (0, 0, 1, 1, 2, 3)

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


def draw_places(count: int, budget: int, num_steps: int) -> list[Places]:
    """So many sets of `budget` full steps, drawn as in the module docstring; fewer where there are not as many.

    The same arguments give the same sets.

    >>> draw_places(2, budget=6, num_steps=50)
    [(0, 6, 14, 21, 33, 48), (0, 6, 17, 34, 44, 49)]
    """
    generator, found = random.Random(0), dict[Places, None]()
    for _ in range(20 * count):
        if len(found) == count:
            break
        slope, bend = generator.uniform(-SLOPE, SLOPE), generator.uniform(-BEND, BEND)
        last = num_steps - 1 - min(generator.choice(TAILS), num_steps - budget)
        ends, gaps = [0.0], max(budget - 2, 1)
        for u in (2 * i / gaps - 1 for i in range(budget - 1)):
            ends.append(ends[-1] + math.exp(slope * u + bend * math.cos(math.pi * u) + generator.gauss(0, NOISE)))
        places = tuple(round(last * end / (ends[-1] or 1.0)) for end in ends)
        if all(a < b for a, b in itertools.pairwise(places)):
            found[places] = None
    return list(found)


def find_starts(score: Callable[[Places], float], plain: Sequence[Places], num_steps: int, trials: int) -> list[Places]:
    """Where a search is to begin: the first of some schedules, and the best of these and as many drawn ones as trials.

    Args:
        score: larger is better; on few items, for it is asked once for each of them.
        plain: schedules of as many full steps.
        num_steps: T.
        trials: of the search; a quarter of them are starts.
    """
    if trials < START_SHARE:
        return list(plain[:1])
    pool = sorted({*plain, *draw_places(trials, len(plain[0]), num_steps)})
    known = {places: score(places) for places in pool}
    best = sorted(pool, key=lambda places: -known[places])[: trials // START_SHARE]
    return list(dict.fromkeys([plain[0], *best]))
