"""Every basis by its name in `forecaster=`. Adding one: a class in a file of its family, a line here.

Those with options are frozen dataclasses; `dataclasses.replace(BASES[name], **options)` sets them.
"""

from __future__ import annotations

from hicache.forecast.auto import Auto
from hicache.forecast.basis import Basis, Hermite, Newton, Reuse, ScaledTaylor, Taylor
from hicache.forecast.chebyshev import Chebyshev
from hicache.forecast.dmd import Dmd
from hicache.forecast.foca import Foca
from hicache.forecast.lesa import Lesa
from hicache.forecast.pade import Pade
from hicache.forecast.table import Table

__all__ = ["BASES"]

BASES: dict[str, Basis] = {
    "reuse": Reuse(),
    "taylor": Taylor(),
    "scaled_taylor": ScaledTaylor(),
    "hermite": Hermite(),
    "newton": Newton(),
    "foca": Foca(),
    "chebyshev": Chebyshev(),
    "pade": Pade(),
    "dmd": Dmd(),
    "auto": Auto(),
    "table": Table(),
    "lesa": Lesa(),
}
