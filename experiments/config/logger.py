"""Schema of conf/logger/."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

__all__ = [
    "LoggerConfig",
]


@dataclass(kw_only=True)
class LoggerConfig:
    """Where progress is sent besides the run folder."""

    name: str = MISSING
    project: str = "hicache"
