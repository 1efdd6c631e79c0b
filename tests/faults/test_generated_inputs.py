"""The rule for bad input: one line with the key, the rule and the value, code 2, nothing written.

Inputs are generated from the schemas: each typed key gets values that its type can never have.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from benchmarks import digits, speed
from benchmarks.common import arguments as benchmark_arguments
from evaluation import cli as evaluation
from evaluation.errors import EvaluationError
from evaluation.registry import METRICS
from experiments.calibration.options import Options
from experiments.config.compose import compose, options
from experiments.config.register import GROUPS
from experiments.config.run import RunConfig
from experiments.errors import ConfigError
from experiments.learning.predictor_options import L2cOptions, LesaOptions, parse
from experiments.settings.resolve import resolve

NEVER: dict[str, tuple[str, ...]] = {
    "int": ("abc", "1.5", "nan", "inf", "[1]", "{a:1}", "''", "99999999999999999999999999999999999999"),
    "float": ("abc", "nan", "inf", "-inf", "[1]", "{a:1}", "''"),
    "bool": ("abc", "2.5", "[true]", "nan"),
    "str": ("[a]", "{a:1}"),
}
"""Values that a key of the type can never have."""


def kinds(annotation: Any) -> list[str]:
    """`int`, `float`, ... of an annotation; empty for what is no plain type."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    parts = [part.strip() for part in text.split("|")]
    return parts if all(part in (*NEVER, "None") for part in parts) else []


def typed_keys() -> list[tuple[str, str, list[str]]]:
    """Choice of a group, dotted key, its kinds: of every schema class once, and of the top level."""
    found: list[tuple[str, str, list[str]]] = []
    for f in dataclasses.fields(RunConfig):
        found.append(("", f.name, kinds(f.type)))
    for group, schemas in GROUPS.items():
        for name in options(group):
            made = getattr(compose([f"{group}={name}"] if group != "backend" else quick(name)), group)
            if type(made) in schemas.values() and not any(e[0].endswith(f"={type(made).__name__}") for e in found):
                for f in dataclasses.fields(made):
                    found.append((f"{group}={name}={type(made).__name__}", f"{group}.{f.name}", kinds(f.type)))
    return [entry for entry in found if entry[2] and not entry[1].endswith(".name")]


def quick(backend: str) -> list[str]:
    """A backend at the size that is there."""
    shipped = ("digits", "emoji", "inf_dit_small")
    return [f"backend={backend}", *([] if backend in shipped else ["backend.size=tiny"])]


def generated() -> list[tuple[list[str], str]]:
    """Command lines, each with the key that must be named."""
    made: list[tuple[list[str], str]] = []
    for choice, key, kind in typed_keys():
        group, _, name = choice.rpartition("=")[0].partition("=")
        base = quick(name) if group == "backend" else [f"{group}={name}"] if group else []
        (plain,) = [part for part in kind if part != "None"][:1]
        made += [([*base, f"{key}={value}"], key) for value in NEVER[plain]]
        if "None" not in kind:
            made.append(([*base, f"{key}=null"], key))
    return made


def one_line(error: Exception, key: str) -> None:
    """The line is one and names the key."""
    assert "\n" not in str(error).strip() and key.rpartition(".")[2] in str(error), error


@pytest.mark.slow
def test_generated_settings_are_refused_by_key():
    tried, wrong = 0, []
    for words, key in generated():
        tried += 1
        try:
            resolve(compose(words))
        except ConfigError as error:
            one_line(error, key)
        else:
            wrong.append(words[-1])
    assert wrong == []
    assert tried >= 300


@pytest.mark.parametrize("kind", [LesaOptions, L2cOptions])
def test_generated_options_of_trainings_are_refused(kind):
    for f in dataclasses.fields(kind):
        plain = str(f.type).partition(" |")[0]
        values = NEVER.get(plain, ()) if plain != "str" else ()
        for value in (*values, *(("a", "1.5", "", "-1") if plain.startswith("tuple") else ())):
            with pytest.raises(ConfigError) as error:
                parse(kind, {f.name: value.strip("'")})
            one_line(error.value, f.name)


def test_generated_options_of_calibrations_are_refused():
    for f in dataclasses.fields(Options):
        plain = str(f.type).partition(" |")[0]
        for value in NEVER[plain] if plain != "str" else ():
            with pytest.raises(ConfigError) as error:
                Options.parse({f.name: value.strip("'")})
            one_line(error.value, f.name)


@pytest.mark.parametrize("defaults", [digits.DEFAULTS, speed.DEFAULTS], ids=["digits", "speed"])
def test_generated_arguments_of_benchmarks_are_refused(defaults):
    for key, value in defaults.items():
        for wrong in NEVER[type(value).__name__]:
            with pytest.raises(ConfigError) as error:
                benchmark_arguments([f"{key}={wrong}"], defaults)
            one_line(error.value, key)


def test_generated_options_of_metrics_are_refused():
    tried = 0
    for name, metric in METRICS.items():
        for f in dataclasses.fields(metric):
            for kind in kinds(f.type):
                for value in ("abc", [1], {"a": 1}, float("nan")) if kind in ("int", "float", "bool") else ():
                    tried += 1
                    with pytest.raises(EvaluationError) as error:
                        metric.create({f.name: value})
                    one_line(error.value, f.name)
    assert tried >= 20


def test_generated_keys_of_the_evaluation_are_refused():
    numbers = {"batch_size": ("abc", "1.5", "null", "[1]"), "level": ("abc", "null", "[1]")}
    flags = dict.fromkeys(("subset", "unquote"), ("abc", "1", "null", "[true]"))
    names = dict.fromkeys(("run", "images", "reference", "prompts", "out"), ("[a]", "{a: 1}", "''", "true"))
    lists = {"metrics": ("{a: 1}", "[null]", "[{a: 1}]", "[[psnr]]", "3")}
    for key, values in {**numbers, **flags, **names, **lists, "device": ("tpu", "cuda:99", "''", "[cpu]")}.items():
        for value in values:
            with pytest.raises(EvaluationError) as error:
                evaluation._request(evaluation.parse([f"{key}={value}"]))
            one_line(error.value, key)
