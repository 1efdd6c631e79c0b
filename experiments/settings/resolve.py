"""From a composed configuration to the settings of a run."""

from __future__ import annotations

from experiments.config.run import RunConfig, Settings, fill
from experiments.settings.automatic import automatic

__all__ = ["resolve"]


def resolve(config: RunConfig) -> Settings:
    """The settings without an open value; `auto` is chosen from what a calibration stored."""
    settings = fill(config)
    open_keys = [key for key in ("sigma", "order") if getattr(config, key) == "auto"]
    return automatic(settings, open_keys) if open_keys else settings
