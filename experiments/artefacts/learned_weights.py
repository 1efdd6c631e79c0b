"""Artefacts of the learned methods: safetensors whose header says what they are valid for.

The rule is that of plan files (`experiments.artefacts.plans`): keys are backend, solver, steps, guidance, resolution
and scope, here with the revision of the weights, and an artefact whose keys differ from the run's is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from experiments.artefacts.artefact import Artefact, command, keys_of, prepare
from experiments.config.method import TRAINED_SCOPES, LearnedConfig
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.files import ASSETS, write_tensors
from hicache.forecast.lesa import Predictor

__all__ = [
    "WEIGHTS",
    "load_artefact",
    "load_predictor",
    "load_router",
    "maker",
    "path_of",
    "read",
    "save_artefact",
    "valid_for",
]


def valid_for(settings: Settings) -> dict[str, Any]:
    """The keys of an artefact trained with these settings."""
    scope = "modules" if settings.method.name == "l2c" else settings.scope
    return keys_of(settings) | {"scope": scope, "revision": settings.backend.revision}


def path_of(settings: Settings) -> Path:
    """The artefact that the run uses."""
    config = settings.method
    assert isinstance(config, LearnedConfig)
    if config.artefact is not None:
        return Path(config.artefact)
    keys = valid_for(settings)
    guidance = "" if keys["guidance"] is None else f"-g{keys['guidance']:g}"
    name = f"{config.name}-{keys['scope']}-{keys['solver']}{keys['num_steps']}{guidance}.safetensors"
    return ASSETS / settings.backend.name / "learned" / name


def maker(settings: Settings) -> str:
    """The command that trains the run's artefact, or why there is none."""
    config, own = settings.method, settings.method.defaults()
    assert isinstance(config, LearnedConfig)
    words: dict[str, Any] = {}
    if config.name == "lesa":
        if settings.scope not in TRAINED_SCOPES:
            return f"only scopes {', '.join(TRAINED_SCOPES)} can be trained"
        given = {"scope": settings.scope, "warmup_steps": settings.warmup_steps}
        words = {key: value for key, value in given.items() if value != own[key]}
    return command(settings, "train predictor", method=config.name, **words, output=config.artefact)


MOST = 64
"""Stages of noise at most."""

HEADER = "artefact"
"""The one key of the metadata: safetensors keeps no order of several."""


def save_artefact(
    path: Path, tensors: dict[str, Tensor], keys: dict[str, Any], described: dict[str, Any], made: dict[str, Any]
) -> None:
    """Write tensors with the keys they are valid for, what they parametrise and how they were made."""
    prepare(path)
    header = {"keys": keys, "described": described, "made": made}
    text = json.dumps(header, allow_nan=False, sort_keys=True)
    write_tensors(path, {name: tensor.detach().cpu() for name, tensor in tensors.items()}, {HEADER: text})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of an artefact; older ones have a key for each part of the header."""
    with safe_open(path, framework="pt") as handle:
        header = {name: json.loads(text) for name, text in (handle.metadata() or {}).items()}
        header = header.get(HEADER, header)
        return {name: handle.get_tensor(name) for name in handle.keys()}, header  # noqa: SIM118


def read_described(path: Path) -> tuple[tuple[dict[str, Tensor], dict[str, Any]], dict[str, Any]]:
    """An artefact's tensors and what they parametrise, and what it is valid for."""
    tensors, header = read(path)
    found, described = header["keys"], header["described"]
    fits = isinstance(found, dict) and isinstance(described, dict)
    check(fits, "header", "must say keys and what it describes", type(described).__name__)
    return (tensors, described), found


WEIGHTS = Artefact(
    name="artefact",
    option="method.artefact",
    what="a trained file",
    used=lambda settings: isinstance(settings.method, LearnedConfig),
    path=path_of,
    keys=valid_for,
    maker=maker,
    read=read_described,
)


def load_artefact(settings: Settings) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of the run's artefact.

    Raises:
        ConfigError: if there is none, or it is not valid for the run.
    """
    path, name = path_of(settings), settings.method.name
    tensors, described = WEIGHTS.load(settings)
    if described.get("method") != name:
        rule = f"{path.name} is for method {described.get('method')!r}"
        raise ConfigError(f"method.artefact: {rule}, got {name!r}")
    return tensors, described


def load_predictor(settings: Settings) -> Predictor:
    """The trained predictor of a `lesa` run."""
    tensors, described = load_artefact(settings)
    values = {key: value for key, value in described.items() if key != "method"}
    path = path_of(settings)
    memories = values.get("memories")
    few = isinstance(memories, list) and len(memories) <= MOST and all(isinstance(k, int) for k in memories)
    check(few, "method.artefact", f"must describe at most {MOST} stages", str(path))
    try:
        with torch.device("meta"):  # what is described may be anything; no memory is asked for before it fits the file
            shapes = {name: tensor.shape for name, tensor in Predictor(**values).state_dict().items()}
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"method.artefact: must describe a predictor ({said}), got {str(path)!r}") from error
    fits = shapes == {name: tensor.shape for name, tensor in tensors.items()}
    check(fits, "method.artefact", "must hold the tensors that it describes", str(path))
    check(all(t.isfinite().all() for t in tensors.values()), "method.artefact", "must hold finite numbers", str(path))
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that are replaced
        predictor = Predictor(**values)
    predictor.load_state_dict(tensors)
    return predictor.eval().requires_grad_(False)


def load_router(settings: Settings) -> dict[str, Any]:
    """Sites and logits of an `l2c` run."""
    tensors, described = load_artefact(settings)
    sites, logits = described.get("sites"), tensors.get("logits")
    fits = isinstance(sites, list) and logits is not None and logits.shape[-1:] == (len(sites),)
    check(fits, "method.artefact", "must hold sites and a logit for each", str(path_of(settings)))
    assert logits is not None
    return {"sites": sites, "logits": logits.tolist()}
