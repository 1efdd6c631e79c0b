"""Where a run is reported besides its folder. `conf/logger/<name>.yaml` chooses.

What is reported is the same everywhere: `items` and `batch_seconds` while a run goes on, each metric as `<name>/mean`,
`<name>/low`, ..., single numbers by their name, and the picture. A finished run that is given a logger is reported
then; `logged.json` in its folder says by which it was.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from evaluation.decoders import open_picture
from experiments.config.run import Settings
from experiments.errors import ConfigError, choose
from experiments.files import read_json, write_json
from experiments.runs.folder import RunFolder
from experiments.settings.identity import canonical

__all__ = ["LOGGERS", "Logger", "Sink", "check_logger", "flat", "make_logger", "report_finished"]

LOGGED = "logged.json"


class Sink(Protocol):
    """A program that shows numbers over steps."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at a step, which is the number of finished items."""

    def picture(self, path: Path, step: int) -> None:
        """The picture of the run."""

    def close(self) -> str:
        """No more comes; returns the line that says how to see it."""
        ...


class Logger:
    """Reports a run to a sink; without one it does nothing."""

    def __init__(self, name: str, folder: RunFolder, sink: Sink | None) -> None:
        self.name, self.folder, self.sink = name, folder, sink
        self.count = 0 if sink is None else len(folder.records())
        """Items that are done; a run that continues goes on counting."""

    def items(self, records: list[dict[str, Any]]) -> None:
        """Items were finished."""
        self.count += len(records)
        if self.sink is not None:
            self.sink.log({"items": self.count, "batch_seconds": records[-1]["batch_seconds"]}, self.count)

    def finish(self, metrics: Mapping[str, Any], picture: Path) -> None:
        """The run is done."""
        if self.sink is None:
            return
        self.sink.log(flat(metrics), self.count)
        if picture.is_file():
            self.sink.picture(picture, self.count)
        print(f"{self.name}: {self.sink.close()}")
        write_json(self.folder.path / LOGGED, {**loggers_of(self.folder), self.name: True})


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name; those of a metric as `<name>/<part>`."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        parts = {f"{name}/{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
        found |= {k: v for k, v in parts.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return found


class Wandb:
    """Weights & Biases under the run's own id; its files lie in the run folder (see WANDB_MODE=offline)."""

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=settings.logger.project,
            id=folder.id,
            name=folder.id,
            group=settings.backend.name,
            dir=os.fspath(folder.path),
            config=description_of(settings),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def picture(self, path: Path, step: int) -> None:
        self.run.log({"picture": self.wandb.Image(os.fspath(path))}, step=step)

    def close(self) -> str:
        folder, offline, url = Path(self.run.dir).parent, self.run.offline, self.run.url
        self.run.finish()
        return f"wandb sync {folder}" if offline else str(url)


class TensorBoard:
    """Event files in `tensorboard/` of the run folder."""

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.folder = folder.path / "tensorboard"
        self.writer = SummaryWriter(os.fspath(self.folder))
        self.writer.add_text(
            "settings", "\n".join(f"- {key}: {value}" for key, value in description_of(settings).items())
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, path: Path, step: int) -> None:
        import numpy as np

        self.writer.add_image("picture", np.asarray(open_picture(path).convert("RGB")), step, dataformats="HWC")

    def close(self) -> str:
        self.writer.close()
        return f"tensorboard --logdir {self.folder.parents[1]}"


class Trackio:
    """Trackio's local store (TRACKIO_DIR), under the run's own id."""

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.trackio, self.project = trackio, settings.logger.project
        trackio.init(project=self.project, name=folder.id, config=description_of(settings), resume="allow")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.trackio.log(dict(values), step=step)

    def picture(self, path: Path, step: int) -> None:
        self.trackio.log({"picture": self.trackio.Image(os.fspath(path))}, step=step)

    def close(self) -> str:
        self.trackio.finish()
        return f"trackio show --project {self.project}"


def description_of(settings: Settings) -> dict[str, Any]:
    """What the run is."""
    return canonical(settings) | {"settings": dataclasses.asdict(settings.backend)}


LOGGERS: dict[str, tuple[str, type[Any]] | None] = {
    "none": None,
    "wandb": ("wandb", Wandb),
    "tensorboard": ("tensorboard", TensorBoard),
    "trackio": ("trackio", Trackio),
}
"""Name -> the package that it needs, and its sink."""


def check_logger(settings: Settings) -> None:
    """The logger must be one, and installed.

    Raises:
        ConfigError: naming the extra of this project that brings it.
    """
    name = choose("logger", settings.logger.name, LOGGERS)
    entry = LOGGERS[name]
    if entry is not None and find_spec(entry[0]) is None:
        raise ConfigError(f"logger: must be installed (pip install 'hicache[{name}]'), got {name!r}")


def make_logger(settings: Settings, folder: RunFolder) -> Logger:
    """The logger of the run."""
    check_logger(settings)
    entry = LOGGERS[settings.logger.name]
    return Logger(settings.logger.name, folder, None if entry is None else entry[1](settings, folder))


def loggers_of(folder: RunFolder) -> dict[str, Any]:
    """The loggers that the run was reported to."""
    path = folder.path / LOGGED
    return read_json(path) if path.is_file() else {}


def report_finished(settings: Settings, folder: RunFolder) -> None:
    """Report a run that was finished before, if its logger has not had it."""
    if settings.logger.name in ("none", *loggers_of(folder)):
        return
    logger = make_logger(settings, folder)
    logger.count = 0
    for record in folder.records().values():
        logger.items([record])
    logger.finish(folder.metrics(), folder.picture)
