"""Hydra at arm's length: composing configurations, and saying in one line what is wrong.

`@hydra.main` in run.py composes the command line. Everything else (rows of a preset, tables, tests) composes
here with the same `conf/` and the same rules.
"""

from __future__ import annotations

import atexit
import copy
import dataclasses
import math
import os
import re
import shutil
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from experiments.config.register import GROUPS, register
from experiments.config.run import RunConfig
from experiments.errors import ConfigError, check, choose, nearest

__all__ = [
    "CONF",
    "Shared",
    "check_override",
    "compose",
    "compose_untyped",
    "explain",
    "key",
    "options",
    "parse_override",
    "set_up",
    "to_dataclass",
]


def to_dataclass(config: DictConfig) -> RunConfig:
    """The composed configuration as typed objects; the one place where a DictConfig is read."""
    refuse_strangers(config)
    typed = OmegaConf.to_object(config)
    if not isinstance(typed, RunConfig):
        raise ConfigError(f"config: must be composed from conf/config.yaml, got {type(typed).__name__}")
    for group in ("backend", "method", "sigma_schedule", "guidance"):
        choose(f"{group}.name", getattr(typed, group).name, options(group))
    refuse_infinite(dataclasses.asdict(typed))
    return typed


def refuse_infinite(value: Any, key: str = "") -> None:
    """Refuse numbers that are none: no setting may be infinite or NaN, or counted by no machine."""
    if isinstance(value, float):
        check(math.isfinite(value), key, "must be a finite number", value)
    elif isinstance(value, int):
        check(abs(value) < 1 << 63, key, "must be less than 2^63", value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            refuse_infinite(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            refuse_infinite(inner, key)


def refuse_strangers(config: DictConfig, prefix: str = "") -> None:
    """Refuse keys that are in no schema, however they were written (`+foo=1`).

    Raises:
        ConfigError: with the known keys.
    """
    kind = OmegaConf.get_type(config)
    fields = sorted(f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None
    for raw in config:
        name = str(raw)
        if fields is not None and name not in fields:
            rule = f"must be a known key ({', '.join(fields)})"
            raise ConfigError(f"{prefix}{name}: {rule}, got {name!r}{nearest(name, fields)}")
        inner = None if OmegaConf.is_missing(config, raw) else config._get_node(raw)
        if fields is not None and isinstance(inner, DictConfig) and not inner._is_none():
            refuse_strangers(inner, f"{prefix}{name}.")


CONF = Path(__file__).parents[2] / "conf"


@cache
def scratch() -> str:
    """A folder for what Hydra insists on writing in a sweep; it goes when the process ends.

    One of a process that was killed goes with the next sweep. Launchers that start other processes need one that stays
    and is shared: `hydra.sweep.dir=results/sweep`.
    """
    for left in Path(tempfile.gettempdir()).glob("hicache-sweep-*"):
        pid = left.name.split("-")[2]
        if pid.isdecimal() and Path("/proc/self").exists() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"hicache-sweep-{os.getpid()}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def set_up() -> None:
    """Register the schemas and the resolver that conf/config.yaml uses."""
    register()
    OmegaConf.register_new_resolver("scratch", scratch, replace=True, use_cache=True)


@cache
def groups() -> frozenset[str]:
    """The folders of conf/."""
    return frozenset(path.name for path in CONF.iterdir() if path.is_dir())


@cache
def check_override(word: str) -> None:
    """One `key=value`, before Hydra reads it.

    Raises:
        ConfigError: for words that are none, sweeps without a value, and options that their group does not have.
    """
    if word.startswith("~"):
        return
    key, equals, _ = word.partition("=")
    check(bool(equals) and bool(key.lstrip("+")), "override", "must read key=value", word)
    try:
        override = parse_override(word)
    except HydraException as error:
        raise ConfigError(quoting(word) or explain(error)) from error
    if override.is_sweep_override():
        empty = not (override.is_choice_sweep() or override.is_interval_sweep()) and not list(override.sweep_iterator())
        check(not empty, key, "must have values", word.partition("=")[2])
        return
    name, value = key.lstrip("+"), override.value()
    if name not in groups() or (name == "experiment" and value is None):
        return
    value = value.text if isinstance(value, QuotedString) else value
    if not isinstance(value, (list, dict)) and value not in options(name):
        raise ConfigError(refusal(name, str(value), options(name)))


Shared = dict[tuple[tuple[str, ...], bool], RunConfig]
"""What rows have in common that differ in numbers alone, by their other overrides."""


def compose(overrides: list[str], row: bool = False, shared: Shared | None = None) -> RunConfig:
    """The run that a command line with these overrides means; of a `row` of a preset, without the preset.

    With `shared`, runs that differ in numbers alone are composed once and have their groups in common, to be read only.
    """
    for override in overrides:
        check_override(override)
    try:
        if shared is None:
            return compose_afresh(overrides, row)
        common = tuple(override for override in overrides if not is_number(override))
        if (common, row) not in shared:
            shared[common, row] = compose_afresh(list(common), row)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    numbers = {key(override): parse_override(override).value() for override in overrides if is_number(override)}
    refuse_infinite(numbers)
    return dataclasses.replace(shared[common, row], **numbers)


def compose_afresh(overrides: list[str], row: bool) -> RunConfig:
    """As `compose`, from the beginning."""
    typed = to_dataclass(merge_values(overrides, row))
    return dataclasses.replace(typed, preset=None) if row else typed


NUMBERS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("interval", "budget", "warmup_steps", "num_steps", "num_items", "batch_size", "seed", "progress_every"), (int,)
    ),
    **dict.fromkeys(("order", "sigma"), (int, float)),
}
"""Keys that no other key of `conf/` reads, and the values that OmegaConf takes as they are."""


@cache
def is_number(override: str) -> bool:
    """Whether it sets one of `NUMBERS` to a number, which a typed configuration takes without being composed again."""
    name, _, value = override.partition("=")
    return name in NUMBERS and "," not in value and type(parse_override(override).value()) in NUMBERS[name]


def compose_untyped(overrides: list[str]) -> DictConfig:
    """The configuration as Hydra composes it."""
    set_up()
    with ExitStack() as stack:
        if not GlobalHydra.instance().is_initialized():
            stack.enter_context(initialize_config_dir(str(CONF), version_base="1.3"))
        return hydra_compose("config", overrides=overrides)


@cache
def parse_override(override: str) -> Override:
    """An override in Hydra's grammar."""
    return OverridesParser.create().parse_override(override)


@cache
def compose_choice(conf: Path, choice: tuple[str, ...], row: bool) -> DictConfig:
    """What Hydra composes of a choice of groups; of a `row`, without the preset.

    The method is put in afterwards: no default list depends on it, and no preset sets one, so that the many methods of
    a plan take one composition and not one each.
    """
    named = [word for word in choice if key(word) == "method" and word.partition("=")[2] in options("method")]
    if named:
        made = copy.deepcopy(compose_choice(conf, tuple(word for word in choice if word not in named), row))
        with flag_override(made, "readonly", False):
            made.method = compose_method(conf, named[-1].partition("=")[2])
        return made
    made = compose_untyped(list(choice))
    if row:
        with flag_override(made, "readonly", False):
            made.preset = None
    return made


@cache
def compose_method(conf: Path, name: str) -> DictConfig:
    """A method's schema, which is the one default of its file, with the values of that file."""
    values = OmegaConf.load(conf / "method" / f"{name}.yaml")
    assert isinstance(values, DictConfig)
    schema = str(values.pop("defaults")[0]).removeprefix("/schema/method/").removesuffix("@_here_")
    made = OmegaConf.merge(OmegaConf.structured(GROUPS["method"][schema]), values)
    assert isinstance(made, DictConfig)
    return made


def merge_values(overrides: list[str], row: bool = False) -> DictConfig:
    """Values on a copy of what their groups compose to: a twentieth of the time of `compose_untyped` after the first.

    No default list of `conf/` depends on a value, which is what makes this right; sweeps, additions, deletions and
    overrides of the preset itself are left to Hydra.
    """
    values = [override for override in overrides if key(override) not in groups()]
    own = any(v.startswith(("+", "~", "preset", "hydra")) or "@" in key(v) or "/" in key(v) for v in values)
    if own or any(parse_override(override).is_sweep_override() for override in overrides):
        return compose_untyped(overrides)
    made = copy.deepcopy(
        compose_choice(CONF, tuple(override for override in overrides if key(override) in groups()), row)
    )
    for value in values:
        OmegaConf.update(made, key(value), parse_override(value).value(), merge=True)
    return made


def options(group: str) -> list[str]:
    """The names that a group of conf/ offers."""
    return list(stems(CONF / group))


@cache
def stems(folder: Path) -> list[str]:
    """The names of the files of a group."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def key(override: str) -> str:
    """The key that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def explain(error: Exception) -> str:
    """One line for an error of composition: key, rule, value, nearest known name."""
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return refusal(group, name, options(group) or sorted(error.options or []))
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException):
        return explain_value(cause)
    if isinstance(error, OverrideParseException):
        return f"override: must read key=value, got {error.override!r}"
    if match := re.search(r"Could not override '(.+?)'", str(error)):
        return f"{match[1]}: must be a known key or group, got {match[1]!r}{nearest(match[1], groups())}"
    return " ".join(str(error).split())


PLAIN = re.compile(r"[A-Za-z0-9_./\\+$%*@?|:-]")
"""What may stand in a value that is not quoted."""


def quoting(override: str) -> str:
    """Which character of a value must be quoted, and how; nothing for values of plain characters and for lists."""
    name, equals, value = override.partition("=")
    place = next((i for i, letter in enumerate(value, 1) if not PLAIN.match(letter)), None)
    if not equals or place is None or value[0] in "[{(\"'" or "'" in value or '"' in value:
        return ""
    rule = f"must be quoted because of {value[place - 1]!r}, its character {place}"
    return f"{name}: {rule} ('{name}=\"{value}\"'), got {value!r}"


def explain_value(error: OmegaConfBaseException) -> str:
    """An unknown key or a value of the wrong type."""
    full, first = error.full_key or "config", str(error).splitlines()[0]
    if first.startswith("Key ") and dataclasses.is_dataclass(error.object_type):
        known = sorted(f.name for f in dataclasses.fields(error.object_type))
        name = full.rpartition(".")[2]
        return f"{full}: must be a known key ({', '.join(known)}), got {name!r}{nearest(name, known)}"
    if match := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", first):
        return f"{full}: must be of type {match[2].lower()}, got {match[1]!r}"
    if "is not Optional" in first:
        return f"{full}: must have a value, got null"
    return f"{full}: {first}"


def refusal(key: str, value: str, known: list[str]) -> str:
    """The line that `choose` says about a value that is not known."""
    return f"{key}: must be one of {', '.join(known)}, got {value!r}{nearest(value, known)}"
