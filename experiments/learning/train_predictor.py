"""Train the artefact of a learned method.

    python -m experiments train predictor method=lesa backend=digits
    python -m experiments train predictor method=lesa backend=digits temporal=mlp memories=6 output=mlp.safetensors
    python -m experiments train predictor method=l2c backend=digits penalty=1e-5

The options are those of `experiments.learning.predictor_options`; everything else is a setting of the run that the
artefact is for. The state of a training is kept in `results/training/`: the same command continues an interrupted one,
and repeats nothing that is done. Loss curves are in `losses.csv` there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.artefacts.learned_weights import path_of, save_artefact, valid_for
from experiments.backends import load_backend
from experiments.backends.base import sampling_of
from experiments.calibration.trajectories import Recording, load, record, split_arguments
from experiments.cli import Exit
from experiments.config.compose import compose
from experiments.config.method import TRAINED_SCOPES, LearnedConfig, MethodConfig
from experiments.config.run import Settings
from experiments.errors import ConfigError, check, choose
from experiments.learning.l2c_training import RouterTask
from experiments.learning.lesa_training import PredictorTask, rows_of
from experiments.learning.predictor_options import L2cOptions, LesaOptions, TrainOptions, parse
from experiments.learning.training_loop import LossPoint, Phase, train
from experiments.runs.runner import check as check_settings
from experiments.settings.resolve import resolve
from hicache.adapters import adapter_for
from hicache.forecast.lesa import Predictor

__all__ = ["record_trajectories", "train_predictor"]

KINDS: dict[str, type[TrainOptions]] = {"lesa": LesaOptions, "l2c": L2cOptions}


def digest(data: Any) -> str:
    """Eight digits that name a folder."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


def folder_of(settings: Settings, options: TrainOptions) -> Path:
    """Where the state of this training is kept."""
    what = dataclasses.asdict(options) | {"output": None}
    warmup = settings.warmup_steps if settings.method.name == "lesa" else None
    name = digest([valid_for(settings), what, warmup, str(settings.backend.path)])
    return settings.results / "training" / f"{settings.method.name}-{settings.backend.name}-{name}"


def record_trajectories(settings: Settings, options: LesaOptions) -> tuple[Tensor, Tensor]:
    """Trajectories of the training and of the held-out items, `[items, T, ...]`; recorded once."""
    scope = choose("scope", settings.scope, TRAINED_SCOPES)
    none = dataclasses.replace(
        settings,
        method=MethodConfig(name="none"),
        num_items=options.items + options.held_out,
        seed=options.training_seed,
    )
    recording = Recording(sites=(scope,), keep="tensors", tokens=options.tokens, reserve=0.0)
    name = digest([valid_for(settings), none.num_items, none.seed, none.batch_size, options.tokens])
    folder = settings.results / "training" / f"trajectories-{settings.backend.name}-{name}"
    record(none, recording, folder)
    values = load(folder)[scope]
    return values[: options.items], values[options.items :]


def build_lesa_task(settings: Settings, options: LesaOptions) -> PredictorTask:
    """The predictor with its data."""
    check_lesa(settings, options)
    known, unseen = record_trajectories(settings, options)
    adapter = adapter_for(load_backend(settings.backend).transformer)
    axis = adapter.channel(settings.scope)
    train_rows, held_rows = rows_of(known, axis), rows_of(unseen, axis)
    torch.manual_seed(options.training_seed)
    try:
        predictor = Predictor(
            channels=train_rows.shape[-1],
            num_steps=settings.num_steps,
            memories=options.memories,
            cuts=options.cuts,
            temporal=options.temporal,
            mixing=options.mixing,
            width=options.width,
            splines=options.splines,
            axis=axis,
            scope=settings.scope,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    named = zip(("guided", "closed"), options.updates, strict=True)
    phases = [Phase(name=name, updates=updates, rate=options.rate) for name, updates in named]
    return PredictorTask(
        predictor, train_rows, held_rows, options.intervals, settings.warmup_steps, options.rows, phases
    )


def check_lesa(settings: Settings, options: LesaOptions) -> None:
    """What does not fit the run's steps, found before anything is recorded."""
    over = max(options.intervals) > settings.num_steps
    check(not over, "intervals", f"must be integers from 2 to {settings.num_steps}", options.intervals)
    try:
        with torch.device("meta"):
            Predictor(1, settings.num_steps, options.memories, options.cuts, width=1, splines=4)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_l2c_task(settings: Settings, options: L2cOptions) -> RouterTask:
    """The router with the model that it is trained on."""
    torch.manual_seed(options.training_seed)
    phases = [Phase(name="router", updates=options.updates[0], rate=options.rate)]
    backend, sampling = load_backend(settings.backend), sampling_of(settings)
    return RouterTask(backend, sampling, options.penalty, options.images, options.items, options.held_out, phases)


def train_predictor(settings: Settings, options: TrainOptions) -> tuple[Path, list[LossPoint]]:
    """Train, write the artefact; returns it with the loss curve."""
    folder, config = folder_of(settings, options), settings.method
    assert isinstance(config, LearnedConfig)
    path = path_of(dataclasses.replace(settings, method=dataclasses.replace(config, artefact=options.output)))
    if isinstance(options, L2cOptions):
        task = build_l2c_task(settings, options)
        described: dict[str, Any] = {"sites": task.sites}
    else:
        assert isinstance(options, LesaOptions)
        task = build_lesa_task(settings, options)
        described = task.module.described
    curve = train(task, folder, options.training_seed, options.every)
    made = dataclasses.asdict(options) | {"output": None, "warmup_steps": settings.warmup_steps}
    tensors = dict(task.module.state_dict())
    save_artefact(path, tensors, valid_for(settings), {"method": config.name, **described}, made)
    print(f"artefact: {path} ({path.stat().st_size / 1000:.0f} kB; losses in {folder / 'losses.csv'})", flush=True)
    return path, curve


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    named = [a.partition("=")[2] for a in arguments if a.startswith("method=")]
    check(bool(named), "method", f"must be one of {', '.join(sorted(KINDS))}", None)
    kind = KINDS[choose("method", named[-1], KINDS)]
    own, overrides = split_arguments(arguments, [f.name for f in dataclasses.fields(kind)])
    options = parse(kind, own)
    settings = resolve(compose(overrides))
    check_settings(dataclasses.replace(settings, method=MethodConfig(name="none")))
    train_predictor(settings, options)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
