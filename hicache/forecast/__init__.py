"""Forecasting: bases (scalar weights), histories (anchors), sigma schedules, and the forecaster that joins them."""

from hicache.forecast.basis import BASES, Basis, ladder
from hicache.forecast.combine import combine, gated_sum
from hicache.forecast.forecaster import Forecaster
from hicache.forecast.history import HISTORIES, Differences, History, Snapshots
from hicache.forecast.scale import SIGMA_SCHEDULES, SigmaSchedule

__all__ = [
    "BASES",
    "HISTORIES",
    "SIGMA_SCHEDULES",
    "Basis",
    "Differences",
    "Forecaster",
    "History",
    "SigmaSchedule",
    "Snapshots",
    "combine",
    "gated_sum",
    "ladder",
]
