"""Forecasting: bases (scalar weights), histories (anchors), sigma schedules, and the forecaster that joins them."""

from hicache.forecast.bases import BASES
from hicache.forecast.basis import Basis, LadderBasis, ladder
from hicache.forecast.combine import combine, gated_sum
from hicache.forecast.forecaster import Forecaster
from hicache.forecast.history import HISTORIES, Differences, Elementwise, History, Snapshots
from hicache.forecast.scale import SIGMA_SCHEDULES, SigmaSchedule
from hicache.forecast.window import ElementwiseBasis, GramBasis

__all__ = [
    "BASES",
    "HISTORIES",
    "SIGMA_SCHEDULES",
    "Basis",
    "Differences",
    "Elementwise",
    "ElementwiseBasis",
    "Forecaster",
    "GramBasis",
    "History",
    "LadderBasis",
    "SigmaSchedule",
    "Snapshots",
    "combine",
    "gated_sum",
    "ladder",
]
