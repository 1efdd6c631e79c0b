"""Freeze what is to be run: a preset or a sweep becomes a manifest, with its cost.

    python -m experiments plan experiment=digits_table
    python -m experiments plan experiment=table3 seed=0,1,2 num_items=50
    python -m experiments plan backend=digits method=hicache,taylorseer sigma=0.3,0.5 title=sigma

A value with commas, `range(...)` or `choice(...)` is a sweep; sweeps multiply. The reference of every row is a row of
its own and comes first. `title=` names the plan, `results=` the folder it lies in. Nothing is loaded or run, and
weights need not be here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from experiments.backends import backend_of
from experiments.cli import Exit
from experiments.config.backend import BackendConfig
from experiments.config.compose import Shared, compose, parse_override
from experiments.config.preset import RowConfig
from experiments.config.run import Settings
from experiments.errors import ConfigError, check
from experiments.files import ensure_writable, sweep, write_json, write_text
from experiments.plans.estimate import Forecast, forecast
from experiments.plans.freeze import freeze_group, freeze_settings
from experiments.plans.manifest import Plan, PlanRow, lines_of, plan_name
from experiments.plans.revision import revision
from experiments.settings.compatibility import check_method
from experiments.settings.describe import describe_method
from experiments.settings.identity import run_id
from experiments.settings.library_method import method_of
from experiments.settings.resolve import resolve
from experiments.settings.rows import Absent, Rows, split_rows

__all__ = ["main", "make_plan", "sweeps"]

OWN = ("title", "results")


def sweeps(words: list[str]) -> list[list[str]]:
    """The command lines that a command line with sweeps means, in the order of Hydra's multirun."""
    choices = []
    for word in words:
        try:
            override = parse_override(word)
        except HydraException as error:
            raise ConfigError(f"override: must read key=value, got {word!r}") from error
        choices.append(values_of(override, word))
    return [list(line) for line in itertools.product(*choices)]


def values_of(override: Override, word: str) -> list[str]:
    """One override per value of a sweep."""
    if not override.is_sweep_override():
        return [word]
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(f"{override.get_key_element()}: must list its values, got {word!r}")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def plan_rows(line: list[str], shared: Shared) -> tuple[Rows, Absent]:
    """The rows of one command line: those of its preset, or itself; and those that cannot be run."""
    config = compose(line, shared=shared)
    if config.preset is not None:
        return split_rows(config, line, shared)
    return [(RowConfig(label="", paper=None), config)], []


def make_plan(words: list[str], results: Path, title: str | None = None) -> tuple[Plan, list[str]]:
    """Compose, check, and write the plan; also says what could not be planned."""
    lines = sweeps(words)
    swept = {word.partition("=")[0] for line in zip(*lines, strict=True) if len(set(line)) > 1 for word in line}
    rows: dict[str, dict[str, Any]] = {}
    absent: dict[str, None] = {}
    shared: Shared = {}
    checked: dict[tuple[Any, ...], Settings] = {}
    for line in lines:
        made, left_out = plan_rows(line, shared)
        absent |= {f"{row.label} ({reason})": None for row, reason in left_out}
        for row, config in made:
            settings = resolve(config)
            if (alike := computation(settings)) not in checked:
                check_method(settings, backend_of(settings.backend), method_of(settings))
                checked[alike] = settings
            label = row.label or describe_method(settings)
            extra = [word for word in line if word.partition("=")[0] in swept & {"seed", "num_items", "num_steps"}]
            entry = {"label": ", ".join([label, *extra]), "block": row.block, "paper": row.paper, "settings": settings}
            rows.setdefault(run_id(settings), entry)
    if not rows:
        raise ConfigError(f"experiment: must have a row that can be run, got {' '.join(words)}: {'; '.join(absent)}")
    manifest = lines_of(in_order(rows))
    name = next((w.partition("=")[2] for w in words if w.startswith("experiment=")), "sweep")
    folder = results.resolve() / "plans" / plan_name(title or name, manifest)
    write_plan(folder, manifest, words)
    return Plan(folder), list(absent)


class Once:
    """A function of a group of settings, called once for each group that rows share."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.found: dict[int, tuple[Any, Any]] = {}
        """Groups stay here, so that no other gets the number of one."""

    def __call__(self, group: Any) -> Any:
        if id(group) not in self.found:
            self.found[id(group)] = group, self.function(group)
        return self.found[id(group)][1]


def backend(entry: dict[str, Any]) -> BackendConfig:
    """That of a row."""
    return entry["settings"].backend


def computation(settings: Settings) -> tuple[Any, ...]:
    """What rows that differ in seeds and items alone have in common; groups as they are kept, not by their values."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    kept = {name: value for name, value in values.items() if name not in ("seed", "num_items", "chosen")}
    return tuple(id(v) if dataclasses.is_dataclass(v) and name != "shard" else v for name, v in kept.items())


def in_order(rows: dict[str, dict[str, Any]]) -> list[PlanRow]:
    """References first, then rows; each part by backend, so that a model is loaded once."""
    references: dict[str, dict[str, Any]] = {}
    for identity, entry in rows.items():
        settings: Settings = entry["settings"]
        reference = settings.reference()
        shared_run = run_id(reference)
        own = identity == shared_run
        entry["reference"] = None if own else shared_run
        shared = {"label": "reference", "block": "", "paper": None, "settings": reference, "reference": None}
        references[shared_run] = entry if own else references.get(shared_run, shared)
    named = Once(repr)
    backends = {name: place for place, name in enumerate(dict.fromkeys(map(named, map(backend, rows.values()))))}

    def by_backend(part: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
        return sorted(part.items(), key=lambda pair: backends[named(backend(pair[1]))])

    others = {identity: entry for identity, entry in rows.items() if identity not in references}
    found, frozen = [*by_backend(references), *by_backend(others)], Once(freeze_group)
    return [
        PlanRow(
            index=index,
            run=identity,
            label=entry["label"],
            reference=entry["reference"],
            block=entry["block"],
            paper=entry["paper"],
            frozen=freeze_settings(entry["settings"], frozen),
        )
        for index, (identity, entry) in enumerate(found)
    ]


def write_plan(folder: Path, manifest: str, words: list[str]) -> None:
    """Write the folder unless it is there; who comes first decides, and the manifest comes last."""
    if (folder / "manifest.jsonl").is_file():
        (folder / "plan.json").touch()  # the newest of its title again
        return
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    code, diff = revision()
    write_text(folder / "code.diff", diff)
    write_json(folder / "plan.json", {"words": words, "rows": manifest.count("\n"), "code": code})
    write_text(folder / "manifest.jsonl", manifest)


def describe(plan: Plan, expected: Forecast, absent: list[str]) -> str:
    """What was planned, for a reader."""
    code = plan.facts["code"]
    with (plan.folder / "manifest.jsonl").open("rb") as manifest:
        digest = hashlib.file_digest(manifest, "sha256").hexdigest()[:12]
    changed = " with uncommitted changes (code.diff)" if code["dirty"] else ""
    said = [
        f"{len(plan.rows)} rows, {expected.done} done, {expected.to_do} to do; manifest {digest}",
        f"code: revision {(code['git'] or 'unknown')[:12]}{changed}, constraints {code['constraints'] or 'unknown'}",
        *expected.lines(),
    ]
    if absent:
        said.append(f"not planned: {len(absent)} rows that this version cannot run: {'; '.join(absent)}")
    return "\n".join(said)


def main(arguments: list[str]) -> None:
    """Plan what the arguments mean."""
    if {"--help", "-h"} & set(arguments):
        return print(__doc__)
    given = dict(word.split("=", 1) for word in arguments if "=" in word and word.split("=", 1)[0] in OWN)
    words = [word for word in arguments if word.partition("=")[0] not in OWN]
    title = given.get("title")
    valid = title is None or title.replace("-", "").replace("_", "").isalnum()
    check(valid and len(title or "") <= 100, "title", "must be at most 100 letters, digits, - and _", title)
    results = Path(given.get("results", "results"))
    ensure_writable(results)
    plan, absent = make_plan(words, results, title)
    print(describe(plan, forecast(plan), absent))
    return print(f"plan: {os.path.relpath(plan.folder)}", flush=True)


if __name__ == "__main__":
    outcome = Exit()
    outcome.guard(lambda: main(sys.argv[1:]))
    sys.exit(outcome.code)
