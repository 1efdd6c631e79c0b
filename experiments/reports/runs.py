"""Tables of any runs: those of folders, by name, or by the digits of their identity.

A word names a run folder, a folder of runs or results (all runs in it), a sweep's folder, or a run of the results
folder by its whole name, by a pattern (`digits-hicache-*`) or by the beginning of its twelve digits. Runs of one
backend and set of items make a table: others are never ranked beside them. Rows are labelled by the method and by the
settings in which its runs differ. The same run in two places is one row.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import hicache
from evaluation.records import is_identity
from experiments.config.preset import PresetConfig
from experiments.errors import check, choose
from experiments.files import read_config, read_json
from experiments.reports.columns import directions
from experiments.reports.plot import STEPS, leaves
from experiments.reports.result_table import COSTS, ResultTable, Row, cells_in
from experiments.runs.folder import read_metrics
from experiments.runs.style import SOLVERS

__all__ = ["build_runs", "find_runs"]

RECORD = "config.yaml"
METHOD_TITLES = {name: spec.title for name, spec in hicache.METHODS.items()}


def find_runs(words: list[str], results: Path) -> dict[str, Path]:
    """Name -> folder of the runs that the words mean, in their order."""
    found: dict[str, Path] = {}
    for word in words:
        for folder in folders_of(word, results):
            found.setdefault(folder.name, folder)
    return found


def folders_of(word: str, results: Path) -> list[Path]:
    """The run folders that one word means."""
    check(len(word) < 1024 and max(map(len, word.split("/"))) < 256, "run", "must be a run, or a folder of runs", word)
    for path in (Path(word), results / "runs" / word):
        if (path / RECORD).is_file():
            return [path.resolve()]
    for path in (Path(word) / "runs", Path(word)):
        if runs := sorted(record.parent for record in path.glob(f"*/{RECORD}")):
            return [run.resolve() for run in runs]
    if (Path(word) / "runs.json").is_file():
        return [
            folder
            for name in list_sweep(Path(word) / "runs.json")
            for folder in folders_of(name, Path(word).parents[1])
        ]
    names = [record.parent.name for record in sorted((results / "runs").glob(f"*/{RECORD}"))]
    if "*" in word:
        matching = fnmatch.filter(names, word)
        check(bool(matching), "run", f"must match one of {', '.join(names)}", word)
        return [(results / "runs" / name).resolve() for name in matching]
    named = [name for name in names if len(word) >= 4 and name.rpartition("-")[2].startswith(word)]
    check(len(named) < 2, "run", f"must begin one name ({', '.join(named)})", word)
    name = named[0] if named else choose("run", word, names)
    return [(results / "runs" / name).resolve()]


def list_sweep(path: Path) -> list[str]:
    """The runs of a sweep, which are named by their ids and nothing that leads elsewhere."""
    names = list(read_json(path))
    wrong = [name for name in names if not is_identity(name)]
    check(not wrong, str(path), "must name runs by their ids", wrong)
    return names


def build_runs(words: list[str], results: Path) -> tuple[list[ResultTable], list[Path]]:
    """A table for the runs of each backend and set of items, and the folders that they lie in.

    What runs of one table share is not in their labels; a sweep's runs have the labels that it gave them.
    """
    found = find_runs(words, results)
    check(bool(found), "run", "must be a run, or a folder of runs", " ".join(words))
    said = {name: identity_of(folder) for name, folder in found.items()}
    groups: dict[str, list[str]] = {}
    for name, identity in said.items():
        groups.setdefault(set_of(identity), []).append(name)
    tables = []
    for group, names in groups.items():
        stem = "runs" if len(groups) == 1 else f"runs_{group.split(',')[0].split()[0]}_{len(tables) + 1}"
        tables.append(table_of({name: found[name] for name in names}, {n: said[n] for n in names}, stem, group))
    return tables, list(dict.fromkeys(folder.parent for folder in found.values()))


def set_of(identity: Mapping[str, Any]) -> str:
    """Backend, its settings and the items: runs that differ in these are not compared."""
    backend = {"name": "unknown", **identity.get("backend", {})}
    shared = {key: identity.get(key) for key in ("num_steps", "num_items", "seed")}
    more = ", ".join(f"{key}={value}" for key, value in backend.items() if key not in ("name", "revision"))
    items = f"{shared['num_items']} items, seed {shared['seed']}, {shared['num_steps']} steps"
    revision = f" {str(backend['revision'])[:6]}" if backend.get("revision") else ""
    return f"{backend['name']}{revision}{f' ({more})' if more else ''}, {items}"


def table_of(found: Mapping[str, Path], said: Mapping[str, Mapping[str, Any]], stem: str, group: str) -> ResultTable:
    """The table of runs of one backend and set of items, best first."""
    metrics = {name: read_metrics(folder / "metrics.json") for name, folder in found.items()}
    columns = [name for name in directions() if name not in COSTS and any(name in of for of in metrics.values())]
    labels, rows = labels_of(said), []
    for name, folder in found.items():
        own = said[name]["method"]["name"] == "none" and not {"guidance", "operators"} & said[name].keys()
        ours = cells_in(folder, own, [*COSTS, *columns])
        more = {"block": "reference" if own else "", "identity": dict(leaves(said[name])), "folder": folder}
        rows.append(Row(label=labels[name], run=name, settings=None, ours=ours, paper={}, **more))
    title = f"{len(rows)} runs: {group}" if len(rows) > 1 else f"{labels[rows[0].run]}: {group}"
    sort = next(
        (name for name in columns if any((f / "values" / f"{name}.json").is_file() for f in found.values())), None
    )
    return ResultTable(preset=PresetConfig(name=stem, title=title, columns=columns, sort=sort), rows=rows)


def identity_of(folder: Path) -> dict[str, Any]:
    """What a run is, as its config.yaml says."""
    path = folder / RECORD
    identity = read_config(path).get("identity")
    identity = identity if isinstance(identity, dict) else {}
    method = identity.get("method")
    named = isinstance(method, dict) and isinstance(method.get("name"), str)
    check(named, str(path), "must say the identity of a run, with its method", identity)
    return identity


SYMBOLS = {"interval": "N", "order": "m", "sigma": "σ", "num_steps": "steps of the solver"}


def labels_of(said: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A label per run: its method, and what else tells it from the others of its method."""
    flat = {name: complete(dict(leaves(identity))) for name, identity in said.items()}
    every = {key for of in flat.values() for key in of}
    kinds: dict[str, list[str]] = {}
    for name, of in flat.items():
        kinds.setdefault(title_of(of), []).append(name)
    found = {}
    for title, names in kinds.items():
        keys = dict.fromkeys(key for name in names for key in flat[name])
        telling = [key for key in keys if len({repr(flat[name].get(key)) for name in names}) > 1]
        shared = {key for key in SYMBOLS if len({repr(of[key]) for of in flat.values() if key in of}) > 1}
        for name in names:
            shown = [key for key in flat[name] if key in telling or key in shared]
            details = [f"{SYMBOLS.get(key) or end_of(key, every)}={short(flat[name][key])}" for key in shown]
            found[name] = f"{title} ({', '.join(details)})" if details else title
    return {name: label if list(found.values()).count(label) == 1 else name for name, label in found.items()}


def end_of(key: str, keys: Iterable[str]) -> str:
    """The last parts of a dotted key, as many as tell it from the other keys."""
    parts = key.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, 0, -1))
    return next((end for end in ends if not any(f".{k}".endswith(f".{end}") for k in keys if k != key)), key)


def complete(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with what the identity of a run with fewer steps leaves out."""
    return {**STEPS, **facts} if facts.get("method.name") == "steps" else facts


def title_of(facts: Mapping[str, Any]) -> str:
    """The name of a method, or of a solver."""
    solver = facts.get("method.solver")
    method = str(facts["method.name"])
    return SOLVERS.get(str(solver)) or METHOD_TITLES.get(method, method)


def short(value: Any) -> str:
    """A value of at most 24 letters."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
