r"""Full steps for one method, placed in closed loop: `policy=placed`.

Sought are K steps s_0 = 0 < s_1 < ... < s_{K-1} that make the mean PSNR of the final samples largest,

    max_s  mean_i PSNR(x_i(s), x_i*),

x_i(s) being what item i becomes under the method with these full steps, x_i* its un-cached result. Errors of
different gaps cancel or add up in the final sample, so that no sum over gaps predicts it (least squares on a
trajectory loses to even steps by up to 7 dB on the models here). Hence every candidate is run. Starting from
`even`, `late`, `eased` and drawn schedules that a few of the items rank (`experiments.calibration.search`), one step at
a time is moved by 4, then 2, then 1, and a move stays if the search items gain.
The others decide at the end: if the best places are no better on them than even ones, even ones are stored.
"""

from __future__ import annotations

import copy
import dataclasses
import time

import torch
from torch import Tensor

import hicache
from experiments.artefacts.stored_places import save_places
from experiments.backends import load_backend
from experiments.backends.base import Backend, Item, Sampling, sampling_of
from experiments.calibration.items import calibration_items
from experiments.calibration.options import PLACE_OPTIONS, Options
from experiments.calibration.search import SCREEN_ITEMS, Places, find_starts, search
from experiments.config.compose import compose
from experiments.config.run import Settings
from experiments.errors import check
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from hicache.policy import Eased, Even, Late

__all__ = ["MOVES", "PLACE_DEFAULTS", "Trial", "place_steps", "store_places"]

PLACE_DEFAULTS = {"items": 12}
"""Options of a search where nothing else is said."""
MOVES = (4, 2, 1)
HELD_OUT = 3
"""One item of so many decides at the end."""


@dataclasses.dataclass
class Trial:
    """Runs a method with given full steps on the calibration items.

    Attributes:
        settings: of a run with `policy=placed`.
        backend: the model.
        items: the calibration items.
        runs: how many full steps were tried, on all of them.
    """

    settings: Settings
    backend: Backend
    items: list[Item]
    runs: int = 0

    def __post_init__(self) -> None:
        self.sampling: Sampling = sampling_of(self.settings)
        self.backend.prepare(self.sampling)
        self.plain = self.media(None)

    def media(self, places: Places | None) -> Tensor:
        """The items `[items, ...]` with these full steps; un-cached without."""
        made: list[Tensor] = []
        for start in range(0, len(self.items), self.settings.batch_size):
            batch = self.items[start : start + self.settings.batch_size]
            if places is None:
                made += self.backend.generate(batch, self.sampling)
                continue
            options = dict(self.settings.method.policy_options or {}) | {"places": list(places)}
            chosen = dataclasses.replace(self.settings.method, policy_options=options)
            with hicache.cached(self.backend.pipe, method_of(dataclasses.replace(self.settings, method=chosen))):
                made += self.backend.generate(batch, self.sampling)
        return torch.stack([each.detach().float().cpu() for each in made])

    def part(self, chosen: Tensor) -> Trial:
        """The same for the items at these places."""
        some = copy.copy(self)
        some.items, some.plain, some.runs = [self.items[i] for i in chosen.tolist()], self.plain[chosen], 0
        return some

    def psnr(self, places: Places) -> Tensor:
        """`-10 log10 MSE` against the un-cached result, in dB, of each item; media are between 0 and 1."""
        self.runs += 1
        errors = (self.media(places) - self.plain).square().flatten(1).mean(1).double()
        return -10 * errors.clamp(min=1e-12).log10()


def store_places(settings: Settings, options: Options) -> None:
    """Find the full steps of such runs and store them.

    Raises:
        ConfigError: for fewer than two items: one is needed that the search has not seen.
    """
    check(options.items >= 2, "items", "must be an integer >= 2: a third of them decides at the end", options.items)
    started, steps = time.monotonic(), settings.num_steps
    trial = Trial(settings=settings, backend=load_backend(settings.backend), items=calibration_items(settings, options))
    each = time.monotonic() - started
    held = torch.arange(len(trial.items)) % HELD_OUT == HELD_OUT - 1
    held[-1] |= not bool(held.any())
    plain = [tuple(kind(budget=settings.budget).steps(steps)) for kind in (Even, Late, Eased)]
    even, count = plain[0], len(trial.items)
    seen, unseen = (trial.part(which.nonzero().flatten()) for which in (~held, held))
    screen = seen.part(torch.arange(min(SCREEN_ITEMS, len(seen.items))))
    searched, decided = len(seen.items), len(unseen.items)
    cost = options.trials * (searched + len(screen.items)) + len(plain) * len(screen.items) + 2 * decided
    say = f"at most {options.trials} candidates, {cost * settings.budget / steps:.0f} full generations"
    print(
        f"{searched} items to search on, {decided} to decide; {say}; {count} un-cached ones took {each:.1f} s",
        flush=True,
    )
    starts = find_starts(lambda places: float(screen.psnr(places).mean()), plain, steps, options.trials)
    found = search(lambda places: float(seen.psnr(places).mean()), starts, steps, options.trials, MOVES)
    (before, after) = (float(unseen.psnr(places).mean()) for places in (even, found))
    kept = found if after > before else even
    said = "kept" if kept == found else "even steps are kept"
    print(f"  {list(found)}: {after:.2f} dB on held-out items, even steps {before:.2f} dB: {said}", flush=True)
    psnr = {"even": round(before, 3), "found": round(after, 3)}
    made = {"items": options.items, "calibration_seed": options.calibration_seed, "classes": options.classes}
    parts = (screen, seen, unseen)
    runs, generations = sum(part.runs for part in parts), sum(part.runs * len(part.items) for part in parts)
    facts = {
        "trials": options.trials,
        "runs": runs,
        "generations": generations,
        "held_out_psnr": psnr,
        "revision": settings.backend.revision,
    }
    path = save_places(settings, kept, made | facts)
    said = f"{runs} runs, {generations} items generated, {time.monotonic() - started:.1f} s"
    print(f"places: {path} ({said})", flush=True)


def place_steps(own: dict[str, str], overrides: list[str]) -> None:
    """The command line with `policy=placed`: a file per budget."""
    for key, text in own.items():
        check(key in PLACE_OPTIONS, key, "must be left out for policy=placed, which does not read it", text)
    given = {key: value for key, value in own.items() if key != "budget"}
    usual = {key: value for key, value in PLACE_DEFAULTS.items() if key not in given}
    options = dataclasses.replace(Options.parse(given), **usual)
    for budget in own.get("budget", "8").split(","):
        settings = resolve(compose([*overrides, f"budget={budget}"]))
        method_of(dataclasses.replace(settings, method=dataclasses.replace(settings.method, policy="even")))
        store_places(settings, options)
