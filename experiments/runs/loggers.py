"""Where a run is reported besides its folder. `conf/logger/<name>.yaml` chooses."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from experiments.config.run import Settings
from experiments.errors import choose
from experiments.runs.folder import RunFolder
from experiments.settings.identity import canonical

__all__ = ["LOGGERS", "Logger", "make_logger"]


class Logger(Protocol):
    """A sink for what happens in a run."""

    def items(self, records: list[dict[str, Any]]) -> None:
        """Items were finished."""

    def finish(self, metrics: dict[str, Any], picture: Path) -> None:
        """The run is done."""


class Silent:
    """Reports nothing."""

    def items(self, records: list[dict[str, Any]]) -> None:
        del records

    def finish(self, metrics: dict[str, Any], picture: Path) -> None:
        del metrics, picture


class Wandb:
    """Weights & Biases under the run's own id; its files lie in the run folder (see WANDB_MODE=offline)."""

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        import wandb

        identity = canonical(settings)
        self.run = wandb.init(
            project=settings.logger.project,
            id=folder.id,
            name=folder.id,
            group=settings.backend.name,
            dir=os.fspath(folder.path),
            config=identity | {"settings": dataclasses.asdict(settings.backend)},
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.image = wandb.Image
        self.count = 0

    def items(self, records: list[dict[str, Any]]) -> None:
        self.count += len(records)
        self.run.log({"items": self.count, "batch_seconds": records[-1]["batch_seconds"]})

    def finish(self, metrics: dict[str, Any], picture: Path) -> None:
        flat: dict[str, Any] = {}
        for name, value in metrics.items():
            if isinstance(value, dict):
                flat |= {f"{name}/{part}": v for part, v in value.items() if isinstance(v, (int, float))}
            elif isinstance(value, (int, float)):
                flat[name] = value
        self.run.log(flat | ({"picture": self.image(os.fspath(picture))} if picture.is_file() else {}))
        self.run.finish()


LOGGERS: dict[str, Callable[[Settings, RunFolder], Logger]] = {
    "none": lambda settings, folder: Silent(),
    "wandb": Wandb,
}


def make_logger(settings: Settings, folder: RunFolder) -> Logger:
    """The logger of the run."""
    return LOGGERS[choose("logger", settings.logger.name, LOGGERS)](settings, folder)
